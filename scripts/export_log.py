"""Write the history of a run, which W&B keeps in a binary file, as a table that anything reads.

    python scripts/export_log.py runs/photos log.csv --columns train/loss train/psnr validation/psnr codebook/usage

One row per logged optimizer step, in which a figure keeps its value until it is logged again. The parts of a run that
was resumed are joined in the order of their steps: those with the id that `run.json` in the folder has. Histories of
other fits in the folder are left out, also of parts that an earlier version of vqkit has trained; that is said. A
folder of an earlier version has no `run.json`; there the histories of all fits are joined, which is said too.
"""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

from trainers.run.folders import RECORD, identity
from trainers.run.history import STEP, history, records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder, as the trainer left it")
    parser.add_argument("output", type=Path, help="CSV to write")
    parser.add_argument("--columns", nargs="+", help="names of what was logged; all numbers by default")
    parser.add_argument("--every", type=int, default=1, help="optimizer steps between rows")
    arguments = parser.parse_args()
    record = arguments.run / RECORD
    run_id = identity(arguments.run) if record.is_file() else "*"
    pattern = f"wandb/*run-*/run-{run_id}.wandb"
    files = [file for file in sorted(arguments.run.glob(pattern)) if _is_of_fit(file)]
    if not files:
        sys.exit(f"{arguments.run} holds no W&B run of a fit (expected {pattern})")
    if not record.is_file() and len(files) > 1:
        print(f"{record} is missing: {len(files)} histories are joined, of one run or several", file=sys.stderr)
    others = [file for file in sorted(arguments.run.glob("wandb/*run-*/run-*.wandb")) if file not in files]
    if left_out := [str(file) for file in others if _is_of_fit(file)]:
        print(
            f"{len(left_out)} histories are left out, of other runs or of this one before it had its id {run_id}: "
            f"{', '.join(left_out)}",
            file=sys.stderr,
        )
    rows: dict[int, dict[str, float]] = {}
    for file in files:
        for values in history(file):
            if STEP in values:
                rows.setdefault(int(values.pop(STEP)), {}).update(values)
    if not rows:
        sys.exit(f"{files[-1]} holds no history")
    columns = arguments.columns or sorted({name for row in rows.values() for name in row if not name.startswith("_")})
    unknown = set(columns) - {name for row in rows.values() for name in row}
    if unknown:
        there = sorted({name for row in rows.values() for name in row})
        sys.exit(f"columns {sorted(unknown)} were never logged; there are {there}")
    with arguments.output.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["step", *columns])
        latest: dict[str, float] = {}
        written = None
        for step in sorted(rows):
            latest |= rows[step]
            if written is None or step // arguments.every > written:
                written = step // arguments.every
                writer.writerow([step, *(_short(latest.get(name, "")) for name in columns)])


def _is_of_fit(file: Path) -> bool:
    """Whether a history is of a training; those of earlier versions tell by what they logged."""
    jobs = {record.run.job_type for record in records(file) if record.HasField("run")} - {""}
    if jobs:
        return jobs == {"fit"}
    return any(name.startswith("train/") for row in history(file) for name in row)


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


if __name__ == "__main__":
    main()
