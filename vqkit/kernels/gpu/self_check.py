"""Small problems by which the fused kernels are compared with the torch engine before they are used where no test ran.

They show a wrong index, a lost tile, a race or a miscompiled product; they are not the tests, which `make gpu` runs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vqkit.kernels import gpu
from vqkit.kernels.bounds import is_proven
from vqkit.kernels.gpu import nearest, residual, soft, statistics

ROWS, CODES, DEPTH = 300, 200, 20  # several tiles in each direction, the last of them padded
# Of the largest number: chosen, far above the rounding of either engine and far below a lost term. A derived bound
# cannot serve on first use: it would rest on how the tensor cores of the GPU round, which has a stated source for some
# kinds alone (`bounds.is_proven`), and which a GPU that nobody has verified is not known to keep to.
TOLERANCE = 2.0**-10


def search(device: torch.device) -> str:
    """Indices of one code a row: three metrics, two groups, a mask, equal codes."""
    x, codes, _ = _problem(device)
    x, codes = torch.stack([x, 2 * x]), torch.stack([codes, codes.flip(0)])
    valid = torch.arange(CODES, device=device).expand(2, -1) % 7 != 3
    precision = "exact" if is_proven(gpu.architecture(device)) else "high"
    for metric in nearest.METRICS:
        expected = torch.ops.vqkit.nearest(x, codes, valid, metric, 1, precision, "torch")[..., 0]
        differing = int((nearest.nearest(x, codes, valid, metric, precision) != expected).sum())
        if differing:
            return f"nearest, {metric}: {differing} of {expected.numel()} indices"
    return ""


def levels(device: torch.device) -> str:
    """Indices of three levels."""
    x, codes, _ = _problem(device)
    codebooks = [codes, codes.flip(0) / 2, codes / 4]
    expected = torch.ops.vqkit.residual_nearest(x, codebooks, "euclidean", "torch")
    differing = int((residual.search_levels(x, codebooks, "euclidean") != expected).sum())
    return f"residual_nearest: {differing} of {expected.numel()} indices" if differing else ""


def sums(device: torch.device) -> str:
    """Counts and sums with and without weights, of integers: exact in any order of additions."""
    x, _, indices = _problem(device)
    x = (8 * x).round()
    for weights in (None, indices.abs().float()):
        expected = torch.ops.vqkit.segment_stats(x, indices, CODES, weights, torch.float32, "torch")
        differing = int((statistics.segment_sums(x, indices, CODES, weights) != expected).sum())
        if differing:
            return f"segment_stats: {differing} of {expected.numel()} numbers"
    return ""


def assignment(device: torch.device) -> str:
    """Entropies and the gradients of each operator of soft assignment."""
    z, codes, indices = _problem(device)
    weights = torch.where(indices >= 0, 1.0 / ROWS, 0.0)
    by_row, by_code, by_entry = z[:, 0].contiguous(), codes[:, 0].contiguous(), z.flip(0)
    calls = {
        "assignment_entropy": (z, codes, weights, 0.5),
        "assignment_entropy_backward": (by_row, by_code, z, codes, weights, 0.5),
        "index_backpropagation_backward": (by_entry, z, codes, indices, 0.5),
        "reinmax_backward": (by_entry, z, codes, indices),
    }
    for name, arguments in calls.items():
        found, expected = getattr(soft, name)(*arguments), getattr(torch.ops.vqkit, name)(*arguments, "torch")
        for a, b in zip(found, expected, strict=True):
            error = float((a - b).abs().amax() / b.abs().amax())
            if not error <= TOLERANCE:
                return f"{name}: {error:.1e} of the largest number, where {TOLERANCE:.1e} is allowed"
    return ""


CHECKS: dict[str, Callable[[torch.device], str]] = {
    "nearest": search,
    "residual": levels,
    "statistics": sums,
    "soft": assignment,
}


def _problem(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (N, D), codes (K, D), some of them equal, and indices (N,) from -1 to K - 1: the same on every device."""
    generator = torch.Generator().manual_seed(0)
    x, codes = (torch.randn(size, DEPTH, generator=generator, device="cpu") for size in (ROWS, CODES))
    codes[CODES // 2 :: 3] = codes[: CODES // 2 : 3][: len(codes[CODES // 2 :: 3])]
    indices = torch.randint(-1, CODES, (ROWS,), generator=generator, device="cpu")
    return x.to(device), codes.to(device), indices.to(device)
