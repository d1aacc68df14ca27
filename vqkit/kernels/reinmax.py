"""ReinMax: the drawn code, with a second-order gradient to its logits, and no N x K matrix."""

import torch
from torch import Tensor

from vqkit.kernels import engines
from vqkit.kernels.operators import call, gradient, operator
from vqkit.kernels.softmax_rows import Block, backpropagate, check_indices, check_logits, chosen_codes, prepare


def reinmax(z: Tensor, codes: Tensor, indices: Tensor, *, impl: engines.Impl | None = None) -> Tensor:
    """Codes that were drawn with probability p_n = softmax(z_n . e), with the gradient of ReinMax.

    The value is codes[indices], bit for bit. For an upstream gradient g, v_k = g . e_k, h the one-hot of the drawn code
    and v_h that code's v, the logits get

        dlogits_k = (p_k (v_k - v_h) + h_k (v_h - sum_j p_j v_j)) / 2

    from which dz_n = sum_k dlogits_nk e_k and de_k = sum_n h_nk g_n + dlogits_nk z_n. It has no second derivative.

    Args:
        z: (N, D) vectors, floating point; N may be 0.
        codes: (K, D) code vectors.
        indices: (N,) integers below K, drawn. A row with a negative index gives zeros, and no gradient whatever it
            holds.
        impl: the engine of the backward, as in `index_backpropagation`.

    Returns:
        (N, D) in the dtype of codes.

    Raises:
        ValueError: a shape, dtype or device is wrong; on a processor also an index of K or more. In the backward:
            `impl` cannot run the call.

    Source: Liu et al. 2023 (arXiv:2304.08612), at temperature 1.
    """
    check_logits(z, codes, 1.0)
    check_indices(indices, z)
    return call("reinmax", z, codes, indices.to(torch.int64), impl)


@operator("reinmax", lambda z, codes, *_: z.new_empty(z.shape, dtype=codes.dtype))
def _forward(z: Tensor, codes: Tensor, indices: Tensor, impl: str | None = None) -> Tensor:
    return chosen_codes(codes, indices)


@gradient("reinmax", "z", "codes")
def _backward(
    upstream: Tensor, z: Tensor, codes: Tensor, indices: Tensor, impl: str | None = None
) -> tuple[Tensor, Tensor]:
    if engines.choose("soft", (upstream, z, codes), impl).engine == "triton":
        from vqkit.kernels.gpu import soft as fused  # Triton is optional, and slow to import

        dz, dcodes = fused.reinmax_backward(upstream, z, codes, indices)
        return dz.to(z.dtype), dcodes.to(codes.dtype)
    with torch.autocast(z.device.type, enabled=False):
        kept, drawn = indices >= 0, indices.clamp(min=0)[:, None]
        problem = prepare(z, codes, 1.0, kept)
        upstream = torch.where(kept[:, None], upstream, 0).to(problem.x.dtype)

        def dlogits(block: Block) -> Tensor:
            chosen = drawn[block.part]
            values = torch.mm(upstream[block.part], problem.codes.T, out=block.logits)
            result = values.sub_(values.gather(1, chosen)).mul_(block.probabilities)
            return result.scatter_add_(1, chosen, -result.sum(1, keepdim=True)).mul_(0.5)

        dz, dcodes = backpropagate(problem, dlogits)
        dcodes.index_add_(0, drawn[:, 0], upstream)
    return dz.to(z.dtype), dcodes.to(codes.dtype)
