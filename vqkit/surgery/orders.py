"""Orders of codes, and which of them are kept."""

import torch
from torch import Tensor

from vqkit.precision import widened


def usage_order(vectors: Tensor, usage: Tensor) -> Tensor:
    """The most used code first; codes of equal usage stay in their order.

    Args:
        vectors: (K, D) code vectors.
        usage: (K,) of each.

    Returns:
        (K,) int64, the codes in their new order.
    """
    return usage.argsort(descending=True, stable=True)


def principal_axis_order(vectors: Tensor, usage: Tensor) -> Tensor:
    """Along the principal axis of the code vectors, so that indices are a picture of the latents; see `usage_order`."""
    centered = widened(vectors) - widened(vectors).mean(0)
    axis = torch.linalg.eigh(centered.mT @ centered).eigenvectors[:, -1]
    axis = axis * axis[axis.abs().argmax()].sign()  # either direction is an eigenvector
    return (centered @ axis).argsort(stable=True)


def chain_order(vectors: Tensor, usage: Tensor) -> Tensor:
    """From one end of the principal axis always to the nearest code that is left: neighbours are alike.

    It takes K^2 D operations. Arguments and result are those of `usage_order`.

    Source: chains of nearest neighbours order the codes of a group in IAR, Hu et al. 2025
        (https://arxiv.org/abs/2501.00880).
    Differs: they begin at the code nearest the mean of the group.
    """
    rows, current = widened(vectors), int(principal_axis_order(vectors, usage)[0])
    taken = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    chain = []
    for _ in range(len(rows)):
        chain.append(current)
        taken[current] = True
        current = int((rows - rows[current]).square().sum(1).masked_fill(taken, torch.inf).argmin())
    return torch.tensor(chain, device=vectors.device)


def used(counts: Tensor, *, min_count: float = 1) -> Tensor:
    """The codes that were chosen at least `min_count` times.

    Args:
        counts: (K,) of each code.
        min_count: positive.

    Returns:
        (K,) bool.
    """
    return counts >= min_count


def most_used(counts: Tensor, *, codebook_size: int) -> Tensor:
    """The `codebook_size` codes that were chosen most; see `used`."""
    kept = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
    kept[usage_order(counts[:, None], counts)[:codebook_size]] = True
    return kept
