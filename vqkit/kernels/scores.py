"""Scores and margins of codes that have been chosen: float64 sums over one row and one code, no matrix product."""

import torch
from torch import Tensor

from vqkit.kernels.matmul_precision import widest_dtype
from vqkit.kernels.torch_search.float32_scan import unit_vectors


def score_values(x: Tensor, codes: Tensor, indices: Tensor, metric: str) -> Tensor:
    """Scores (G, N, k) of codes (G, K, D) for rows (G, N, D) at indices (G, N, k).

    NaN where the row or the code is not finite or the index is negative.
    """
    rows = _wide(x, metric)
    scores = [_scores(rows, codes, place, metric) for place in indices.unbind(-1)]
    return torch.stack(scores, -1).to(_result_dtype(x, codes))


def score_margins(x: Tensor, codes: Tensor, found: Tensor, metric: str, k: int) -> Tensor:
    """By how much code k + 1 of found (G, N, k or k + 1) is worse than code k: (G, N), infinite where there is none.

    The difference is formed before it is summed, so that a margin far below the scores keeps its digits. NaN where the
    score of code k is.
    """
    rows, last = _wide(x, metric), found[..., k - 1]
    margin = torch.full_like(rows[..., 0], torch.inf)
    if found.shape[-1] > k:
        chosen, other = (_chosen(codes, found[..., place], metric) for place in (k - 1, k))
        terms = (chosen - other) * (2 * rows - chosen - other if metric == "euclidean" else rows)
        margin = torch.where(found[..., k] >= 0, terms.sum(-1).clamp(min=0), torch.inf)
    return (margin + 0 * _scores(rows, codes, last, metric)).to(_result_dtype(x, codes))


def _scores(rows: Tensor, codes: Tensor, place: Tensor, metric: str) -> Tensor:
    chosen = _chosen(codes, place, metric)
    scores = ((rows - chosen).square() if metric == "euclidean" else rows * chosen).sum(-1)
    return torch.where(torch.isfinite(scores) & (place >= 0), scores, torch.nan)


def _wide(vectors: Tensor, metric: str) -> Tensor:
    vectors = vectors.to(widest_dtype(vectors.device))
    return unit_vectors(vectors) if metric == "cosine" else vectors


def _chosen(codes: Tensor, place: Tensor, metric: str) -> Tensor:
    """The vectors (G, N, D) of codes (G, K, D) at indices (G, N); a negative index reads the first code."""
    first = codes.shape[1] * torch.arange(codes.shape[0], device=codes.device)[:, None]
    return _wide(codes.flatten(0, 1)[place.clamp(min=0) + first], metric)


def _result_dtype(x: Tensor, codes: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, codes.dtype), torch.float32)
