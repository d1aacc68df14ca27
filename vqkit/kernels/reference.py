"""Nearest-code search in plain torch: float32 with a certificate, float64 for the rows that it cannot decide.

Every metric is the minimum over codes k of `score = bias_k - x . e_k` (N rows x, K codes e of depth D):

    euclidean   bias = 0.5 |e|^2     x and e less the mean code (|x|^2 is the same for all k and is never added)
                                     as one float32 number, so that centring x is a single rounding of x - mean
    dot         bias = 0             e less the mean code (it shifts all scores of a row alike)
    cosine      bias = 0             e / |e| less the mean (the length of x scales all scores of a row alike)

The fast pass forms tiles of float32 scores, takes the minimum of each group of codes (a vectorized `amin`; `min` with
indices is ten times slower), and looks for the index inside the winning group only. Let u = 2^-24. Three roundings
(x, e and the bias) and a product of D terms plus the bias, added up in any order, change a score by at most

    error <= gamma (bias + |x| |e|),    gamma = n u / (1 - n u),  n = D + 4    [Higham 2002, Lemma 3.1 and (3.5)]

so a row whose runner-up is more than 2 error above the best is certain to be right, whatever the order of additions:
batch size, number of threads, alignment and BLAS have no say. The other rows (about one in a thousand; all of them for
duplicated codes) are searched again in float64, where scores that agree to within rounding count as tied.

Source: N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, SIAM 2002, section 3.1.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

GROUP = 32  # codes per group minimum
TILE_SCORES = 2**19  # scores of a tile for each thread (it should stay in cache), at most four times as many in all
FEW_SCORES = 2**16  # fewer are cheaper to form in float64 at once


def nearest_indices(x: Tensor, codes: Tensor, metric: str) -> Tensor:
    """Index of the best code of each row.

    Args:
        x: (N, D), floating point, any strides, N may be 0.
        codes: (K, D), floating point, K >= 1.
        metric: "euclidean", "dot" or "cosine".

    Returns:
        (N,) int64.
    """
    indices = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    if x.shape[0] == 0:
        return indices
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        finite = torch.isfinite(torch.linalg.vector_norm(codes, ord=torch.inf, dim=1))
        # Rounded once, here: both sides must subtract the same number, or the difference shifts the scores unnoticed.
        mean = torch.where(finite[:, None], codes, 0).to(torch.float64).mean(0).to(torch.float32).to(torch.float64)
        if metric == "cosine":
            mean = torch.zeros_like(mean)  # unit vectors have no offset worth a second pass over the codes
        few = x.shape[0] * codes.shape[0] <= FEW_SCORES
        if few or torch.float64 in (x.dtype, codes.dtype) or _product_is_lowered(x.device):
            return _search_float64(x, codes, metric, finite, mean)
        indices, certain = _search_float32(x, codes, metric, finite, mean)
        rows = torch.nonzero(~certain).squeeze(1)
        if rows.shape[0]:
            indices[rows] = _search_float64(x[rows], codes, metric, finite, mean)
    return indices


def _product_is_lowered(device: torch.device) -> bool:
    """Whether the user let float32 products be computed with fewer bits (`set_float32_matmul_precision` and kin)."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return backend.matmul.fp32_precision not in ("none", "ieee")


def _code_tiles(
    codes: Tensor, metric: str, finite: Tensor, mean: Tensor, size: int, dtype: torch.dtype
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields (first index, vectors (C, D), bias (C, 1)) in dtype; C is a multiple of GROUP, padded by bias = inf."""
    for start in range(0, codes.shape[0], size):
        valid = finite[start : start + size, None]
        vectors = torch.where(valid, codes[start : start + size], 0).to(torch.float64)
        if metric == "cosine":
            vectors = torch.nn.functional.normalize(vectors, dim=1, eps=torch.finfo(torch.float64).tiny)
        vectors = vectors - mean
        half = 0.5 if metric == "euclidean" else 0.0
        bias = torch.where(valid, half * vectors.square().sum(1, keepdim=True), torch.inf)
        padding = -len(valid) % GROUP
        vectors = torch.nn.functional.pad(vectors, (0, 0, 0, padding))
        bias = torch.nn.functional.pad(bias, (0, 0, 0, padding), value=torch.inf)
        yield start, vectors.to(dtype), bias.to(dtype)


def _columns(x: Tensor, metric: str, mean: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows as columns (D, N) in dtype, less the mean code where the metric is invariant to it."""
    return (x.to(dtype) - mean.to(dtype) if metric == "euclidean" else x.to(dtype)).T.contiguous()


def _error(norm: Tensor, largest: Tensor, best: Tensor, metric: str, depth: int) -> Tensor:
    """(N,) bound on the rounding error of the scores that can matter; norm (N,) of rows, largest () of codes.

    A code as near as the best one, at distance sqrt(2 best + |x|^2), has at most norm |x| + that distance; one of more
    than twice that norm loses by more than its own error. So one code far out does not widen the bound for all.
    """
    unit = torch.finfo(norm.dtype).eps / 2
    gamma = (depth + 4) * unit / (1 - (depth + 4) * unit)
    underflow = (depth + 4) * torch.finfo(norm.dtype).tiny
    if metric != "euclidean":
        return 1.01 * gamma * norm * largest + underflow  # 1.01: the norms are rounded themselves
    reach = torch.minimum(largest, 2 * (norm + (2 * best + norm.square()).clamp(min=0).sqrt()))
    return 1.01 * gamma * (0.5 * reach.square() + norm * reach) + underflow


def _search_float32(x: Tensor, codes: Tensor, metric: str, finite: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """(indices (N,), certain (N,) bool): rows with certain = False have to be searched again."""
    x = _columns(x, metric, mean, torch.float32)
    depth, number = x.shape
    tile_codes, tile_rows = _tile_shape(number, codes.shape[0], depth)
    best = x.new_full((number,), torch.inf)
    second = best.clone()
    indices = torch.zeros_like(best, dtype=torch.int64)
    largest = x.new_zeros(())
    buffer = x.new_empty(tile_codes * tile_rows)
    for start, vectors, bias in _code_tiles(codes, metric, finite, mean, tile_codes, torch.float32):
        largest = torch.maximum(largest, torch.linalg.vector_norm(vectors, dim=1).amax())
        for row in range(0, number, tile_rows):
            part = slice(row, min(row + tile_rows, number))
            rows = part.stop - row
            scores = buffer[: len(vectors) * rows].view(len(vectors), rows)
            torch.addmm(bias, vectors, x[:, part], alpha=-1, out=scores)
            value, index, runner_up = _two_best(scores.view(-1, GROUP, rows))
            runner_up = torch.minimum(runner_up, torch.maximum(value, best[part]))
            second[part] = torch.minimum(second[part], runner_up)
            indices[part] = torch.where(value < best[part], index + start, indices[part])
            best[part] = torch.minimum(best[part], value)
    error = _error(x.square().sum(0).sqrt(), largest, best, metric, depth)
    return indices, second - best > 2 * error  # False where anything is NaN


def _two_best(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Smallest score, its index and the second smallest score of each column of (groups, GROUP, R): three of (R,)."""
    groups = scores.amin(1)
    value, group = groups.min(0)
    runner_up = groups.scatter_(0, group[None], torch.inf).amin(0)
    members = scores.gather(0, group.expand(1, GROUP, -1))[0]
    member = members.min(0).indices
    runner_up = torch.minimum(runner_up, members.scatter_(0, member[None], torch.inf).amin(0))
    return value, group * GROUP + member, runner_up


def _search_float64(x: Tensor, codes: Tensor, metric: str, finite: Tensor, mean: Tensor) -> Tensor:
    """(N,) indices by float64 scores, the lowest index among those that tie to within rounding."""
    x = _columns(x, metric, mean, torch.float64)
    depth, number = x.shape
    norm = x.square().sum(0).sqrt()
    usable = torch.isfinite(norm)
    x, norm = torch.where(usable, x, 0), torch.where(usable, norm, 0)
    tile_codes, tile_rows = _tile_shape(number, codes.shape[0], depth)
    tiles = partial(_code_tiles, codes, metric, finite, mean, tile_codes, torch.float64)
    largest = torch.stack([torch.linalg.vector_norm(vectors, dim=1).amax() for _, vectors, _ in tiles()]).amax()
    best = x.new_full((number,), torch.inf)
    held = best.clone()  # the score of the code in `indices`: tied with the best, if not the best
    indices = torch.zeros_like(best, dtype=torch.int64)
    for start, vectors, bias in tiles():
        for row in range(0, number, tile_rows):
            part = slice(row, row + tile_rows)
            scores = torch.addmm(bias, vectors, x[:, part], alpha=-1)
            value = scores.amin(0)
            best[part] = torch.minimum(best[part], value)
            limit = best[part] + 2 * _error(norm[part], largest, best[part], metric, depth)
            first = (scores <= limit).to(torch.uint8).argmax(0)
            found = (value <= limit) & (held[part] > limit)
            indices[part] = torch.where(found, first + start, indices[part])
            held[part] = torch.where(found, scores.gather(0, first[None])[0], held[part])
    return torch.where(usable, indices, 0)


def _tile_shape(num_rows: int, num_codes: int, depth: int) -> tuple[int, int]:
    """(codes, rows) of a tile, codes a multiple of GROUP; the fastest ones measured on two CPU cores."""
    tile_codes = 8192 if depth < 32 else 2048 if depth < 128 else 1024
    tile_codes = min(tile_codes, num_codes + -num_codes % GROUP)
    tile_rows = max(128, TILE_SCORES // tile_codes) * min(torch.get_num_threads(), 4)
    return tile_codes, min(num_rows, tile_rows)
