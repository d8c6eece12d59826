import copy

import pytest
import torch

from perceivers import PerceiversError
from perceivers.clips.classify import classify_clip
from perceivers.clips.reconstruct import autoencode
from perceivers.flow.estimate import estimate_flow
from perceivers.images.classify import classify_image
from perceivers.inference import check_folder, find_adapter, get_device, load_for_inference
from perceivers.text.classify import classify_text
from perceivers.text.fill_mask import fill_mask
from tests.clips.test_reconstruct import make_clip
from tests.images.test_classify import make_image
from tests.support.cli import fails
from tests.support.models import MODELS, TILE, language


def test_a_given_model_stays_as_and_where_it_is():
    model = language().train()
    before = {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.state_dict().items()}
    assert load_for_inference(model) is model
    assert not model.training
    assert {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.state_dict().items()} == before
    on_meta = copy.deepcopy(model).to("meta")
    assert get_device(load_for_inference(on_meta)).type == "meta"


def test_a_loaded_model_goes_to_the_accelerator_unless_told_otherwise(tmp_path, monkeypatch):
    language().save(tmp_path)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("meta"))
    assert get_device(load_for_inference(tmp_path)).type == "meta"
    assert get_device(load_for_inference(str(tmp_path), device="cpu")).type == "cpu"
    assert get_device(load_for_inference(language())).type == "cpu"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert get_device(load_for_inference(tmp_path)).type == "cpu"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_numbers_of_the_type_asked_for(dtype, tmp_path):
    language().save(tmp_path)
    for model in (load_for_inference(tmp_path, dtype=dtype), load_for_inference(language(), dtype=dtype)):
        assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    language().bfloat16().save(tmp_path)
    assert load_for_inference(tmp_path).encoder.latents.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("dtype", "message"), [("bfloat", "did you mean 'bfloat16'"), ("double", "there are: bfloat16, float16, float32")]
)
def test_unknown_types(dtype, message):
    with pytest.raises(PerceiversError, match=f"dtype = '{dtype}' is not allowed: {message}"):
        load_for_inference("not loaded", dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "privateuseone", ""])
def test_devices_that_there_are_not(device):
    with pytest.raises(PerceiversError, match=rf"device = '{device}' cannot be used here \([^\n]+\): try 'cpu'\.$"):
        load_for_inference(language(), device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_cuda_where_there_is_none(tmp_path, capsys):
    language().save(tmp_path)
    error = fails(capsys, "fill-mask", str(tmp_path), "a[MASK]", "--device", "cuda")
    assert "device = 'cuda' cannot be used here (" in error
    assert error.endswith("): try 'cpu'.\n")


def test_parts_are_found_by_their_kind():
    model = language()
    assert find_adapter(model.inputs, torch.nn.Module, "a task") == ("text", model.inputs["text"])
    with pytest.raises(PerceiversError, match=r"cannot do a task, which needs one Linear: it has 'text' \(TextInput\)"):
        find_adapter(model.inputs, torch.nn.Linear, "a task")
    twice = torch.nn.ModuleDict({"a": torch.nn.ReLU(), "b": torch.nn.ReLU()})
    with pytest.raises(PerceiversError, match=r"needs one ReLU: it has 'a' \(ReLU\), 'b' \(ReLU\)"):
        find_adapter(twice, torch.nn.ReLU, "a task")


def test_where_a_file_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_folder("out.flo")
    check_folder(tmp_path / "out.flo")
    with pytest.raises(PerceiversError, match=rf"cannot write none/x: there is no folder {tmp_path}/none; make it"):
        check_folder("none/x")
    with pytest.raises(PerceiversError, match=f"cannot write {tmp_path}: it is a folder"):
        check_folder(tmp_path)


@pytest.fixture
def ask(tmp_path):
    """The answer of each command's function, as numbers."""
    make_image(tmp_path / "image.png")
    clip = make_clip(tmp_path / "clip.mp4")
    frames = torch.rand(2, 3, *TILE)
    by_name = {
        "fill-mask": lambda model, **how: fill_mask(model, "ab[MASK*2]c", top=256, **how).candidates,
        "classify-text": lambda model, **how: classify_text(model, ["a text"], **how),
        "flow": lambda model, **how: estimate_flow(model, *frames, **how),
        "classify-image": lambda model, **how: classify_image(model, [tmp_path / "image.png"], **how),
        "classify-clip": lambda model, **how: classify_clip(model, [clip], **how),
        "autoencode": lambda model, **how: autoencode(model, clip, **how),
    }

    def numbers(answer):
        if isinstance(answer, list):
            return torch.tensor([[value for _, value in sorted(table.items())] for table in answer])
        return torch.cat([answer.video.flatten(), answer.audio]) if hasattr(answer, "video") else answer

    return lambda command, model, **how: numbers(by_name[command](model, **how))


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
@pytest.mark.parametrize("command", MODELS)
def test_every_command_computes_with_fewer_bits(ask, command, dtype, tolerance):
    errors = []
    for seed in range(5):  # a single model's error may be several times the mean
        torch.manual_seed(seed)
        model = MODELS[command]()
        exact = ask(command, model)
        rounded = ask(command, model, dtype=dtype)
        assert model.encoder.latents.dtype == getattr(torch, dtype)
        assert rounded.dtype == torch.float32
        errors.append((rounded - exact).norm() / exact.norm())
    assert min(errors) > 0
    assert sum(errors) / len(errors) < tolerance
