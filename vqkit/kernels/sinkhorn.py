"""Prices of codes at which a batch spreads evenly over them: Sinkhorn's iterations, by blocks of rows."""

import torch
from torch import Tensor

from vqkit import distributed
from vqkit.kernels.bounds import result_dtype
from vqkit.kernels.nearest import check_rows_and_codes
from vqkit.kernels.softmax_rows import block_rows
from vqkit.precision import widened


@torch.no_grad()
def balancing_prices(
    x: Tensor, codes: Tensor, *, valid: Tensor | None = None, temperature: float = 0.1, iterations: int = 5
) -> Tensor:
    """Prices p (K,) at which the choice of argmin_k |x - e_k|^2 + p_k uses the codes more evenly.

    They are the potentials of entropic optimal transport between the vectors, of mass 1/N each, and the codes, of mass
    1/K each: with the plan P_nk proportional to exp(-(|x_n - e_k|^2 + p_k) / s), an iteration gives every row the mass
    1/N, then every code the mass 1/K by its price. The temperature s is `temperature` standard deviations of all N x K
    squared distances, so that it means the same at any scale. The prices add up to what was there before, 0, to within
    a constant: only their differences decide.

    N is that of all ranks, and one collective of K numbers an iteration, with one of D^2 before, makes the prices those
    of the joined batch, the same on every rank. Rows are taken by blocks: nothing of size N x K is held. Each iteration
    costs one product of N x K x D.

    Args:
        x: (N, D) floating point, finite where valid; N may be 0 on some ranks.
        codes: (K, D), the same on every rank.
        valid: (N,) bool, which rows have mass; None for all.
        temperature: in standard deviations of the squared distances, positive.
        iterations: at least 1.

    Returns:
        (K,) float32, float64 where an input is; zeros where no rank has a valid row.

    Source: Sinkhorn, Knopp 1967; Cuturi 2013 (arXiv:1306.0895), algorithm 1; as an assignment in training, Zhang et al.
    2024 (OptVQ, arXiv:2412.15195), which iterates 5 times at exp(-10 standardised distance).
    Differs: squared distances, for which the choice is a nearest code with one price each; logarithms, so that nothing
    underflows; rows come first.
    """
    check_rows_and_codes(x, codes, "euclidean")
    if not 0 < temperature < float("inf") or iterations < 1:
        raise ValueError(
            f"temperature is {temperature} and iterations {iterations}, expected a positive number such as 0.1 and at "
            "least 1."
        )
    kept = torch.ones(len(x), dtype=torch.bool, device=x.device) if valid is None else valid
    dtype = result_dtype(x, codes)
    middle = widened(codes).mean(0)  # distances stay, and lose fewer digits
    points = (widened(codes) - middle).to(dtype)
    rows = torch.where(kept[:, None], widened(x) - middle, 0).to(dtype)
    count, variance = _spread(rows, points, kept)
    # Where all distances agree there is nothing to choose by, and any scale will do.
    scale = temperature * torch.where(variance > 0, variance, 1).sqrt().to(dtype)
    size = len(points)
    bias = -points.square().sum(1) / scale
    potentials = torch.zeros_like(bias)
    target = torch.log(count / size).to(dtype)
    for _ in range(iterations):
        mass = distributed.logsumexp_over_ranks(_log_masses(rows, points, 2 / scale, bias + potentials, kept))
        potentials = torch.where(count > 0, potentials + target - mass, potentials)
    return -scale * potentials


def _log_masses(rows: Tensor, points: Tensor, gain: Tensor, bias: Tensor, kept: Tensor) -> Tensor:
    """(K,) logarithm of the sum over rows of softmax_k(gain x . e_k + bias_k)."""
    masses = torch.full_like(bias, -torch.inf)
    step = block_rows(len(points), rows.device)
    weights = gain * points.T
    for part, own in zip(rows.split(step), kept.split(step), strict=True):
        logits = torch.addmm(bias, part, weights)
        logits -= logits.logsumexp(1, keepdim=True)
        logits.masked_fill_(~own[:, None], -torch.inf)
        masses = torch.logaddexp(masses, logits.logsumexp(0))
    return masses


def _spread(rows: Tensor, points: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """How many rows all ranks have, and the variance of the squared distances of all of them from all points.

    With a = |x|^2, b = |e|^2 and points that add up to 0, |x - e|^2 = a + b - 2 x . e has the variance
    var a + var b + 4 tr(E[x x^T] E[e e^T]) - 4 E[x] . E[(b - E b) e]: no pair is looked at.
    """
    wide, codes = widened(rows), widened(points)
    lengths = wide.square().sum(1)
    moments = [kept.sum().to(wide)[None], lengths.sum()[None], lengths.square().sum()[None], wide.sum(0)]
    packed = distributed.all_reduce_sum(torch.cat([*moments, (wide.T @ wide).flatten()]))
    count, dim = packed[0], wide.shape[1]
    length, square, *_ = means = packed[1:] / count.clamp(min=1)
    mean, second = means[2 : 2 + dim], means[2 + dim :].view(dim, dim)
    norms = codes.square().sum(1)
    centred = norms - norms.mean()
    products = (second * (codes.T @ codes / len(codes))).sum()
    skew = mean @ ((centred[:, None] * codes).mean(0))
    return count, (square - length.square() + centred.square().mean() + 4 * products - 4 * skew).clamp(min=0)
