"""Selection of elements of a set: one after another by a pointer network, or each independently.

Shape suffixes: B batch, M elements, L elements and the end, E element channels, C context channels, K key channels,
T steps
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.model.linear import Linear, trunc_normal_parameter


class PointerNetwork(nn.Module):
    """Selects elements one after another until it selects the end (Vinyals et al., 2015), as AlphaStar selects units.

    At each step a recurrent network makes a query from the context and the elements selected before. Its products with
    the keys of the elements, and with a learned key of the end, are the logits of the next element.
    """

    def __init__(self, channels: int, context: int, key_channels: int = 32) -> None:
        super().__init__()
        self.key = Linear(channels, key_channels)
        self.end = trunc_normal_parameter(key_channels)
        self.context = nn.Sequential(Linear(context, 256), nn.ReLU(), Linear(256, key_channels))
        self.recurrent = nn.LSTM(2 * key_channels, 256, batch_first=True)
        self.query = Linear(256, key_channels)

    def compute_keys(self, elements_BME: Tensor) -> Tensor:
        """Returns the keys of the elements and, after them, of the end; [B, M + 1, K]."""
        key_BMK = self.key(elements_BME)
        return torch.cat([key_BMK, self.end.to(key_BMK.dtype).expand(len(key_BMK), 1, -1)], 1)

    def log_likelihood(
        self, elements_BME: Tensor, context_BC: Tensor, allowed_BM: Tensor, chosen_BM: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the log-likelihood [B] of selecting exactly the chosen elements in index order, and its steps [B].

        `chosen_BM` is a subset of `allowed_BM`, the elements that may be selected. The end counts as a step.
        """
        key_BLK = self.compute_keys(elements_BME)
        end = key_BLK.shape[1] - 1
        steps_B = chosen_BM.sum(1) + 1
        max_steps = int(steps_B.max())
        # Indices of the elements selected at each step, followed by the end's.
        index_BT = torch.full((len(chosen_BM), max_steps), end, device=chosen_BM.device)
        rank_BM = chosen_BM.cumsum(1) - 1
        example_N, element_N = chosen_BM.nonzero(as_tuple=True)
        index_BT[example_N, rank_BM[example_N, element_N]] = element_N
        selected_BTK = key_BLK.take_along_dim(index_BT[..., None], 1)
        count_T = torch.arange(max_steps, device=key_BLK.device).clamp_min(1)[:, None]
        mean_selected_BTK = F.pad(selected_BTK, (0, 0, 1, 0))[:, :max_steps].cumsum(1) / count_T
        logits_BTL = self.compute_logits(key_BLK, context_BC, mean_selected_BTK)
        selectable_BL = F.pad(allowed_BM, (0, 1), value=True)
        is_selected_BTL = F.one_hot(index_BT, end + 1).cumsum(1).roll(1, 1).bool()
        is_selected_BTL[:, 0] = False
        logits_BTL = logits_BTL.masked_fill(~selectable_BL[:, None] | is_selected_BTL, -torch.inf)
        log_BT = logits_BTL.log_softmax(-1).take_along_dim(index_BT[..., None], -1)[..., 0]
        is_step_BT = torch.arange(max_steps, device=steps_B.device) < steps_B[:, None]
        return log_BT.where(is_step_BT, 0).sum(1), steps_B

    def compute_logits(self, key_BLK: Tensor, context_BC: Tensor, mean_selected_BTK: Tensor) -> Tensor:
        """Returns the logits of each step, given the mean key of the elements selected before it; [B, T, M + 1]."""
        context_B1K = self.context(context_BC)[:, None]
        hidden_BTH, _ = self.recurrent(torch.cat([mean_selected_BTK, context_B1K.expand_as(mean_selected_BTK)], -1))
        return (self.query(hidden_BTH) @ key_BLK.mT).float()

    @torch.no_grad()
    def greedy_select(self, elements_BME: Tensor, context_BC: Tensor, allowed_BM: Tensor) -> Tensor:
        """Selects the most probable element at each step, at least one; -> indices in order [B, T], padded with -1."""
        key_BLK = self.compute_keys(elements_BME)
        batch, end = len(key_BLK), key_BLK.shape[1] - 1
        row_B = torch.arange(batch, device=key_BLK.device)
        selectable_BL = F.pad(allowed_BM, (0, 1), value=False)
        context_B1K = self.context(context_BC)[:, None]
        total_B1K, state = torch.zeros_like(context_B1K), None
        is_done_B = ~allowed_BM.any(1)
        steps: list[Tensor] = []
        while not is_done_B.all():
            mean_selected_B1K = total_B1K / max(1, len(steps))
            hidden_B1H, state = self.recurrent(torch.cat([mean_selected_B1K, context_B1K], -1), state)
            logits_BL = (self.query(hidden_B1H) @ key_BLK.mT).float()[:, 0].masked_fill(~selectable_BL, -torch.inf)
            index_B = logits_BL.argmax(1)
            is_done_B = is_done_B | (index_B == end)
            steps.append(index_B.where(~is_done_B, -1))
            selectable_BL[row_B, index_B] &= index_B == end
            selectable_BL[:, end] = True  # from the second step on
            total_B1K = total_B1K + key_BLK[row_B, index_B][:, None]
        return torch.stack(steps, 1) if steps else torch.full((batch, 0), -1, device=key_BLK.device)


class IndependentSelection(nn.Module):
    """Selects each element independently of the others: a simple baseline, called like `PointerNetwork`."""

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(Linear(channels + context, 256), nn.ReLU(), Linear(256, 1))

    def compute_logits(self, elements_BME: Tensor, context_BC: Tensor) -> Tensor:
        """Returns the logit of selecting each element, [B, M]."""
        context_BMC = context_BC[:, None].expand(-1, elements_BME.shape[1], -1)
        logits_BM1: Tensor = self.layers(torch.cat([elements_BME, context_BMC], -1)).float()
        return logits_BM1[..., 0]

    def log_likelihood(
        self, elements_BME: Tensor, context_BC: Tensor, allowed_BM: Tensor, chosen_BM: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the same as in `PointerNetwork`; every element that may be selected counts as a step."""
        logits_BM = self.compute_logits(elements_BME, context_BC)
        loss_BM = F.binary_cross_entropy_with_logits(logits_BM, chosen_BM.float(), reduction="none")
        return -(loss_BM * allowed_BM).sum(1), allowed_BM.sum(1)

    @torch.no_grad()
    def greedy_select(self, elements_BME: Tensor, context_BC: Tensor, allowed_BM: Tensor) -> Tensor:
        """Selects elements of probability above one half, or the most probable one; -> indices [B, T], as above."""
        logits_BM = self.compute_logits(elements_BME, context_BC).masked_fill(~allowed_BM, -torch.inf)
        logit_BM, index_BM = logits_BM.sort(1, descending=True)
        is_selected_BM = logit_BM > 0
        is_selected_BM[:, :1] |= logit_BM[:, :1] > -torch.inf
        return index_BM.where(is_selected_BM, -1)[:, : max(1, int(is_selected_BM.sum(1).max()))]
