"""Which elements of a set are chosen: one after another by a pointer network, or each by itself.

Shape suffixes: B batch, M elements, E channels of an element, C channels of the context, K channels of keys, T steps
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.model.linear import Linear, trunc_normal_parameter


class PointerNetwork(nn.Module):
    """Chooses elements one after another until it chooses to end (Vinyals et al., 2015), as AlphaStar does units.

    At each step a recurrent network that knows the context and what was chosen before asks a query; its products with
    the elements' keys, and with a learned key for the end, are logits of what comes next.

    Args:
        channels: E.
        context: C.
        key_channels: K.
    """

    def __init__(self, channels: int, context: int, key_channels: int = 32) -> None:
        super().__init__()
        self.key = Linear(channels, key_channels)
        self.end = trunc_normal_parameter(key_channels)
        self.context = nn.Sequential(Linear(context, 256), nn.ReLU(), Linear(256, key_channels))
        self.recurrent = nn.LSTM(2 * key_channels, 256, batch_first=True)
        self.query = Linear(256, key_channels)

    def keys(self, elements_BME: Tensor) -> Tensor:
        """Returns the keys of the elements, and behind them that of the end; [B, M + 1, K]."""
        key_BMK = self.key(elements_BME)
        return torch.cat([key_BMK, self.end.to(key_BMK.dtype).expand(len(key_BMK), 1, -1)], 1)

    def log_likelihood(
        self, elements_BME: Tensor, context_BC: Tensor, allowed_BM: Tensor, chosen_BM: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns how probable it is that just these are chosen, in the order in which they stand.

        Args:
            elements_BME: the elements.
            context_BC: what else is known.
            allowed_BM: which can be chosen.
            chosen_BM: which are; all of them allowed.

        Returns:
            Logarithms of the probabilities [B], and the numbers of steps, the end included [B].
        """
        key_BLK = self.keys(elements_BME)
        end = key_BLK.shape[1] - 1
        steps_B = chosen_BM.sum(1) + 1
        most = int(steps_B.max())
        # Places of what is chosen at each step; the end's from there on.
        place_BT = torch.full((len(chosen_BM), most), end, device=chosen_BM.device)
        rank_BM = chosen_BM.cumsum(1) - 1
        example_N, element_N = chosen_BM.nonzero(as_tuple=True)
        place_BT[example_N, rank_BM[example_N, element_N]] = element_N
        chosen_BTK = key_BLK.take_along_dim(place_BT[..., None], 1)
        count_T = torch.arange(most, device=key_BLK.device).clamp_min(1)[:, None]
        before_BTK = (F.pad(chosen_BTK, (0, 0, 1, 0))[:, :most].cumsum(1)) / count_T
        logits_BTL = self.logits(key_BLK, context_BC, before_BTK)
        open_BL = F.pad(allowed_BM, (0, 1), value=True)
        taken_BTL = F.one_hot(place_BT, end + 1).cumsum(1).roll(1, 1).bool()
        taken_BTL[:, 0] = False
        logits_BTL = logits_BTL.masked_fill(~open_BL[:, None] | taken_BTL, -torch.inf)
        log_BT = logits_BTL.log_softmax(-1).take_along_dim(place_BT[..., None], -1)[..., 0]
        real_BT = torch.arange(most, device=steps_B.device) < steps_B[:, None]
        return log_BT.where(real_BT, 0).sum(1), steps_B

    def logits(self, key_BLK: Tensor, context_BC: Tensor, before_BTK: Tensor) -> Tensor:
        """Returns logits of what comes at each step, after elements with these mean keys were chosen; [B, T, M + 1]."""
        context_B1K = self.context(context_BC)[:, None]
        hidden_BTH, _ = self.recurrent(torch.cat([before_BTK, context_B1K.expand_as(before_BTK)], -1))
        return (self.query(hidden_BTH) @ key_BLK.mT).float()

    @torch.no_grad()
    def choose(self, elements_BME: Tensor, context_BC: Tensor, allowed_BM: Tensor) -> Tensor:
        """Makes the most probable choice at each step, at least one; -> places in order of choice [B, T], -1 behind."""
        key_BLK = self.keys(elements_BME)
        batch, end = len(key_BLK), key_BLK.shape[1] - 1
        row_B = torch.arange(batch, device=key_BLK.device)
        open_BL = F.pad(allowed_BM, (0, 1), value=False)
        context_B1K = self.context(context_BC)[:, None]
        total_B1K, state = torch.zeros_like(context_B1K), None
        done_B = ~allowed_BM.any(1)
        steps: list[Tensor] = []
        while not done_B.all():
            before_B1K = total_B1K / max(1, len(steps))
            hidden_B1H, state = self.recurrent(torch.cat([before_B1K, context_B1K], -1), state)
            logits_BL = (self.query(hidden_B1H) @ key_BLK.mT).float()[:, 0].masked_fill(~open_BL, -torch.inf)
            place_B = logits_BL.argmax(1)
            done_B = done_B | (place_B == end)
            steps.append(place_B.where(~done_B, -1))
            open_BL[row_B, place_B] &= place_B == end
            open_BL[:, end] = True  # from the second step on
            total_B1K = total_B1K + key_BLK[row_B, place_B][:, None]
        return torch.stack(steps, 1) if steps else torch.full((batch, 0), -1, device=key_BLK.device)


class SeparateSelection(nn.Module):
    """Chooses each element by itself, the simple reference.

    Args:
        channels: E.
        context: C.
    """

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(Linear(channels + context, 256), nn.ReLU(), Linear(256, 1))

    def logits(self, elements_BME: Tensor, context_BC: Tensor) -> Tensor:
        """Returns the logit of each being chosen, [B, M]."""
        context_BMC = context_BC[:, None].expand(-1, elements_BME.shape[1], -1)
        logits_BM1: Tensor = self.layers(torch.cat([elements_BME, context_BMC], -1)).float()
        return logits_BM1[..., 0]

    def log_likelihood(
        self, elements_BME: Tensor, context_BC: Tensor, allowed_BM: Tensor, chosen_BM: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As in `PointerNetwork`; a step is an element that can be chosen."""
        loss_BM = F.binary_cross_entropy_with_logits(
            self.logits(elements_BME, context_BC), chosen_BM.float(), reduction="none"
        )
        return -(loss_BM * allowed_BM).sum(1), allowed_BM.sum(1)

    @torch.no_grad()
    def choose(self, elements_BME: Tensor, context_BC: Tensor, allowed_BM: Tensor) -> Tensor:
        """Chooses what is more probable than not, at least one; -> places [B, T], most probable first, -1 behind."""
        logits_BM = self.logits(elements_BME, context_BC).masked_fill(~allowed_BM, -torch.inf)
        logit_BM, place_BM = logits_BM.sort(1, descending=True)
        some_BM = logit_BM > 0
        some_BM[:, :1] |= logit_BM[:, :1] > -torch.inf
        return place_BM.where(some_BM, -1)[:, : max(1, int(some_BM.sum(1).max()))]
