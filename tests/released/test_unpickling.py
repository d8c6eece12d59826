import pickle
import sys
import types
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from perceivers.errors import PerceiversError
from perceivers.released.unpickling import read_pickle

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


class Call:
    """Pickled as a call of a function, or of one that is named by module and name only."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


@pytest.fixture
def foreign(monkeypatch):
    """Makes functions and classes of modules that are not installed; reading must neither import nor call them."""

    def make(module, name, kind=None):
        def called(*_):
            pytest.fail(f"{module}.{name} was called")

        named = kind or called
        named.__module__, named.__name__, named.__qualname__ = module, name, name
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
        setattr(sys.modules[module], name, named)
        return named

    return make


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Pickles something, forgets all modules that are not installed, and reads it."""

    def through_file(contents, protocol=pickle.DEFAULT_PROTOCOL):
        pickled = contents if isinstance(contents, bytes) else pickle.dumps(contents, protocol)
        for name in [name for name in sys.modules if name.split(".")[0] in ("jax", "haiku")]:
            monkeypatch.delitem(sys.modules, name)
        (tmp_path / "file").write_bytes(pickled)
        return read_pickle(tmp_path / "file")

    return through_file


def calling(module, name, argument, protocol):
    """A pickle that calls a function with a text, written by hand: what `pickle` would not write can be read too."""
    if protocol < 4:
        return f"c{module}\n{name}\n(V{argument}\ntR.".encode()
    texts = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name, argument)]
    return b"\x80\4" + texts[0] + texts[1] + b"\x93" + texts[2] + b"\x85R."


def test_the_pickles_written_by_hand_do_run(tmp_path):
    for protocol in (0, 4):
        target = tmp_path / str(protocol)
        pickle.loads(calling("os", "mkdir", str(target), protocol))
        assert target.exists()


@pytest.mark.parametrize("protocol", [0, 4])
@pytest.mark.parametrize(
    ("module", "name", "argument"),
    [
        ("os", "mkdir", "{}"),
        ("os", "system", "touch {}"),
        ("posix", "system", "touch {}"),
        ("builtins", "eval", "open('{}', 'w')"),
        ("__builtin__", "eval", "open('{}', 'w')"),
        ("builtins", "exec", "open('{}', 'w')"),
        ("builtins", "getattr", "{}"),
        ("numpy", "load", "{}"),
        ("numpy._core.multiarray", "fromfile", "{}"),
        ("collections", "namedtuple", "{}"),
        ("perceivers.released.unpickling", "read_pickle", "{}"),
        ("a_module_that_is_not", "anything", "{}"),
        ("builtins", "dict.fromkeys", "{}"),
        ("numpy", "ndarray.tofile", "{}"),
    ],
)
def test_whatever_else_is_named_is_refused_by_name_and_not_called(
    read, tmp_path, monkeypatch, module, name, argument, protocol
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        PerceiversError, match=rf"file is not loaded, because it names {module}\.{name}, which does not belong in"
    ):
        read(calling(module, name, argument.format("ran"), protocol))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert "a_module_that_is_not" not in sys.modules


def test_a_module_is_not_even_imported(read, tmp_path, monkeypatch):
    (tmp_path / "imported.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PerceiversError, match=r"names imported\.function"):
        read(calling("imported", "function", "", 4))
    assert "imported" not in sys.modules


def test_what_is_refused_may_stand_deep_inside(read, foreign):
    wrong = foreign("haiku._src.data_structures", "to_immutable_dict")
    with pytest.raises(PerceiversError, match=r"names haiku\._src\.data_structures\.to_immutable_dict"):
        read({"params": OrderedDict(a={"w": ARRAY, "b": Call(wrong)})})


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers_and_arrays_are_read_in_every_protocol(read, protocol):
    written = {
        "params": OrderedDict(b={"w": ARRAY, "b": ARRAY[0].astype(np.float64)}, a={"w": np.asfortranarray(ARRAY)}),
        "state": defaultdict(None, {"c": {"counter": np.int32(7), "scalar": np.float32(1.5)}}),
    }
    contents = read(written, protocol)
    assert list(contents["params"]) == ["b", "a"]
    assert (contents["state"]["c"]["counter"], contents["state"]["c"]["scalar"]) == (7, 1.5)
    for module, leaf in (("b", "w"), ("b", "b"), ("a", "w")):
        want, got = written["params"][module][leaf], contents["params"][module][leaf]
        assert got.dtype == want.dtype
        assert np.array_equal(got, want)


@pytest.mark.parametrize("name", ["FlatMap", "FlatMapping"])
def test_immutable_mappings_of_haiku_are_read_as_calls(read, foreign, name):
    mapping = foreign("haiku._src.data_structures", name)
    contents = read(Call(mapping, {"linear": Call(mapping, {"w": ARRAY})}))
    assert isinstance(contents, dict)
    assert list(contents) == ["linear"]
    assert np.array_equal(contents["linear"]["w"], ARRAY)


@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("name", ["FlatMap", "FlatMapping"])
def test_immutable_mappings_of_haiku_are_read_as_objects(read, foreign, name, slots):
    if slots:
        kind = foreign("haiku._src.data_structures", name, type(name, (), {"__slots__": ("_structure", "_mapping")}))
    else:
        kind = foreign("haiku._src.data_structures", name, type(name, (), {}))
    mapping = kind()
    mapping._structure, mapping._mapping = None, {"linear": {"w": ARRAY}}
    contents = read(mapping)
    assert list(contents) == ["linear"]
    assert np.array_equal(contents["linear"]["w"], ARRAY)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("jax._src.array", "_reconstruct_array"),
        ("jax._src.device_array", "reconstruct_device_array"),
        ("jax.interpreters.xla", "reconstruct_device_array"),
    ],
)
def test_arrays_of_every_jax_are_read_without_jax(read, foreign, module, name, protocol):
    function, arguments, state = ARRAY.__reduce__()
    array = Call(foreign(module, name), function, arguments, state, {"weak_type": False})
    got = read({"linear": {"w": array}}, protocol)["linear"]["w"]
    assert type(got) is np.ndarray
    assert got.dtype == np.float32
    assert np.array_equal(got, ARRAY)


def test_arrays_of_jax_are_rebuilt_only_by_what_is_allowed(read, foreign):
    state = ARRAY.__reduce__()[2]
    array = Call(foreign("jax._src.array", "_reconstruct_array"), print, ("ran",), state, {})
    with pytest.raises(PerceiversError, match=r"names builtins\.print"):
        read({"linear": {"w": array}})


def test_bytes_of_protocol_2_are_latin1_only(read):
    contents = bytes(range(256))
    assert read({"b": contents}, 2) == {"b": contents}
    with pytest.raises(PerceiversError, match=r"file is not a readable pickle .*encoded as 'rot13'"):
        read({"b": Call(sys.modules["_codecs"].encode, "text", "rot13")}, 2)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "is not a readable pickle"),
        (lambda path: path.write_bytes(pickle.dumps({"a": ARRAY})[:-20]), "is not a readable pickle .* truncated or"),
        (lambda path: path.write_bytes(pickle.dumps({"a": ARRAY})[:3]), "is not a readable pickle .* truncated or"),
        (lambda path: path.write_bytes(b"\xff" + pickle.dumps({"a": ARRAY})), "is not a readable pickle"),
        (lambda path: path.write_text("latents: 512\n"), "is not a readable pickle"),
        (lambda path: path.write_text('{"format": "perceivers"}'), "is not a readable pickle"),
        (lambda path: torch.save({"w": torch.ones(3)}, path), "is not a readable pickle"),
        (lambda path: save_file({"w": torch.ones(3)}, path), "is not a readable pickle"),
        (lambda path: path.write_bytes(pickle.dumps([ARRAY])), "holds a list, not the parameters"),
        (lambda path: path.write_bytes(pickle.dumps(ARRAY)), "holds a ndarray, not the parameters"),
    ],
)
def test_files_that_are_no_checkpoint_are_refused(tmp_path, write, message):
    write(tmp_path / "file")
    with pytest.raises(PerceiversError, match=f"{tmp_path}/file {message}"):
        read_pickle(tmp_path / "file")


def test_arrays_of_objects_hold_only_what_is_allowed(read):
    assert read({"a": np.array([{}, None], dtype=object)})["a"].tolist() == [{}, None]
    with pytest.raises(PerceiversError, match=r"names builtins\.print"):
        read({"a": np.array([Call(print, "ran")], dtype=object)})
