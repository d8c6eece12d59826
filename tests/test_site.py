"""The documentation site: it builds without warnings, its links lead somewhere, and it fetches nothing."""

import html
import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import perceivers
import perceivers.adapters
import perceivers.extend
from tests.test_cli import COMMANDS

ROOT = Path(__file__).parents[1]
build = pytest.importorskip("mkdocs.commands.build", reason="the site needs the extra docs")


class Page(HTMLParser):
    """Collects what a page links to, what it loads, and its anchors."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") != "canonical":
            self.loaded.append(found.get("href"))
        elif tag in ("script", "img", "video", "source", "iframe", "audio", "object", "embed"):
            self.loaded += [found[key] for key in ("src", "srcset", "poster", "data") if found.get(key)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Builds the site, strictly: a warning is an error."""
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
    config.plugins.on_startup(command="build", dirty=False)
    build.build(config)
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def test_every_link_leads_to_a_file_and_an_anchor_of_it(site, pages):
    count = 0
    for name, page in pages.items():
        for link in [*page.links, *page.loaded]:
            url = urlsplit(link)
            if url.scheme or name == "404.html":  # absolute links, of no address before the site has one
                continue
            target = (
                posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(url.path))) if url.path else name
            )
            assert target == "." or (site / target).exists(), f"{name}: {link}"
            if url.fragment and target in pages:
                assert unquote(url.fragment) in pages[target].anchors, f"{name}: {link}"
                count += 1
    assert count > 500  # the tables of contents alone have more


def test_links_that_leave_docs_lead_to_the_repository(pages):
    own = [link for link in pages["results.html"].links if "/results" in link]
    assert len(own) > 3
    for link in own:
        _, path = re.fullmatch(r"https://[^/]+/[^/]+/[^/]+/(?:blob|tree)/(main)/(.*)", link).groups()
        assert (ROOT / path).exists(), link


def test_nothing_is_fetched_from_elsewhere(site, pages):
    for name, page in pages.items():
        for link in page.loaded:
            assert not urlsplit(link).netloc, f"{name} loads {link}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", style.read_text()), style


def test_the_reference_has_the_help_of_every_command(site, pages):
    assert pages["reference/commands.html"].anchors >= {*COMMANDS}
    page = html.unescape((site / "reference/commands.html").read_text())
    for command in COMMANDS:
        assert f"usage: perceivers {command} " in page
    assert len(re.findall("^  -h, --help +show this help", page, re.M)) == len(COMMANDS) - 4  # see test_cli


def test_lists_and_tables_are_rendered(site, pages):
    for name in pages:
        for paragraph in re.findall("<p>.*?</p>", (site / name).read_text(), re.S):
            assert not re.search(r"^(<p>)?\s*([-*] |\||```|\d\. )", paragraph, re.M), f"{name}: {paragraph}"


def test_a_result_is_one_item_of_the_reference(site):
    page = re.sub("<.*?>", "", (site / "reference/models.html").read_text())
    assert "those of a ragged batch as Ragged." in " ".join(html.unescape(page).split())


@pytest.mark.parametrize(
    "module", [perceivers, perceivers.adapters, perceivers.extend], ids=lambda module: module.__name__
)
def test_the_reference_has_every_public_name(module, pages):
    reference = set().union(*(page.anchors for name, page in pages.items() if name.startswith("reference/")))
    for name in module.__all__:
        again = module is not perceivers and getattr(perceivers, name, None) is getattr(module, name)
        assert f"{'perceivers' if again else module.__name__}.{name}" in reference


def test_the_reference_has_every_name_that_a_page_imports(pages):
    reference = set().union(*(page.anchors for name, page in pages.items() if name.startswith("reference/")))
    for path in (ROOT / "docs").glob("*.md"):
        for module, names in re.findall(r"^from (perceivers[\w.]*) import ([\w, ]+)$", path.read_text(), re.M):
            for name in names.split(", "):
                again = hasattr(perceivers, name)  # documented by its shorter name
                assert name.isupper() or f"{'perceivers' if again else module}.{name}" in reference, f"{path}: {name}"
