import io
import json
import math
import sys
from collections import Counter

import pytest
import torch

from perceivers import PerceiversError
from perceivers.cli import main
from perceivers.text.byte_windows import AllWindows, ByteText
from perceivers.text.causal import CausalLanguageModel
from perceivers.text.generate import Reader, Sampler, decode, generate
from perceivers.training import learner
from tests.support.causal import causal, random_bytes
from tests.support.cli import fails
from tests.support.models import language

SIZES = [(12, 5), (24, 8), (9, 9), (12, 1), (6, 2)]


def without_cache(model, text, count):
    """Logits of `count` bytes after those before them, by a whole window each."""
    stride, latents, results = max(1, model.latents // 2), model.latents, []
    for end in range(len(text) - count, len(text)):
        if latents == model.latents:  # they have run out
            begun = max(0, end - (model.length - stride + 1))
            latents = min(end - begun, model.latents - stride + 1)
        else:
            latents += 1
        assert end - begun <= model.length
        results.append(model(torch.tensor([list(text[begun:end])]), latents)[0, -1])
    return results


@pytest.mark.parametrize("prompt", [1, 4, 7, 40])
@pytest.mark.parametrize(("length", "latents"), SIZES)
def test_logits_with_a_cache_are_those_without(length, latents, prompt):
    model = causal(length=length, latents=latents)
    text = bytes(random_bytes(prompt + 40).tolist())
    reader = Reader(model)
    got = [reader.read(text[:prompt]), *(reader.read(bytes([byte])) for byte in text[prompt:-1])]
    want = without_cache(model, text, 40)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


def test_only_new_bytes_are_computed(monkeypatch):
    model, sizes = causal(length=24, latents=8), []
    read = model.read
    monkeypatch.setattr(
        model,
        "read",
        lambda bytes, latents, caches: sizes.append((bytes.shape[1], latents)) or read(bytes, latents, caches),
    )
    list(generate(model, "x" * 50, 14))
    assert sizes == [
        (21, 5),
        (1, 1),
        (1, 1),
        (1, 1),
        (21, 5),
        (1, 1),
        (1, 1),
        (1, 1),
        (21, 5),
        *[(1, 1)] * 3,
        (21, 5),
        (1, 1),
    ]


@pytest.mark.parametrize(("length", "latents"), SIZES)
def test_an_evaluation_predicts_as_generation_does(tmp_path, length, latents):
    model = causal(length=length, latents=latents)
    content = bytes(random_bytes(1 + latents + 12 * model.stride).tolist())  # the last window predicts as many, too
    (tmp_path / "text.txt").write_bytes(content)
    samples = AllWindows(ByteText([tmp_path / "text.txt"]), 0, length, latents, model.stride)
    found = learner.evaluate(CausalLanguageModel(model), samples, 4)["bits_per_byte"]
    reader = Reader(model)
    logits = [reader.read(bytes([byte])) for byte in content[:-1]]
    nats = [-float(values.log_softmax(0)[byte]) for values, byte in zip(logits, content[1:], strict=True)]
    assert found == pytest.approx(sum(nats) / len(nats) / math.log(2), rel=1e-5)


def causal_of_text(cycle):
    """A model that always predicts the next byte of a cycle of bytes, since it sees nothing but the last byte."""
    model = causal(channels=64)
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.output.weight", "attention.output.bias", "mlp.output.weight", "mlp.output.bias")):
            parameter.data.zero_()
    model.norm.weight.data.fill_(1)
    model.norm.bias.data.zero_()
    model.output.weight.data.zero_()
    model.output.bias.data.zero_()
    with torch.no_grad():
        own = model.norm(model.embedding.weight)
        for byte, following in zip(cycle, cycle[1:] + cycle[:1], strict=True):
            model.output.weight[following] += own[byte]
    return model


def test_at_temperature_0_the_most_probable_byte_follows():
    assert "".join(generate(causal_of_text(b"abcdefgh"), "ab", 14, temperature=0)) == "cdefghabcdefgh"


def test_generation_ends_after_a_text_or_when_there_is_enough():
    model = causal_of_text("né中🙂.".encode())
    assert "".join(generate(model, "n", 30, temperature=0, stop="中")) == "é中"
    assert "".join(generate(model, "n", 30, temperature=0, stop="n")) == "é中🙂.n"
    assert "".join(generate(model, "n", 30, temperature=0, stop="é中🙂.né")) == "é中🙂.né"
    assert "".join(generate(model, "n", 6, temperature=0, stop="x")) == "é中\ufffd"
    assert "".join(generate(model, "中", 1, temperature=0)) == "\ufffd"


def test_text_comes_as_soon_as_its_characters_are_complete():
    taken = []

    def parts():
        for byte in "aé🙂".encode() + b"\xff\xc3b\xe4":
            taken.append(byte)
            yield bytes([byte])

    pieces = [(text, len(taken)) for text in decode(parts())]
    assert pieces == [("a", 1), ("é", 3), ("🙂", 7), ("\ufffd", 8), ("\ufffdb", 10), ("\ufffd", 11)]


def test_nothing_is_generated_before_it_is_asked_for():
    model = causal()
    pieces = generate(model, "ab", 10**9, seed=0)
    assert len([next(pieces) for _ in range(20)]) == 20
    assert not torch.is_inference_mode_enabled()


def test_a_prompt_that_is_too_long_loses_its_beginning(capsys):
    model = causal(length=24, latents=8)
    long = "".join(generate(model, "y" * 9 + "x" * 21, 10, seed=1))
    assert capsys.readouterr().err == "The prompt has 30 bytes: the model reads the last 21.\n"
    assert "".join(generate(model, "x" * 21, 10, seed=1)) == long
    assert capsys.readouterr().err == ""


def test_draws_follow_the_probabilities():
    logits = torch.full((256,), -1e9, dtype=torch.float64)
    logits[[3, 200, 77]] = torch.tensor([0.5, 0.3, 0.2]).double().log()
    for temperature, shares in ((1, (0.5, 0.3, 0.2)), (0.5, (25 / 38, 9 / 38, 4 / 38))):
        sampler = Sampler(temperature, seed=0)
        counts = Counter(sampler.draw(logits) for _ in range(4000))
        assert counts.keys() == {3, 200, 77}
        for byte, share in zip((3, 200, 77), shares, strict=True):
            assert counts[byte] / 4000 == pytest.approx(share, abs=0.03)
    for settings, bytes_left in [
        ({"top_k": 2}, {3, 200}),
        ({"top_k": 1}, {3}),
        ({"top_p": 0.49}, {3}),
        ({"top_p": 0.51}, {3, 200}),
        ({"top_p": 0.79}, {3, 200}),
        ({"top_p": 0.81}, {3, 200, 77}),
        ({"top_p": 0.62, "top_k": 2}, {3}),  # of the two, 3 has 0.625
        ({"top_p": 0.6, "temperature": 0.5}, {3}),
        ({"temperature": 1e-300}, {3}),
        ({"temperature": 0}, {3}),
    ]:
        sampler = Sampler(**{"seed": 1} | settings)
        assert {sampler.draw(logits) for _ in range(200)} == bytes_left, settings


def test_a_seed_gives_the_same_text_again():
    model = causal()
    one, two, other = ("".join(generate(model, "abc", 50, seed=seed)) for seed in (5, 5, 6))
    assert one == two != other
    assert "".join(generate(model, "abc", 50)) != "".join(generate(model, "abc", 50))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": ""}, "the prompt is empty: give at least one character to continue"),
        ({"prompt": "a\udcff"}, r"the text cannot be written in UTF-8: character 1 is '\\udcff'"),
        ({"length": 0}, "length = 0 is not allowed: it must be at least 1"),
        ({"temperature": -0.1}, "temperature = -0.1 is not allowed: it must be at least 0"),
        ({"temperature": math.nan}, "temperature = nan is not allowed"),
        ({"top_k": 0}, "top_k = 0 is not allowed: it must be at least 1 and at most 256"),
        ({"top_p": 0.0}, "top_p = 0.0 is not allowed: it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p = 1.5 is not allowed"),
        ({"seed": -1}, "seed = -1 is not allowed: it must be at least 0"),
        ({"stop": ""}, "stop = '' is not allowed: it must be some text, or left out"),
    ],
)
def test_settings_that_are_refused_at_once(settings, message):
    with pytest.raises(PerceiversError, match=message):
        generate(**{"model": causal(), "prompt": "abc"} | settings)


def test_a_model_that_has_diverged():
    model = causal()
    model.output.bias.data[7] = math.nan
    with pytest.raises(PerceiversError, match="the model's logits have NaN or infinite values"):
        next(generate(model, "abc"))


@pytest.fixture
def saved(tmp_path):
    causal().float().save(tmp_path / "model")
    return str(tmp_path / "model")


def test_the_command_prints_the_prompt_and_what_follows(saved, capsys, tmp_path, monkeypatch):
    prompt = "zwölf\r\nand more"
    (tmp_path / "prompt").write_bytes(f"{prompt}\n".encode())
    options = ["--length", "40", "--temperature", "0.8", "--top-k", "50", "--top-p", "0.9", "--seed", "3"]
    expected = "".join(generate(saved, prompt, 40, temperature=0.8, top_k=50, top_p=0.9, seed=3))
    for source in ([prompt], ["--file", str(tmp_path / "prompt")], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{prompt}\n".encode())))
        main(["generate", saved, *source, *options])
        assert capsys.readouterr().out == f"{prompt}{expected}\n"
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{prompt}\n".encode())))
        main(["generate", saved, *source, *options, "--json"])
        assert json.loads(capsys.readouterr().out) == {"prompt": prompt, "text": expected}
    causal_of_text(b"abcd").float().save(tmp_path / "cycle")
    main(["generate", str(tmp_path / "cycle"), "a", "--temperature", "0", "--stop", "dab"])
    assert capsys.readouterr().out == "abcdab\n"


def test_the_command_prints_every_piece_at_once(saved, monkeypatch):
    seen = []
    monkeypatch.setattr("builtins.print", lambda *text, **how: seen.append((text, how.get("flush"))))
    main(["generate", saved, "abc", "--length", "30", "--seed", "0"])
    assert seen[0] == (("abc",), True)
    assert len(seen) > 10
    assert all(flush for _, flush in seen[:-1])


def test_what_the_command_cannot_do_ends_in_one_sentence(saved, tmp_path, capsys):
    language().save(tmp_path / "language")
    for arguments, message in [
        ([saved, ""], "the prompt is empty"),
        ([saved], "generate needs one text"),
        ([saved, "a", "--file", "b"], "generate needs one text"),
        ([saved, "a", "--length", "0"], "length = 0 is not allowed: it must be at least 1"),
        ([saved, "a", "--temperature", "-1"], "temperature = -1.0 is not allowed: it must be at least 0"),
        ([saved, "a", "--top-k", "257"], "top_k = 257 is not allowed"),
        ([str(tmp_path / "language"), "a"], "is a PerceiverIO: a causal model, of the experiment causal_language, is"),
        ([str(tmp_path / "none"), "a"], "none is neither a folder nor a file here"),
    ]:
        assert message in fails(capsys, "generate", *arguments)
