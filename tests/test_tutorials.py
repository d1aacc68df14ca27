"""The tutorials run from a clone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs/tutorials").glob("*.ipynb"))


def test_the_tutorials_are_committed_as_valid_code_without_outputs():
    assert len(NOTEBOOKS) >= 4
    for path in NOTEBOOKS:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert cells and not any(cell["outputs"] or cell["execution_count"] for cell in cells), path
        for cell in cells:
            compile("".join(cell["source"]), str(path), "exec")


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path, tmp_path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    script = tmp_path / f"{path.stem}.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells) + "\n")
    environment = os.environ | {"MPLBACKEND": "agg", "VQKIT_TUTORIAL_STEPS": "20", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script], cwd=ROOT, env=environment, check=True, timeout=900)
