"""Compiles the fused kernels for a GPU that need not be here, and says what became of them, as JSON.

    python -m tests.kernels.machine_code 90        # by compute capability times ten

In a process of its own, without TRITON_INTERPRET: Triton decides at its import whether there is a compiler.
"""

import ast
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from benchmarks import calibration
from tests.kernels import soft_operators
from tests.kernels.sass import COMPARISONS, SPILLS, TENSOR_CORE, Listing, products_of_a_thread
from tests.kernels.stand_ins import compiled_for
from vqkit.kernels import gpu

OPERATORS = torch.ops.vqkit
PRODUCTS = {"scan.scan_kernel", "scan.list_kernel"}  # whose tiles depend on D


class Call(NamedTuple):
    """A call that launches kernels, and which of those are wanted, by module and name; None for all."""

    name: str
    call: Callable[[], object]
    kernels: set[str] | None = None


def calls(rows: int, codes: int, first: int, others: Sequence[int] = ()) -> list[Call]:
    """What is called: each operator at one depth, and again at others what is made anew for a depth.

    Args:
        rows: N; no kernel is made for an N or a K.
        codes: K.
        first: D of every operator.
        others: further D.
    """
    x, e = torch.randn(rows, first), torch.randn(codes, first)
    index, weights = torch.arange(rows) % codes, torch.rand(rows)
    found = [
        _search("", x, e),
        _search("of one half", x.bfloat16(), e.bfloat16(), kernels={*PRODUCTS, "split_operands._codes_kernel"}),
        _search("float16, dot", x.half(), e.half(), metric="dot", kernels={"scan.scan_kernel", "decide.decide_kernel"}),
        _search("cosine, masked", x, e, metric="cosine"),
        Call("residual_nearest", lambda: OPERATORS.residual_nearest(x, [e, e], "euclidean")),
        _statistics(x, index, codes),
        Call("segment_stats, weights", lambda: OPERATORS.segment_stats(x, index, codes, weights, torch.float32)),
        *_soft(x, e),
        Call("calibration", _calibrate),
    ]
    for depth in others:
        x, e = torch.randn(rows, depth), torch.randn(codes, depth)
        found.append(_search("", x, e, kernels=PRODUCTS if depth > first else None))
        found.append(_search("of one half", x.bfloat16(), e.bfloat16(), kernels=PRODUCTS))
        found.append(_statistics(x, index, codes))
    found += _soft(x, e, ["index_backpropagation"])
    found.append(Call(f"residual_nearest D={x.shape[1]}", lambda: OPERATORS.residual_nearest(x, [e, e], "dot")))
    return found


def _statistics(x: torch.Tensor, index: torch.Tensor, codes: int) -> Call:
    call = partial(OPERATORS.segment_stats, x, index, codes, None, torch.float32)
    return Call(f"segment_stats D={x.shape[1]}", call)


def _search(
    detail: str, x: torch.Tensor, e: torch.Tensor, *, metric: str = "euclidean", kernels: set[str] | None = None
) -> Call:
    valid = torch.ones(1, len(e), dtype=torch.bool) if metric == "cosine" else None
    call = partial(OPERATORS.nearest, x[None], e[None], valid, metric, 1, "high")
    return Call(f"nearest D={x.shape[1]} {detail}", call, kernels)


def _soft(z: torch.Tensor, e: torch.Tensor, names: Sequence[str] = soft_operators.REGISTERED) -> list[Call]:
    """The passes that an operator makes by itself, where it makes some, and those of its gradient."""
    found = []
    for name in names:
        tested = soft_operators.case(name, z, e)
        forward, backward = (getattr(OPERATORS, tested.operator + end) for end in ("", "_backward"))
        found += [
            Call(f"{name} D={z.shape[1]}", partial(forward, z, e, *tested.arguments)),
            Call(f"{name} backward D={z.shape[1]}", partial(backward, *tested.upstream, z, e, *tested.arguments)),
        ]
    return found


def _calibrate() -> None:
    with patch.object(calibration, "rate", lambda amount, call: call()):
        calibration.cache_rate("cpu", blocks=2, block=64, turns=1)
        calibration.comparison_rate("cpu", turns=1)
    calibration.products(torch.zeros(64, 64).bfloat16(), torch.zeros(64, 64).bfloat16())


def kernel_names() -> set[str]:
    """Every `@triton.jit` function, of vqkit and the calibration, that no other one calls: those are launched."""
    functions, used = {}, set()
    for path in [
        *Path(gpu.__file__).parent.glob("*.py"),
        Path(calibration.__file__).with_name("calibration_kernels.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
                functions[f"{path.stem}.{node.name}"] = node.name
                used |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return {name for name, function in functions.items() if function not in used}


@contextmanager
def launching(step: Callable[[str, Callable[[], None]], None]) -> Iterator[None]:
    """Inside the block a launch is left to `step(module and name of the kernel, launch)`."""
    before = gpu.launch

    def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        module = kernel.fn.__module__.rpartition(".")[2]
        step(f"{module}.{kernel.fn.__name__}", lambda: before(kernel, grid, *arguments, **options))

    gpu.launch = launch
    try:
        yield
    finally:
        gpu.launch = before


def reports(architecture: int, chosen: list[Call]) -> list[dict[str, Any]]:
    """What the compiler made of each kernel that the calls launch, each form once; or why it made nothing."""
    found: dict[str, dict[str, Any]] = {}
    with compiled_for(architecture) as compiled:
        for call in chosen:

            def compile_wanted(name: str, launch: Callable[[], None], call: Call = call) -> None:
                if call.kernels is not None and name not in call.kernels:
                    return
                try:
                    launch()
                except Exception as error:  # of whatever kind: the other kernels are worth a report too
                    found[f"{call.name} {name}"] = {
                        "call": call.name,
                        "kernel": name,
                        "failure": str(error)[-2000:],
                    }
                    return
                kernel = compiled[-1][1]
                if kernel.hash not in found:
                    found[kernel.hash] = {"call": call.name, "kernel": name, **_report(kernel, architecture)}

            with launching(compile_wanted):
                call.call()
    return list(found.values())


def _report(kernel: Any, architecture: int) -> dict[str, Any]:
    constants = {
        kernel.src.fn.arg_names[place]: value
        for (place,), value in kernel.src.constants.items()
        if isinstance(value, int | bool)
    }
    pattern = TENSOR_CORE[architecture]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        listing = Listing(_tool("nvdisasm", "--print-code", "--no-dataflow", file.name))
    return {
        "constants": constants,
        "warps": kernel.metadata.num_warps,
        "shared": kernel.metadata.shared,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spills": listing.count(SPILLS).total(),
        "multiplies": "tt.dot" in kernel.asm["ttir"],
        "tensor_core": len(listing.matching(pattern)),
        "loops": [_loop(listing, loop, pattern) for loop in listing.innermost_loops(pattern)],
        "whole_loops": [_loop(listing, loop, pattern) for loop in listing.outermost_loops(pattern)],
    }


def _loop(listing: Listing, loop: frozenset[int], pattern: str) -> dict[str, Any]:
    return {
        "shuffles": listing.count(["SHFL"], loop).total(),
        "comparisons": dict(listing.count(COMPARISONS, loop)),
        "products": products_of_a_thread(listing.matching(pattern, loop)),
    }


def _tool(name: str, *arguments: str) -> str:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Writes the reports to the standard output."""
    architecture = int(sys.argv[1])
    json.dump(reports(architecture, calls(300, 500, 64, (8, 32, 128, 512, 256))), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
