"""What is built: the wheel and the source distribution."""

import email
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import perceivers
from perceivers.config_files import CONFIGS, list_configs

ROOT = Path(__file__).parents[1]


def list_package():
    """Returns the files that belong to the package, by their path in it."""
    source = ROOT / "src/perceivers"
    own = [path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    configs = [path for path in (ROOT / "configs").rglob("*") if path.is_file()]
    return {f"perceivers/{path.relative_to(source).as_posix()}" for path in own if CONFIGS not in path.parents} | {
        f"perceivers/configs/{path.relative_to(ROOT / 'configs').as_posix()}" for path in configs
    }


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The root folder of the unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    (file,) = SdistBuilder(str(ROOT)).build(directory=str(folder))
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    return folder / Path(file).name.removesuffix(".tar.gz")


@pytest.mark.parametrize("source", ["checkout", "sdist"])
def test_the_wheel_is_complete(source, sdist, tmp_path):
    (file,) = WheelBuilder(str(ROOT if source == "checkout" else sdist)).build(directory=str(tmp_path))
    with zipfile.ZipFile(file) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert names == list_package()
        assert {"perceivers/py.typed", "perceivers/configs/starcraft/split.json"} < names
        digits = wheel.read("perceivers/configs/image_classification/digits.yaml")
        assert digits == (ROOT / "configs/image_classification/digits.yaml").read_bytes()
        (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
    fields = email.message_from_string(metadata)
    assert fields["Author"] == "The perceivers authors"
    assert fields["Version"] == perceivers.__version__
    assert not any(re.match(r"(transformers|pytest|lightning)\b", name) for name in base_requirements(fields))
    targets = re.findall(r"\]\((.*?)\)", fields.get_payload())
    assert len(targets) > 20
    assert [target for target in targets if not target.startswith("https://")] == []
    assert f"{'https://raw.githubusercontent.com/perceivers/perceivers/main/'}docs/demo.png" in targets


def base_requirements(fields):
    return [requirement for requirement in fields.get_all("Requires-Dist") if "extra ==" not in requirement]


def test_the_source_distribution_has_what_tests_and_docs_need(sdist):
    for name in ("README.md", "CITATION.cff", "Makefile", "constraints.txt", "tests/test_package.py", "docs/demo.png"):
        assert (sdist / name).read_bytes() == (ROOT / name).read_bytes()
    for folder in ("configs", "src/perceivers/configs"):
        assert len(list((sdist / folder).rglob("*.yaml"))) == len(list_configs())


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == perceivers.__version__
