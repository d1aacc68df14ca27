"""Gates on the machine code of the fused kernels, compiled for each kind of GPU, none of which need be here."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.machine_code import kernel_names
from tests.kernels.sass import TENSOR_CORE, Listing, products_of_a_thread

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

MachineCode = tuple[int, list[dict[str, Any]]]
ROOT = Path(__file__).resolve().parents[2]
# Bytes that a program can have; 80 stands for all of its generation, of which the A100 alone has more, 163 KiB.
SHARED = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
MOST_COMPARISONS = 2.0  # for each score, in the loop of the search
PRODUCTS = {1: 1, 2: 3}  # for each score, by the halves of its numbers


# The slow tier has the one with the least memory, which takes minutes, as each does.
KINDS = [pytest.param(number, marks=() if number == 80 else pytest.mark.long, id=f"sm_{number}") for number in SHARED]


@pytest.fixture(scope="session", params=KINDS)
def machine_code(request: pytest.FixtureRequest) -> MachineCode:
    """Compute capability times ten, and the reports."""
    return request.param, json.loads(compiling("-m", "tests.kernels.machine_code", str(request.param)))


def compiling(*command: str) -> str:
    """What a process prints in which Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def named(report: dict[str, Any]) -> str:
    return f"{report['kernel']} of {report['call']}, {report.get('constants')}"


def scans(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [report for report in reports if report["kernel"] == "scan.scan_kernel" and "failure" not in report]


def scores_of_a_thread(report: dict[str, Any]) -> float:
    return report["constants"]["BN"] * report["constants"]["BK"] / (32 * report["warps"])


# What must not be: by the report of a kernel and the compute capability, something that is true of one that has it.
FAULTS: dict[str, Callable[[dict[str, Any], int], object]] = {
    "no code": lambda report, architecture: report.get("failure"),
    "more shared memory than there is": lambda report, architecture: report.get("shared", 0) > SHARED[architecture],
    "register spills": lambda report, architecture: report.get("spills"),
    "no tensor cores": lambda report, architecture: report.get("multiplies") and not report["tensor_core"],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_kernel_has(fault: str, machine_code: MachineCode) -> None:
    architecture, reports = machine_code
    assert {report["kernel"] for report in reports} == kernel_names()
    multiplying = {report["kernel"] for report in reports if report.get("multiplies")}
    assert multiplying >= {"scan.scan_kernel", "scan.list_kernel"}
    found = [f"{named(report)}: {value}" for report in reports if (value := FAULTS[fault](report, architecture))]
    assert not found, "\n".join(found)


def test_the_loop_of_the_search_is_lean(machine_code: MachineCode) -> None:
    """Two comparisons a score at most, and no exchange between threads: what the search takes beyond the products."""
    _, reports = machine_code
    assert {report["constants"]["WIDTH"] for report in scans(reports)} >= {64, 128, 256}
    faults = []
    for report in scans(reports):
        (loop,) = report["whole_loops"]  # over tiles; inside it may be one over parts of the depth
        scores = scores_of_a_thread(report)
        if report["constants"]["WIDTH"] <= 256 and sum(loop["comparisons"].values()) > MOST_COMPARISONS * scores:
            faults.append(f"{named(report)}: {loop['comparisons']} for {scores} scores")
        if loop["shuffles"]:
            faults.append(f"{named(report)}: {loop['shuffles']} shuffles")
    assert not faults, "\n".join(faults)


def test_the_loop_that_is_counted_is_one_tile(machine_code: MachineCode) -> None:
    """As many products as a tile has: else the comparisons for each score would be those of another loop."""
    architecture, reports = machine_code
    for report in scans(reports):
        (loop,) = report["loops"]
        constants = report["constants"]
        products = scores_of_a_thread(report) * constants["WIDTH"] * PRODUCTS[constants["HALVES"]]
        chunks = constants["WIDTH"] // constants["BD"]
        expected = {products, products / chunks} if architecture < 100 else {None}  # a loop over chunks, or none
        assert loop["products"] in expected, named(report)


SIZES = """
from tests.kernels.machine_code import calls
from tests.kernels.stand_ins import compiled_for
with compiled_for(90) as compiled:
    forms = []
    for rows, codes in ((300, 500), (1, 512), (16, 8), (4097, 20)):
        for call in calls(rows, codes, 64):
            call.call()
        forms.append({(name, kernel.hash) for name, kernel in compiled})
print(len(forms[0]), *sorted(name for name, _ in forms[-1] - forms[0]))
"""


def test_no_kernel_is_made_for_a_batch_size() -> None:
    """Nor for a codebook size; Triton would make its own for 1 and for multiples of 16, unless it is told not to."""
    forms, *new = compiling("-c", SIZES).split()
    assert int(forms) > 20 and not new, new


LOOP = """
scan:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/               @P1 BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0030*/              @!P0 BRA `(.L_x_4) ;
.L_x_5:
        /*0040*/                   FMNMX R4, R4, R5, PT ;
{inside}
        /*0060*/               @P0 BRA `(.L_x_1) ;
.L_x_0:
        /*0070*/                   SHFL.BFLY PT, R5, R4, 0x1, 0x1f ;
        /*0080*/                   EXIT ;
.L_x_4:
        /*0090*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR27], R13 ;
        /*00a0*/              @!P2 BRA `(.L_x_4) ;
        /*00b0*/                   BRA `(.L_x_5) ;
.L_x_2:
        /*00c0*/                   BRA `(.L_x_2) ;
        /*00d0*/                   NOP ;
"""
SHUFFLE = "        /*0050*/                   SHFL.BFLY PT, R7, R6, 0x2, 0x1f ;"


@pytest.mark.parametrize(("inside", "shuffles"), [("", 0), (SHUFFLE, 1)], ids=["lean", "with a shuffle"])
@pytest.mark.parametrize("jump", ["BRA", "CALL.REL.NOINC"])
def test_loop_finder(jump: str, inside: str, shuffles: int) -> None:
    """What stands behind the loop does not count, though the wait there jumps back into it; what is inside does."""
    listing = Listing(LOOP.format(inside=inside).replace("BRA `(.L_x_1)", f"{jump} `(.L_x_1)"))
    assert len(listing.loops) == 2  # and the wait; not the trap behind the end, which nothing leads to
    (loop,) = listing.innermost_loops(TENSOR_CORE[80])
    assert listing.count(["SHFL"], loop).total() == shuffles and listing.count(["SHFL"]).total() == 1 + shuffles
    assert listing.count(["FMNMX", "SYNCS", "LDC"], loop) == {"FMNMX": 1, "SYNCS": 1}


def test_loop_finder_takes_the_innermost_loop() -> None:
    inner = LOOP.format(inside=SHUFFLE)
    outer = inner.replace("EXIT ;", "@!P3 BRA `(.L_x_6) ;\n        /*0088*/  EXIT ;")
    listing = Listing(outer.replace("[0x28] ;", "[0x28] ;\n.L_x_6:\n        /*0008*/  NOP ;"))
    assert len(listing.loops) == 3
    (loop,) = listing.innermost_loops(TENSOR_CORE[80])
    assert listing.count(["SHFL", "NOP"], loop) == {"SHFL": 1}


def test_products_of_instructions() -> None:
    names = ["HMMA.16816.F32.BF16", "HMMA.1688.F32.TF32", "HGMMA.64x128x16.F32.BF16", "UTCHMMA"]
    text = "".join(f"        /*{16 * place:04x}*/  {name} R0, R4, R8 ;\n" for place, name in enumerate(names))
    instructions = Listing(text).instructions
    assert [products_of_a_thread([instruction]) for instruction in instructions] == [64, 32, 1024, None]
