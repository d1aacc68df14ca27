"""What a project says of itself agrees: version, licence, hooks."""

import re
from pathlib import Path

import yaml

from vqkit import __version__

ROOT = Path(__file__).parents[1]


def test_the_citation_names_this_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == "MIT"
    assert {"cff-version", "message", "title", "authors", "date-released"} <= citation.keys()
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_hooks_and_checks_run_the_same_programs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    programs = {Path(hook["entry"].split()[0]).name for hook in hooks}
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert programs - {"python"} == {"ruff", "mypy"}
    assert programs <= {Path(line.split()[0]).name for line in recipe.splitlines()}


def test_every_target_of_the_contributing_page_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {*re.findall(r"`make ([a-z-]+)`", (ROOT / "CONTRIBUTING.md").read_text())} <= targets
