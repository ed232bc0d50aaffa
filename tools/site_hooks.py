"""Hooks of the documentation site: records and the project's own files become part of it.

Documents link to ``results/*.json``, LAB.md and others outside ``docs``, so that the links work in the
repository. Here the same files enter the site, and the links follow.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PROJECT = ("CHANGELOG.md", "CONTRIBUTING.md", "LAB.md", "SECURITY.md")
FOLDERS = {"results": "records", "src": "source", "tools": "tools", "tests": "tests", "studies": "studies"}
"""Folder of the repository -> folder of the site."""
LINK = re.compile(r"\]\(((?:\.\./)*)([^)#\s:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside ``docs`` that documents link to."""
    for name in PROJECT:
        if (ROOT / name).exists():
            files.append(_generated(config, f"project/{name}", ROOT / name))
    linked = {
        path
        for document in [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in PROJECT)]
        for _, path in _outside(document.read_text(), document)
    }
    for path in sorted(linked):
        inside = path.relative_to(ROOT)
        if inside.parts[0] in FOLDERS and path.is_file():
            files.append(_generated(config, _address(inside), path))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files outside ``docs`` to where the site has them."""
    source = Path(page.file.src_uri)
    document = ROOT / source.name if source.parts[0] == "project" else ROOT / "docs" / source
    up = "../" * (len(source.parts) - 1)

    def moved(link: re.Match[str]) -> str:
        target = (document.parent / (link[1] + link[2])).resolve()
        if not target.is_relative_to(ROOT):
            return link[0]
        inside, anchor = target.relative_to(ROOT), link[3] or ""
        if inside.parts[:1] == ("docs",):
            return f"]({up}{inside.relative_to('docs').as_posix()}{anchor})"
        return f"]({up}{_address(inside)}{anchor})"

    return LINK.sub(moved, markdown)


def _outside(text: str, document: Path) -> list[tuple[str, Path]]:
    """Links of a document to files of the repository that lie outside ``docs``: (as written, path)."""
    found = [(m[1] + m[2], (document.parent / (m[1] + m[2])).resolve()) for m in LINK.finditer(text)]
    return [
        (link, path)
        for link, path in found
        if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "docs")
    ]


def _address(inside: Path) -> str:
    """Where the site has a file of the repository."""
    if inside.name in PROJECT or inside.name == "README.md":
        return f"project/{inside.name}" if inside.name in PROJECT else "index.md"
    folder, *rest = inside.parts
    name = "/".join([FOLDERS.get(folder, folder), *rest])
    return f"{name}.txt" if inside.suffix in (".py", ".toml", ".cpp") else name


def _generated(config: MkDocsConfig, address: str, path: Path) -> File:
    file = File.generated(config, address, abs_src_path=str(path))
    file.inclusion = InclusionLevel.NOT_IN_NAV
    return file
