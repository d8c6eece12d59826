"""Hooks of MkDocs: notebooks become pages, commands their help, and links that leave docs/ lead to the repository."""

import base64
import io
import json
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mkdocs.structure.files import File, Files

from perceivers.cli import main
from perceivers.plugins import find_entry_points

LINK = re.compile(r"\]\((?![a-z]+:|#|/)([^)\s#]+)")
"""The target of a relative Markdown link, without its anchor."""


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Replaces each notebook by a page of its text, code and outputs."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            name = file.src_uri.removesuffix(".ipynb")
            text, pictures = render_notebook(Path(file.abs_src_path or ""))
            files.remove(file)
            files.append(File.generated(config, f"{name}.md", content=text))
            for picture, content in pictures.items():
                uri = posixpath.join(posixpath.dirname(name), picture)
                files.append(File.generated(config, uri, content=content))
    return files


def render_notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """Returns a notebook as Markdown, and its pictures by name; cells that only assert are left out."""
    parts, pictures = [], dict[str, bytes]()
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        if not all(line.startswith("assert ") for line in source.splitlines()):
            parts.append(f"```python\n{source}\n```")
        printed = "".join("".join(output["text"]) for output in cell["outputs"] if output.get("name") == "stdout")
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                name = f"{path.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(output["data"]["image/png"]))
                parts.append(f"![Drawn by the code above]({name})")
            elif "text/plain" in output.get("data", {}):
                parts.append(f"```text\n{''.join(output['data']['text/plain'])}\n```")
    return "\n\n".join(parts) + "\n", pictures


def print_help(*command: str) -> str:
    """Returns what a command prints with `--help`, in lines of up to 100 characters."""
    width = patch.dict(os.environ, COLUMNS="102")  # argparse leaves two free
    with width, redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        main([*command, "--help"])
    return printed.getvalue().rstrip()


def render_commands() -> Iterator[str]:
    """Yields the help of `perceivers`, then a section for each command, as Markdown."""
    yield f"```text\n{print_help()}\n```"
    for name in find_entry_points("commands"):
        yield f"## {name}\n\n```text\n{print_help(name)}\n```"


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Returns a page whose relative links are those of the site: pages in docs/ link to files as on a code host.

    The page of the commands also gets their help. A page that is a tab of its own needs no list of pages beside it.
    """
    if page.parent is None:
        page.meta["hide"] = ["navigation"]
    if page.file.src_uri == "reference/commands.md":
        return "\n\n".join([markdown, *render_commands()])
    folder = posixpath.dirname(page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        if not target.startswith("../"):
            return match[0].replace(".ipynb", ".md")
        kind = "blob" if "." in posixpath.basename(target) else "tree"
        return f"]({config.extra['repository']}/{kind}/main/{target.removeprefix('../')}"

    return LINK.sub(rewrite, markdown)
