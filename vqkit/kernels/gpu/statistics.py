"""Sums of the rows of each segment: sorted rows, a chunk to a program, and one result for each run of equal segments.

A run is stored by the program that sees both of its ends. Where a chunk's first or last run goes on in a neighbour, its
sum becomes a row of a shorter list, sorted as the rows are, to which the same kernel is applied until one chunk is
left. So each sum has one owner and one order of additions: the same bits on every run, and no chain of additions longer
than the rows of a few chunks, even where all rows are in one segment.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqkit.kernels import gpu
from vqkit.kernels.gpu.tiles import tile_of

LEFT_OUT = -1  # segment number of a row that counts nowhere


def segment_sums(x: Tensor, indices: Tensor, num_segments: int, weights: Tensor | None) -> Tensor:
    """Counts and sums; see `vqkit.kernels.segment_stats`.

    Args:
        x: (N, D) rows, float32, float16 or bfloat16.
        indices: (N,) int64, negative for rows to leave out.
        num_segments: K.
        weights: (N,) float32, or None for 1.

    Returns:
        (K + K D,) float32.
    """
    narrow = num_segments < 2**31  # a sort of int64 takes twice as many passes
    keys = indices.clamp(LEFT_OUT, num_segments).to(torch.int32 if narrow else torch.int64)
    if weights is not None:
        weights = weights.contiguous()
        keys = torch.where(weights == 0, LEFT_OUT, keys)
    keys, order = keys.sort(stable=True)
    torch._assert_async((keys[-1:] < num_segments).all(), "indices holds a value of num_segments or more")
    packed = x.new_zeros(num_segments * (1 + x.shape[1]), dtype=torch.float32)
    _add(packed[num_segments:], x, keys, order, weights)
    if weights is None:
        edges = torch.arange(num_segments + 1, dtype=keys.dtype, device=keys.device)
        packed[:num_segments] = torch.searchsorted(keys, edges).diff()  # exact, also past 2^24
    else:
        _add(packed[:num_segments], weights[:, None], keys, order, None)
    return packed


def _add(sums: Tensor, x: Tensor, keys: Tensor, order: Tensor | None, weights: Tensor | None) -> None:
    """Stores the sums of x (N, D) into sums (K D,), which holds zeros; keys (N,) are x[order]'s segments, sorted."""
    depth = x.shape[1]
    tile = tile_of("segment sums", depth, x.device)
    x = x.contiguous()
    while len(keys) and depth:
        number, chunks = len(keys), triton.cdiv(len(keys), tile.owned)
        partial = sums.new_empty(2 * chunks, depth)
        partial_keys = keys.new_empty(2 * chunks)
        gpu.launch(
            _chunk_sums,
            (chunks, triton.cdiv(depth, tile.depth)),
            *(x, keys, order, weights, sums, partial, partial_keys, number),
            **{"DEPTH": depth, "ROWS": tile.owned, "COLUMNS": tile.depth, "num_warps": tile.warps},
        )
        if chunks == 1:
            break
        x, keys, order, weights = partial, partial_keys, None, None


@triton.jit
def _join(left_key, left, right_key, right):
    return right_key, tl.where(left_key == right_key, left + right, right)


@triton.jit(do_not_specialize=["number"])
def _chunk_sums(
    x, keys, order, weights, sums, partial, partial_keys, number,
    DEPTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums of the runs in rows `chunk * ROWS` and on; `partial` gets those of the two runs that neighbours go on with.

    order and weights are None from the second pass on.
    """
    chunk = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    start = chunk * ROWS
    stop = tl.minimum(start + ROWS, number)
    rows = start + tl.arange(0, ROWS)
    key = tl.load(keys + rows, mask=rows < stop, other=-1)
    following = tl.load(keys + rows + 1, mask=rows + 1 < stop, other=-2)
    first, last = tl.load(keys + start), tl.load(keys + stop - 1)
    from_left = (first >= 0) & (tl.load(keys + start - 1, mask=start > 0, other=-2) == first)
    to_right = (last >= 0) & (tl.load(keys + stop, mask=stop < number, other=-2) == last)

    source, weight = rows, 1.0
    if order is not None:
        source = tl.load(order + rows, mask=rows < stop, other=0)
    inside = (key >= 0)[:, None] & (columns < DEPTH)[None, :]  # what is left out may hold NaN: never read
    value = tl.load(x + source[:, None] * DEPTH + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if weights is not None:
        weight = tl.load(weights + source, mask=key >= 0, other=0.0)
        value = value * weight[:, None]
    _, total = tl.associative_scan((tl.broadcast_to(key[:, None], value.shape), value), 0, _join)

    ends = inside & (key != following)[:, None]
    leads = from_left & (key == first)
    trails = to_right & (key == last) & ~leads
    tl.store(sums + key.to(tl.int64)[:, None] * DEPTH + columns[None, :], total, mask=ends & ~(leads | trails)[:, None])
    place = 2 * chunk + tl.where(trails, 1, 0)
    tl.store(partial + place[:, None] * DEPTH + columns[None, :], total, mask=ends & (leads | trails)[:, None])
    # A run that goes on at both ends has its sum in the left row alone; the right one keeps the run together.
    through = from_left & to_right & (first == last)
    spare = partial + (2 * chunk + 1) * DEPTH + columns
    tl.store(spare, tl.zeros([COLUMNS], tl.float32), mask=(columns < DEPTH) & through)
    side = tl.arange(0, 2)
    open_key = tl.where(side == 0, tl.where(from_left, first, -1), tl.where(to_right, last, -1))
    tl.store(partial_keys + 2 * chunk + side, open_key, mask=tl.program_id(1) == 0)
