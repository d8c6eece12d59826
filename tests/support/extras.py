"""Environments with only what some extras of the package need, made of links to what is installed here."""

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def find_requirements(name, extras=(), found=None):
    """Returns the names of all distributions that one needs with some of its extras."""
    found = {} if found is None else found
    new = {"", *extras} - found.setdefault(name, set())
    found[name] |= new
    for requirement in map(Requirement, distribution(name).requires or () if new else ()):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in new):
            find_requirements(requirement.name, requirement.extras, found)
    return set(found)


def make_environment(folder, extras):
    """Links the package and the distributions that it needs into a folder, in place of site-packages."""
    for name in find_requirements("perceivers", extras):
        installed = distribution(name)
        for file in {Path(file.parts[0]) for file in installed.files} - {Path(".."), Path("__pycache__")}:
            if file.suffix != ".pth" and not (folder / file).exists():
                (folder / file).symlink_to(installed.locate_file(file))
    (folder / "perceivers").symlink_to(ROOT / "src/perceivers")
    return folder


def run_in(environment, code, cwd):
    """Runs a program in an environment."""
    variables = os.environ | {"PYTHONPATH": str(environment), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, env=variables, cwd=cwd, capture_output=True, text=True, check=False)
