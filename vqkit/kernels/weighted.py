"""Nearest codes where the dimensions do not count alike: one search by the metrics that there are."""

import torch
from torch import Tensor

from vqkit.kernels.bounds import result_dtype
from vqkit.kernels.nearest import Metric, Nearest, check_rows_and_codes, nearest
from vqkit.precision import widened

CHUNK = 2**14
"""Rows whose weighted copies are held at once."""
UNIT, SMALLEST, LARGE = 2.0**-24, 2.0**-126, 2.0**120
"""Of float32: the unit roundoff, the smallest normal number, and where a search of rounded numbers is not asked."""


@torch.no_grad()
def weighted_nearest(x: Tensor, codes: Tensor, weights: Tensor, *, return_scores: bool = False) -> Nearest:
    """Finds for each row the code with the least sum over d of a_d (x_d - e_d)^2.

    With weights of the dimensions alone both sides are scaled by sqrt(a), and the nearest is asked for. With weights of
    rows and dimensions the sum is that of a x^2, which is the same for all codes, minus [a, a x] . [-e^2, 2 e]: the
    largest dot product of twice as many dimensions. Both searches are `nearest`, on every engine and device, of numbers
    that were rounded to float32; where its margin does not exceed what this rounding can do, the row is searched again
    in float64. So the result is the argmin in float64, as that of `nearest` (`docs/search.md`). How many rows those
    are is asked of the device.

    Ties, and rows and codes that are not finite, are treated as there. A dimension of weight 0 does not count at all,
    and a row whose weights are all 0 ties with everything: it gets code 0.

    Args:
        x: (..., D) rows, floating point.
        codes: (K, D) code vectors, floating point, on the device of x.
        weights: (D,), or (..., D) as x: finite, at least 0, floating point. Only their ratios count.
        return_scores: also return the weighted sum of each row.

    Returns:
        `Nearest(indices (...), scores (...) or None, None)`; scores are float32, float64 where an input is, and NaN for
        a row that is not finite.

    Raises:
        ValueError: a shape, dtype or device is wrong, or a weight is negative or not finite.

    Source: the weighted assignment of GPTVQ, van Baalen et al. 2024 (arXiv:2402.15319), with a diagonal matrix.
    """
    _check(x, codes, weights)
    rows = x.detach().reshape(-1, x.shape[-1])
    shared = weights.ndim == 1
    a = weights.detach() if shared else weights.detach().reshape(rows.shape)
    exact = result_dtype(x, codes, weights) == torch.float64
    books = widened(codes.detach())
    shift = torch.where(books.isfinite(), books, 0).mean(0)  # rounding grows with the distance from the origin
    indices = torch.empty(len(rows), dtype=torch.int64, device=x.device)
    scores = torch.empty(len(rows), dtype=result_dtype(x, codes, weights), device=x.device)
    for start in range(0, len(rows), CHUNK):
        some = slice(start, start + CHUNK)
        y, importance = widened(rows[some]), widened(a if shared else a[some])
        indices[some] = (_by_dimension if shared else _by_row)(y - shift, books - shift, importance, exact)
        if return_scores:
            found = (importance * (y - books[indices[some]]).square()).sum(-1)
            scores[some] = torch.where(y.isfinite().all(-1), found, torch.nan).to(scores.dtype)
    return Nearest(indices.reshape(x.shape[:-1]), scores.reshape(x.shape[:-1]) if return_scores else None, None)


def _by_dimension(y: Tensor, f: Tensor, a: Tensor, exact: bool) -> Tensor:
    """Rows (N, D), codes (K, D) and weights (D,), wide -> (N,), by |sqrt(a) y - sqrt(a) f|^2.

    A difference y - f changes by at most u (|y| + |f|) + 2 t in a dimension when both are rounded, with t for what is
    flushed to zero, so a square by at most twice (|y| + |f|) times that, and its square.
    """
    y, f = a.sqrt() * y, a.sqrt() * f
    reach = y.abs() + _largest(f)
    error = (reach * (2.02 * UNIT * reach + 4.04 * SMALLEST)).sum(-1)
    return _searched(y, f, "euclidean", error, reach, exact)


def _by_row(y: Tensor, f: Tensor, a: Tensor, exact: bool) -> Tensor:
    """Rows (N, D), codes (K, D) and weights (N, D), wide -> (N,), by [a, a y] . [-f^2, 2 f].

    A product changes by at most 2 u of itself when both factors are rounded, and t times both for what is flushed.
    """
    rows, books = torch.cat([a, a * y], -1), torch.cat([-f.square(), 2 * f], -1)
    sizes, most = rows.abs(), _largest(books)
    error = (2.02 * UNIT * sizes * most + SMALLEST * (sizes + most + SMALLEST)).sum(-1)
    return _searched(rows, books, "dot", error, torch.maximum(sizes, most), exact)


def _searched(rows: Tensor, books: Tensor, metric: Metric, error: Tensor, sizes: Tensor, exact: bool) -> Tensor:
    """The best of `books` (K, E) for wide `rows` (N, E), from numbers rounded to float32 where that is certain.

    A score changes by at most `error` (N,) when both are rounded; `sizes` (N, E) bound their numbers. With `exact`,
    float64 was given, and nothing is rounded.
    """
    if exact or rows.dtype == torch.float32:
        return nearest(rows, books, metric=metric).indices
    found = nearest(rows.float(), books.float(), metric=metric, return_margin=True)
    assert found.margin is not None
    certain = (found.margin > 2.01 * error) & (sizes.square().sum(-1) < LARGE)
    again = torch.nonzero(~certain).squeeze(1)
    if not len(again):
        return found.indices
    return found.indices.index_copy(0, again, nearest(rows[again], books, metric=metric).indices)


def _largest(books: Tensor) -> Tensor:
    """(K, E) -> (E,): the largest absolute number of the codes that can win."""
    finite = books.isfinite().all(-1, keepdim=True)
    return torch.where(finite, books.abs(), 0).amax(0)


def _check(x: Tensor, codes: Tensor, weights: Tensor) -> None:
    check_rows_and_codes(x, codes, "euclidean")
    if codes.ndim != 2:
        raise ValueError(f"codes has shape {tuple(codes.shape)}, expected (K, D); search one codebook at a time.")
    if weights.shape not in (x.shape[-1:], x.shape) or not weights.is_floating_point() or weights.device != x.device:
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}, dtype {weights.dtype} and is on {weights.device}, expected "
            f"{tuple(x.shape[-1:])} or {tuple(x.shape)}, floating point, on {x.device}; one for each dimension, or for "
            "each number of x."
        )
    if not ((weights >= 0) & weights.isfinite()).all():
        raise ValueError("weights holds negative numbers, NaN or infinity, expected finite ones of at least 0.")
