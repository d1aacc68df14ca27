"""Scripts, as they are called: from a checkout, by their path, in an environment that holds vqkit alone."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from records import fill, load_record

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path
    for path in (ROOT / "scripts").glob("*.py")
    if {"parse_args", "__main__"} <= set(re.findall(r"\w+", path.read_text()))
)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_finds_what_it_imports(script: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(script), "--help"]
    called = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert called.returncode == 0, called.stderr
    assert "usage:" in called.stdout


def test_a_record_is_written_after_each_part_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "record.json"

    def interrupted() -> int:
        raise KeyboardInterrupt

    record = load_record(path, again=False)
    with pytest.raises(KeyboardInterrupt):
        fill(path, record, record.setdefault("run", {}), {"first": lambda: 1, "second": interrupted})
    assert json.loads(path.read_text()) == {"run": {"first": 1}}
    record = load_record(path, again=False)
    fill(path, record, record["run"], {"first": interrupted, "second": lambda: 2})
    assert json.loads(path.read_text()) == {"run": {"first": 1, "second": 2}}
    assert load_record(path, again=True) == {}
