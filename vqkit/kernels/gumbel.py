"""Gumbel noise on the logits z . e: a code drawn at random, and the gradient of a soft choice that sees the same noise.

The noise is a function of (seed, step, number of the row), so it is formed anew in each pass, a few rows at a time:
nothing of size N x K is held. There is no fused kernel: on a GPU too, torch runs these, by blocks of rows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from vqkit.distributed import open_uniform
from vqkit.kernels.operators import call, gradient, operator
from vqkit.kernels.softmax_rows import block_rows, check_indices, check_logits, prepare

DRAW = 2**16  # random numbers made at a time: some ten operations pass over them, in the processor's cache
DRAW_ON_A_DEVICE = 2**23


def gumbel_nearest(z: Tensor, codes: Tensor, *, seed: Tensor, step: Tensor, first: int) -> Tensor:
    """A code for each row, drawn with probability softmax(z . e): the largest of z . e plus Gumbel noise.

    Nothing is differentiated.

    Args:
        z: (N, D) vectors, floating point; N may be 0.
        codes: (K, D) code vectors.
        seed: () int64, chooses the noise.
        step: () int64, chooses an independent draw of it.
        first: number of the first row among those of all ranks.

    Returns:
        (N,) int64.

    Raises:
        ValueError: a shape, dtype or device is wrong.

    Source: the Gumbel-max trick, as in Jang, Gu, Poole 2016 (arXiv:1611.01144), eq. 1.
    """
    check_logits(z, codes, 1.0)
    return torch.ops.vqkit.gumbel_nearest(z.detach(), codes.detach(), seed, step, first)


def gumbel_softmax(
    z: Tensor,
    codes: Tensor,
    indices: Tensor | None,
    *,
    seed: Tensor,
    step: Tensor,
    first: int,
    temperature: float = 1.0,
) -> Tensor:
    """The drawn codes, or the mean of all codes, with the gradient of a soft choice under Gumbel noise.

    With p = softmax((z . e + noise) / temperature), mu = sum_k p_k e_k, an upstream gradient g, and h the one-hot of
    the index (p itself without indices):

        dz_n = sum_k p_nk (g_n . (e_k - mu_n)) e_k / temperature
        de_k = sum_n h_nk g_n + p_nk (g_n . (e_k - mu_n)) z_n / temperature

    It has no second derivative.

    Args:
        z: (N, D) vectors, floating point; N may be 0.
        codes: (K, D) code vectors.
        indices: (N,) integers from 0 to K - 1: the value is codes[indices], bit for bit. None: the value is mu.
        seed: as in `gumbel_nearest`.
        step: as in `gumbel_nearest`.
        first: as in `gumbel_nearest`.
        temperature: of the softmax, positive.

    Returns:
        (N, D) in the dtype of codes.

    Raises:
        ValueError: a shape, dtype, device or the temperature is wrong.

    Source: Jang, Gu, Poole 2016 (arXiv:1611.01144), eq. 2 and sec. 2.2.
    """
    check_logits(z, codes, temperature)
    if indices is not None:
        check_indices(indices, z)
    return call("gumbel_softmax", z, codes, indices, seed, step, first, temperature)


@operator("gumbel_nearest", lambda z, *_: z.new_empty(z.shape[0], dtype=torch.int64))
def _nearest(z: Tensor, codes: Tensor, seed: Tensor, step: Tensor, first: int) -> Tensor:
    indices = z.new_empty(z.shape[:1], dtype=torch.int64)
    with torch.autocast(z.device.type, enabled=False):
        for rows, _, logits in _perturbed_logits(z, codes, seed, step, first):
            indices[rows] = logits.argmax(1)
    return indices


@operator("gumbel_softmax", lambda z, codes, *_: z.new_empty(z.shape, dtype=codes.dtype))
def _forward(
    z: Tensor, codes: Tensor, indices: Tensor | None, seed: Tensor, step: Tensor, first: int, temperature: float
) -> Tensor:
    if indices is not None:
        return codes[indices]
    mixture = z.new_empty(z.shape, dtype=codes.dtype)
    with torch.autocast(z.device.type, enabled=False):
        for rows, _, logits in _perturbed_logits(z, codes, seed, step, first):
            mixture[rows] = (logits / temperature).softmax(1).to(codes.dtype) @ codes
    return mixture


@gradient("gumbel_softmax", "z", "codes")
def _backward(
    upstream: Tensor,
    z: Tensor,
    codes: Tensor,
    indices: Tensor | None,
    seed: Tensor,
    step: Tensor,
    first: int,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    dz, dcodes = z.new_empty(z.shape), codes.new_zeros(codes.shape)
    with torch.autocast(z.device.type, enabled=False):
        for rows, centred, logits in _perturbed_logits(z, codes, seed, step, first):
            probabilities = (logits / temperature).softmax(1)
            received = upstream[rows].to(logits.dtype)
            # The mean code falls out of both products, since each row of dlogits adds up to 0.
            values = received @ centred.T
            values -= torch.linalg.vecdot(probabilities, values).unsqueeze(1)
            dlogits = values.mul_(probabilities).div_(temperature)
            dz[rows] = (dlogits @ centred).to(z.dtype)
            dcodes += (dlogits.T @ z[rows].to(logits.dtype)).to(codes.dtype)
            if indices is None:
                dcodes += (probabilities.T @ received).to(codes.dtype)
        if indices is not None:
            dcodes.index_add_(0, indices, upstream.to(codes.dtype))
    return dz, dcodes


def _perturbed_logits(
    z: Tensor, codes: Tensor, seed: Tensor, step: Tensor, first: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of rows: which rows, the codes less their mean (K, D), and z . e plus Gumbel noise (R, K)."""
    x, centred, _ = prepare(z, codes, 1.0, torch.ones_like(z[:, 0], dtype=torch.bool))
    size, columns = len(centred), torch.arange(len(centred), device=z.device)
    draw = DRAW_ON_A_DEVICE if x.is_cuda else DRAW
    for rows in _slices(0, len(x), block_rows(size, x.device)):
        logits = x[rows] @ centred.T
        for part in _slices(rows.start, rows.stop, max(1, draw // size)):
            numbers = first + torch.arange(part.start, part.stop, device=z.device)
            # 1 - u is as uniform as u, and a u that was rounded to 1 gives a code that is never drawn, not infinity.
            uniform = open_uniform(numbers[:, None] * size + columns, seed=seed, step=step)
            exponential = uniform.neg_().log1p_().neg_()
            logits[part.start - rows.start : part.stop - rows.start] -= exponential.log_()
        yield rows, centred, logits


def _slices(start: int, stop: int, step: int) -> Iterator[slice]:
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))
