"""MkDocs hook: pages of the root join the site; links to files that are no pages lead to the repository."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "SECURITY.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CODE_OF_CONDUCT.md": "CODE_OF_CONDUCT.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
ELSEWHERE = ("http://", "https://", "mailto:", "#")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's root."""
    for name, uri in ROOT_PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page. Raises PluginError for a link to a file that does not exist."""
    uris = {Path(file.abs_src_path).resolve(): file.src_uri for file in files if file.abs_src_path}
    source = Path(page.file.abs_src_path or "")
    folder = posixpath.dirname(page.file.src_uri)

    def rewrite(link: re.Match[str]) -> str:
        text, target = link.groups()
        if target.startswith(ELSEWHERE):
            return link[0]
        path, _, anchor = target.partition("#")
        linked = (source.parent / path).resolve()
        if not linked.exists():
            raise PluginError(f"{source.name}: {target} does not exist")
        if uri := uris.get(linked):
            return f"[{text}]({posixpath.relpath(uri, folder or '.')}{'#' + anchor if anchor else ''})"
        if config.repo_url:
            kind = "tree" if linked.is_dir() else "blob"
            return f"[{text}]({config.repo_url.rstrip('/')}/{kind}/main/{linked.relative_to(ROOT)})"
        return text

    return LINK.sub(rewrite, markdown)
