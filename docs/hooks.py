"""What MkDocs does to the pages of docs/ beyond its own: `mkdocs.yml` names this file as a hook.

Pages are written to be read in a repository too, so they link to pictures that lie outside docs/, beside the models
that made them; the site takes these pictures in. Docstrings have the roles of Sphinx, which become plain code.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

LINK = re.compile(r"(?<=\]\()[^)#\s]+\.(?:png|svg)(?=\))")
ROLE = re.compile(r":(?:func|class|meth|data|mod|attr|exc|obj):<code>~?([^<]*)</code>")


def _from_docs(target: str, page: str) -> str:
    """Where a link of a page leads, as a path from docs/."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def on_files(files: Files, config: Any) -> Files:
    """Add the pictures outside docs/ that pages show, under their paths in the repository."""
    repository = Path(config.docs_dir).parent
    for page in files.documentation_pages():
        for target in LINK.findall(page.content_string):
            path = _from_docs(target, page.src_uri)
            inside = path.removeprefix("../")
            if inside != path and files.get_file_from_path(inside) is None and (repository / inside).is_file():
                files.append(File.generated(config, inside, abs_src_path=str(repository / inside)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to these pictures to where the site has them."""

    def inside(found: re.Match[str]) -> str:
        path = _from_docs(found[0], page.file.src_uri)
        here = posixpath.dirname(page.file.src_uri) or "."
        return posixpath.relpath(path.removeprefix("../"), here) if path.startswith("../") else found[0]

    return LINK.sub(inside, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Roles of docstrings as plain code."""
    return ROLE.sub(r"<code>\1</code>", html)
