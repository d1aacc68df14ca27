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


HELP = """
import os
import runpy
import sys
import traceback

path = sys.path[1:]
folders = ("scripts", "trainers", "benchmarks")
own = tuple(os.path.join(os.getcwd(), name, "") for name in folders)
for script in sys.argv[1:]:
    sys.argv, sys.path[:] = [script, "--help"], [os.path.dirname(script), *path]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print(script, "ends with", end.code)
    except Exception:
        traceback.print_exc()
    for name, module in list(sys.modules.items()):  # what the next one has to find by itself
        if name.partition(".")[0] in folders or (getattr(module, "__file__", None) or "").startswith(own):
            del sys.modules[name]
"""


@pytest.mark.slow
def test_scripts_find_what_they_import() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", HELP, *map(str, SCRIPTS)]
    called = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    ends = re.findall(r"(\S+) ends with 0", called.stdout)
    assert ends == list(map(str, SCRIPTS)), called.stderr
    assert called.stdout.count("usage: ") == len(SCRIPTS)


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
