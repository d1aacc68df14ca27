"""What a GPU can do: rates of products, of memory and cache and of comparisons, and how far its sums are off.

    python benchmarks/calibration.py                       # writes benchmarks/results/calibration.md and .json

The last of these is what a proof that a search is exact rests on (`vqkit/kernels/bounds.py`): measured errors have
to stay below the bound for the architecture.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch
from torch import Tensor

from benchmarks import paired
from benchmarks.device import NOT_MEASURED, circumstances, kernels_on, torch_device
from benchmarks.machine import table_row, write
from vqkit.kernels import bounds, gpu

DEPTHS = (16, 32, 64, 128, 256, 512, 1024)
CALLS = 10  # in a row, of which the mean is one round
ROUNDS = 7  # of which the fastest counts: a calibration asks what the device can do
TILE = 64  # rows and codes of a program, and the depth of a step at most


def rate(amount: float, call: Callable[[], object]) -> float:
    """Units of `amount` in a second, of the fastest round."""
    call()
    return amount / min(paired.timed(call, calls=CALLS) for _ in range(ROUNDS))


def matrix_rates(device: str, size: int) -> dict[str, float]:
    """Operations a second of square products."""
    rates = {}
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for name, dtype in (
            *(("bfloat16", torch.bfloat16), ("float16", torch.float16)),
            *(("tf32", torch.float32), ("float32", torch.float32), ("float64", torch.float64)),
        ):
            torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
            a, b = (torch.randn(size, size, device=torch_device(device)).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            rates[f"{name} products, FLOP/s"] = rate(2.0 * size**3, lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return rates


def memory_rate(device: str, numbers: int) -> dict[str, float]:
    """Bytes a second, read and written by a copy."""
    source = torch.zeros(numbers, device=torch_device(device))
    target = torch.empty_like(source)
    return {"memory, bytes/s": rate(8.0 * numbers, lambda: target.copy_(source))}


def cache_rate(device: str, blocks: int, block: int, turns: int) -> dict[str, float]:
    """Bytes a second of numbers that fit into the L2 cache, read by all multiprocessors."""
    from benchmarks.calibration_kernels import read_kernel

    x = torch.zeros(blocks * block, device=torch_device(device))
    programs = 8 * gpu.multiprocessors(x.device)
    out = x.new_empty(programs)
    found = rate(
        4.0 * programs * turns * x.numel(),
        lambda: gpu.launch(read_kernel, (programs,), x, out, turns, blocks, BLOCK=block),
    )
    return {"L2 cache, bytes/s": found}


def comparison_rate(device: str, turns: int) -> dict[str, float]:
    """Comparisons a second, each of which chooses one of two float32 numbers."""
    from benchmarks.calibration_kernels import COMPARISONS, compare_kernel

    block, programs = 2048, 8 * gpu.multiprocessors(torch.device(torch_device(device)))
    x = torch.randn(programs * block, device=torch_device(device))
    out = torch.empty_like(x)
    found = rate(
        1.0 * x.numel() * turns * COMPARISONS,
        lambda: gpu.launch(compare_kernel, (programs,), x, out, turns, BLOCK=block, HALF=COMPARISONS // 2),
    )
    return {"comparisons, 1/s": found}


def inputs(depth: int, number_of: int, generator: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
    """Rows and codes (number_of, depth), float32: such as come up, and such as lose much in a sum."""
    size = number_of, depth

    def normal() -> Tensor:
        return torch.randn(size, generator=generator)

    def exponents() -> Tensor:
        return normal().sign() * torch.exp2(torch.randint(-12, 13, size, generator=generator).float())

    first = torch.full(size, 2.0**-12 * (1 - 2.0**-8))
    second = first * torch.exp2(torch.arange(number_of) % 6 - 3.0)[:, None]
    first[:, 0] = second[:, 0] = 1  # next to whose product those of the others are cut off whole, at one of six sizes
    cancelling = normal().abs()
    cancelling[:, 1::2] = -cancelling[:, 0::2][:, : cancelling[:, 1::2].shape[1]]
    return {
        "normal": (normal(), normal()),
        "one sign": (normal().abs(), normal().abs()),
        "many exponents": (exponents(), exponents()),
        "one large": (first, second),
        "cancelling": (cancelling, normal().abs()),
        "all bits": (torch.full(size, 2 - 2.0**-16), torch.full(size, 1 + 2.0**-7 + 2.0**-9)),
    }


def products(a: Tensor, b: Tensor) -> Tensor:
    """Sums (N, K) of products of 16-bit numbers (N, D) and (K, D), added up as the search does."""
    from benchmarks.calibration_kernels import product_kernel

    out = a.new_empty(len(a), len(b), dtype=torch.float32)
    grid = len(a) // TILE, len(b) // TILE
    step = min(TILE, a.shape[1] & -a.shape[1])
    gpu.launch(product_kernel, grid, a, b, out, a.shape[1], BN=TILE, BK=TILE, BD=step)
    return out


def accumulator_errors(device: str, depths: Sequence[int], number_of: int) -> list[dict[str, float]]:
    """Worst errors of sums of products, relative to the lengths, for each depth, and the bounds on them."""
    generator = torch.Generator().manual_seed(0)
    architecture = gpu.architecture(torch.device(torch_device(device)))
    found = []
    for depth in depths:
        one, three = [0.0], [0.0]
        for x, e in inputs(depth, number_of, generator).values():
            x, e = x.to(torch_device(device)), e.to(torch_device(device))
            one.append(_worst(products(x.bfloat16(), e.bfloat16()), x.bfloat16(), e.bfloat16()))
            (xh, xl), (eh, el) = _halves(x), _halves(e)
            three.append(_worst(products(torch.cat([xl, xh, xh], 1), torch.cat([eh, el, eh], 1)), x, e))
        proven = bounds.is_proven(architecture)
        found.append(
            {
                "depth": depth,
                "one product": max(one),
                "bound of one": bounds.accumulation_error(architecture, depth) if proven else math.inf,
                "three products": max(three),
                "bound of three": bounds.tensor_core_error(architecture, depth, 3),
            }
        )
    return found


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    high = x.bfloat16()
    return high, (x - high.float()).bfloat16()


def _worst(found: Tensor, x: Tensor, e: Tensor) -> float:
    x, e = x.double(), e.double()
    scale = x.norm(dim=1)[:, None] * e.norm(dim=1)[None, :]
    return ((found.double() - x @ e.T).abs() / scale).max().item()


def report(rates: dict[str, float], errors: Sequence[dict[str, float]], options: argparse.Namespace) -> str:
    """The Markdown file."""
    measured = options.device == "cuda"
    parts = [
        "# Calibration\n",
        *circumstances(f"python benchmarks/calibration.py --device {options.device}", options.device),
    ]
    parts += ["\n## Rates\n", table_row(["what", "rate"]), "|---|---:|"]
    parts += [table_row([name, f"{value:.3g}" if measured else NOT_MEASURED]) for name, value in rates.items()]
    columns = ["one product", "bound of one", "three products", "bound of three"]
    parts += [
        "\n## Errors of sums\n",
        "Worst error of a score, relative to |x| |e|, over random and adversarial rows and codes; bfloat16 numbers "
        "(one product), float32 numbers in halves (three products); beside the bound that the search counts on.\n",
        table_row(["depth", *columns]),
        "|---:|" + "---:|" * len(columns),
    ]
    for row in errors:
        parts.append(table_row([row["depth"], *(f"{row[name]:.2e}" if measured else NOT_MEASURED for name in columns)]))
    parts.append(f"\n{_verdict(errors) if measured else f'Within the bounds: {NOT_MEASURED}'}")
    return "\n".join(parts) + "\n"


def exceeded(errors: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Depths at which an error is above its bound."""
    return [
        row
        for row in errors
        if row["one product"] > row["bound of one"] or row["three products"] > row["bound of three"]
    ]


def _verdict(errors: Sequence[dict[str, float]]) -> str:
    above = [str(row["depth"]) for row in exceeded(errors)]
    if above:
        return f"**Above the bound at depth {', '.join(above)}: `exact` is not proven on this device.**"
    return "All errors are within the bounds."


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the table and the numbers; status 1 where an error is above its bound."""
    parser = argparse.ArgumentParser(prog="calibration", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "interpreter"], default="cuda", help="interpreter: a dry run")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "calibration.md")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device; use --device interpreter for a dry run")
    real = options.device == "cuda"
    with kernels_on(options.device):
        rates = {
            **matrix_rates(options.device, 8192 if real else 16),
            **memory_rate(options.device, 2**29 if real else 2**10),
            **cache_rate(options.device, *((1024, 4096, 4) if real else (2, 32, 1))),
            **comparison_rate(options.device, 1024 if real else 1),
        }
        errors = accumulator_errors(options.device, DEPTHS if real else DEPTHS[:2], 512 if real else TILE)
    write(options.output, report(rates, errors, options))
    numbers = {"rates": rates, "errors": errors} if real else {"rates": dict.fromkeys(rates), "errors": None}
    head = circumstances("python benchmarks/calibration.py", options.device)
    write(options.output.with_suffix(".json"), json.dumps({"circumstances": head, **numbers}, indent=1) + "\n")
    print(f"{options.output.read_text()}\nwritten: {options.output}")
    if exceeded(errors):
        sys.exit("errors of sums are above the bound that the exact search rests on")


if __name__ == "__main__":
    main()
