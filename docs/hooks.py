"""Hooks of MkDocs: links that leave docs/ lead to the repository."""

import posixpath
import re
from typing import Any

LINK = re.compile(r"\]\((?![a-z]+:|#|/)([^)\s#]+)")
"""The target of a relative Markdown link, without its anchor."""


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Returns a page whose relative links are those of the site: pages in docs/ link to files as on a code host."""
    folder = posixpath.dirname(page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        if not target.startswith("../"):
            return match[0]
        kind = "blob" if "." in posixpath.basename(target) else "tree"
        return f"]({config.extra['repository']}/{kind}/main/{target.removeprefix('../')}"

    return LINK.sub(rewrite, markdown)
