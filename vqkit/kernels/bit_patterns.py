"""Probabilities of the patterns of independent bits, summed over rows: no matrix of N x 2^bits numbers.

There is no fused kernel: on a GPU too, torch runs this, one matrix product for each group and block of rows.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vqkit.kernels.operators import call, gradient, operator

BLOCK = 2**20  # probabilities that are held at once


def pattern_sums(logits: Tensor, weights: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """Weighted sums over N rows of the probability of each pattern of bits, for groups of independent bits.

    Differentiable once, to the logits. A group's probabilities are an outer product of those of its two halves, so that
    their sum over rows is one matrix product, and nothing of size N x 2^g exists.

    Args:
        logits: (N, D) of each bit; N may be 0.
        weights: (N,) finite, without gradient.
        group_sizes: sizes g of consecutive groups; they add up to D.

    Returns:
        (sum of 2^g,): for each group 2^g sums, the first bit of the group the most significant.

    Raises:
        ValueError: the shapes do not match, or the weights require a gradient.
    """
    if logits.ndim != 2 or sum(group_sizes) != logits.shape[1]:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}, expected (N, {sum(group_sizes)}) for group_sizes="
            f"{list(group_sizes)}; give each bit a group."
        )
    if weights.shape != logits.shape[:1] or weights.requires_grad:
        raise ValueError(
            f"weights has shape {tuple(weights.shape)} and requires_grad={weights.requires_grad}, expected "
            f"({logits.shape[0]},) without gradient; use weights.detach()."
        )
    return call("pattern_sums", logits, weights, list(group_sizes))


@operator("pattern_sums", lambda logits, weights, group_sizes: logits.new_empty(sum(2**size for size in group_sizes)))
def _forward(logits: Tensor, weights: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """Blocks of rows, two halves of each group."""
    sums = [logits.new_zeros(2 ** (size // 2), 2 ** (size - size // 2)) for size in group_sizes]
    for rows in _blocks(logits, group_sizes):
        for total, group in zip(sums, logits[rows].split(list(group_sizes), 1), strict=True):
            left, right = _halves(group)
            total.addmm_((_probabilities(left) * weights[rows, None]).T, _probabilities(right))
    return torch.cat([total.flatten() for total in sums])


@gradient("pattern_sums", "logits")
def _backward(dsums: Tensor, logits: Tensor, weights: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """Gradient of `pattern_sums` to the logits, from that of the sums."""
    gradients = dsums.split([2**size for size in group_sizes])
    result = torch.empty_like(logits, memory_format=torch.contiguous_format)
    for rows in _blocks(logits, group_sizes):
        parts = []
        for dsum, group in zip(gradients, logits[rows].split(list(group_sizes), 1), strict=True):
            left, right = _halves(group)
            p, q = _probabilities(left), _probabilities(right)
            dsum = dsum.view(p.shape[1], q.shape[1])
            parts += [_dlogits(left, p * (q @ dsum.T)), _dlogits(right, q * (p @ dsum))]
        result[rows] = torch.cat(parts, 1) * weights[rows, None]
    return result


def _blocks(logits: Tensor, group_sizes: Sequence[int]) -> Iterator[slice]:
    number = max(1, BLOCK >> (max(group_sizes) + 1) // 2)
    return (slice(first, first + number) for first in range(0, logits.shape[0], number))


def _halves(group: Tensor) -> tuple[Tensor, Tensor]:
    middle = group.shape[1] // 2
    return group[:, :middle], group[:, middle:]


def _probabilities(logits: Tensor) -> Tensor:
    """(N, b) -> (N, 2^b): the probability of each pattern, the first bit the most significant."""
    result = torch.ones_like(logits[:, :1]) if logits.shape[1] else logits.new_ones(logits.shape[0], 1)
    for logit in logits.unbind(1):
        result = torch.stack([result * torch.sigmoid(-logit)[:, None], result * torch.sigmoid(logit)[:, None]], -1)
        result = result.flatten(1)
    return result


def _dlogits(logits: Tensor, weighted: Tensor) -> Tensor:
    """(N, b): (1 - sigma_i) times the sum over patterns with bit i, less sigma_i times that over those without.

    Args:
        logits: (N, b).
        weighted: (N, 2^b) probabilities of the patterns, times the gradients that arrive.
    """
    parts = []
    for place, logit in enumerate(logits.unbind(1)):
        without, present = weighted.view(len(weighted), 2**place, 2, -1).sum((1, 3)).unbind(1)
        parts.append(torch.sigmoid(-logit) * present - torch.sigmoid(logit) * without)
    return torch.stack(parts, 1) if parts else logits.new_empty(logits.shape)
