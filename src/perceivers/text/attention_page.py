"""What latents read of a text, as a page: `perceivers attention` (figure 7 of the appendix).

Shape suffixes: H heads, N latents, M tokens, U units of text
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import torch
from torch import Tensor

from perceivers.adapters.text import TextInput
from perceivers.errors import PerceiversError
from perceivers.inference import check_folder, find_adapter, get_device, load_for_inference
from perceivers.model.intermediates import record_attention
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.saving import write
from perceivers.text.classify import find_task, task_heads, text_code
from perceivers.text.fill_mask import split
from perceivers.text.task_output import TaskOutput
from perceivers.text.tokenizers import FIRST_BYTE, SPACE, SentencePiece, Tokenizer, tokenizer_of

CHOSEN = 6
"""How many latents are shown, if none are named."""

SHOWN = 0.1
"""White space gets a sign from this color on, as a part of the full one."""

SIGNS = {" ": "␣", "\n": "⏎\n", "\t": "⇥\t"}

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


@dataclass(frozen=True)
class Unit:
    """What is colored as one: a character of one or several tokens, a piece of a word, or a token that is no text.

    Attributes:
        text: how it is written.
        tokens: places of its tokens.
        framed: whether what is written is a name, not text.
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
    """Writes a page, of HTML, with a text in the colors of the weights by which latents read it.

    They are those of the encoder's first cross-attention.

    Args:
        model, device, dtype: as in `load_for_inference`; a model of bytes that reads text, or the folder of
            any.
        text: `[MASK]` stands for one masked token, `[MASK*9]` for nine.
        out: the file to write.
        latents: which to show, counted from 0; those of `choose`, if not given.
        heads: show, after the average over the heads of the attention, each of them.
        task: as in `classify_text`, for a model with a token for each task.

    Returns:
        The latents that are shown.

    Raises:
        PerceiversError: the model reads no text or lacks its tokenizer, there is no such latent or task, the text is
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
    front, title = first_token(model, tokenizer, task)
    tokens = front + encode(text, tokenizer, adapter.length - len(front))
    units = units_of(tokens, tokenizer, title)
    weight_HNM = weights(model, name, tokens)
    weight_NM = weight_HNM.mean(0)
    if latents:
        shown = list(dict.fromkeys(latents))
        choice = "The latents, counted from 0, are those that were asked for."
    else:
        shown = choose(weight_NM, together(weight_NM, units))
        choice = (
            f"Of {count} latents, counted from 0, these are the {len(shown)} whose weights have the lowest entropy. "
            f"One was passed over if what it attends to most, up to half the weight, is what one before it does."
        )
    kind = "pieces" if isinstance(tokenizer, SentencePiece) else "bytes"
    rows = []
    for latent in shown:
        parts = [f"<h2>latent {latent}</h2>", row(weight_NM[latent], units, kind)]
        for head, weight_M in enumerate(weight_HNM[:, latent] if heads else []):
            parts += [f"<h3>latent {latent}, head {head}</h3>", row(weight_M, units, kind)]
        rows.append("\n".join(["<section>", *parts, "</section>"]))
    several = len(weight_HNM) > 1
    page = PAGE.substitute(
        kind=kind,
        average=f" They are averages over the {len(weight_HNM)} heads of the attention." if several else "",
        choice=choice,
        most=f"{torch.tensor(len(tokens)).log2():.2f}",
        count=len(tokens),
        rows="\n".join(rows),
    )
    write(Path(out), lambda file: file.write_text(page, encoding="utf-8"))
    return shown


def weights(model: PerceiverIO, name: str, tokens: Sequence[int]) -> Tensor:
    """The weights of the encoder's first cross-attention to the text, input `name`; -> [H, N, M], in float32."""
    with record_attention(model.encoder.cross_attentions[0]) as maps:
        model.encode({name: torch.tensor([tokens], device=get_device(model))})
    return maps["attention"][0][0].cpu()


def first_token(model: PerceiverIO, tokenizer: Tokenizer, task: str | None) -> tuple[list[int], str]:
    """The token that stands in front of the texts of a task, if there is one, and how to write it."""
    if task is None and not any(isinstance(output, TaskOutput) for output in model.outputs.values()):
        return [], ""
    heads = task_heads(model)
    code = text_code(model, tokenizer)
    alike = code.first is None or len(set(code.first)) == 1
    number = 0 if task is None and alike else find_task(heads.tasks, task)
    if code.first is None:
        return [], ""
    return [code.first[number]], "CLS" if code.first[number] == tokenizer.cls else heads.tasks[number]


def encode(text: str, tokenizer: Tokenizer, length: int) -> list[int]:
    """The tokens of a text with marks, from 1 to `length`; they are counted before any mask is made."""
    parts, counts = split(text)
    known = [tokenizer.encode(part).tolist() for part in parts]
    size = sum(map(len, known)) + sum(counts)
    if size > length:
        raise PerceiversError(f"the text has {size} tokens, but the model reads at most {length}: shorten it.")
    if size == 0:
        raise PerceiversError("the text is empty: give one with words.")
    tokens: list[int] = known[0]
    for count, part in zip(counts, known[1:], strict=True):
        tokens = tokens + [tokenizer.mask] * count + part
    return tokens


def units_of(tokens: Sequence[int], tokenizer: Tokenizer, title: str) -> list[Unit]:
    """What is colored as one: bytes are joined to characters; `title` is written for what is no token of a text."""
    units, content, places = [], b"", list[int]()
    for place, token in enumerate(tokens):
        found = content_of(token, tokenizer)
        if found is None:
            units.append(Unit("MASK" if token == tokenizer.mask else title, [place], True))
            continue
        content, places = content + found, [*places, place]
        try:
            text = content.decode()
        except UnicodeDecodeError:  # within a character
            continue
        plain = all(character.isprintable() or character in SIGNS for character in text)
        units.append(Unit(text if plain else ascii(text)[1:-1], places, not plain))
        content, places = b"", []
    return units


def content_of(token: int, tokenizer: Tokenizer) -> bytes | None:
    """The bytes of text that a token stands for; None for one that is no text."""
    if not isinstance(tokenizer, SentencePiece):
        return bytes([token - FIRST_BYTE]) if FIRST_BYTE <= token < tokenizer.size else None
    if token >= tokenizer.size or tokenizer.special_V[token]:
        return None
    piece: str = tokenizer.pieces.id_to_piece(token)
    return bytes([int(piece[1:-1], 16)]) if tokenizer.pieces.is_byte(token) else piece.replace(SPACE, " ").encode()


def together(weight_NM: Tensor, units: Sequence[Unit]) -> Tensor:
    """The weights of units, sums of those of their tokens; -> [N, U]."""
    return torch.stack([weight_NM[:, unit.tokens].sum(1) for unit in units], 1)


def entropy(weight_NM: Tensor) -> Tensor:
    """In bits; -> [N]."""
    return torch.special.entr(weight_NM).sum(-1) / torch.tensor(2.0).log()


def choose(weight_NM: Tensor, weight_NU: Tensor) -> list[int]:
    """Latents of concentrated and different attention, `CHOSEN` at most, of lowest entropy first.

    One is left out if its most attended units, as many as it takes for half the weight, are those of one before it.
    """
    chosen: dict[frozenset[int], int] = {}
    for latent in entropy(weight_NM).argsort(stable=True).tolist():
        value_U, unit_U = weight_NU[latent].sort(descending=True, stable=True)
        before_U = value_U.cumsum(0) - value_U
        chosen.setdefault(frozenset(unit_U[before_U < 0.5].tolist()), latent)
        if len(chosen) == CHOSEN:
            break
    return list(chosen.values())


def row(weight_M: Tensor, units: Sequence[Unit], kind: str) -> str:
    """Figures of a map, and the text in its colors."""
    (weight_U,) = together(weight_M[None], units)
    bits, largest = float(entropy(weight_M)), float(weight_U.max())
    most = units[int(weight_U.argmax())]
    figures = (
        f"entropy {bits:.2f} bits, as if spread evenly over {2**bits:.1f} {kind}; "
        f"largest weight {largest:.2%}, of {escape(spell(most))}"
    )
    text = "".join(
        colored(unit, weight, weight / largest) for unit, weight in zip(units, weight_U.tolist(), strict=True)
    )
    return f'<p class="figures">{figures}</p>\n<p class="text" dir="auto">{text}</p>'


def spell(unit: Unit) -> str:
    """A unit in a sentence."""
    return unit.text if unit.framed else f"“{signs(unit.text).strip()}”"


def signs(text: str) -> str:
    """Text with a sign for each white space in it."""
    return "".join(SIGNS.get(character, character) for character in text)


def colored(unit: Unit, weight: float, part: float) -> str:
    """A unit in its color, `part` of the full one."""
    text = escape(signs(unit.text) if part >= SHOWN and not unit.framed else unit.text)
    if unit.framed:
        text = f"<i>{text}</i>"
    if round(part, 2) == 0:
        return text
    return f'<b style="--w:{part:.2f}" title="{weight:.2%}">{text}</b>'
