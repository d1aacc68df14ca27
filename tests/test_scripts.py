"""Scripts, as they are called: from a checkout, by their path, in an environment that holds vqkit alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path
    for path in (ROOT / "scripts").glob("*.py")
    if {"argparse", "__main__"} <= set(re.findall(r"\w+", path.read_text()))
)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_finds_what_it_imports(script: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(script), "--help"]
    called = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert called.returncode == 0, called.stderr
    assert "usage:" in called.stdout
