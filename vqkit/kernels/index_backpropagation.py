"""Index backpropagation: the chosen code, with the gradient of a soft choice, and no N x K matrix."""

import torch
from torch import Tensor

from vqkit.kernels import engines
from vqkit.kernels.operators import call, gradient, operator
from vqkit.kernels.softmax_rows import (
    Block,
    backpropagate,
    check_indices,
    check_logits,
    chosen_codes,
    prepare,
)


def index_backpropagation(
    z: Tensor, codes: Tensor, indices: Tensor, *, temperature: float = 1.0, impl: engines.Impl | None = None
) -> Tensor:
    """The chosen codes, with the gradient of a soft choice among all of them.

    With p_n = softmax(z_n . e / temperature) and h_n the one-hot of the index, the value is codes[indices], bit for
    bit, and the gradient is that of (h - stop_gradient(p) + p) codes; for an upstream gradient g, mu = sum_k p_k e_k:

        dz_n = sum_k p_nk (g_n . (e_k - mu_n)) e_k / temperature          that is Cov_p[e] g_n / temperature
        de_k = sum_n h_nk g_n + sum_n p_nk (g_n . (e_k - mu_n)) z_n / temperature

    so every code moves at every step. It has no second derivative. The index need not be the one of the largest logit.

    Args:
        z: (N, D) vectors, floating point; N may be 0.
        codes: (K, D) code vectors.
        indices: (N,) integers below K. A row with a negative index gives zeros, and no gradient whatever it holds.
        temperature: of the softmax in the gradient, positive.
        impl: the engine of the backward, for tests and comparisons: "torch", "triton" (the fused kernels, on an NVIDIA
            GPU) or None for the fastest that may be trusted.

    Returns:
        (N, D) in the dtype of codes.

    Raises:
        ValueError: a shape, dtype, device or the temperature is wrong; on a processor also an index of K or more. In
            the backward: `impl` cannot run the call.

    Source: IBQ, Shi et al. 2024 (arXiv:2412.02692), its index backpropagation, with temperature 1.
    Differs: nothing of size N x K is stored; the softmax is formed again in the backward, `docs/soft_assignment.md`.
    """
    check_logits(z, codes, temperature)
    check_indices(indices, z)
    return call("index_backpropagation", z, codes, indices.to(torch.int64), temperature, impl)


@operator("index_backpropagation", lambda z, codes, *_: z.new_empty(z.shape, dtype=codes.dtype))
def _forward(z: Tensor, codes: Tensor, indices: Tensor, temperature: float, impl: str | None = None) -> Tensor:
    return chosen_codes(codes, indices)


@gradient("index_backpropagation", "z", "codes")
def _backward(
    upstream: Tensor, z: Tensor, codes: Tensor, indices: Tensor, temperature: float, impl: str | None = None
) -> tuple[Tensor, Tensor]:
    if engines.choose("soft", (upstream, z, codes), impl).engine == "triton":
        from vqkit.kernels.gpu import soft as fused  # Triton is optional, and slow to import

        dz, dcodes = fused.index_backpropagation_backward(upstream, z, codes, indices, temperature)
        return dz.to(z.dtype), dcodes.to(codes.dtype)
    with torch.autocast(z.device.type, enabled=False):
        kept = indices >= 0
        problem = prepare(z, codes, temperature, kept)
        upstream = torch.where(kept[:, None], upstream, 0).to(problem.x.dtype)

        def dlogits(block: Block) -> Tensor:
            """By probability: g . e less its expectation, in which the mean code falls out."""
            result = torch.mm(upstream[block.part], problem.codes.T, out=block.logits).mul_(block.probabilities)
            return result.addcmul_(block.probabilities, result.sum(1, keepdim=True), value=-1)

        dx, dcodes = backpropagate(problem, dlogits)
        dcodes.index_add_(0, indices.clamp(min=0), upstream)
    return dx.to(z.dtype), dcodes.to(codes.dtype)
