"""All levels of a residual search in one launch, without waiting for the device.

1. `levels_kernel`: a program owns a tile of rows and goes through the levels. It keeps, of each row and each of the
   slots that the codes of a tile fall into, the smallest score, its tile, and the second smallest score. Rows of which
   only one or two codes may be the nearest are settled at once, the latter in float64. The others leave the search at
   that level and are listed: by the bound a few in a thousand of random ones at most, but all where codes are repeated.
2. `settle_levels_kernel` takes the listed rows through the levels that they have left, all codes compared in float64.
   How many there are is known on the device only.

What is left of a row is written out as bfloat16 halves once a level and read back by the same program.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vqkit.kernels import gpu
from vqkit.kernels.bounds import is_proven, kernel_bounds, tensor_core_error
from vqkit.kernels.gpu.nearest import METRICS, SETTLERS
from vqkit.kernels.gpu.pairs import EUCLIDEAN
from vqkit.kernels.gpu.residual_kernels import levels_kernel, settle_levels_kernel
from vqkit.kernels.gpu.split_operands import median_codes, split_codes
from vqkit.kernels.gpu.tiles import ALL_REGISTERS, round_up, tile_of

DEEPEST = 1024  # numbers of a row that its length is bounded for
FEW_CODES = 4096  # with more, a device that the rows do not fill is better used by splitting the codes: level by level
MOST_UNEVEN = 2  # times the codes that there are, where levels differ in size
DEPTH_BLOCK = 16  # numbers of a row that are compared in float64 at once
CODE_BLOCK = 32  # codes that a listed row is compared with at once


def unfit(x: Tensor, codebooks: Sequence[Tensor], metric: str) -> str:
    """Why one launch does not do it, or is not likely to be faster than a search for each level; "" where it is.

    Args:
        x: (N, D) float32.
        codebooks: S of (K, D) float32; K may differ.
        metric: "euclidean", "dot" or "cosine".
    """
    sizes = [len(codes) for codes in codebooks]
    if not is_proven(gpu.architecture(x.device)):
        return "it is not known how the tensor cores of this GPU round"
    if metric == "cosine" or x.shape[1] > DEEPEST:
        return f"all levels at once take 'euclidean', 'dot' and up to {DEEPEST} dimensions"
    if max(sizes) * len(sizes) > MOST_UNEVEN * sum(sizes):
        return "the codebooks differ too much in size"
    tile = tile_of("levels", x.shape[1], x.device)
    if max(sizes) > FEW_CODES and -(-len(x) // tile.owned) < gpu.multiprocessors(x.device):
        return "few rows and many codes are searched level by level"
    return ""


def search_levels(x: Tensor, codebooks: Sequence[Tensor], metric: str) -> Tensor:
    """The nearest code at each level, (N, S) int64, where `unfit` gives no reason."""
    x, (number, depth), levels = x.contiguous(), x.shape, len(codebooks)
    tile, kind = tile_of("levels", depth, x.device), METRICS.index(metric)
    width = tile.width(depth)
    codes, valid = _stack(codebooks)
    size = codes.shape[1]
    padded = round_up(size, tile.streamed)
    centre = median_codes(codes)
    book = split_codes(codes, centre, valid, kind, padded, width, 2)
    rows = round_up(number, tile.owned)
    halves = x.new_empty(2, rows, width, dtype=torch.bfloat16)
    total, left = torch.zeros_like(x), torch.empty_like(x)
    indices = x.new_empty(number, levels, dtype=torch.int64)
    listed, level_of = (x.new_empty(number, dtype=torch.int32) for _ in range(2))
    count = x.new_zeros(1, dtype=torch.int32)
    euclidean = kind == EUCLIDEAN.value
    error = tensor_core_error(gpu.architecture(x.device), width, 3)
    bounds = kernel_bounds(error, depth, width, euclidean=euclidean)
    gpu.launch(
        levels_kernel,
        (rows // tile.owned,),
        *(x, codes, book.halves, centre, book.bias, book.state, total, halves, indices, listed, level_of, count),
        *(number, levels, size, padded, rows, *bounds),
        **{"METRIC": kind, "CENTRED": euclidean, "D": depth, "WIDTH": width, "BD": DEPTH_BLOCK},
        **{"BN": tile.owned, "BK": tile.streamed, "STAGES": tile.stages, "CHUNK": tile.depth},
        **{"num_warps": tile.warps, "num_stages": tile.stages},
        maxnreg=ALL_REGISTERS,
    )
    gpu.launch(
        settle_levels_kernel,
        (min(number, gpu.multiprocessors(x.device) * SETTLERS),),
        *(x, codes, book.usable, book.state, total, left, indices, listed, level_of, count),
        *(levels, size, padded, bounds.tie),
        **{"METRIC": kind, "D": depth, "BD": DEPTH_BLOCK, "BK": CODE_BLOCK},
        maxnreg=ALL_REGISTERS,
    )
    return indices


def _stack(codebooks: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """(S, K, D), and (S, K) bool of what is not padding, None where there is none."""
    sizes = [len(codes) for codes in codebooks]
    largest = max(sizes)
    if min(sizes) == largest:
        return torch.stack([*codebooks]), None
    codes = torch.stack([torch.nn.functional.pad(codes, (0, 0, 0, largest - len(codes))) for codes in codebooks])
    valid = torch.stack([torch.arange(largest, device=codes.device) < size for size in sizes])
    return codes, valid
