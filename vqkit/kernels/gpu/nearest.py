"""Nearest-code search on tensor cores: fused, without the N x K matrix, and without waiting for the device.

1. `split_operands.py` centres rows and codes and splits them into 16-bit halves.
2. `scan_kernel` forms tiles of scores and keeps, of each row, the two best groups of codes and the score of the third
   best one. A group is the codes of a tile whose scores one thread holds, so that the loop needs one comparison a
   score, a few for each group, and no exchange between threads.
3. `decide_kernel` compares the codes of the best groups in float64. Rows whose third group is too near are listed.
4. `list_kernel` forms the scores of the listed rows again and writes down all codes that may be the nearest one;
   `settle_kernel` compares these in float64. How many rows are listed is known on the device only.

docs/search.md, "On a GPU", derives when a row is certain.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.kernels import gpu
from vqkit.kernels.bounds import kernel_bounds, tensor_core_error
from vqkit.kernels.gpu.decide import decide_kernel, settle_kernel
from vqkit.kernels.gpu.pairs import EUCLIDEAN
from vqkit.kernels.gpu.scan import list_kernel, scan_kernel
from vqkit.kernels.gpu.split_operands import SplitCodes, SplitRows, median_codes, split_codes, split_rows
from vqkit.kernels.gpu.tiles import ALL_REGISTERS, SLOTS, Tile, parts_of, round_up, tile_of

METRICS = ("euclidean", "dot", "cosine")
CANDIDATES = 64  # codes of a listed row that are written down; with more, all codes are compared in float64
DECIDE_DEPTH, SETTLE_DEPTH = 32, 8  # numbers of each of these that are compared at once
EQUAL = 2.0**-20  # relative difference of scores that are as good as equal: the second look may add in another order
SETTLERS = 8  # programs for each multiprocessor that share the listed rows
MOST_GROUPS = 65535  # of a grid, in the dimensions that groups are in
MOST_PARTS = 32  # a power of two; parts that the codes are divided into where there are few rows


class GroupMinima(NamedTuple):
    """What the scan keeps of each row, for each split of the codes and each slot of a tile: (G, N', S, SLOTS)."""

    best: Tensor  # float32, the smallest group minimum
    second: Tensor
    third: Tensor
    best_tile: Tensor  # int32, the tile that it is from
    second_tile: Tensor


def nearest(x: Tensor, codes: Tensor, valid: Tensor | None, metric: str, precision: str) -> Tensor:
    """The nearest code of each row.

    Args:
        x: (G, N, D), float32, float16 or bfloat16.
        codes: (G, K, D), likewise.
        valid: (G, K) bool or None.
        metric: "euclidean", "dot" or "cosine".
        precision: "exact": the float64 argmin, which needs an architecture whose accumulators are known
            (`bounds.is_proven`). "high": groups are compared by the sums of three products of halves. "fast": by one
            product of rounded numbers. The codes of the best groups are compared in float64 in any case.

    Returns:
        (G, N) int64.
    """
    if len(codes) > MOST_GROUPS:
        masks = [None] * len(codes) if valid is None else valid.split(MOST_GROUPS)
        parts = zip(x.split(MOST_GROUPS), codes.split(MOST_GROUPS), masks, strict=False)
        return torch.cat([nearest(*part, metric, precision) for part in parts])
    dtype = x.dtype if x.dtype == codes.dtype else torch.float32
    x, codes = x.to(dtype).contiguous(), codes.to(dtype).contiguous()
    kind = METRICS.index(metric)
    half = dtype != torch.float32 and metric != "cosine"  # numbers that a product takes as they are
    count = 1 if half or precision == "fast" else 2
    depth = x.shape[-1]
    tile = tile_of("scan" if count == 2 else "scan of one half", depth, x.device)
    width = tile.width(depth)
    centre = None if half or metric == "cosine" else median_codes(codes)
    rows = split_rows(x, centre if metric == "euclidean" else None, round_up(x.shape[1], tile.owned), width, count)
    book = split_codes(codes, centre, valid, kind, round_up(codes.shape[1], tile.streamed), width, count)
    scan = _scan(rows, book, tile)
    exact = precision == "exact"
    error = tensor_core_error(gpu.architecture(x.device), width, 2 * count - 1) if exact else EQUAL
    return _decide(x, codes, rows, book, scan, tile, kind, error)


def _scan(rows: SplitRows, book: SplitCodes, tile: Tile) -> GroupMinima:
    (count, groups, padded_rows, width), padded_codes = rows.halves.shape, book.bias.shape[1]
    programs = groups * padded_rows // tile.owned
    parts, per_part = parts_of(programs, padded_codes // tile.streamed, rows.norms.device, MOST_PARTS)
    shape = groups, padded_rows, parts, SLOTS
    scan = GroupMinima(
        *(rows.norms.new_empty(shape) for _ in range(3)),
        *(rows.norms.new_empty(shape, dtype=torch.int32) for _ in range(2)),
    )
    gpu.launch(
        scan_kernel,
        (padded_rows // tile.owned, parts, groups),
        *(rows.halves, book.halves, book.bias, *scan),
        *(padded_rows, padded_codes, per_part, groups),
        **_product_constants(tile, width, count),
    )
    return scan


def _decide(
    x: Tensor,
    codes: Tensor,
    rows: SplitRows,
    book: SplitCodes,
    scan: GroupMinima,
    tile: Tile,
    metric: int,
    error: float,
) -> Tensor:
    (groups, number, depth), size = x.shape, codes.shape[1]
    padded_rows, parts = scan.best.shape[1:3]
    (count, _, _, width), padded_codes = rows.halves.shape, book.bias.shape[1]
    indices = x.new_empty(groups, number, dtype=torch.int64)
    listed, limits = x.new_empty(groups, number, dtype=torch.int32), x.new_empty(groups, number, dtype=torch.float32)
    counts = x.new_zeros(groups, number, dtype=torch.int32)
    bounds = kernel_bounds(error, depth, width, euclidean=metric == EUCLIDEAN.value)
    gpu.launch(
        decide_kernel,
        (number, groups),
        *(x, codes, rows.norms, book.bias, book.state, *scan, indices, listed, limits, counts),
        *(number, size, padded_rows, padded_codes, *bounds),
        **{"METRIC": metric, "D": depth, "BD": min(DECIDE_DEPTH, tile.depth), "BK": tile.streamed, "SLOTS": SLOTS},
        **{"MOST_PARTS": MOST_PARTS, "CANDIDATES": CANDIDATES, "parts": parts},
    )
    found = x.new_empty(groups, number, CANDIDATES, dtype=torch.int32)
    workers = min(gpu.multiprocessors(x.device) * SETTLERS, max(1, number))
    # The second look takes smaller tiles: its epilogue needs more registers.
    tile = tile._replace(owned=min(tile.owned, 64), streamed=min(tile.streamed, 16 * count), warps=4, stages=1)
    tiles = padded_codes // tile.streamed
    parts = min(tiles, MOST_PARTS)
    blocks = min(-(-workers // parts), padded_rows // tile.owned)
    gpu.launch(
        list_kernel,
        (blocks, parts, groups),
        *(rows.halves, book.halves, book.bias, book.state, listed, limits, found, counts),
        *(number, padded_rows, padded_codes, -(-tiles // parts), groups),
        **{"CANDIDATES": CANDIDATES, **_product_constants(tile, width, count)},
    )
    gpu.launch(
        settle_kernel,
        (workers, groups),
        *(x, codes, book.usable, book.state, listed, found, counts, indices),
        *(number, size, padded_codes, bounds.tie),
        **{"METRIC": metric, "D": depth, "BD": SETTLE_DEPTH, "CANDIDATES": CANDIDATES},
        maxnreg=ALL_REGISTERS,
    )
    return indices


def _product_constants(tile: Tile, width: int, count: int) -> dict[str, int]:
    return {
        **{"WIDTH": width, "BD": tile.depth, "HALVES": count, "BN": tile.owned, "BK": tile.streamed},
        **{"STAGES": tile.stages, "num_warps": tile.warps, "num_stages": tile.stages},
    }
