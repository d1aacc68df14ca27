"""What `mkdocs.yml` asks for: pages from outside of docs/, links that lead out of it, and links to papers.

README, CHANGELOG and the benchmarks' results become pages; each room of the packages gets a page of reference; every
other file of the repository that a page links to is copied into the site as it is.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Which files of the repository are pages of the site under another name."""
LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>[^)\s#:]*)(?P<anchor>#[^)\s]*)?\)")
LABEL = re.compile(r"(?P<before><p>|\n)(?P<label>Source|Differs):")
PAPER = re.compile(r"(?<![\w/\[>])arXiv[: ](?P<id>\d{4}\.\d{4,5})")


def on_config(config: Any) -> Any:
    """Add the reference of all rooms to the navigation."""
    config.nav.insert(-1, {"Reference": [f"reference/{package}.md" for package, _ in _rooms()]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that do not lie in docs/, and the files that pages link to."""
    outside = [*(ROOT / name for name in PAGES), *_benchmarks()]
    for source in outside:
        _add(files, config, _site_path(source), abs_src_path=str(source))
    for notebook in (ROOT / "docs").rglob("*.ipynb"):
        _add(files, config, _site_path(notebook.with_suffix(".md")), content=_page(notebook))
    for package, modules in _rooms():
        _add(files, config, f"reference/{package}.md", content=_reference(package, modules))
    for document in [*outside, *(ROOT / "docs").glob("*.md")]:
        for match in LINK.finditer(document.read_text()):
            path = _linked(document, match["target"])
            if path is not None and path.is_file() and not path.is_relative_to(ROOT / "docs"):
                _add(files, config, _site_path(path), abs_src_path=str(path))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links of a page to where the files lie in the site; a link to a folder becomes its text."""
    if page.file.src_uri.startswith("reference/"):
        return markdown
    document = Path(page.file.abs_src_path or ROOT / "docs" / page.file.src_uri)

    def led(match: re.Match) -> str:
        path = _linked(document, match["target"])
        if path is None:
            return match[0]
        if path.is_dir():
            return match["text"][1:-1]
        path = path.with_suffix(".md") if path.suffix == ".ipynb" else path
        target = os.path.relpath(_site_path(path), Path(page.file.src_uri).parent)
        return f"{match['text']}({target}{match['anchor'] or ''})"

    return LINK.sub(led, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Link every paper that a docstring names by its arXiv id, and set its source and our differences apart."""
    html = LABEL.sub(r"\g<before><br><strong>\g<label>:</strong>", html)
    return PAPER.sub(r'<a href="https://arxiv.org/abs/\g<id>">arXiv:\g<id></a>', html)


def _benchmarks() -> list[Path]:
    return [ROOT / "benchmarks/README.md", *sorted((ROOT / "benchmarks/results").glob("*.md"))]


def _page(notebook: Path) -> str:
    """A notebook without outputs as Markdown."""
    cells = json.loads(notebook.read_text())["cells"]
    form = {"markdown": "{}", "code": "```python\n{}\n```"}
    return "\n\n".join(form[cell["cell_type"]].format("".join(cell["source"])) for cell in cells)


def _linked(document: Path, target: str) -> Path | None:
    """The file or folder that a relative link of a document names; None where it names a place of the page alone."""
    return (document.parent / target).resolve() if target else None


def _site_path(path: Path) -> str:
    """Where a file of the repository lies in the site."""
    name = str(path.relative_to(ROOT))
    return PAGES.get(name, name.removeprefix("docs/"))


def _add(files: Any, config: Any, name: str, **source: Any) -> None:
    if files.get_file_from_path(name) is None:
        files.append(File.generated(config, name, **source))


def _rooms() -> Iterator[tuple[str, list[str]]]:
    """Each folder of the packages with its public modules that are Python."""
    for top in ("vqkit", "trainers"):
        for folder in sorted({path.parent for path in (ROOT / top).rglob("*.py")}):
            names = sorted(path.stem for path in folder.glob("*.py") if path.stem not in ("__init__", "__main__"))
            package = ".".join(folder.relative_to(ROOT).parts)
            yield package, [f"{package}.{name}" for name in names]


def _reference(package: str, modules: list[str]) -> str:
    return "\n".join([f"# `{package}`", "", *(f"::: {module}\n" for module in modules)])
