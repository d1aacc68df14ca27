"""Soft assignment: index backpropagation and the log-sum-exp of all logits, with no N x K matrix."""

import torch
from torch import Tensor

from vqkit.kernels import gpu
from vqkit.kernels.panels import (
    Panel,
    backpropagate,
    check_rows_and_codes,
    check_vector,
    prepare,
    result_dtype,
    softmax_panels,
)
from vqkit.kernels.statistics import check_range


def index_backpropagation(z: Tensor, codes: Tensor, indices: Tensor, *, temperature: float = 1.0) -> Tensor:
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

    Returns:
        (N, D) in the dtype of codes.

    Raises:
        ValueError: a shape, dtype, device or the temperature is wrong; on a processor also an index of K or more.

    Source: IBQ, Shi et al. 2024 (arXiv 2412.02692), its index backpropagation, with temperature 1.
    Differs: nothing of size N x K is stored; the softmax is formed again in the backward, `docs/soft_assignment.md`.
    """
    check_rows_and_codes(z, codes, temperature)
    check_vector("indices", indices, z.shape[0], z.device)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"indices has dtype {indices.dtype}, expected integers; use indices.long().")
    return torch.ops.vqkit.index_backpropagation(z, codes, indices.to(torch.int64), temperature)


@torch.library.custom_op("vqkit::index_backpropagation", mutates_args=())
def _index_backpropagation(z: Tensor, codes: Tensor, indices: Tensor, temperature: float) -> Tensor:
    check_range(indices, codes.shape[0])
    return torch.where(indices[:, None] >= 0, codes[indices.clamp(min=0)], 0)


@_index_backpropagation.register_fake
def _index_backpropagation_fake(z: Tensor, codes: Tensor, indices: Tensor, temperature: float) -> Tensor:
    return torch.empty_like(z, dtype=codes.dtype, memory_format=torch.contiguous_format)


@torch.library.custom_op("vqkit::index_backpropagation_backward", mutates_args=())
def _index_backpropagation_backward(
    gradient: Tensor, z: Tensor, codes: Tensor, indices: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    if gpu.can_run(gradient, z, codes):
        from vqkit.kernels.gpu import soft as fused  # Triton is optional, and slow to import

        dz, dcodes = fused.index_backpropagation_backward(gradient, z, codes, indices, temperature)
        return dz.to(z.dtype), dcodes.to(codes.dtype)
    with torch.autocast(z.device.type, enabled=False):
        kept = indices >= 0
        problem = prepare(z, codes, temperature, kept)
        gradient = torch.where(kept[:, None], gradient, 0).to(problem.x.dtype)

        def dlogits(panel: Panel) -> Tensor:
            """By probability: g . e less its expectation, in which the mean code falls out."""
            result = torch.mm(gradient[panel.part], problem.codes.T, out=panel.logits).mul_(panel.probabilities)
            return result.addcmul_(panel.probabilities, result.sum(1, keepdim=True), value=-1)

        dx, dcodes = backpropagate(problem, dlogits)
        dcodes.index_add_(0, indices.clamp(min=0), gradient)
    return dx.to(z.dtype), dcodes.to(codes.dtype)


@_index_backpropagation_backward.register_fake
def _index_backpropagation_backward_fake(
    gradient: Tensor, z: Tensor, codes: Tensor, indices: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), codes.new_empty(codes.shape)


def _index_backpropagation_setup(ctx, inputs: tuple, output: Tensor) -> None:  # type: ignore[no-untyped-def]
    z, codes, indices, ctx.temperature = inputs
    ctx.save_for_backward(z, codes, indices)


def _index_backpropagation_autograd(ctx, gradient: Tensor) -> tuple:  # type: ignore[no-untyped-def]
    return *torch.ops.vqkit.index_backpropagation_backward(gradient, *ctx.saved_tensors, ctx.temperature), None, None


_index_backpropagation.register_autograd(_index_backpropagation_autograd, setup_context=_index_backpropagation_setup)


def log_sum_exp(z: Tensor, codes: Tensor, *, temperature: float = 1.0, valid: Tensor | None = None) -> Tensor:
    """Logarithm of sum_k exp(z_n . e_k / temperature) of each row; differentiable once, to z and codes.

    A row that holds a NaN gets NaN; where its upstream gradient is 0 it disturbs no other row and no code. Without any
    valid code the value is minus infinity and the gradient 0.

    Args:
        z: (N, D) vectors, floating point; N may be 0.
        codes: (K, D) finite code vectors.
        temperature: positive.
        valid: (K,) bool, the codes to sum over; None for all.

    Returns:
        (N,) float32, float64 where an input is.

    Raises:
        ValueError: a shape, dtype, device or the temperature is wrong.
    """
    check_rows_and_codes(z, codes, temperature)
    if valid is not None:
        check_vector("valid", valid, codes.shape[0], z.device)
        if valid.dtype != torch.bool:
            raise ValueError(f"valid has dtype {valid.dtype}, expected torch.bool; compare it, as in valid > 0.")
    return torch.ops.vqkit.log_sum_exp(z, codes, temperature, valid)


@torch.library.custom_op("vqkit::log_sum_exp", mutates_args=())
def _log_sum_exp(z: Tensor, codes: Tensor, temperature: float, valid: Tensor | None) -> Tensor:
    if gpu.can_run(z, codes):
        from vqkit.kernels.gpu import soft as fused

        return fused.log_sum_exp(z, codes, temperature, valid)
    with torch.autocast(z.device.type, enabled=False):
        problem = prepare(z, codes, temperature, torch.ones_like(z[:, 0], dtype=torch.bool))
        values = (problem.x * problem.mean).sum(1) / temperature
        for panel in softmax_panels(problem, _bias(valid, problem.x)):
            values[panel.part] += panel.largest + panel.log_normalizer()
        if valid is not None:
            values = torch.where(valid.any(), values, -torch.inf)
    return values.to(result_dtype(z, codes))


def _bias(valid: Tensor | None, x: Tensor) -> Tensor | None:
    """(K,) minus infinity for codes to leave out; if those are all, none, so that the sums stay finite."""
    if valid is None:
        return None
    return torch.where(valid | ~valid.any(), x.new_zeros(()), -torch.inf)


@_log_sum_exp.register_fake
def _log_sum_exp_fake(z: Tensor, codes: Tensor, temperature: float, valid: Tensor | None) -> Tensor:
    return z.new_empty(z.shape[:1], dtype=result_dtype(z, codes))


@torch.library.custom_op("vqkit::log_sum_exp_backward", mutates_args=())
def _log_sum_exp_backward(
    gradient: Tensor, z: Tensor, codes: Tensor, temperature: float, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    if gpu.can_run(gradient, z, codes):
        from vqkit.kernels.gpu import soft as fused

        dz, dcodes = fused.log_sum_exp_backward(gradient, z, codes, temperature, valid)
        return dz.to(z.dtype), dcodes.to(codes.dtype)
    with torch.autocast(z.device.type, enabled=False):
        if valid is not None:
            gradient = gradient * valid.any()
        problem = prepare(z, codes, temperature, gradient != 0)
        gradient = gradient.to(problem.x.dtype)[:, None]

        def dlogits(panel: Panel) -> Tensor:
            return panel.probabilities.mul_(gradient[panel.part])

        dx, dcodes = backpropagate(problem, dlogits, _bias(valid, problem.x))
        dx.addcmul_(gradient, problem.mean, value=1 / temperature)
    return dx.to(z.dtype), dcodes.to(codes.dtype)


@_log_sum_exp_backward.register_fake
def _log_sum_exp_backward_fake(
    gradient: Tensor, z: Tensor, codes: Tensor, temperature: float, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), codes.new_empty(codes.shape)


def _log_sum_exp_setup(ctx, inputs: tuple, output: Tensor) -> None:  # type: ignore[no-untyped-def]
    z, codes, ctx.temperature, valid = inputs
    ctx.save_for_backward(z, codes, valid)


def _log_sum_exp_autograd(ctx, gradient: Tensor) -> tuple:  # type: ignore[no-untyped-def]
    z, codes, valid = ctx.saved_tensors
    return *torch.ops.vqkit.log_sum_exp_backward(gradient, z, codes, ctx.temperature, valid), None, None


_log_sum_exp.register_autograd(_log_sum_exp_autograd, setup_context=_log_sum_exp_setup)
