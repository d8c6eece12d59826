"""A tiny vision-language model: a resampler turns an image into tokens before the text of a language model.

    python examples/resampler.py

It spells the names of handwritten digits, letter by letter. Needs scikit-learn, for its images.

Shape suffixes: B batch, R rows of an image, P pixels of a row, N tokens of an image, L letters, T = N + L, D channels
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from perceivers import Resampler

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LETTERS = "<>" + "".join(sorted(set("".join(NAMES))))  # begin, end, and letters
LENGTH = 7  # of the longest name, with begin and end


class SpellingModel(nn.Module):
    """A causal language model that sees an image as its first tokens."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.resampler = Resampler(8, channels, latents=4, depth=2, heads=4, positions=8)
        self.embedding = nn.Embedding(len(LETTERS), channels)
        self.positions = nn.Embedding(LENGTH, channels)
        layer = nn.TransformerEncoderLayer(channels, 4, 4 * channels, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(channels), enable_nested_tensor=False)
        self.head = nn.Linear(channels, len(LETTERS))

    def forward(self, x_BRP: Tensor, letter_BL: Tensor) -> Tensor:
        """Returns the logits of the letter that follows each; [B, R, P], [B, L] -> [B, L, letters]."""
        image_BND = self.resampler(x_BRP)
        text_BLD = self.embedding(letter_BL) + self.positions.weight[: letter_BL.shape[1]]
        x_BTD = torch.cat([image_BND, text_BLD], 1)
        mask_TT = nn.Transformer.generate_square_subsequent_mask(x_BTD.shape[1])
        return self.head(self.layers(x_BTD, mask_TT, is_causal=True))[:, image_BND.shape[1] :]

    @torch.no_grad()
    def spell(self, x_BRP: Tensor) -> list[str]:
        """Returns the most probable text of each image, letter after letter."""
        letter_BL = torch.zeros(len(x_BRP), 1, dtype=torch.long)
        for _ in range(LENGTH - 1):
            letter_BL = torch.cat([letter_BL, self(x_BRP, letter_BL)[:, -1:].argmax(-1)], 1)
        return ["".join(LETTERS[letter] for letter in row[1:]).split(">")[0] for row in letter_BL.tolist()]


def main(steps: int = 300) -> float:
    """Trains on 1,500 images; returns the fraction of the other 297 whose names are spelled without a mistake."""
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    order_B = torch.randperm(len(labels))
    x_BRP, label_B = torch.from_numpy(pixels).float()[order_B].view(-1, 8, 8) / 8 - 1, torch.from_numpy(labels)[order_B]
    names = torch.tensor([[LETTERS.index(letter) for letter in f"<{name}>".ljust(LENGTH, ">")] for name in NAMES])
    model = SpellingModel()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        index_B = torch.randint(1500, (128,))
        letter_BL = names[label_B[index_B]]
        logits_BLK = model(x_BRP[index_B], letter_BL[:, :-1])
        loss = F.cross_entropy(logits_BLK.flatten(0, 1), letter_BL[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    found, wanted = model.eval().spell(x_BRP[1500:]), [NAMES[label] for label in label_B[1500:]]
    accuracy = sum(map(str.__eq__, found, wanted)) / len(wanted)
    print(f"{accuracy:.1%} of {len(wanted)} new images are spelled right, the first as {', '.join(found[:5])}.")
    return accuracy


if __name__ == "__main__":
    torch.set_num_threads(1)  # more threads only slow down a model this small
    main()
