import pkgutil
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code(path):
    """The Python blocks of a page, as one program."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.S))


def test_a_new_modality_trains_saves_and_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code("docs/new_modality.md"), names)
    assert sum(names["losses"][-10:]) < 0.3 * sum(names["losses"][:10])
    assert names["noon"].shape == (2, 2, 1)
    whole = names["model"].eval().decode(names["encoded"])["day"]
    torch.testing.assert_close(names["noon"], whole[:, 11:13])


def test_a_mixture_of_modalities_trains_in_less_than_60_lines():
    example, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs/multimodal.md").read_text(), re.S)
    assert len(example.splitlines()) < 60
    names = {}
    exec(code("docs/multimodal.md"), names)
    assert names["accuracy"] > 0.75
    assert names["error"] < 0.1


def test_a_set_encoder_tells_shapes_from_points():
    names = {}
    exec(code("docs/starcraft.md"), names)
    assert names["accuracy"] > 0.85


def test_the_tour_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    exec(code("docs/index.md"), names)
    whole = names["model"].eval()  # loaded from what was saved
    torch.testing.assert_close(
        whole(names["data"])["map"].flatten(1, 2)[:, [7, 42, 4000]],
        whole.decode(whole.encode(names["data"]), {"map": torch.tensor([7, 42, 4000])})["map"],
    )
    right, down = names["motion"].mean((1, 2))
    assert abs(right - 3) < 0.5
    assert abs(down - 2) < 0.5


def test_the_answers_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code("docs/faq.md"), names)
    assert names["wide"]({"image": torch.rand(1, 3, 72, 18)})["label"].shape == (1, 2)
    assert names["video"].channels == 243


def test_the_gallery_has_every_picture():
    gallery = (ROOT / "docs/gallery.md").read_text()
    assert [path.name for path in (ROOT / "docs").glob("*.png") if f"]({path.name})" not in gallery] == []


def test_the_readme_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code("README.md"), names)
    assert names["predictions"]["label"].shape == (2, 10)


def test_an_exported_model_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code("docs/export.md"), names)
    expected = names["model"]({"image": torch.from_numpy(names["image"])})["label"].softmax(-1)
    torch.testing.assert_close(torch.from_numpy(names["probabilities"]), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(names["same"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_names_in_the_text_exist(path):
    """Every `perceivers.x.y` between backticks, in prose and in imports of examples, is a module or in one."""
    text = path.read_text()
    found = re.findall(r"`(perceivers(?:\.\w+)+)", text) + [
        f"{module}.{name.strip()}"
        for module, names in re.findall(r"^from (perceivers[\w.]*) import (\([^)]*\)|.*)$", text, re.M)
        for name in re.findall(r"\w+", names)
    ]
    for name in found:
        if not name.startswith(
            (
                "perceivers.experiments",
                "perceivers.models",
                "perceivers.commands",
                "perceivers.services",
                "perceivers.formats",
            )
        ):
            assert pkgutil.resolve_name(name) is not None
    for file in re.findall(r"`((?:src|tests|benchmarks|configs|docs)/[\w./{},-]+)`", text):
        if "{" not in file:
            assert (ROOT / file).exists(), file


RECIPES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/recipes.md").read_text(), re.S)


@pytest.mark.parametrize("recipe", [text for text in RECIPES if "weights" not in text and ".safetensors" not in text])
def test_recipes_run(recipe):
    names = {}
    exec(recipe, names)
    for name, shape in re.findall(r"^(\w+) = .*# \[([\d, ]+)\]", recipe, re.M):
        assert list(names[name].shape) == [int(size) for size in shape.split(",")], name
