"""What the first runs share: training by the command that a user would type, and facts about the machine."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from torch import nn

ROOT = Path(__file__).resolve().parent.parent


def train(
    config: Path, folder: Path, roots: tuple[Path, Path], *, repeats: int, steps: int | None, max_minutes: float
) -> dict[str, object]:
    """Run the trainer's command; how that went, for the record.

    Args:
        config: its path.
        folder: of the run.
        roots: folders of the training data and of the data to watch; nothing is chosen by these: the last weights are
            the result.
        repeats: of the training data in an epoch.
        steps: instead of the config's.
        max_minutes: training is stopped after this long, and recorded as capped.
    """
    minutes = int(max_minutes)
    limit = f"00:{minutes // 60:02}:{minutes % 60:02}:{int(60 * (max_minutes - minutes)):02}"
    precision = "bf16-mixed" if bfloat16_is_fast() else "32-true"
    command = [sys.executable, "-m", "trainers", "fit", "--config", str(config.relative_to(ROOT))]
    command += ["--runs", os.path.relpath(folder.parent, ROOT)]
    command += [
        "--data.root",
        str(roots[0].relative_to(ROOT)),
        "--data.validation_root",
        str(roots[1].relative_to(ROOT)),
    ]
    command += ["--data.repeats", str(repeats), "--trainer.precision", precision, "--trainer.max_time", limit]
    if steps:
        command += ["--trainer.max_steps", str(steps)]
    print("$ python " + " ".join(command[1:]), flush=True)
    start = time.monotonic()
    status = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode
    if status:
        sys.exit(f"training ended with status {status}; what it said stands above")
    seconds = time.monotonic() - start
    taken = torch.load(folder / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)["global_step"]
    wanted = steps or yaml.safe_load(config.read_text())["trainer"]["max_steps"]
    return {"steps": taken, "seconds": round(seconds, 1), "capped": taken < wanted, "precision": precision}


def circumstances(shortcut: str) -> str:
    """Threads, processor and command of this process.

    Args:
        shortcut: the command that a run without arguments is known by, such as `make quickstart`.
    """
    own = " ".join([f"python scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    command = shortcut if len(sys.argv) == 1 else own
    return f"{torch.get_num_threads()} threads, {processor()}; `{command}`"


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
