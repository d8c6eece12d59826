"""Finds the configs that the package ships, by name, such as "flow/mini", or "digits" where no other is called so."""

import difflib
import os
import re
from pathlib import Path

from perceivers.errors import PerceiversError
from perceivers.files import read_text

CONFIGS = Path(__file__).parent / "configs"
"""The folder of the shipped configs; in a checkout, a link to configs/."""


def list_configs(sweeps: bool | None = None) -> dict[str, Path]:
    """Returns the shipped configs by name, sorted: all, or only those of sweeps, or of single runs."""
    configs = {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in sorted(CONFIGS.rglob("*.yaml"))}
    return {name: path for name, path in configs.items() if sweeps in (None, name.startswith("sweeps/"))}


def describe_config_file(path: Path) -> str:
    """Returns the first sentence of the comment at the top of a config file."""
    comment = re.match(r"(#.*\n)*", read_text(path))[0]  # type: ignore[index]  # matches anything
    return re.split(r"\.\s", comment.replace("\n#", "").removeprefix("# "))[0]


def find_config_file(name: str | Path, sweep: bool = False) -> Path:
    """Returns a file of this path, or else a shipped file of this name.

    Args:
        name: a path, or the name of a shipped config. "configs/flow/mini.yaml", "flow/mini" and, if only one file is
            called so, "mini" are the same.
        sweep: whether a config of a sweep is wanted where a name without its folder is given.

    Raises:
        PerceiversError: there is no such file, or several shipped ones have this name.
    """
    if os.path.isfile(name):
        return Path(name)
    short = Path(name).as_posix().removeprefix("configs/")
    if os.path.isfile(shipped := CONFIGS / short):
        return shipped
    configs, short = list_configs(), short.removesuffix(".yaml")
    kind = list_configs(sweep)
    found = [config for config in configs if config == short] or [c for c in kind if c.endswith(f"/{short}")]
    if len(found) > 1:
        raise PerceiversError(f"{name} is the name of {len(found)} configs: give one of {', '.join(found)}.")
    if not found:
        names = {*kind, *(config.rpartition("/")[2] for config in kind)}
        close = difflib.get_close_matches(short, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "`perceivers configs` lists those of the package."
        raise PerceiversError(f"there is no config file {name}: {hint}")
    return configs[found[0]]
