"""The site of docs/ builds strictly, without a network; the reference has every public name; pictures can be made."""

from __future__ import annotations

import html
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import pictures

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
NO_NETWORK = "import socket\nsocket.getaddrinfo = socket.create_connection = None\nimport mkdocs.__main__ as m\nm.cli()"
PACKAGES = {
    "index": ["aimc"],
    "hardware": ["aimc.hardware"],
    "models": ["aimc.models"],
    "calibrate": ["aimc.calibrate"],
    "evaluate": ["aimc.evaluate", "aimc.evaluate.characterise"],
    "circuit": ["aimc.circuit"],
    "static": ["aimc.static"],
    "plot": ["aimc.plot"],
}
"""Pages of the reference, and the packages whose public names they have."""
LEFT_OUT = {"is_digital"}
"""Deprecated."""
LOADED = re.compile(r"<(?:(?:script|img)[^>]* src|link[^>]* rel=\"stylesheet\"[^>]* href)=\"([^\"]+)\"")
ENTRY = re.compile(r"^::: (\S+)", flags=re.MULTILINE)


def pages() -> set[str]:
    """All that docs/ has, as the site calls them."""
    return {page.relative_to(DOCS).with_suffix(".html").as_posix() for page in DOCS.rglob("*.md")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module, reason="the site's tools are not installed; pip install 'aimc[docs]'")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-c", NO_NETWORK, "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return folder


def test_has_every_page_and_fetches_nothing(site: Path) -> None:
    """Pages are those of docs/; what a page loads lies beside it."""
    built = {page.relative_to(site).as_posix() for page in site.rglob("*.html")}
    assert pages() == built - {"404.html"}
    for name in sorted(pages()):
        page = site / name
        loaded = LOADED.findall(page.read_text())
        assert len(loaded) >= 3
        for target in loaded:
            assert (page.parent / html.unescape(target).partition("?")[0]).is_file(), f"{name}: {target}"


def test_pictures_beside_the_models_are_on_the_pages(site: Path) -> None:
    """They lie outside docs/, and the site has them."""
    page = (site / "results.html").read_text()
    assert 'src="checkpoints/shipped/report/training.png"' in page
    assert (site / "checkpoints/shipped/report/training.png").is_file()


def test_reference_shows_docstrings(site: Path) -> None:
    front, hardware = ((site / f"reference/{name}.html").read_text() for name in ("index", "hardware"))
    assert "Put parts of a decoder onto analog hardware" in front and ":func:" not in front
    assert "Retention time constant" in hardware  # a field's


def test_every_page_is_two_clicks_from_the_index(site: Path) -> None:
    """By links in the text, without the navigation."""

    def linked(name: str) -> set[str]:
        text = (site / name).read_text().partition("<article")[2].partition("</article>")[0]
        found = re.findall(r'href="([^"#:]+\.html)', text)
        return {os.path.normpath(os.path.join(os.path.dirname(name), target)) for target in found}

    once = linked("index.html")
    twice = once.union(*map(linked, once))
    assert pages() - {"index.html"} <= twice


@pytest.mark.parametrize("page", PACKAGES)
def test_the_reference_has_every_public_name(page: str) -> None:
    """Each where its docstring is, and once in all pages."""
    listed = ENTRY.findall((DOCS / "reference" / f"{page}.md").read_text())
    everywhere = Counter(ENTRY.findall("\n".join(file.read_text() for file in DOCS.rglob("reference/*.md"))))
    for package in PACKAGES[page]:
        module = importlib.import_module(package)
        for name in sorted({*module.__all__} - LEFT_OUT):
            found = getattr(module, name)
            if inspect.isfunction(found) or inspect.isclass(found):
                assert everywhere[f"{found.__module__}.{found.__qualname__}"] == 1, f"{package}.{name}"
    for path in listed:
        owner, _, name = path.rpartition(".")
        assert not isinstance(getattr(importlib.import_module(owner), name), ModuleType), path


def test_pictures_are_those_that_are_made(tmp_path: Path) -> None:
    """Each committed picture is drawn by `python -m benchmarks.pictures`, one by `aimc characterise`, and shown by a
    page."""
    from_study = {f"study_{name}.png" for name in pictures.FROM_STUDY}
    committed = {file.name for file in (DOCS / "pictures").iterdir()}
    drawn = {f"{name}.png" for name in (*pictures.DRAWN, *pictures.MEASURED)}
    assert committed == drawn | from_study | {"characterisation.png"}
    shown = "".join(page.read_text() for page in DOCS.rglob("*.md"))
    assert [name for name in committed if f"pictures/{name}" not in shown] == []
    assert sum(file.stat().st_size for file in (DOCS / "pictures").iterdir()) < 500_000
    written = pictures.write({"machine": pictures.machine()}, tmp_path)
    assert [path.name for path in written] == ["machine.png"] and written[0].stat().st_size > 10_000
