import io
import json
import sys

import pytest
import torch

import perceivers
from perceivers import PerceiversError
from perceivers.cli import main
from perceivers.text.fill_mask import fill_mask
from perceivers.text.tokenizers import FIRST_BYTE, MASK
from tests.support.cli import fails
from tests.support.models import classifier, language

TEXTS = {
    "one mark": ("abc[MASK]def", ["abc", 1, "def"]),
    "nine bytes": ("some words are[MASK*9].", ["some words are", 9, "."]),
    "several marks": ("a[MASK]b[MASK*3][MASK] c", ["a", 1, "b", 3, 1, " c"]),
    "at the beginning": ("[MASK*2]end", [2, "end"]),
    "at the end": ("start[MASK*3]", ["start", 3]),
    "nothing else": ("[MASK]", [1]),
    "characters of several bytes": ("né中🙂[MASK*4]🙂é[MASK]", ["né中🙂", 4, "🙂é", 1]),
    "almost a mark": ("[MASK *2] [mask][MASK*2][MASK*]", ["[MASK *2] [mask]", 2, "[MASK*]"]),
    "a line end": ("a\r\nb[MASK]\n", ["a\r\nb", 1, "\n"]),
}


def tokens_of(parts):
    return [
        token
        for part in parts
        for token in ([MASK] * part if isinstance(part, int) else [FIRST_BYTE + byte for byte in part.encode()])
    ]


def byte_of(spelling):
    """A printable character, or \\x and two digits."""
    return ord(spelling) if len(spelling) == 1 else int(spelling.removeprefix("\\x"), 16)


@pytest.fixture
def saved(tmp_path):
    model = language()
    model.save(tmp_path / "model")
    return model, str(tmp_path / "model")


@pytest.mark.parametrize("case", TEXTS)
def test_it_gives_the_most_probable_bytes_of_a_full_decode(case):
    text, parts = TEXTS[case]
    model = language()
    model.outputs["text"].bias.data[:FIRST_BYTE] = 50.0  # special tokens would win if they could
    tokens = tokens_of(parts)
    places = [place for place, token in enumerate(tokens) if token == MASK]
    logits_MV = model({"text": torch.tensor([tokens])})["text"][0].detach().double()
    content = bytearray(max(token - FIRST_BYTE, 0) for token in tokens)
    filled = fill_mask(model, text, top=256)
    assert filled.masked == places
    for place, candidates in zip(places, filled.candidates, strict=True):
        weights = logits_MV[place, FIRST_BYTE:].exp()
        content[place] = max(range(256), key=weights.tolist().__getitem__)
        assert {byte_of(byte): value for byte, value in candidates.items()} == pytest.approx(
            {byte: float(weights[byte] / weights.sum()) for byte in range(256)}, rel=1e-4
        )
        assert list(candidates.values()) == sorted(candidates.values(), reverse=True)
    assert filled.text == content.decode(errors="replace")


def test_bytes_that_are_not_printable_are_written_as_in_python():
    model = language()
    model.outputs["text"].bias.data[FIRST_BYTE + torch.tensor([0xC3, 0x0A, 0x7F, 0x20, 0x7E])] = torch.tensor(
        [90.0, 80, 70, 60, 50]
    )
    filled = fill_mask(model, "x[MASK]y")
    assert list(filled.candidates[0]) == ["\\xc3", "\\x0a", "\\x7f", " ", "~"]
    assert filled.text == "x\ufffdy"


def test_only_masked_places_are_decoded_and_nothing_is_padded():
    model, read, asked = language(), [], []
    model.encoder.cross_attentions[0].norm_x.register_forward_hook(lambda *call: read.append(call[2].shape))
    model.decoder.attention.query.register_forward_hook(lambda *call: asked.append(call[2].shape))
    fill_mask(model, "ab[MASK]cd[MASK*4]é")
    assert [shape[:2] for shape in read] == [(1, 11)]
    assert sum(shape[1] for shape in asked) == 5


def test_a_text_answers_as_in_a_padded_batch():
    model = language()
    short, long = tokens_of(["hello", 2, "x"]), tokens_of(["a longer text"])
    batch = torch.tensor([short + [0] * (len(long) - len(short)), long])
    attended = torch.arange(len(long)) < torch.tensor([[len(short)], [len(long)]])
    logits_V = model({"text": perceivers.InputArray(batch, attended)})["text"][0, 5].detach()
    expected = logits_V[FIRST_BYTE:].softmax(0).sort(descending=True)
    candidates = fill_mask(model, "hello[MASK*2]x", top=3).candidates[0]
    assert [byte_of(byte) for byte in candidates] == expected.indices[:3].tolist()
    assert list(candidates.values()) == pytest.approx(expected.values[:3].tolist(), rel=1e-4)


def test_a_given_model_can_be_trained_afterwards():
    model = language()
    fill_mask(model, "a[MASK]", dtype="bfloat16")
    model.train()({"text": torch.tensor([[FIRST_BYTE]])})["text"].sum().backward()
    assert model.encoder.latents.grad is not None


def test_the_longest_text_fits():
    model = language(length=8)
    assert fill_mask(model, "abcdef[MASK*2]").masked == [6, 7]
    with pytest.raises(PerceiversError, match="the text has 9 bytes, but the model reads at most 8"):
        fill_mask(model, "abcdef[MASK*3]")
    with pytest.raises(PerceiversError, match="the text has 9 bytes, but the model reads at most 8"):
        fill_mask(model, "🙂🙂[MASK]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text has no mask: write"),
        ("no mark, not [mask] either", "the text has no mask: write"),
        ("a[MASK][MASK*0]", r"\[MASK\*0\] masks nothing"),
        ("a[MASK*00]", r"\[MASK\*0\] masks nothing"),
        (f"[MASK*{10**15}]a", f"the text has {10**15 + 1} bytes, but the model reads at most 20"),
        ("\udcff[MASK]", r"the text cannot be written in UTF-8: character 0 is '\\udcff'"),
    ],
)
def test_texts_that_cannot_be_filled_in(text, message):
    with pytest.raises(PerceiversError, match=message):
        fill_mask(language(length=20), text)


@pytest.mark.parametrize("top", [0, -1, 257])
def test_top_is_a_number_of_bytes(top):
    with pytest.raises(PerceiversError, match=f"top = {top} is not allowed: it must be from 1 to 256"):
        fill_mask(language(), "a[MASK]", top=top)


def test_other_models_are_refused():
    with pytest.raises(PerceiversError, match=r"cannot do fill-mask.* one TextInput: it has 'image' \(ImageInput\)"):
        fill_mask(classifier(), "a[MASK]")
    with pytest.raises(PerceiversError, match="needs a model of bytes, with 262 tokens: this one has 300"):
        fill_mask(language(vocabulary=300), "a[MASK]")


def test_the_command_prints_the_text_and_the_candidates(saved, capsys):
    model, folder = saved
    filled = fill_mask(model, "ab[MASK*2]c", top=2)
    main(["fill-mask", folder, "ab[MASK*2]c", "--top", "2"])
    expected = [filled.text]
    for place, candidates in zip((2, 3), filled.candidates, strict=True):
        (first, high), (second, low) = candidates.items()
        expected.append(f"  byte {place}: '{first}' {100 * high:.1f}%  '{second}' {100 * low:.1f}%")
    assert capsys.readouterr().out.splitlines() == expected


def test_the_command_reads_arguments_files_and_standard_input_alike(saved, tmp_path, capsys, monkeypatch):
    model, folder = saved
    text = "zwölf\r\n[MASK*3]!"
    content = f"{text}\n".encode()  # as editors and shells end it
    (tmp_path / "text").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="latin-1"))
    filled = fill_mask(model, text, top=3)
    assert filled.masked == [8, 9, 10]
    expected = {"text": filled.text, "masked": filled.masked, "candidates": filled.candidates}
    for source in ([text], ["--file", str(tmp_path / "text")], ["-"]):
        main(["fill-mask", folder, *source, "--top", "3", "--json"])
        answer = json.loads(capsys.readouterr().out)
        assert list(answer) == ["text", "masked", "candidates"]
        assert [list(candidates) for candidates in answer["candidates"]] == [list(c) for c in filled.candidates]
        assert answer["text"] == expected["text"]
        assert answer["masked"] == expected["masked"]
        for got, wanted in zip(answer["candidates"], expected["candidates"], strict=True):
            assert got == pytest.approx(wanted)


def test_standard_input_that_is_no_text(saved, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff[MASK]")))
    assert "standard input is not UTF-8 text: byte 0 is 0xff" in fails(capsys, "fill-mask", saved[1], "-")


def test_what_the_command_cannot_do_ends_in_one_sentence(saved, tmp_path, capsys):
    _, folder = saved
    (tmp_path / "latin").write_bytes(b"caf\xe9 [MASK]")
    classifier().save(tmp_path / "classifier")
    for arguments, message in [
        (["no mask"], "the text has no mask"),
        ([""], "the text has no mask"),
        (["[MASK*0]"], "masks nothing"),
        (["[MASK*49]"], "the text has 49 bytes, but the model reads at most 48"),
        (["a[MASK]", "--top", "300"], "top = 300 is not allowed"),
        ([], "fill-mask needs one text"),
        (["a[MASK]", "--file", str(tmp_path / "latin")], "fill-mask needs one text"),
        (["--file", str(tmp_path / "latin")], "latin is not UTF-8 text: byte 3 is 0xe9"),
        (["--file", str(tmp_path / "none")], "none is not a readable file"),
        (["--file", str(tmp_path)], "is not a readable file"),
    ]:
        assert message in fails(capsys, "fill-mask", folder, *arguments)
    assert "cannot do fill-mask" in fails(capsys, "fill-mask", str(tmp_path / "classifier"), "a[MASK]")
