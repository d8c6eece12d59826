"""The published models in the format of `transformers`: read, written, and the same answers on both sides."""

import json
from functools import partial

import pytest
import torch
import transformers
from safetensors.torch import load_file

import perceivers
from perceivers.adapters import ArrayInput, LabelOutput
from perceivers.adapters.image import IMAGENET_MEAN, IMAGENET_STD
from perceivers.clips.model import AutoencoderConfig
from perceivers.errors import PerceiversError
from perceivers.flow.model import OpticalFlowConfig
from perceivers.images.model import ImageClassifierConfig
from perceivers.model.config import to_config
from perceivers.released import transformers as port
from perceivers.released.export import to_transformers
from perceivers.text.model import LanguageConfig
from tests.support.peers import CONFIGS, peer


@torch.no_grad()
def ask_both(architecture, theirs, ours):
    """The answers of both models to the same random input, as lists of tensors."""
    torch.manual_seed(2)
    if architecture == port.LANGUAGE:
        token_BM = torch.randint(262, (2, 40))
        mask_BM = torch.arange(40) < torch.tensor([[40], [25]])
        expected = theirs(inputs=token_BM, attention_mask=mask_BM.long()).logits
        logits = ours({"text": perceivers.InputArray(token_BM, mask_BM)})["text"]
        return [logits[mask_BM]], [expected[mask_BM]]  # theirs answers for padding too
    if architecture == port.FLOW:
        frames = torch.rand(2, 2, 3, *theirs.config.train_size)
        return [ours({"frames": frames})["flow"]], [20 * theirs(inputs=patches(frames)).logits.movedim(-1, 1)]
    if architecture == port.AUTOENCODER:
        config = theirs.config
        _, time, height, width = config.output_shape
        video = torch.rand(1, time, 3, height, width)
        audio = torch.rand(1, time * config.audio_samples_per_frame) - 0.5
        label = torch.zeros(1, config.num_labels)
        points = {
            "image": torch.randint(time * height * width, (40,)),
            "audio": torch.randint(audio.shape[1] // config.samples_per_patch, (5,)),
            "label": None,
        }
        inputs = {"image": video, "audio": audio[..., None], "label": label}
        expected = theirs(inputs=inputs, subsampled_output_points=points).logits
        wanted = {"video": points["image"], "audio": points["audio"], "label": None}
        data = {"video": video, "audio": audio, "label": torch.tensor([0])}
        answers = ours(data, wanted, hidden={"label": torch.tensor([[True]])})
        return (
            [answers["video"], answers["audio"].flatten(1), answers["label"]],
            [expected["image"], expected["audio"], expected["label"]],
        )
    size = theirs.config.image_size if architecture == port.LEARNED else 36
    images = torch.rand(2, 3, size, size)
    mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD])[..., None, None]
    return [ours({"image": images})["label"]], [theirs(inputs=(images - mean) / std).logits]


def patches(frames):
    """What the flow model of theirs takes: at every pixel the 3 x 3 around it, of frames scaled to [-1, 1]."""
    padded = torch.nn.functional.pad(2 * frames - 1, (1, 1, 1, 1))
    height, width = frames.shape[-2:]
    shifted = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.cat(shifted, 2)


def assert_parity(ours, theirs):
    for our_answer, their_answer in zip(ours, theirs, strict=True):
        assert our_answer.shape == their_answer.shape
        assert (our_answer - their_answer).abs().max() / their_answer.std() < 1e-4


@pytest.mark.parametrize("architecture", CONFIGS)
def test_reads_what_transformers_wrote(architecture, tmp_path):
    theirs = peer(architecture, tmp_path)
    assert_parity(*ask_both(architecture, theirs, perceivers.load(tmp_path)))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_transformers_reads_what_we_wrote(architecture, tmp_path):
    peer(architecture, tmp_path / "theirs")
    ours = perceivers.load(tmp_path / "theirs")
    ours.save(tmp_path / "ours")
    ours = perceivers.load(tmp_path / "ours")
    to_transformers(ours, tmp_path / "back")
    theirs, report = getattr(transformers, architecture).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values())
    assert_parity(*ask_both(architecture, theirs.eval(), ours))
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


SIZES = {"latents": 6, "channels": 32, "depth": 1, "num_blocks": 2, "heads": 4}


def varied(model):
    """The model with weights that hide nothing, unlike zero biases and norms of one."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def classifier(**changes):
    return varied(
        ImageClassifierConfig(**(SIZES | {"image_size": 224, "query_channels": 32, "classes": 3} | changes)).build()
    )


def assert_reads_back(model, folder):
    """What was written describes the same model with the same weights."""
    back = perceivers.load(folder)
    assert to_config(back) == to_config(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        (port.FOURIER, {}),
        (port.LEARNED, {"positions": "learned", "feature_channels": 256, "image_size": 12}),
        (port.CONV, {"preprocessing": "conv", "padding": "transformers"}),
    ],
)
def test_a_classifier_without_query_residual_answers_the_same_there(architecture, settings, tmp_path):
    ours = classifier(query_residual=False, **settings)
    to_transformers(ours, tmp_path)
    theirs = getattr(transformers, architecture).from_pretrained(tmp_path).eval()
    answers = ask_both(architecture, theirs, ours)
    assert_parity(*answers)
    back = perceivers.load(tmp_path)
    assert back.decoder.query_residual, "read back, the query is taken away by the bias and added again"
    assert_parity(ask_both(architecture, theirs, back)[0], answers[1])
    ours.decoder.query_residual = True
    assert (ask_both(architecture, theirs, ours)[0][0] - answers[1][0]).abs().max() > 0.01, "the query would matter"


def test_writing_does_not_change_the_model(tmp_path):
    ours = classifier(query_residual=False)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    to_transformers(ours, tmp_path)
    assert not ours.decoder.query_residual
    assert ours.config["query_residual"] is False
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("gelu", ["tanh", "exact"])
def test_gelu_class_names_and_preprocessing_survive(gelu, tmp_path):
    names = ["ant", "bee", "LABEL_2"]
    ours = classifier(
        gelu=gelu,
        class_names=names,
        mean=[0.1, 0.2, 0.3],
        std=[0.4, 0.5, 0.6],
        crop=224 / 280,
        dropout=0.2,
        widening_factor=2,
    )
    to_transformers(ours, tmp_path)
    assert_reads_back(ours, tmp_path)
    theirs = transformers.PerceiverForImageClassificationFourier.from_pretrained(tmp_path).eval()
    assert [theirs.config.id2label[index] for index in range(3)] == names
    assert theirs.config.label2id["bee"] == 1
    images = torch.rand(1, 3, 20, 20)
    mean, std = (torch.tensor(value)[:, None, None] for value in ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    with torch.no_grad():
        assert_parity([ours({"image": images})["label"]], [theirs(inputs=(images - mean) / std).logits])
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (processor["size"]["height"], processor["crop_size"]["height"]) == (224, 280)


def tiny_language_model(**changes):
    sizes = {"length": 20, "embedding_channels": 24, "qk_channels": 16, "v_channels": 32, "decoder_v_channels": 24}
    return varied(LanguageConfig(**(SIZES | sizes | {"num_blocks": 1} | changes)).build())


def tiny_flow(**changes):
    return varied(OpticalFlowConfig(**(SIZES | {"image_size": (8, 12)} | changes)).build())


def tiny_autoencoder(**changes):
    sizes = {"frames": 2, "image_size": (8, 8), "samples_per_frame": 32, "classes": 3, "class_names": ["a", "b", "c"]}
    return varied(
        AutoencoderConfig(**(SIZES | sizes | {"label_query_channels": 8, "output_channels": 9} | changes)).build()
    )


@pytest.mark.parametrize("build", [tiny_language_model, tiny_flow, tiny_autoencoder])
@pytest.mark.parametrize("gelu", ["tanh", "exact"])
def test_models_of_other_tasks_read_back(build, gelu, tmp_path):
    model = build(gelu=gelu)
    to_transformers(model, tmp_path)
    assert_reads_back(model, tmp_path)


def custom(**names):
    """A model of nobody's task."""
    inputs, outputs = names.get("inputs", "points"), names.get("outputs", "label")
    return perceivers.PerceiverIO({inputs: ArrayInput(3)}, {outputs: LabelOutput(2, 8)}, 4, 16, 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            partial(classifier, preprocessing="conv"),
            r"no such model: inputs\.image\.features\.padding is 'same', but 'transformers' in its .*ConvProcessing",
        ),
        (partial(classifier, decoder="average"), r"no such model: outputs\.label\.query_channels is None, but 32 in"),
        (partial(classifier, query_channels=24), r"no such model: outputs\.label\.query_channels is 24, but 32"),
        (partial(classifier, bands=32), r"no such model: inputs\.image\.positions\.bands is 32, but 64"),
        (partial(classifier, patch_size=2), "no such model: inputs"),
        (partial(classifier, image_size=32), "no such model: inputs"),
        (partial(classifier, mean=[0.5], std=[0.5]), "no such model: inputs.image has 1 colors, not 3"),
        (partial(classifier, num_cross_attends=2), "no such model: num_cross_attends is 2, but 1"),
        (partial(tiny_language_model, decoder_heads=4), "no such model: decoder_heads is 4, but 8"),
        (partial(tiny_flow, scale=1.0), r"no such model: outputs\.flow\.scale is 1\.0, but 0\.2"),
        (partial(tiny_autoencoder, audio_bands=3), "no such model: inputs.audio.positions.bands is 3, but 192"),
        (custom, "no such model, from points to label: it has those of the published models"),
        (partial(custom, inputs="image"), "no such model, from image to label"),
        (partial(custom, inputs="text", outputs="text"), "no such model, from text to text"),
        (partial(custom, inputs="frames", outputs="flow"), "no such model, from frames to flow"),
    ],
)
def test_what_transformers_has_no_class_for_is_refused_and_nothing_is_written(build, message, tmp_path):
    with pytest.raises(PerceiversError, match=f"transformers has {message}"):
        to_transformers(build(), tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_an_autoencoder_of_other_adapters_is_refused(tmp_path):
    inputs = {name: ArrayInput(3) for name in ("video", "audio", "label")}
    outputs = {name: LabelOutput(2, 8) for name in inputs}
    with pytest.raises(PerceiversError, match="no such model, from video, audio, label to video, audio, label"):
        to_transformers(perceivers.PerceiverIO(inputs, outputs, 4, 16, 1), tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []
