"""How many of vqkit's Python functions a call passes, and how many lines the library and its tests have.

    python scripts/trace_calls.py          # the tables of docs/architecture.md
    python scripts/trace_calls.py --list   # each function that a training forward of "ema" passes, in order

A function counts each time it is called, anonymous frames too; sizes are toy ones, and what a first call alone does
(loading, warming up) is left out. Python 3.12 and later inline comprehensions, which then count no more. The search
is the compiled one, where it was built, and that in torch.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NamedTuple
from unittest.mock import patch

import torch
from first_run import ROOT

from vqkit import Quantizer, ResidualQuantizer
from vqkit.kernels import native, search_path

PACKAGE = ROOT / "vqkit"


class Call(NamedTuple):
    """A function that was passed."""

    file: str
    function: str


def trace(call: Callable[[], object]) -> list[Call]:
    """The functions of vqkit that a call passes, in order."""
    passed: list[Call] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            passed.append(Call(str(path.relative_to(PACKAGE)), frame.f_code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return passed


def training_forward() -> list[Call]:
    """The third training forward of `ema`, in which statistics of the one before are folded in."""
    quantizer, x = Quantizer("ema", dim=8, codebook_size=16, channel_dim=1), torch.randn(2, 8, 4, 4, requires_grad=True)
    quantizer(x), quantizer(x)
    return trace(lambda: quantizer(x))


def further_stage() -> list[Call]:
    """What a third residual stage adds to a training forward of two."""
    passed = []
    for stages in (2, 3):
        stage = partial(Quantizer, "ema", dim=8, codebook_size=16)
        quantizer, x = ResidualQuantizer(stage, stages), torch.randn(2, 4, 8, requires_grad=True)
        quantizer(x), quantizer(x)
        passed.append(trace(lambda quantizer=quantizer, x=x: quantizer(x)))
    fewer, more = passed
    left = list(more)
    for call in fewer:
        left.remove(call)
    return left


def eval_calls() -> tuple[list[Call], list[Call]]:
    """`encode` and `decode`."""
    quantizer, x = Quantizer("ema", dim=8, codebook_size=16).eval(), torch.randn(2, 4, 8)
    indices = quantizer.encode(x)
    quantizer.decode(indices)
    return trace(lambda: quantizer.encode(x)), trace(lambda: quantizer.decode(indices))


def measured() -> dict[str, list[Call]]:
    """What the table lists."""
    torch.manual_seed(0)
    encode, decode = eval_calls()
    return {
        "`ema`, a training forward": training_forward(),
        "a further residual stage": further_stage(),
        "`encode`": encode,
        "`decode`": decode,
    }


def lines(folder: str) -> tuple[int, int]:
    """Python files of a folder, and their lines."""
    files = sorted((ROOT / folder).rglob("*.py"))
    return len(files), sum(len(path.read_text().splitlines()) for path in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the functions of a training forward instead")
    if parser.parse_args().list:
        print(*(f"{call.file}  {call.function}" for call in training_forward()), sep="\n")
        return
    columns = {search_path("cpu").name: measured()}
    with patch.object(native, "can_search", lambda *_: False):
        columns["torch"] = measured()
    version = ".".join(map(str, sys.version_info[:2]))
    print(f"Functions / files, Python {version}, by what searches:\n")
    print(f"| call | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name in columns["torch"]:
        cells = [f"{len(calls[name])} / {len({call.file for call in calls[name]})}" for calls in columns.values()]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| folder | Python files | lines |\n|---|---:|---:|")
    for folder in ("vqkit", "tests"):
        print("| {} | {} | {:,} |".format(f"`{folder}`", *lines(folder)))


if __name__ == "__main__":
    main()
