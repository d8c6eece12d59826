"""Objects by name: what installed packages declare as entry points, or what an import path names.

Experiments, models, commands and file formats are found here, those of this package like those of any other. A package
declares them in its `pyproject.toml`:

    [project.entry-points."perceivers.experiments"]
    weather = "weather.training:Forecast"
"""

import difflib
import importlib
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from perceivers import extras
from perceivers.errors import PerceiversError, did_you_mean

T = TypeVar("T")

GROUPS = ("experiments", "models", "commands", "formats")
"""What can be declared, each in the entry-point group `perceivers.GROUP`."""

trusted_packages = {"perceivers"}
"""Packages whose classes a saved model may name, besides those that declare an entry point."""


def declared(group: str) -> dict[str, list[EntryPoint]]:
    """Returns what installed packages declare in a group, sorted by name; nothing is imported."""
    found: dict[str, list[EntryPoint]] = {}
    for point in sorted(entry_points(group=f"perceivers.{group}"), key=lambda point: point.name):
        same = found.setdefault(point.name, [])
        if point.value not in [other.value for other in same]:  # a package may be found on two paths
            same.append(point)
    return found


def find_class(group: str, name: str, base: type[T]) -> type[T]:
    """Returns the class of a name, which must be a subclass of `base`; see `find`."""
    value = find(group, name)
    if not isinstance(value, type) or not issubclass(value, base):
        raise PerceiversError(f"{name} is {describe_value(value)}, but a subclass of {base.__name__} is expected.")
    return value


def find_instance(group: str, name: str, kind: type[T]) -> T:
    """Returns the object of a name, which must be a `kind`; see `find`."""
    value = find(group, name)
    if not isinstance(value, kind):
        raise PerceiversError(f"{name} is {describe_value(value)}, but a {kind.__name__} is expected.")
    return value


def describe_value(value: Any) -> str:
    """Returns what an object is, for an error."""
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"a {type(value).__name__}"


def find(group: str, name: str) -> Any:
    """Returns the object of a name: one that is declared, or one of an import path "package.module:Object".

    Nothing but what is asked for is imported.

    Args:
        group: "experiments", "models", "commands" or "formats".
        name: the name, or the import path.

    Raises:
        PerceiversError: there is no such name or object, several packages declare the name, or an import fails.
    """
    kind = group.removesuffix("s")
    if ":" in name:
        return import_object(name, kind)
    points = declared(group)
    if name not in points:
        hint = f"{did_you_mean(name, points)} " if points else "none is installed. "
        raise PerceiversError(
            f"there is no {kind} {name!r}: {hint}"
            f"One that is not installed is named by its import path, such as my_module:MyObject."
        )
    if len(points[name]) > 1:
        packages = " and ".join(describe_package(point) for point in points[name])
        raise PerceiversError(f"the {kind} {name!r} is declared by {packages}: uninstall one of them.")
    return import_object(points[name][0].value, kind)


def describe_package(point: EntryPoint) -> str:
    """Returns the distribution that declares an entry point, and the object that it names."""
    return f"{point.dist.name if point.dist else 'an unknown package'} ({point.value})"


def import_object(path: str, kind: str = "object") -> Any:
    """Returns the object of an import path "package.module:Object", whose module is imported.

    Raises:
        PerceiversError: the path is not of that form, the module cannot be imported, or it has no such object.
    """
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
    """Imports a module; `wanted` says in an error what it is imported for."""
    try:
        return importlib.import_module(name)
    except PerceiversError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise PerceiversError(
                f"{wanted}: there is no module {error.name!r}: install its package, or put the file beside the config."
            ) from error
        extra = extras.extra_of(error.name)
        if extra is not None:
            raise PerceiversError(extras.describe_missing(str(error.name), extra)) from error
        raise PerceiversError(f"{wanted}: {name} needs the module {error.name!r}, which is not installed.") from error
    except Exception as error:  # a user's module may raise anything
        raise PerceiversError(f"{wanted}: importing {name} fails: {type(error).__name__}: {error}") from error


def add_import_folder(folder: Path) -> None:
    """Lets modules in a folder be imported from now on, after installed ones of the same name."""
    path = str(folder.resolve())
    if path not in sys.path:
        sys.path.append(path)
        importlib.invalidate_caches()


def import_folder(value: type) -> Path | None:
    """Returns the folder that the module of a class was imported from, if it is not one of an installed package."""
    package = sys.modules[value.__module__.split(".")[0]]
    file = getattr(package, "__file__", None)
    if file is None or declares_entry_point(package.__name__):
        return None
    folder = Path(file).parent.parent if hasattr(package, "__path__") else Path(file).parent
    return folder.resolve()


def name_of(group: str, value: type) -> str:
    """Returns the name under which a class is declared in a group, or its import path if it is not."""
    path = f"{value.__module__}:{value.__qualname__}"
    return next((name for name, points in declared(group).items() if path in [p.value for p in points]), path)


def trust(package: str) -> None:
    """Lets saved models name classes of a package, which may lie in the current folder, from now on."""
    trusted_packages.add(package)
    add_import_folder(Path.cwd())


def is_trusted(package: str) -> bool:
    """Returns whether a saved model may name classes of a package.

    It may if the package is this one, declares an entry point of ours, or was named by the user.
    """
    return package in trusted_packages or declares_entry_point(package)


def declares_entry_point(package: str) -> bool:
    """Returns whether an installed package declares an entry point of ours."""
    return any(
        point.module.split(".")[0] == package
        for group in GROUPS
        for points in declared(group).values()
        for point in points
    )
