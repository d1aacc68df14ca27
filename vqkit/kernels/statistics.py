"""Counts and sums of the rows that chose each code: what running means, k-means and usage are made of."""

from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.kernels import engines
from vqkit.kernels.operators import operator

CHUNK = 2**16  # numbers of x whose copy (in another dtype, or weighted) is held at once


class SegmentStats(NamedTuple):
    """Result of `segment_stats`.

    Attributes:
        counts: (K,) rows, or sum of their weights, in each segment.
        sums: (K, D) sum of the rows, times their weights, in each segment.
        packed: (K + K D,) the same numbers once: counts, then sums row by row. The other two are views of it, so that
            one collective adds up both over ranks.
    """

    counts: Tensor
    sums: Tensor
    packed: Tensor


def segment_stats(
    x: Tensor,
    indices: Tensor,
    num_segments: int,
    *,
    weights: Tensor | None = None,
    dtype: torch.dtype | None = None,
    impl: engines.Impl | None = None,
) -> SegmentStats:
    """Counts and sums of the rows of each segment, without a one-hot matrix.

    Rows with a negative index or the weight 0 are left out, whatever they hold. Nothing is differentiated. The result
    is the same on every run, bit for bit: for any number of threads on a processor, and on a GPU for float32 sums where
    its fused kernels run. Elsewhere on a GPU it is where `torch.use_deterministic_algorithms` is on, by which torch
    orders `index_add_`, and else the sums are formed in any order.

    Args:
        x: (N, D) rows, floating point; N may be 0. D may be 0 where only the counts are wanted, as in `z[:, :0]`.
        indices: (N,) integers below K, negative for rows to leave out.
        num_segments: K, at least 1.
        weights: (N,) floating point, or None for 1.
        dtype: of the sums and counts, float32 or float64; None is float32, or float64 for float64 rows.
        impl: the engine that runs it, for tests and comparisons: "torch", "triton" (the fused kernels, on an NVIDIA
            GPU) or None for the fastest that may be trusted.

    Returns:
        `SegmentStats(counts (K,), sums (K, D), packed (K + K D,))`. Counts without weights are exact up to the rounding
        of their last digit (they are counted in int64).

    Raises:
        ValueError: a shape, dtype or device is wrong, or `impl` cannot run the call; on a processor also an index of K
            or more. On a GPU, where to ask would wait for the device, such an index ends in the device's own assertion.
    """
    _check(x, indices, num_segments, weights, dtype)
    dtype = dtype or torch.promote_types(x.dtype, torch.float32)
    weights = None if weights is None else weights.detach().to(dtype)
    packed = torch.ops.vqkit.segment_stats(x.detach(), indices.to(torch.int64), num_segments, weights, dtype, impl)
    return SegmentStats(packed[:num_segments], packed[num_segments:].view(num_segments, x.shape[1]), packed)


def _check(x: Tensor, indices: Tensor, num_segments: int, weights: Tensor | None, dtype: torch.dtype | None) -> None:
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(
            f"x has shape {tuple(x.shape)} and dtype {x.dtype}, expected (N, D) floating point; flatten to one row for "
            "each vector."
        )
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"indices has dtype {indices.dtype}, expected integers; use indices.long().")
    for name, vector in (("indices", indices), ("weights", weights)):
        if vector is not None and (vector.shape != x.shape[:1] or vector.device != x.device):
            raise ValueError(
                f"{name} has shape {tuple(vector.shape)} on {vector.device}, expected ({x.shape[0]},) on {x.device}; "
                "give one for each row of x."
            )
    if weights is not None and not weights.is_floating_point():
        raise ValueError(f"weights has dtype {weights.dtype}, expected a floating point one; use weights.float().")
    if num_segments < 1:
        raise ValueError(f"num_segments is {num_segments}, expected at least 1; it is the codebook size.")
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(
            f"dtype is {dtype}, expected torch.float32, torch.float64 or None; half precision cannot count."
        )


def check_range(indices: Tensor, size: int) -> None:
    """Raises ValueError on a processor where an index is `size` or more; a GPU is not asked, as that would wait."""
    if indices.device.type == "cpu" and indices.numel() and indices.max() >= size:
        raise ValueError(
            f"indices holds {int(indices.max())}, expected values below {size}; negative ones are left out."
        )


def _fake(
    x: Tensor, indices: Tensor, num_segments: int, weights: Tensor | None, dtype: torch.dtype, *_: object
) -> Tensor:
    return x.new_empty(num_segments * (1 + x.shape[1]), dtype=dtype)


@operator("segment_stats", _fake)
def _segment_stats(
    x: Tensor,
    indices: Tensor,
    num_segments: int,
    weights: Tensor | None,
    dtype: torch.dtype,
    impl: str | None = None,
) -> Tensor:
    """(K + K D,) counts and sums."""
    check_range(indices, num_segments)

    def unfit() -> str:
        return "" if dtype == torch.float32 else f"the fused kernels add up in float32, not {dtype}"

    if engines.choose("statistics", (x,), impl, unfit=unfit).engine == "triton":
        from vqkit.kernels.gpu import statistics as fused  # Triton is optional, and slow to import

        return fused.segment_sums(x, indices, num_segments, weights)
    left_out = indices < 0 if weights is None else (indices < 0) | (weights == 0)
    # One more segment takes what is left out: cheaper than a copy of x without it, and safe for NaN.
    segments = torch.where(left_out, num_segments, indices).to(torch.int64)
    total = x.new_zeros(num_segments + (num_segments + 1) * x.shape[1], dtype=dtype)
    sums = total[num_segments:].view(num_segments + 1, x.shape[1])
    if weights is None and x.dtype == dtype:
        sums.index_add_(0, segments, x)
    else:
        _add_in_chunks(sums, x, segments, weights)
    # Integers add up to the same in any order, and past the 2^24 where float32 stops counting.
    ones = torch.ones_like(segments) if weights is None else weights
    total[:num_segments] = ones.new_zeros(num_segments + 1).index_add_(0, segments, ones)[:num_segments]
    return total[: num_segments * (1 + x.shape[1])]


def _add_in_chunks(sums: Tensor, x: Tensor, segments: Tensor, weights: Tensor | None) -> None:
    """Adds x (N, D), converted and weighted a few rows at a time, to sums (K, D), in place."""
    rows = max(1, CHUNK // max(1, x.shape[1]))
    for start in range(0, x.shape[0], rows):
        part = slice(start, start + rows)
        chunk = x[part].to(sums.dtype)
        sums.index_add_(0, segments[part], chunk if weights is None else chunk * weights[part, None])
