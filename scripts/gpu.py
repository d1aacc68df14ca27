"""All that a machine with a GPU is needed for, in half an hour: tests, calibration, benchmarks and other tiles.

    python scripts/gpu.py                                # what `make gpu` runs
    python scripts/gpu.py --steps calibration search     # some of it

Writes benchmarks/results/gpu_<device>.md and calibration_<device>.json. Where tests and calibration pass on a GPU, its
compute capability and the version of Triton join vqkit/kernels/gpu/verified.json, the list of what the fused kernels
are taken on without being asked for. Without a GPU it is a dry run: every step runs its code, tiny, in Triton's
interpreter, and build/gpu/ gets the same tables with no figures in them.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch

from benchmarks.device import circumstances
from benchmarks.machine import version, write
from vqkit.kernels import engines, gpu

ROOT = Path(__file__).resolve().parents[1]
DRY = "dry run: no GPU, nothing is measured"


class Step(NamedTuple):
    """One command.

    Attributes:
        minutes: after which it is ended.
        command: on a GPU, after the name of the interpreter; OUTPUT stands for the table that it writes.
        dry: what it is without a GPU.
    """

    minutes: int
    command: str
    dry: str


# The minutes add up to no more than 30.
STEPS = {
    "tests": Step(
        10,
        "-m pytest tests/kernels -o addopts=-q -p no:cacheprovider"  # the slow ones, too: they are not slow there
        " --deselect tests/kernels/test_machine_code.py --deselect tests/kernels/test_processors.py",
        "-m pytest tests/kernels/test_interpreter.py tests/kernels/test_cuda.py -p no:cacheprovider",
    ),
    "calibration": Step(
        3,
        "benchmarks/calibration.py --output OUTPUT",
        "benchmarks/calibration.py --device interpreter --output OUTPUT",
    ),
    "search": Step(
        8,
        "benchmarks/search.py --device cuda --rounds 15 --seconds 3 --output OUTPUT",
        "benchmarks/search.py --device interpreter --shapes 20,40,8 --rounds 1 --output OUTPUT",
    ),
    "soft_assignment": Step(
        4,
        "benchmarks/soft_assignment.py --device cuda --seconds 20 --output OUTPUT",
        "benchmarks/soft_assignment.py --device interpreter --shapes 12,20,8 --rounds 1 --output OUTPUT",
    ),
    "tiles": Step(
        5,
        "benchmarks/tile_sweep.py --seconds 12 --output OUTPUT",
        "benchmarks/tile_sweep.py --device interpreter --most 2 --output OUTPUT",
    ),
}


def run(name: str, folder: Path, *, real: bool) -> tuple[bool, str]:
    """Whether a step succeeded, and what it has to say in Markdown."""
    step = STEPS[name]
    output = folder / f"{name}.md"
    output.unlink(missing_ok=True)
    words = (step.command if real else step.dry).split()
    environment = {**os.environ, **({engines.SWITCH: "1"} if real else {"TRITON_INTERPRET": "1"})}
    print(f"{name}: at most {step.minutes} min", flush=True)
    start = time.perf_counter()
    try:
        command = [sys.executable, *(str(output) if word == "OUTPUT" else word for word in words)]
        status = str(
            subprocess.run(command, cwd=ROOT, env=environment, timeout=60 * step.minutes, check=False).returncode
        )
    except subprocess.TimeoutExpired:
        status = f"none, ended after {step.minutes} min"
    seconds = time.perf_counter() - start
    print(f"{name}: status {status}, {seconds:.0f} s", flush=True)
    text = f"`python {' '.join(words)}`: exit status {status}\n"
    if output.exists():
        text += "\n" + re.sub(r"^#", "###", output.read_text(), flags=re.MULTILINE)
    return status == "0", text


def verify(path: Path, capability: int, triton: str) -> None:
    """Add a pair of compute capability, times ten, and Triton version to the list of what the kernels passed on."""
    pairs = {(pair["capability"], pair["triton"]) for pair in json.loads(path.read_text())} | {(capability, triton)}
    listed = [{"capability": capability, "triton": triton} for capability, triton in sorted(pairs)]
    write(path, json.dumps(listed, indent=2))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the steps one after another; exit status 1 where one failed, after all have run."""
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--steps", nargs="+", choices=list(STEPS), default=list(STEPS), metavar="STEP", help=" ".join(STEPS)
    )
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "gpu", help="for the tables of the steps")
    options = parser.parse_args(arguments)
    options.build.mkdir(parents=True, exist_ok=True)
    real = torch.cuda.is_available()
    print(f"{torch.cuda.get_device_name() if real else DRY}", flush=True)
    print(f"at most {sum(STEPS[name].minutes for name in options.steps)} min in all", flush=True)
    succeeded, parts = {}, []
    for name in options.steps:
        succeeded[name], text = run(name, options.build, real=real)
        parts += [f"\n## {name.replace('_', ' ').capitalize()}\n", text]
    device = re.sub(r"\W+", "_", torch.cuda.get_device_name()).lower() if real else "dry_run"
    folder = ROOT / "benchmarks" / "results" if real else options.build
    head = circumstances(f"python scripts/gpu.py --steps {' '.join(options.steps)}", "cuda" if real else "interpreter")
    table = folder / f"gpu_{device}.md"
    write(table, "\n".join(["# On a GPU\n", *head, *([] if real else [f"\n{DRY}"]), *parts]))
    print(f"written: {table}")
    numbers = options.build / "calibration.json"
    if real and "calibration" in options.steps and numbers.exists():
        write(folder / f"calibration_{device}.json", numbers.read_text())
    if real and succeeded.get("tests") and succeeded.get("calibration"):
        verify(gpu.VERIFIED, gpu.architecture(torch.device("cuda")), version("triton"))
        print(f"verified: {gpu.describe(torch.device('cuda'))}; commit {gpu.VERIFIED.relative_to(ROOT)}")
    failed = [name for name in options.steps if not succeeded[name]]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
