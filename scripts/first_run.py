"""What first runs and comparisons share: training by the command that a user would type, and the facts of it."""

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the scripts that import this one first

import torch
import yaml
from torch import nn

from vqkit import Tokenizer

ROOT = Path(__file__).resolve().parent.parent


def comparison_parser(description: str, noun: str) -> argparse.ArgumentParser:
    """The arguments of both comparisons."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder, as the trainer left it")
    parser.add_argument("--training", type=Path, required=True, help=f"folder of the {noun} it was trained on")
    parser.add_argument("--evaluation", type=Path, required=True, help=f"folder of {noun} it never met")
    parser.add_argument("--circumstances", default="", help="what the record should say of the machine and command")
    return parser


def quickstart_parser(description: str, *, max_minutes: float) -> argparse.ArgumentParser:
    """The arguments of both first runs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the run folders")
    parser.add_argument("--steps", type=int, help="training steps, instead of the config's")
    limit = "stop training after this long, and record it as capped"
    parser.add_argument("--max-minutes", type=float, default=max_minutes, help=limit)
    return parser


def train(
    config: Path,
    folder: Path,
    roots: tuple[Path, Path],
    arguments: argparse.Namespace,
    *,
    repeats: int,
    shortcut: str,
) -> dict[str, object]:
    """Run the trainer's command; how that went, for the record.

    Args:
        config: its path.
        folder: of the run.
        roots: folders of the training data and of the data to watch; nothing is chosen by these: the last weights are
            the result.
        arguments: as `quickstart_parser` reads them.
        repeats: of the training data in an epoch.
        shortcut: the command that a run without arguments is known by, such as `make quickstart`.
    """
    minutes = int(arguments.max_minutes)
    limit = f"00:{minutes // 60:02}:{minutes % 60:02}:{int(60 * (arguments.max_minutes - minutes)):02}"
    options = {
        "config": config.relative_to(ROOT),
        "runs": os.path.relpath(folder.parent, ROOT),
        "data.root": roots[0].relative_to(ROOT),
        "data.validation_root": roots[1].relative_to(ROOT),
        "data.repeats": repeats,
        "trainer.precision": "bf16-mixed" if bfloat16_is_fast() else "32-true",
        "trainer.max_time": limit,
    }
    if arguments.steps:
        options["trainer.max_steps"] = arguments.steps
    start = time.monotonic()
    fit(options)
    seconds = round(time.monotonic() - start, 1)
    own = " ".join([f"python scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    command_line = shortcut if len(sys.argv) == 1 else own
    circumstances = f"{torch.get_num_threads()} threads, {processor()}; `{command_line}`"
    return training_facts(folder, circumstances) | {"seconds": seconds}


def finish(folder: Path, options: Mapping[str, object]) -> None:
    """Train a run to its end, unless that was done before; go on where it stopped.

    Args:
        folder: of the run.
        options: see `fit`.
    """
    if not (folder / "tokenizer").is_dir():
        fit(options, resumed=(folder / "checkpoints/last.ckpt").is_file())


def fit(options: Mapping[str, object], *, resumed: bool = False) -> None:
    """Run the trainer's command, which a user would type.

    Args:
        options: by their names, several values of one as a list; paths from the root of the checkout, where it runs.
        resumed: go on from the last checkpoint, instead of replacing a run that is there.

    Raises:
        SystemExit: it failed.
    """
    words = []
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name}", str(one)]
    words += ["--ckpt_path", "last"] if resumed else ["--overwrite"]
    print("$ python -m trainers fit " + " ".join(words), flush=True)
    if status := run([sys.executable, "-m", "trainers", "fit", *words]):
        print(f"training ended with status {status}; what it said stands above", file=sys.stderr)
        sys.exit(status)


def run(command: list[str]) -> int:
    """The status of a command that gets the signals of this process, each once: a terminal sends Ctrl-C to groups."""
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, process_group=0)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(number, lambda number, _: process.send_signal(number)) for number in numbers]
    status = process.wait()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def training_facts(run: Path, circumstances: str) -> dict[str, object]:
    """How a run was trained, from what it left behind.

    Args:
        run: its folder.
        circumstances: machine and command, for the record.
    """
    config = yaml.safe_load((run / "config.yaml").read_text())
    checkpoint = torch.load(run / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)
    timers = [state["time_elapsed"]["train"] for name, state in checkpoint["callbacks"].items() if "Timer" in name]
    return {
        "steps": checkpoint["global_step"],
        "seconds": timers[0] if timers else None,  # known where trainer.max_time was set
        "capped": checkpoint["global_step"] < config["trainer"]["max_steps"],
        "precision": config["trainer"]["precision"] or "32-true",  # what Lightning takes without one
        "circumstances": circumstances,
    }


def of_run(folder: Path) -> Tokenizer:
    """The tokenizer that a run saved."""
    return Tokenizer.from_pretrained(folder / "tokenizer").eval()


def report(training: Mapping[str, object], folder: Path, config: Path, measured: str, **steps: str) -> None:
    """Print how it was trained, and where to go from here.

    Args:
        training: as `train` returned it.
        folder: of the run.
        config: its path.
        measured: how many of what the figures are of.
        steps: what to do next -> how.
    """
    capped = ", CAPPED before the end" if training["capped"] else ""
    print(f"\n{training['steps']} steps in {training['seconds']:.0f} s{capped}, {training['precision']}, ", end="")
    print(f"{training['circumstances']}; {measured} never trained on\n")
    shown = os.path.relpath(folder)
    steps = {
        "look at it": f"{shown}/reconstructions.png and {shown}/codebook.png (figures: {shown}/metrics.json)",
        "train on your own folder": f".venv/bin/python -m trainers fit --config {config.relative_to(ROOT)} "
        "--data.root DIR --name mine",
        **{what.replace("_", " "): where for what, where in steps.items()},
        "open the report": f"wandb sync {shown}/wandb/offline-run-*  (needs an account; until then it stays here)",
    }
    for what, where in steps.items():
        print(f"  {what + ':':34}{where}")


def bfloat16_is_fast() -> bool:
    """Whether a convolution like those trained here runs a fifth faster in bfloat16 at least: tried, not guessed."""
    convolution, x = nn.Conv2d(64, 64, 3, padding=1), torch.randn(16, 64, 16, 16)

    def seconds(low_precision: bool) -> float:
        best = float("inf")
        for _ in range(8):
            start = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low_precision):
                convolution(x).float().sum().backward()
            best = min(best, time.perf_counter() - start)
        return best

    return seconds(True) * 1.2 < seconds(False)


def processor() -> str:
    """What the machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
