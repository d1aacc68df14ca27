"""Nearest-code search: one call, `nearest`, whatever runs behind it."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vqkit.kernels.reference import nearest_indices

__all__ = ["Metric", "Nearest", "nearest"]

Metric = Literal["euclidean", "dot", "cosine"]


class Nearest(NamedTuple):
    """Result of `nearest`.

    Attributes:
        indices: (...) int64, the chosen code of each row.
        scores: (...) float32 (float64 where an input is) score of the chosen code, or None when not asked for: the
            squared distance for "euclidean", the dot product for "dot", the cosine for "cosine". NaN where the row is
            not finite.
    """

    indices: Tensor
    scores: Tensor | None


def nearest(x: Tensor, codes: Tensor, *, metric: Metric = "euclidean", return_scores: bool = False) -> Nearest:
    """Finds the code that is nearest to each row.

    The result is the float64 argmin (argmax for "dot" and "cosine") of the given values: the same for any batch size,
    split, number of threads, autocast state and `torch.set_float32_matmul_precision` (which slows it down when it is
    not "highest", as the products are then formed in float64). Float16 and bfloat16 inputs are taken at their exact
    values. Nothing is differentiated: recompute from `codes[indices]` what needs a gradient. Memory is O((N + K) D).

    - Ties go to the lowest index; float64 scores that agree to within their rounding error (about D * 1e-16 of the
      squared norms, less the mean code) are ties, so equal codes and symmetric grids have one defined answer.
    - A row with a NaN or an infinity gets index 0 and score NaN.
    - A code with a NaN or an infinity never wins; where all codes have one, every index is 0.
    - "cosine" divides both sides by their norms; a zero row or code has similarity 0 to everything, so that a zero row
      gets index 0.

    Args:
        x: (..., D) rows, floating point, any strides; there may be none.
        codes: (K, D) code vectors, floating point, K >= 1, on the device of x.
        metric: "euclidean" (smallest distance), "dot" (largest dot product) or "cosine" (largest cosine).
        return_scores: also return the score of the chosen code.

    Returns:
        `Nearest(indices, scores)`, both (...).

    Raises:
        ValueError: a shape, dtype, device or metric is wrong.

    Source: the exact search of the VQ assignment, van den Oord et al. 2017, arXiv:1711.00937, eq. 1.
    """
    _check(x, codes, metric)
    x, codes = x.detach(), codes.detach()
    indices = torch.ops.vqkit.nearest(x.reshape(-1, x.shape[-1]), codes, metric).view(x.shape[:-1])
    return Nearest(indices, _scores(x, codes, indices, metric) if return_scores else None)


def _check(x: Tensor, codes: Tensor, metric: str) -> None:
    for name, tensor in (("x", x), ("codes", codes)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}, expected a floating point one; use {name}.float().")
    if codes.ndim != 2 or codes.shape[0] == 0 or codes.shape[1] == 0:
        raise ValueError(
            f"codes has shape {tuple(codes.shape)}, expected (K, D) with K >= 1 and D >= 1; pass one row for each code."
        )
    if x.ndim == 0 or x.shape[-1] != codes.shape[1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected (..., {codes.shape[1]}) to match codes of shape "
            f"{tuple(codes.shape)}; move the channel to the last axis."
        )
    if x.device != codes.device:
        raise ValueError(f"codes is on {codes.device}, expected {x.device} as x; use codes.to(x.device).")
    if metric not in ("euclidean", "dot", "cosine"):
        raise ValueError(f"metric is {metric!r}, expected 'euclidean', 'dot' or 'cosine'; choose one of these.")


def _scores(x: Tensor, codes: Tensor, indices: Tensor, metric: str) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(x.dtype, codes.dtype), torch.float32)
    x, chosen = x.to(dtype), codes[indices].to(dtype)
    not_finite = (0 * x).sum(-1)  # NaN for a row with NaN or infinity, otherwise 0
    if metric == "euclidean":
        scores = (x - chosen).square().sum(-1)
    elif metric == "dot":
        scores = (x * chosen).sum(-1)
    else:
        x, chosen = (
            torch.nn.functional.normalize(rows.to(torch.float64), dim=-1, eps=torch.finfo(torch.float64).tiny)
            for rows in (x, chosen)
        )
        scores = (x * chosen).sum(-1).to(dtype)
    return scores + not_finite


@torch.library.custom_op("vqkit::nearest", mutates_args=())
def _nearest(x: Tensor, codes: Tensor, metric: str) -> Tensor:
    """Rows (N, D), codes (K, D) -> (N,) int64. An op of its own, so that tracers see neither tiles nor global flags."""
    return nearest_indices(x, codes, metric)


@_nearest.register_fake
def _nearest_fake(x: Tensor, codes: Tensor, metric: str) -> Tensor:
    return x.new_empty(x.shape[:1], dtype=torch.int64)
