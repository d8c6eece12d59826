import math
import re
from html.parser import HTMLParser

import pytest
import torch

from perceivers import PerceiversError
from perceivers.cli import main
from perceivers.text.attention_page import attention_page, record_weights, select_latents, split_units, unit_weights
from perceivers.text.fill_mask import mask_tokens
from perceivers.text.tokenizers import CLS, FIRST_BYTE, MASK, Bytes, SentencePiece, train_tokenizer
from tests.support.cli import fails
from tests.support.models import classifier, labels, language

TEXT = "né 🙂 <b>&amp;\t\n[MASK*2]\x00x\u202e"
UNITS = ["n", "é", " ", "🙂", " ", *"<b>&amp;\t\n", "MASK", "MASK", "\\x00", "x", "\\u202e"]


class Page(HTMLParser):
    """The rows of a page: of each its title, figures, text, and (text, color, weight) of what has a color."""

    def __init__(self, file):
        super().__init__()
        self.rows, self.inside, self.seen = [], [], set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.inside.append((tag, dict(attributes)))
        self.seen.add(tag)
        if tag in ("h2", "h3"):
            self.rows.append({"title": "", "figures": "", "text": "", "colored": []})
        if tag == "b":
            values = dict(attributes)
            self.rows[-1]["colored"].append(["", float(values["style"][4:]), float(values["title"][:-1]) / 100])

    def handle_endtag(self, tag):
        while self.inside.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tags = [tag for tag, _ in self.inside]
        kinds = [values.get("class") for _, values in self.inside]
        if "h2" in tags or "h3" in tags:
            self.rows[-1]["title"] += data
        for kind in ("figures", "text"):
            if kind in kinds:
                self.rows[-1][kind] += data
        if "b" in tags:
            self.rows[-1]["colored"][-1][0] += data


def formula(model, tokens):
    """The weights of the encoder's attention, as the paper has them; [H, N, M]."""
    cross = model.encoder.cross_attentions[0]
    x_MC = model.inputs["text"](torch.tensor([tokens])).x_BMC[0]
    q_NK = cross.attention.query(cross.norm_q(model.encoder.latents))
    k_MK = cross.attention.key(cross.norm_x(x_MC))
    heads = cross.attention.heads
    q_HNK, k_HMK = (x.unflatten(-1, (heads, -1)).transpose(0, 1).detach().double() for x in (q_NK, k_MK))
    exp_HNM = (q_HNK @ k_HMK.mT / math.sqrt(q_HNK.shape[-1])).exp()
    return exp_HNM / exp_HNM.sum(-1, keepdim=True)


@pytest.mark.parametrize("heads", [1, 2])
def test_weights_are_those_of_the_model(heads):
    model = language(cross_heads=heads)
    tokens = mask_tokens(TEXT, Bytes(), 48)
    weight_HNM = record_weights(model, "text", tokens)
    assert weight_HNM.shape == (heads, 6, 26)
    torch.testing.assert_close(weight_HNM.double(), formula(model, tokens), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight_HNM.sum(-1), torch.ones(heads, 6))


def test_characters_and_tokens_are_colored_as_one():
    tokens = mask_tokens(TEXT, Bytes(), 48)
    assert tokens[16:18] == [FIRST_BYTE + ord(";"), FIRST_BYTE + ord("\t")]
    assert [place for place, token in enumerate(tokens) if token == MASK] == [19, 20]
    units = split_units(tokens, Bytes(), "")
    assert [unit.text for unit in units] == UNITS
    assert [place for unit in units for place in unit.tokens] == list(range(26))
    assert [len(unit.tokens) for unit in units] == [len(c.encode()) for c in "né 🙂 <b>&amp;\t\nMM\x00x\u202e"]
    assert {unit.text for unit in units if unit.framed} == {"MASK", "\\x00", "\\u202e"}


def test_the_page_shows_the_weights(tmp_path):
    model = language()
    chosen = attention_page(model, TEXT, tmp_path / "a.html", [4, 1, 4], heads=True)
    assert chosen == [4, 1]
    page = Page(tmp_path / "a.html")
    weight_HNM = formula(model, mask_tokens(TEXT, Bytes(), 48))
    units = split_units(mask_tokens(TEXT, Bytes(), 48), Bytes(), "")
    expected = {}
    for latent in chosen:
        expected[f"latent {latent}"] = weight_HNM[:, latent].mean(0)
        expected |= {f"latent {latent}, head {head}": weight_HNM[head, latent] for head in (0, 1)}
    assert [row["title"] for row in page.rows] == list(expected)
    for row, weight_M in zip(page.rows, expected.values(), strict=True):
        weight_U = torch.stack([weight_M[unit.tokens].sum() for unit in units])
        colored = [(unit, float(w)) for unit, w in zip(units, weight_U, strict=True) if w / weight_U.max() > 0.0051]
        assert len(row["colored"]) >= len(colored) > 5
        assert [weight for *_, weight in row["colored"]] == pytest.approx(
            [float(w) for w in weight_U if w / weight_U.max() > 0.00499], abs=6e-5
        )
        by_weight = sorted(row["colored"], key=lambda seen: seen[2])
        assert [color for _, color, _ in by_weight] == sorted(color for _, color, _ in row["colored"])
        assert by_weight[-1][1] == 1
        bits = -float((weight_M * weight_M.log2()).sum())
        assert f"entropy {bits:.2f} bits, as if spread evenly over {2**bits:.1f} bytes" in row["figures"]
        assert f"largest weight {float(weight_U.max()):.2%}" in row["figures"]
        plain = re.sub("[␣⏎⇥](?=\\s)|␣", lambda sign: " " * (sign[0] == "␣"), row["text"])
        assert plain == "né 🙂 <b>&amp;\t\nMASKMASK\\x00x\\u202e"


def test_white_space_is_seen_where_it_is_attended_to(tmp_path, monkeypatch):
    from perceivers.text import attention_page as module

    weight_M = torch.tensor([0.02, 0.3, 0.02, 0.3, 0.02, 0.3, 0.02, 0.01, 0.01])
    monkeypatch.setattr(module, "record_weights", lambda *_: weight_M.expand(1, 6, 9))
    attention_page(language(), "a b\nc\td \t", tmp_path / "a.html")
    (row,) = Page(tmp_path / "a.html").rows
    assert row["text"] == "a␣b⏎\nc⇥\td \t"
    assert "largest weight 30.00%, of “␣”" in row["figures"]
    attention_page(language(), "a<bcdefgh", tmp_path / "a.html")
    assert "largest weight 30.00%, of “&lt;”" in (tmp_path / "a.html").read_text()


def test_the_page_is_one_file_without_scripts(tmp_path):
    attention_page(language(), '<script>alert("1")</script>', tmp_path / "a.html")
    page = Page(tmp_path / "a.html")
    assert not page.seen & {"script", "link", "img", "iframe"}
    content = (tmp_path / "a.html").read_text()
    for line in content.splitlines():
        if line.startswith('<p class="text"'):
            assert line.count("&lt;") == line.count("&gt;") == 2
            assert line.count("&quot;") == 2
    assert "http" not in content
    assert "url(" not in content
    assert "$" not in content
    assert "prefers-color-scheme: dark" in content


def test_latents_are_chosen_by_entropy_and_differ():
    rows = [
        [0.4, 0.3, 0.2, 0.1],
        [0.9, 0.1, 0.0, 0.0],  # lowest entropy but one
        [0.8, 0.1, 0.1, 0.0],  # half of its weight is on the same as of the one before
        [0.0, 0.0, 0.0, 1.0],
        [0.25, 0.25, 0.25, 0.25],
        [0.3, 0.4, 0.2, 0.1],  # as the first
    ]
    weight_NM = torch.tensor(rows)
    assert select_latents(weight_NM, weight_NM) == [3, 1, 0]
    many_NM = torch.eye(8) * 0.5 + torch.arange(8)[:, None] / 100 + 0.02
    many_NM = many_NM / many_NM.sum(1, keepdim=True)
    assert select_latents(many_NM, many_NM) == [0, 1, 2, 3, 4, 5]
    assert select_latents(
        weight_NM, unit_weights(weight_NM, split_units([FIRST_BYTE + b for b in "🙂".encode()], Bytes(), ""))
    ) == [3]


def test_the_page_says_who_chose(tmp_path):
    model = language()
    chosen = attention_page(model, "a text", tmp_path / "a.html")
    assert [row["title"] for row in Page(tmp_path / "a.html").rows] == [f"latent {latent}" for latent in chosen]
    assert f"Of 6 latents, counted from 0, these are the {len(chosen)} whose" in (tmp_path / "a.html").read_text()
    attention_page(model, "a text", tmp_path / "a.html", [2])
    assert "those that were asked for" in (tmp_path / "a.html").read_text()


@pytest.mark.parametrize(
    ("num_task_tokens", "shared", "task", "token", "title"),
    [
        (0, False, None, None, None),
        (0, True, None, CLS, "CLS"),
        (2, True, "b&c", 263, "b&c"),
        (0, True, "a", CLS, "CLS"),
    ],
)
def test_models_of_labels_read_their_first_token(num_task_tokens, shared, task, token, title, tmp_path):
    model = labels({"a": 2, "b&c": 3}, num_task_tokens=num_task_tokens, shared_query=shared)
    attention_page(model, "xyz", tmp_path / "a.html", [0], task=task)
    front = [] if token is None else [token]
    weight_M = formula(model, [*front, *Bytes().encode("xyz")]).mean(0)[0]
    (row,) = Page(tmp_path / "a.html").rows
    assert row["text"] == (title or "") + "xyz"
    assert [weight for *_, weight in row["colored"]] == pytest.approx(weight_M.tolist(), abs=6e-5)


def test_pieces_of_words(tmp_path):
    words = "the quick brown fox jumps over a lazy dog and runs away from all the other foxes"
    train_tokenizer([words] * 20, tmp_path / "words.model", 290)
    tokenizer = SentencePiece(tmp_path / "words.model")
    model = language(vocabulary=290)
    model.save(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    attention_page(tmp_path / "model", "the [MASK] é fox", tmp_path / "a.html", [1], device="cpu")
    (row,) = Page(tmp_path / "a.html").rows
    assert row["text"].replace("␣", " ") == " theMASK é fox"
    assert "é" in [text for text, *_ in row["colored"]]
    tokens = [*tokenizer.encode("the"), tokenizer.mask, *tokenizer.encode("é fox")]
    bits = -float(torch.special.xlogy(*[formula(model, tokens).mean(0)[1]] * 2).sum()) / math.log(2)
    assert f"entropy {bits:.2f} bits, as if spread evenly over {2**bits:.1f} pieces" in row["figures"]


def test_what_cannot_be_drawn(tmp_path):
    out = tmp_path / "a.html"
    model = language(length=8)
    for text, message in [
        ("", "the text is empty"),
        ("12345678[MASK]", "the text has 9 tokens, but the model reads at most 8"),
        ("a[MASK*0]", "masks nothing"),
        ("\udcff", "cannot be written in UTF-8"),
    ]:
        with pytest.raises(PerceiversError, match=message):
            attention_page(model, text, out)
    with pytest.raises(PerceiversError, match="there is no latent 6: the model has latents 0 to 5"):
        attention_page(model, "a", out, [5, 6])
    with pytest.raises(PerceiversError, match="the text has 8 tokens, but the model reads at most 7"):
        attention_page(labels(length=8, shared_query=True), "12345678", out)
    with pytest.raises(PerceiversError, match="several tasks: name one"):
        attention_page(labels({"a": 2, "b": 2}, num_task_tokens=2, shared_query=True), "x", out)
    with pytest.raises(PerceiversError, match="no task 'c'"):
        attention_page(labels({"a": 2, "b": 2}), "x", out, task="c")
    with pytest.raises(PerceiversError, match="does not classify texts"):
        attention_page(model, "x", out, task="c")
    with pytest.raises(PerceiversError, match=r"cannot do attention, which needs one TextInput"):
        attention_page(classifier(), "x", out)
    with pytest.raises(PerceiversError, match="there is no folder"):
        attention_page(model, "x", tmp_path / "none" / "a.html")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, capsys):
    model = language()
    model.save(tmp_path / "model")
    (tmp_path / "text").write_text("a text\n")
    out, ours = tmp_path / "a.html", tmp_path / "ours.html"
    attention_page(tmp_path / "model", "a text", ours, [3, 5], heads=True)
    named = ["--out", str(out), "--latents", "3", "5", "--heads"]
    for source in (["a text"], ["--file", str(tmp_path / "text")]):
        main(["attention", str(tmp_path / "model"), *source, *named])
        assert capsys.readouterr().out == f"{out}: attention of latents 3, 5 over the text.\n"
        assert out.read_bytes() == ours.read_bytes()
    assert "there is no latent 7" in fails(
        capsys, "attention", str(tmp_path / "model"), "a", "--out", str(out), "--latents", "7"
    )
    assert "attention needs one text" in fails(capsys, "attention", str(tmp_path / "model"), "--out", str(out))
