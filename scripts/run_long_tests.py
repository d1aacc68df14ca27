"""Run the long tests file by file, and write what came of each into tests/LONG.md, with the commit and the machine.

    python scripts/run_long_tests.py                     # what `make test-long` runs: two hours on two CPU cores
    python scripts/run_long_tests.py tests/test_baking.py  # these files; the rows of others stay as they are

A process for each core, eight at most, of one thread each. A row is written when its file has ended: a run that is cut
short keeps what it has.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from first_run import processor

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "tests/LONG.md"
HEAD = """# The last run of the long tests

Written by `make test-long`, a row when the tests of a file have ended.

| file | result | minutes | commit | date | machine |
|---|---|---:|---|---|---|
"""
PROCESSES = min(os.cpu_count() or 1, 8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="test files, as tests/LONG.md names them; all that have long tests")
    chosen = parser.parse_args().files
    changed = [
        line for line in _git("status", "--porcelain", "--untracked-files=no").splitlines() if "LONG.md" not in line
    ]
    if changed:
        print("commit first, so that the result has a name:", *changed, sep="\n", file=sys.stderr)
        return 2
    files = files_with_long_tests()
    if unknown := set(chosen) - set(files):
        print(f"no long tests in {', '.join(sorted(unknown))}: expected some of {', '.join(files)}", file=sys.stderr)
        return 2
    rows = {file: row for file, row in read_rows().items() if file in files}
    failed = False
    for file in chosen or files:
        status, rows[file] = run(file)
        failed |= status != 0
        REPORT.write_text(HEAD + "".join(f"{rows[name]}\n" for name in files if name in rows))
    return int(failed)


def files_with_long_tests() -> list[str]:
    """Test files, as paths from the root."""
    command = [sys.executable, "-m", "pytest", "-m", "long", "--collect-only"]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted({line.split("::")[0] for line in found.splitlines() if "::" in line})


def read_rows() -> dict[str, str]:
    """The rows of the report, by file."""
    lines = REPORT.read_text().splitlines() if REPORT.exists() else []
    return {match[1]: line for line in lines if (match := re.match(r"\| `(.+?)`", line))}


def run(file: str) -> tuple[int, str]:
    """The exit status of the long tests of a file, and its row."""
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-m", "long", "-n", str(PROCESSES), "--dist", "worksteal", file]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    lines = []
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip("= \n"))
    counts = [line.split(" in ")[0] for line in lines if re.match(r"\d+ (passed|failed|skipped|error)", line)]
    result = counts[-1] if counts else f"ended with status {process.returncode}"
    failures = "".join(f"<br>{line}" for line in lines if line.startswith(("FAILED", "ERROR")))
    machine = f"{processor()}, {PROCESSES} processes, torch {torch.__version__}"
    commit, date, minutes = _git("rev-parse", "--short", "HEAD"), time.strftime("%Y-%m-%d"), time.monotonic() - start
    return process.returncode, f"| `{file}` | {result}{failures} | {minutes / 60:.0f} | {commit} | {date} | {machine} |"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
