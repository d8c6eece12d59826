"""Finds objects by name: entry points that installed packages declare, or import paths; or raises a PerceiversError.

Experiments, models, commands, services and file formats of this package are found in the same way as those of any
other. A package declares them in its `pyproject.toml`:

    [project.entry-points."perceivers.experiments"]
    weather = "weather.training:Forecast"
"""

import difflib
import importlib
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from perceivers import extras
from perceivers.errors import PerceiversError, did_you_mean

T = TypeVar("T")

GROUPS = ("experiments", "models", "commands", "services", "formats")
"""Kinds of objects, each declared in the entry-point group `perceivers.GROUP`."""

trusted_packages = {"perceivers"}
"""Packages whose classes a saved model may name, besides those that declare an entry point."""


def find_entry_points(group: str) -> dict[str, list[EntryPoint]]:
    """Returns the entry points that installed packages declare in a group, sorted by name, without importing any."""
    return dict(scan_packages(group, tuple(sys.path)))


@cache
def scan_packages(group: str, path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    """Returns the entry points of a group that packages on `sys.path`, which is `path`, declare."""
    found: dict[str, list[EntryPoint]] = {}
    for point in sorted(entry_points(group=f"perceivers.{group}"), key=lambda point: point.name):
        same = found.setdefault(point.name, [])
        if point.value not in [other.value for other in same]:  # a package may be found on two paths
            same.append(point)
    return found


def find_class(group: str, name: str, base: type[T]) -> type[T]:
    """Returns the class of a name, which must be a subclass of `base`; see `find_object`."""
    value = find_object(group, name)
    if not isinstance(value, type) or not issubclass(value, base):
        raise PerceiversError(f"{name} is {describe_value(value)}, but a subclass of {base.__name__} is expected.")
    return value


def find_instance(group: str, name: str, kind: type[T]) -> T:
    """Returns the object of a name, which must be a `kind`; see `find_object`."""
    value = find_object(group, name)
    if not isinstance(value, kind):
        raise PerceiversError(f"{name} is {describe_value(value)}, but a {kind.__name__} is expected.")
    return value


def describe_value(value: Any) -> str:
    """Returns the type of an object, or that it is a class, for an error."""
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"a {type(value).__name__}"


def find_object(group: str, name: str) -> Any:
    """Imports and returns the object of a declared name, or of an import path "package.module:Object"."""
    kind = group.removesuffix("s")
    if ":" in name:
        return import_object(name, kind)
    points = find_entry_points(group)
    if name not in points:
        hint = f"{did_you_mean(name, points)} " if points else "none is installed. "
        raise PerceiversError(
            f"there is no {kind} {name!r}: {hint}"
            f"One that is not installed is named by its import path, such as my_module:MyObject."
        )
    if len(points[name]) > 1:
        owners = [(point.dist.name if point.dist else "an unknown package", point.value) for point in points[name]]
        packages = " and ".join(f"{owner} ({value})" for owner, value in owners)
        raise PerceiversError(f"the {kind} {name!r} is declared by {packages}: uninstall one of them.")
    return import_object(points[name][0].value, kind)


def import_object(path: str, kind: str = "object") -> Any:
    """Imports the module of an import path "package.module:Object" and returns the object."""
    module_name, _, attributes = path.partition(":")
    if not attributes or not all(part.isidentifier() for part in (*module_name.split("."), *attributes.split("."))):
        article = "an" if kind[0] in "aeiou" else "a"
        raise PerceiversError(f"{path!r} is not the import path of {article} {kind}: write package.module:Object.")
    value = import_module(module_name, f"the {kind} {path}")
    for attribute in attributes.split("."):
        if not hasattr(value, attribute):
            owner = f"the module {module_name}" if value is sys.modules[module_name] else path.rpartition(".")[0]
            close = difflib.get_close_matches(attribute, dir(value), n=1)
            hint = f": did you mean {close[0]!r}?" if close else "."
            raise PerceiversError(f"{kind} {path}: {owner} has no {attribute!r}{hint}")
        value = getattr(value, attribute)
    return value


def import_module(name: str, wanted: str) -> Any:
    """Imports a module; `wanted` names in an error the object that it is imported for."""
    try:
        return importlib.import_module(name)
    except PerceiversError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise PerceiversError(
                f"{wanted}: there is no module {error.name!r}: install its package, or put the file beside the config."
            ) from error
        missing = f"{wanted}: {name} needs the module {error.name!r}, which is not installed."
        raise PerceiversError(extras.describe_missing(error.name) or missing) from error
    except Exception as error:  # a user's module may raise anything
        raise PerceiversError(f"{wanted}: importing {name} fails: {type(error).__name__}: {error}") from error


def add_import_folder(folder: Path) -> None:
    """Makes the modules in a folder importable, after installed ones of the same name."""
    path = str(folder.resolve())
    if path not in sys.path:
        sys.path.append(path)
        importlib.invalidate_caches()


def find_import_folder(value: type) -> Path | None:
    """Returns the folder from which the module of a class was imported; None for an installed package."""
    package = sys.modules[value.__module__.split(".")[0]]
    file = getattr(package, "__file__", None)
    if file is None or declares_entry_point(package.__name__):
        return None
    return Path(file).parents[1 if hasattr(package, "__path__") else 0].resolve()


def find_name(group: str, value: type) -> str:
    """Returns the name under which a class is declared in a group, or its import path."""
    path = f"{value.__module__}:{value.__qualname__}"
    points = find_entry_points(group)
    return next((name for name in points if path in [point.value for point in points[name]]), path)


def trust(package: str) -> None:
    """Allows saved models to name classes of a package, which may be in the current folder."""
    trusted_packages.add(package)
    add_import_folder(Path.cwd())


def is_trusted(package: str) -> bool:
    """Returns whether a saved model may name classes of a package: ours, one that extends it, or a trusted one."""
    return package in trusted_packages or declares_entry_point(package)


def declares_entry_point(package: str) -> bool:
    """Returns whether an installed package declares an entry point in one of our groups."""
    points = (point for group in GROUPS for same in find_entry_points(group).values() for point in same)
    return any(point.module.split(".")[0] == package for point in points)
