"""Run the long tests, and write what came of them into tests/LONG.md, with the commit and the machine.

python scripts/run_long_tests.py  # what `make test-long` runs: an hour or two on two CPU cores

A process for each core, eight at most, of one thread each.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from first_run import processor

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    changed = _git("status", "--porcelain", "--untracked-files=no")
    if changed:
        print(f"commit first, so that the result has a name:\n{changed}", file=sys.stderr)
        return 2
    start = time.monotonic()
    processes = min(os.cpu_count() or 1, 8)
    command = [sys.executable, "-m", "pytest", "-m", "long", "-n", str(processes), "--dist", "worksteal"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        lines = []
        for line in run.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    results = [line.strip("= ") for line in lines if re.search(r"\d (passed|failed)", line)]
    report = [
        "# The last run of the long tests",
        "",
        "Written by `make test-long`.",
        "",
        f"- commit: {_git('rev-parse', 'HEAD')}",
        f"- date: {time.strftime('%Y-%m-%d')}",
        f"- machine: {processor()}, {processes} processes of one thread, torch {torch.__version__}",
        f"- minutes: {(time.monotonic() - start) / 60:.0f}",
        f"- result: {results[-1] if results else 'no tests ran'}",
        *(f"- {line}" for line in failed),
    ]
    (ROOT / "tests/LONG.md").write_text("\n".join(report) + "\n")
    return run.returncode


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
