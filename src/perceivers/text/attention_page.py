"""Shows what latents attend to in a text, as a page: `perceivers attention` (figure 7 of the appendix).

Shape suffixes: H heads, N latents, M tokens, U units of text
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

import torch
from torch import Tensor

from perceivers.adapters.text import TextInput
from perceivers.errors import PerceiversError
from perceivers.inference import check_folder, find_adapter, get_device, load_for_inference
from perceivers.model.intermediates import record_attention
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.saving import atomic_write
from perceivers.text.classify import find_task, task_heads, text_encoding
from perceivers.text.fill_mask import mask_tokens
from perceivers.text.task_output import TaskOutput
from perceivers.text.tokenizers import FIRST_BYTE, SPACE, SentencePiece, Tokenizer, tokenizer_of

MAX_LATENTS = 6
"""Maximum number of latents shown if none are named."""

MIN_INTENSITY = 0.1
"""White space with at least this fraction of the full color is shown by a symbol."""

SYMBOLS = str.maketrans({" ": "␣", "\n": "⏎\n", "\t": "⇥\t"})

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What latents read of a text</title>
<style>
:root { color-scheme: light dark; --back: #fff; --front: #1b1b1b; --quiet: #5c5c5c; --line: #ddd; --full: 255 150 40; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181c; --front: #f2f2f2; --quiet: #a5a9b0; --line: #33373e; --full: 178 74 0; }
}
body { background: var(--back); color: var(--front); font: 16px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.1rem; margin: 0; }
h3 { font-size: 1rem; font-weight: normal; margin: 1rem 0 0; }
section { border-top: 1px solid var(--line); padding: 1rem 0; }
.figures, .legend { color: var(--quiet); font-size: .875rem; margin: 0; }
.text { font: 1rem/1.7 ui-monospace, monospace; margin: .25rem 0 0; white-space: break-spaces;
  overflow-wrap: anywhere; }
b { background: rgb(var(--full) / var(--w)); font-weight: inherit; border-radius: 2px; }
i { border: 1px solid var(--line); border-radius: 4px; font-size: .75em; font-style: normal; padding: 0 .2em; }
.scale { background: linear-gradient(to right, rgb(var(--full) / 0), rgb(var(--full) / 1));
  border: 1px solid var(--line); display: inline-block; height: 1em; vertical-align: middle; width: 10em; }
</style>
</head>
<body>
<h1>What latents read of a text</h1>
<p>Each latent of a Perceiver IO reads the whole text by cross-attention: the weights that it gives to the $kind of the
text sum to 100%. Here they are the background of what is read; a character of several bytes has the sum of
theirs.$average</p>
<p>$choice</p>
<p class="legend">0% <span class="scale"></span> the largest weight of the row, which stands above it.
The entropy of the weights says how many $kind share the attention: 0 bits if all of it is on one, $most bits if
it is the same on all $count. ␣ is a blank, ⏎ a line end, ⇥ a tab, where they are attended to; what has a frame is a
token, or a character, that cannot be printed. Point at a place for its weight.</p>
$rows
</body>
</html>
""")


class Unit(NamedTuple):
    """A part of the text with one color: a character of one or more tokens, a piece of a word, or a special token.

    `tokens` are the indices of its tokens; where it is `framed`, `text` is a name instead of text.
    """

    text: str
    tokens: list[int]
    framed: bool = False


@torch.no_grad()
def attention_page(
    model: PerceiverIO | str | Path,
    text: str,
    out: str | Path,
    latents: Sequence[int] | None = None,
    heads: bool = False,
    task: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> list[int]:
    """Writes an HTML page with a text colored by the weights with which latents attend to it.

    They are the weights of the encoder's first cross-attention.

    Args:
        model, device, dtype: as in `load_for_inference`; a model of bytes that reads text, or the folder of any model.
        text: `[MASK]` stands for one masked token, `[MASK*9]` for nine.
        latents: indices of the latents to show; by default those of `select_latents`.
        heads: whether to show each attention head after the average over heads.
        task: as in `classify_text`, for a model with a token for each task.

    Returns:
        The indices of the latents shown.

    Raises:
        PerceiversError: the model reads no text or has no tokenizer, there is no such latent or task, the text is
            empty or longer than the model reads, or the file cannot be written.
    """
    check_folder(out)
    source, model = model, load_for_inference(model, device, dtype)
    name, adapter = find_adapter(model.inputs, TextInput, "attention")
    tokenizer = tokenizer_of(source, adapter.vocabulary)
    count = len(model.encoder.latents)
    for latent in latents or ():
        if not 0 <= latent < count:
            raise PerceiversError(f"there is no latent {latent}: the model has latents 0 to {count - 1}.")
    prefix, title = find_prefix(model, tokenizer, task)
    tokens = mask_tokens(text, tokenizer, adapter.length - len(prefix))
    if not tokens:
        raise PerceiversError("the text is empty: give one with words.")
    tokens = prefix + tokens
    units = split_units(tokens, tokenizer, title)
    weight_HNM = record_weights(model, name, tokens)
    weight_NM = weight_HNM.mean(0)
    if latents:
        shown = list(dict.fromkeys(latents))
        choice = "The latents, counted from 0, are those that were asked for."
    else:
        shown = select_latents(weight_NM, unit_weights(weight_NM, units))
        choice = (
            f"Of {count} latents, counted from 0, these are the {len(shown)} whose weights have the lowest entropy. "
            f"One was passed over if what it attends to most, up to half the weight, is what one before it does."
        )
    kind = "pieces" if isinstance(tokenizer, SentencePiece) else "bytes"
    rows = []
    for latent in shown:
        parts = [f"<h2>latent {latent}</h2>", format_row(weight_NM[latent], units, kind)]
        for head, weight_M in enumerate(weight_HNM[:, latent] if heads else []):
            parts += [f"<h3>latent {latent}, head {head}</h3>", format_row(weight_M, units, kind)]
        rows.append("\n".join(["<section>", *parts, "</section>"]))
    num_heads = len(weight_HNM)
    page = PAGE.substitute(
        kind=kind,
        average=f" They are averages over the {num_heads} heads of the attention." if num_heads > 1 else "",
        choice=choice,
        most=f"{torch.tensor(len(tokens)).log2():.2f}",
        count=len(tokens),
        rows="\n".join(rows),
    )
    atomic_write(Path(out), lambda file: file.write_text(page, encoding="utf-8"))
    return shown


def record_weights(model: PerceiverIO, name: str, tokens: Sequence[int]) -> Tensor:
    """Returns the weights of the encoder's first cross-attention to the text, input `name`; -> [H, N, M] in float32."""
    with record_attention(model.encoder.cross_attentions[0]) as maps:
        model.encode({name: torch.tensor([tokens], device=get_device(model))})
    return maps["attention"][0][0].cpu()


def find_prefix(model: PerceiverIO, tokenizer: Tokenizer, task: str | None) -> tuple[list[int], str]:
    """Returns the token in front of the texts of a task, if any, and its name."""
    if task is None and not any(isinstance(output, TaskOutput) for output in model.outputs.values()):
        return [], ""
    tasks, tokens = task_heads(model).tasks, text_encoding(model, tokenizer).prefix_tokens
    has_one_prefix = tokens is None or len(set(tokens)) == 1
    index = 0 if task is None and has_one_prefix else find_task(tasks, task)
    if tokens is None:
        return [], ""
    return [tokens[index]], "CLS" if tokens[index] == tokenizer.cls else tasks[index]


def split_units(tokens: Sequence[int], tokenizer: Tokenizer, title: str) -> list[Unit]:
    """Joins the tokens of bytes to characters; `title` is the text of a special token other than the mask."""
    units, content, indices = [], b"", list[int]()
    for index, token in enumerate(tokens):
        token_bytes = bytes_of(token, tokenizer)
        if token_bytes is None:
            units.append(Unit("MASK" if token == tokenizer.mask else title, [index], True))
            continue
        content, indices = content + token_bytes, [*indices, index]
        try:
            text = content.decode()
        except UnicodeDecodeError:  # within a character
            continue
        printable = all(character.isprintable() or ord(character) in SYMBOLS for character in text)
        units.append(Unit(text if printable else ascii(text)[1:-1], indices, not printable))
        content, indices = b"", []
    return units


def bytes_of(token: int, tokenizer: Tokenizer) -> bytes | None:
    """Returns the text of a token as bytes; None for a special token."""
    if not isinstance(tokenizer, SentencePiece):
        return bytes([token - FIRST_BYTE]) if FIRST_BYTE <= token < tokenizer.size else None
    if token >= tokenizer.size or tokenizer.special_V[token]:
        return None
    piece: str = tokenizer.pieces.id_to_piece(token)
    return bytes([int(piece[1:-1], 16)]) if tokenizer.pieces.is_byte(token) else piece.replace(SPACE, " ").encode()


def unit_weights(weight_NM: Tensor, units: Sequence[Unit]) -> Tensor:
    """Returns the weights of units, sums over their tokens; -> [N, U]."""
    return torch.stack([weight_NM[:, unit.tokens].sum(1) for unit in units], 1)


def entropy(weight_NM: Tensor) -> Tensor:
    """Returns entropies in bits; -> [N]."""
    return torch.special.entr(weight_NM).sum(-1) / torch.tensor(2.0).log()


def select_latents(weight_NM: Tensor, weight_NU: Tensor) -> list[int]:
    """Returns at most `MAX_LATENTS` latents with concentrated and distinct attention, lowest entropy first.

    One is skipped if its most attended units, as many as make up half the weight, are those of an earlier one.
    """
    chosen: dict[frozenset[int], int] = {}
    for latent in entropy(weight_NM).argsort(stable=True).tolist():
        value_U, unit_U = weight_NU[latent].sort(descending=True, stable=True)
        before_U = value_U.cumsum(0) - value_U
        chosen.setdefault(frozenset(unit_U[before_U < 0.5].tolist()), latent)
        if len(chosen) == MAX_LATENTS:
            break
    return list(chosen.values())


def format_row(weight_M: Tensor, units: Sequence[Unit], kind: str) -> str:
    """Returns the statistics of an attention map, and the colored text, as HTML."""
    (weight_U,) = unit_weights(weight_M[None], units)
    bits, largest = float(entropy(weight_M)), float(weight_U.max())
    most = units[int(weight_U.argmax())]
    most_text = most.text if most.framed else f"“{most.text.translate(SYMBOLS).strip()}”"
    figures = (
        f"entropy {bits:.2f} bits, as if spread evenly over {2**bits:.1f} {kind}; "
        f"largest weight {largest:.2%}, of {escape(most_text)}"
    )
    pairs = zip(units, weight_U.tolist(), strict=True)
    text = "".join(highlight(unit, weight, weight / largest) for unit, weight in pairs)
    return f'<p class="figures">{figures}</p>\n<p class="text" dir="auto">{text}</p>'


def highlight(unit: Unit, weight: float, intensity: float) -> str:
    """Returns a unit as HTML, with this fraction of the full color."""
    text = escape(unit.text.translate(SYMBOLS) if intensity >= MIN_INTENSITY and not unit.framed else unit.text)
    if unit.framed:
        text = f"<i>{text}</i>"
    if round(intensity, 2) == 0:
        return text
    return f'<b style="--w:{intensity:.2f}" title="{weight:.2%}">{text}</b>'
