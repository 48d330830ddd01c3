"""The site has the repository's layout, but for two things: docs/ is its root, and README.md is its
first page. What pages link to is a part of it, so that no link leads out of the site.
"""

import os.path
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
_DOCS = "docs/"
_OF_SITE = {"README.md": "index.md", "docs/annotated_retnet.py": "annotated_retnet.md"}
_OF_REPOSITORY = {there: here for here, there in _OF_SITE.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the pages link to, and what those link to, where it isn't in docs/."""
    root = Path(config.config_file_path).parent
    waiting, seen = ["README.md"], set[str]()
    for page in files.documentation_pages():  # some of them made by other hooks
        waiting += _outside(root, f"{_DOCS}{page.src_uri}", page.content_string)
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        files.append(_file(root, path, config))
        if path.endswith(".md"):
            waiting += _outside(root, path, (root / path).read_text())
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """The page with its links as the site has them."""
    here = repository_path(page.file.src_uri)

    def as_in_site(link: re.Match[str]) -> str:
        to = site_path(_resolved(here, link[1]))
        return os.path.relpath(to, os.path.dirname(page.file.src_uri) or ".")

    return _LINK.sub(as_in_site, markdown)


def site_path(path: str) -> str:
    """Where the site has a file of the repository."""
    return _OF_SITE.get(path, path.removeprefix(_DOCS))


def repository_path(path: str) -> str:
    """Where the repository has a file of the site."""
    root = Path(__file__).parents[2]
    beside_docs = path if (root / path).is_file() else f"{_DOCS}{path}"
    return _OF_REPOSITORY.get(path, beside_docs)


def _file(root: Path, path: str, config: MkDocsConfig) -> File:
    file = File(site_path(path), str(root), config.site_dir, config.use_directory_urls)
    file.abs_src_path = str(root / path)
    return file


def _outside(root: Path, path: str, markdown: str) -> list[str]:
    """The files outside of docs/ that a page links to; those inside are the site's to check."""
    links = {link: _resolved(path, link) for link in _LINK.findall(markdown)}
    outside = {link: to for link, to in links.items() if not to.startswith(_DOCS)}
    for link, to in outside.items():
        if not (root / to).is_file():
            raise PluginError(f"{path} links to {link!r}, and there is no file {to}")
    return list(outside.values())


def _resolved(path: str, link: str) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(path), link))
