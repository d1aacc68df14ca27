"""Entropies of soft assignments: of each row, and of the mean over rows, with no N x K matrix."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vqkit.kernels import engines
from vqkit.kernels.bounds import result_dtype
from vqkit.kernels.operators import call, gradient, operator
from vqkit.kernels.softmax_rows import (
    Block,
    backpropagate,
    check_logits,
    check_vector,
    prepare,
    softmax_blocks,
)


class AssignmentEntropy(NamedTuple):
    """Result of `assignment_entropy`.

    Attributes:
        per_sample: (N,) entropy of each row's probabilities, in nats, between 0 and log K; 0 for rows of weight 0.
        mean_probabilities: (K,) weighted mean of the rows' probabilities. They add up to 1, or are all 0 where the
            weights add up to 0.
    """

    per_sample: Tensor
    mean_probabilities: Tensor


def assignment_entropy(
    z: Tensor,
    codes: Tensor,
    *,
    temperature: float = 0.01,
    metric: Literal["dot", "euclidean"] = "dot",
    weights: Tensor | None = None,
    impl: engines.Impl | None = None,
) -> AssignmentEntropy:
    """How undecided each row is between the codes, and how the rows use the codes together.

    With p_n = softmax(logits_n / temperature), logits z_n . e_k ("dot") or -|z_n - e_k|^2 ("euclidean"), both results
    are differentiable once, to z and codes. The entropy of the batch is `entropy(mean_probabilities)`; over ranks, of
    the mean of theirs by a differentiable reduction. Entropies are right to about 1e-7 plus what the rounding of the
    logits, D 2^-24 |z| |e| / temperature at worst, leaves of them.

    Args:
        z: (N, D) vectors, floating point; N may be 0.
        codes: (K, D) finite code vectors.
        temperature: positive.
        metric: what the logits are.
        weights: (N,) floating point, without gradient, or None for 1. Rows whose weight is not positive and finite
            are left out, whatever they hold: they give 0 and no gradient.
        impl: the engine, for tests and comparisons: "torch", "triton" (the fused kernels, on an NVIDIA GPU) or None for
            the fastest that may be trusted.

    Returns:
        `AssignmentEntropy(per_sample (N,), mean_probabilities (K,))`, float32, float64 where an input is.

    Raises:
        ValueError: a shape, dtype, device, metric or the temperature is wrong, the weights require a gradient, or
            `impl` cannot run the call.

    Source: the entropy terms of LFQ, Yu et al. 2023 (arXiv:2310.05737), as in IBQ, Shi et al. 2024
    (arXiv:2412.02692): temperature 0.01, logits z . e.
    Differs: no eps is added in the logarithms; backward formulas in `docs/soft_assignment.md`.
    """
    check_logits(z, codes, temperature)
    if metric not in ("dot", "euclidean"):
        raise ValueError(f"metric is {metric!r}, expected 'dot' or 'euclidean'; choose one of these.")
    weights = _normalized(weights, z, codes)
    if metric == "euclidean":
        z, codes = _augmented(z, codes)
    return AssignmentEntropy(*call("assignment_entropy", z, codes, weights, temperature, impl))


def entropy(probabilities: Tensor) -> Tensor:
    """-sum_k p_k log p_k over the last axis, in nats; 0 log 0 is 0, and the gradient there is large, not infinite.

    Args:
        probabilities: (..., K) floating point, not negative.

    Returns:
        (...).
    """
    smallest = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp(min=smallest).log()).sum(-1)


def _normalized(weights: Tensor | None, z: Tensor, codes: Tensor) -> Tensor:
    """(N,) weights that add up to 1, zero where a row is left out."""
    dtype = result_dtype(z, codes)
    if weights is None:
        return torch.full_like(z[:, 0], 1 / max(1, z.shape[0]), dtype=dtype)
    check_vector("weights", weights, z.shape[0], z.device)
    if not weights.is_floating_point() or weights.requires_grad:
        raise ValueError(
            f"weights has dtype {weights.dtype} and requires_grad={weights.requires_grad}, expected a floating point "
            "constant; use weights.float().detach()."
        )
    weights = torch.where((weights > 0) & (weights < torch.inf), weights, 0).to(dtype)
    if weights.numel():
        weights = weights / weights.amax().clamp(min=torch.finfo(dtype).tiny)  # or their sum may overflow
    return weights / weights.sum().clamp(min=torch.finfo(dtype).tiny)


def _augmented(z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, D + 1) and codes (K, D + 1) whose dot products are -|z - e|^2 + |z|^2, up to a number for each row."""
    dtype = result_dtype(z, codes)
    z, codes = z.to(dtype), codes.to(dtype)
    mean = codes.detach().mean(0)
    z, codes = z - mean, codes - mean
    rows = torch.cat([2 * z, -torch.ones_like(z[:, :1])], dim=1)
    return rows, torch.cat([codes, codes.square().sum(1, keepdim=True)], dim=1)


def _forward_fake(z: Tensor, codes: Tensor, *_: object) -> tuple[Tensor, ...]:
    return tuple(vectors.new_empty(vectors.shape[0], dtype=result_dtype(z, codes)) for vectors in (z, codes))


@operator("assignment_entropy", _forward_fake)
def _forward(
    z: Tensor, codes: Tensor, weights: Tensor, temperature: float, impl: str | None = None
) -> tuple[Tensor, Tensor]:
    """Entropies (N,), mean probabilities (K,); weights (N,) add up to 1."""
    if engines.choose("soft", (z, codes, weights), impl).engine == "triton":
        from vqkit.kernels.gpu import soft as fused  # Triton is optional, and slow to import

        return fused.assignment_entropy(z, codes, weights, temperature)
    with torch.autocast(z.device.type, enabled=False):
        problem = prepare(z, codes, temperature, weights > 0)
        weights = weights.to(problem.x.dtype)
        entropies, mean = torch.empty_like(weights), torch.zeros_like(problem.codes[:, 0])
        for block in softmax_blocks(problem):
            mean.addmv_(block.probabilities.T, weights[block.part])
            # log s - sum p (l - max l): two terms of one sign, neither of which grows with the logits
            expected = torch.mul(block.logits, block.probabilities, out=block.logits).sum(1)
            entropies[block.part] = block.log_normalizer() - expected
        entropies = torch.where(weights > 0, entropies, 0)
    return entropies.to(result_dtype(z, codes)), mean.to(result_dtype(z, codes))


@gradient("assignment_entropy", "z", "codes")
def _backward(
    dentropies: Tensor,
    dmean: Tensor,
    z: Tensor,
    codes: Tensor,
    weights: Tensor,
    temperature: float,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    if engines.choose("soft", (dentropies, dmean, z, codes, weights), impl).engine == "triton":
        from vqkit.kernels.gpu import soft as fused

        dz, dcodes = fused.assignment_entropy_backward(dentropies, dmean, z, codes, weights, temperature)
        return dz.to(z.dtype), dcodes.to(codes.dtype)
    with torch.autocast(z.device.type, enabled=False):
        kept = weights > 0
        problem = prepare(z, codes, temperature, kept)
        dtype = problem.x.dtype
        dentropies, weights = torch.where(kept, dentropies, 0).to(dtype)[:, None], weights.to(dtype)[:, None]
        dmean = dmean.to(dtype)

        def dlogits(block: Block) -> Tensor:
            """By probability: -a (l - expected l) + w (b - expected b), with a = dentropies and b = dmean."""
            part, logits, probabilities = block
            expected_dmean = (probabilities @ dmean)[:, None]
            result = logits.mul_(probabilities)
            expected_logit = result.sum(1, keepdim=True)
            result.mul_(-dentropies[part])
            result.addcmul_(probabilities, dentropies[part] * expected_logit - weights[part] * expected_dmean)
            return result.addcmul_(probabilities.mul_(dmean), weights[part])

        dx, dcodes = backpropagate(problem, dlogits)
    return dx.to(z.dtype), dcodes.to(codes.dtype)
