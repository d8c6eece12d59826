"""Files are run on sizes other than those they were traced and checked with, and compared with the model itself."""

import json

import onnx
import onnxruntime
import pytest
import torch
from torch.export import Dim

import perceivers
from perceivers import PerceiverIO, PerceiversError
from perceivers.adapters import ArrayInput, ArrayOutput, LabelOutput
from perceivers.adapters.ngrams import HashedNgrams
from perceivers.adapters.set import SetOutput
from perceivers.cli import main
from perceivers.export import export
from perceivers.export.export import export_model
from perceivers.export.formats import open_file, write_file
from perceivers.export.int8 import Quantization, relative_error
from perceivers.model.adapter import InputAdapter, InputArray
from perceivers.model.positions import FourierFeatures
from perceivers.text.tokenizers import Bytes
from tests.support.cli import fails
from tests.support.models import TRUNK, classifier, coder, hearer, labels, language, optical, shaken
from tests.support.tables import answer, as_rows, learned, small_model
from tests.support.texts import draw_texts

MODELS = {
    "language": language,
    "fourier": lambda: classifier(num_blocks=1),
    "learned": lambda: classifier(num_blocks=1, positions="learned", position_channels=8, feature_channels=6),
    "conv": lambda: classifier(num_blocks=1, preprocessing="conv", feature_channels=6),
    "flow": optical,
    "autoencoder": coder,
    "clips": hearer,
    "upsampled flow": lambda: optical(downsampling="conv"),
    "tasks": lambda: labels({"topic": 3, "stars": 1}),
    "ngrams": lambda: language(ngrams=(2, 3), ngram_hashes=64, ngram_channels=4, local_queries=True),
    "topics of n-grams": lambda: labels(ngrams=(3, 6), ngram_hashes=64, ngram_channels=4),
    "average": lambda: classifier(num_blocks=1, decoder="average"),
    "set": lambda: shaken(PerceiverIO({"a b": ArrayInput(3)}, {"a b": SetOutput("a b", 4)}, **TRUNK)),
    "field": lambda: shaken(
        PerceiverIO(
            {"x": ArrayInput(2, FourierFeatures(2, [1, 2]))}, {"y": ArrayOutput(1, FourierFeatures(2, [1, 3]))}, **TRUNK
        )
    ),
}
FAST = [  # `test_the_command` has the images with Fourier features
    ("language", "onnx", "model"),
    ("language", "pt2", "decode"),
    ("learned", "pt2", "encode"),
    ("conv", "onnx", "model"),
    ("flow", "onnx", "decode"),
    ("autoencoder", "pt2", "decode"),
    ("ngrams", "onnx", "decode"),
]
ALL = [(name, to, part) for name in MODELS for to in ("onnx", "pt2") for part in ("model", "encode", "decode")]
QUANTIZATION = Quantization({"float32": 3.0, "bfloat16": 1.0, "onnx": 4.0, "int8": 2.0}, {"label": 0.02, "other": 0.01})
BATCH, LENGTH, POINTS = 4, 11, 90


def make_inputs(model):
    """What the model takes, and the same as arguments of its files."""
    data, arguments = {}, {}
    for name, adapter in model.inputs.items():
        kind = type(adapter).__name__
        if kind == "TextInput":
            arguments[name] = torch.randint(adapter.vocabulary, (BATCH, LENGTH))
        elif kind == "ImageInput":
            arguments[name] = torch.randint(256, (BATCH, 3, *adapter.size), dtype=torch.uint8)
        elif kind == "FramePairInput":
            arguments[name] = torch.randint(256, (BATCH, 2, 3, *adapter.size), dtype=torch.uint8)
        elif kind == "VideoInput":
            arguments[name] = torch.randint(256, (BATCH, 4, 3, 16, 16), dtype=torch.uint8)
        elif kind == "AudioInput":
            arguments[name] = torch.rand(BATCH, 1280) - 0.5
        elif kind == "LabelInput":
            arguments[name] = torch.randint(7, (BATCH,))
        else:
            arguments[name] = torch.randn(BATCH, LENGTH, adapter.data_channels)
        data[name] = arguments[name]
        if kind in ("TextInput", "ArrayInput"):
            arguments[f"{name}_mask"] = torch.arange(LENGTH) < torch.tensor([[LENGTH], [1], [7], [3]])
            coordinates = None
            if name == "x":
                coordinates = arguments["x_coordinates"] = torch.rand(BATCH, LENGTH, 2) * 2 - 1
            data[name] = InputArray(data[name], arguments[f"{name}_mask"], None, coordinates)
    hidden = {name: torch.rand(BATCH) < 0.5 for name in model.maskable}
    arguments |= {f"{name}_hidden": rows for name, rows in hidden.items()}
    return data, {name: rows[:, None] for name, rows in hidden.items()}, arguments


def make_points(model, part):
    """Elements to decode by the name of the output: indices, or coordinates of the one that has no grid."""
    kinds = {name: type(adapter).__name__ for name, adapter in model.outputs.items()}
    points = {}
    for name, kind in kinds.items():
        if name == "y":
            points[name] = torch.rand(BATCH, POINTS, 2) * 2 - 1
        elif part == "decode" and kind in ("TextOutput", "SetOutput"):
            points[name] = torch.randint(LENGTH, (BATCH, POINTS))
        elif part == "decode" and (
            kind in ("VideoOutput", "AudioOutput") or (name, model.outputs[name].channels) == ("flow", 2)
        ):
            points[name] = torch.randint(20, (BATCH, POINTS))
    return points


def run_file(path, arguments):
    """What a file computes, by name."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(arguments)
    session = onnxruntime.InferenceSession(path)
    assert {one.name for one in session.get_inputs()} == arguments.keys()
    arrays = session.run(None, {name: value.numpy() for name, value in arguments.items()})
    return {one.name: torch.from_numpy(array) for one, array in zip(session.get_outputs(), arrays, strict=True)}


def assert_same(found, expected, tolerance=1e-5):
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found / scale, expected / scale, atol=tolerance, rtol=0)


@torch.no_grad()
def check_export(name, to, part, folder):
    torch.manual_seed(0)
    model, path = MODELS[name](), folder / f"file.{to}"
    assert export_model(model, path, to, part).quantization is None
    data, hidden, arguments = make_inputs(model)
    encoded, points = model.encode(data, hidden), make_points(model, part)
    if part == "decode":
        export_model(model, folder / f"encoder.{to}", to, "encode")
        arguments = run_file(folder / f"encoder.{to}", arguments)
    if part != "encode":
        arguments = arguments | {f"{output}_points": where for output, where in points.items()}
    found = run_file(path, arguments)
    tolerance = 2e-4 if name in ("autoencoder", "clips") else 1e-5  # positions of high frequencies
    if part == "encode":
        assert_same(found["latents"], encoded.latents, tolerance)
        return
    for output, expected in model.decode(encoded, dict.fromkeys(model.outputs) | points).items():
        if name == "topics of n-grams":
            assert_same(found["label.topic"], expected["topic"].softmax(-1), tolerance)
        elif name == "tasks":
            assert_same(found["label.topic"], expected["topic"].softmax(-1), tolerance)
            assert_same(found["label.stars"], expected["stars"], tolerance)
        elif isinstance(model.outputs[output], LabelOutput):
            expected = expected.sigmoid() if model.outputs[output].multilabel else expected.softmax(-1)
            assert_same(found["label_output" if "label" in model.inputs else "label"], expected, tolerance)
        else:
            assert_same(found[f"{output}_output" if output in model.inputs else output], expected, tolerance)


@pytest.mark.parametrize(("name", "to", "part"), FAST)
def test_a_file_computes_what_the_model_does(name, to, part, tmp_path):
    check_export(name, to, part, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "to", "part"), sorted({*ALL} - {*FAST}))
def test_every_part_in_both_formats(name, to, part, tmp_path):
    check_export(name, to, part, tmp_path)


def test_tables_take_raw_numbers_and_answer_in_units(tmp_path):
    torch.manual_seed(0)
    sizes, kinds = [30.0, 500, 80, 42], ["b", "a", None, "b"]
    columns = {"the size": learned("number", sizes, scale="log"), "kind": learned("category", kinds)}
    targets = {"price": learned("number", range(100, 900)), "sold": learned("category", ["no", "yes"])}
    model = small_model(columns, targets)
    rows = as_rows({"the size": sizes, "kind": kinds, "price": [1] * 4, "sold": ["no"] * 4})
    export_model(model, tmp_path / "table.onnx", "onnx")
    arguments = {
        "the size": torch.tensor(sizes, dtype=torch.float64),
        "kind": torch.tensor([2, 1, 0, 2]),
        "the size_hidden": torch.zeros(4, dtype=torch.bool),
        "kind_hidden": torch.tensor([False, False, True, False]),
    }
    found, expected = run_file(tmp_path / "table.onnx", arguments), answer(model, rows)
    torch.testing.assert_close(found["price"], expected["price"], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found["sold"], expected["sold"], rtol=1e-4, atol=1e-6)


def test_the_command(tmp_path, capsys):
    torch.manual_seed(0)
    model = classifier(num_blocks=1)
    model.bfloat16().save(tmp_path / "model")
    arguments = ["export", str(tmp_path / "model"), str(tmp_path / "file.pt2"), "--to", "pt2"]
    main([*arguments, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["file"] == str(tmp_path / "file.pt2")
    assert 0 <= report["differences"]["label"] < 1e-5
    assert perceivers.load(tmp_path / "model").dtype == torch.bfloat16
    image = torch.randint(256, (2, 3, 12, 12), dtype=torch.uint8)
    expected = perceivers.load(tmp_path / "model", dtype="float32")({"image": image})["label"].softmax(-1)
    assert_same(run_file(tmp_path / "file.pt2", {"image": image})["label"], expected)
    assert "file.pt2 exists already: choose a new file." in fails(capsys, *arguments)
    assert "does not end in .onnx" in fails(capsys, *arguments[:2], str(tmp_path / "new.pt2"), "--to", "onnx")
    assert "int8 is written as ONNX only" in fails(
        capsys, *arguments[:2], str(tmp_path / "new.pt2"), "--to", "pt2", "--int8"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"model", "file.pt2"}


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("perceivers.extras.find_spec", lambda name: None)
    with pytest.raises(PerceiversError, match=r"'onnx' is not installed; .* pip install 'perceivers\[export\]'"):
        export_model(classifier(), tmp_path / "file.onnx", "onnx")


def test_a_file_that_computes_something_else_is_deleted(tmp_path, monkeypatch):
    def open_wrongly(file, form):
        return lambda tensors: {name: value + 0.01 for name, value in opened(file, form)(tensors).items()}

    opened = export.open_file
    monkeypatch.setattr(export, "open_file", open_wrongly)
    with pytest.raises(PerceiversError, match=r"its output 'label' differs from the model's by 0\.01"):
        export_model(classifier(num_blocks=1), tmp_path / "file.pt2", "pt2")
    assert not list(tmp_path.iterdir())


class Strange(InputAdapter):
    channels = 3

    def forward(self, data):
        return InputArray(data)


class Branching(ArrayInput):
    def forward(self, data):
        return super().forward(data._replace(x_BMC=-data.x_BMC) if data.x_BMC.sum() > 0 else data)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (Strange(), "the input 'x' cannot be exported: nothing tells the shape of what a Strange takes"),
        (Branching(3), "the part 'encode' of the model cannot be exported: .*[Dd]ata-dependent"),
    ],
)
def test_what_cannot_be_exported(adapter, message, tmp_path):
    model = PerceiverIO({"x": adapter}, {"y": LabelOutput(2)}, **TRUNK)
    with pytest.raises(PerceiversError, match=message):
        export_model(model, tmp_path / "file.pt2", "pt2", "encode")
    assert not list(tmp_path.iterdir())


class Hashes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.ngrams = HashedNgrams(4, (3, 6), 2**20, 4, Bytes().separators)

    def forward(self, tensors):
        token_BM, mask_BM = tensors.values()
        return {"rows": self.ngrams.hash(token_BM, torch.arange(token_BM.shape[1]), mask_BM)}


def test_onnx_hashes_every_text_as_the_model_does(tmp_path):
    texts = [torch.tensor(text) for text in draw_texts(300) if text]
    tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    all_texts = {"text": tokens, "text_mask": torch.arange(tokens.shape[1]) < torch.tensor([[len(t)] for t in texts])}
    few = {name: tensor[:3, :7] for name, tensor in all_texts.items()}
    module, sizes = Hashes(), {0: Dim("batch"), 1: Dim("tokens", max=4096)}
    program = torch.export.export(module, (few,), dynamic_shapes=(dict.fromkeys(few, sizes),), strict=True)
    write_file(program, tmp_path / "file.onnx", "onnx", ["rows"])
    run, rows = open_file(tmp_path / "file.onnx", "onnx"), module(all_texts)["rows"]
    assert rows.shape == (len(texts), tokens.shape[1], 5)
    assert torch.equal(run(all_texts)["rows"], rows)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_runs_with_the_threads_of_torch(threads, tmp_path, monkeypatch):
    program = torch.export.export(torch.nn.Linear(2, 3), (torch.ones(1, 2),))
    torch.onnx.export(program, f=tmp_path / "file.onnx", verbose=False)
    torch.set_num_threads(threads)
    given, real = [], onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *a, **k: (session := real(*a, **k), given.append(session))[0]
    )
    open_file(tmp_path / "file.onnx", "onnx")
    assert [session.get_session_options().intra_op_num_threads for session in given] == [threads]


def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    class Search(torch.nn.Module):
        def forward(self, tensors):
            return {"y": torch.searchsorted(tensors["x"], tensors["x"])}

    program = torch.export.export(Search(), ({"x": torch.arange(8)},))
    with pytest.raises(
        PerceiversError, match=r"cannot be written as ONNX: ONNX has no aten\.searchsorted; write it as pt2"
    ):
        write_file(program, tmp_path / "file.onnx", "onnx", ["y"])


def image_classifier():
    return classifier(channels=32, num_blocks=1), {"image": torch.randint(256, (3, 3, 12, 12), dtype=torch.uint8)}


def text_classifier():
    model = labels({"topic": 3}, ngrams=(3, 6), ngram_hashes=64, ngram_channels=8)
    return model, {"text": torch.randint(262, (3, 19)), "text_mask": torch.arange(19) < torch.tensor([[19], [4], [1]])}


@pytest.mark.parametrize("make", [image_classifier, text_classifier])
def test_int8_quantizes_all_linear_layers(make, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    model, arguments = make()
    model.save(tmp_path / "model")
    monkeypatch.setattr(export, "measure", lambda *arguments: QUANTIZATION)
    main(["export", str(tmp_path / "model"), str(tmp_path / "int8.onnx"), "--to", "onnx", "--int8"])
    out = capsys.readouterr().out
    assert "label: changed by 2.00% of its standard deviation" in out
    assert "the model in bfloat16: 1 s; int8 is 0.50 times as fast" in out
    assert {path.name for path in tmp_path.iterdir()} == {"model", "int8.onnx"}
    linear = sum(isinstance(layer, torch.nn.Linear) for layer in model.modules())
    graph = onnx.load(tmp_path / "int8.onnx").graph
    products = [node for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == linear
    names = {node.input[1] for node in products}
    weights = [onnx.numpy_helper.to_array(array) for array in graph.initializer if array.name in names]
    assert {str(weight.dtype) for weight in weights} == {"int8"}
    assert max(abs(weight.astype(int)).max() for weight in weights) <= 64  # two products with bytes are below 2**15
    ((name, values), *masks) = arguments.items()
    logits = model({name: InputArray(values, masks[0][1]) if masks else values})["label"]
    logits = logits["topic"] if masks else logits
    (found,) = run_file(tmp_path / "int8.onnx", arguments).values()
    assert 1e-4 < relative_error(found, logits.softmax(-1)) < 0.1


def test_int8_that_does_not_pay_is_refused():
    QUANTIZATION.check()
    with pytest.raises(PerceiversError, match=r"int8 does not pay: it is 0.80 times as fast as float32 here"):
        Quantization(QUANTIZATION.seconds | {"int8": 5.0}, {"label": 0.02}).check()
    with pytest.raises(PerceiversError, match=r"it changes the output 'label' by 12% of its standard deviation"):
        Quantization(QUANTIZATION.seconds, {"other": 0.01, "label": 0.12}).check()


@pytest.mark.slow
def test_int8_is_measured(tmp_path):
    torch.manual_seed(0)
    with torch.no_grad():
        graph = export.make_graph(classifier(num_blocks=1), "model")
        export_model(graph.model, tmp_path / "plain.onnx", "onnx")
        same = export.measure(graph, tmp_path / "plain.onnx", tmp_path / "plain.onnx")
    assert set(same.seconds) == {"float32", "bfloat16", "onnx", "int8"}
    assert min(same.seconds.values()) > 0
    assert same.errors["label"] < 1e-5
