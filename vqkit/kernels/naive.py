"""The plain form of each function: what it computes, with every N x K matrix written out.

Tests compare the engines with these, in float64, and autograd differentiates them. They check nothing and take memory
in proportion to N x K, so nothing else calls them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def scores(x: Tensor, codes: Tensor, metric: str = "euclidean") -> Tensor:
    """(..., N, K) squared distances ("euclidean"), dot products ("dot") or cosines ("cosine") of rows and codes."""
    if metric == "euclidean":
        return (x.unsqueeze(-2) - codes.unsqueeze(-3)).square().sum(-1)
    if metric == "cosine":
        x, codes = (F.normalize(vectors, dim=-1, eps=1e-300) for vectors in (x.double(), codes.double()))
    return x @ codes.mT


def nearest(
    x: Tensor, codes: Tensor, *, metric: str = "euclidean", k: int = 1, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Indices and scores (..., N, k) of the best codes, best first, the lowest index among equals; `valid` (..., K)."""
    found = scores(x.double(), codes.double(), metric)
    keys = found if metric == "euclidean" else -found
    if valid is not None:
        keys = keys.masked_fill(~valid.unsqueeze(-2), torch.inf)
    indices = keys.sort(dim=-1, stable=True).indices[..., :k]
    return indices, found.gather(-1, indices)


def weighted_nearest(x: Tensor, codes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and scores (N,) of the code with the least sum of a_d (x_d - e_d)^2; weights (D,) or (N, D)."""
    weights = weights.double().expand_as(x)
    found = (weights.unsqueeze(-2) * (x.double().unsqueeze(-2) - codes.double()).square()).sum(-1)
    indices = found.argmin(-1)
    return indices, found.gather(-1, indices.unsqueeze(-1)).squeeze(-1)


def residual_nearest(x: Tensor, codebooks: Sequence[Tensor], *, metric: str = "euclidean") -> tuple[Tensor, Tensor]:
    """Indices (N, S) and the sum of the chosen codes (N, D)."""
    quantized, indices = torch.zeros_like(x), []
    for codes in codebooks:
        indices.append(nearest(x - quantized, codes, metric=metric)[0][..., 0])
        quantized = quantized + codes[indices[-1]]
    return torch.stack(indices, dim=-1), quantized


def segment_stats(
    x: Tensor, indices: Tensor, num_segments: int, *, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Counts (K,) and sums (K, D) of the rows (N, D) with each index, in float64; negative indices count nowhere."""
    weights = torch.ones_like(x[:, 0]) if weights is None else weights
    kept = (indices >= 0) & (weights != 0)
    one_hot = F.one_hot(indices[kept], num_segments).double() * weights[kept, None]
    return one_hot.sum(0), one_hot.T @ x[kept].double()


def logits(z: Tensor, codes: Tensor, temperature: float, metric: str = "dot") -> Tensor:
    """(N, K) z . e / temperature, or -|z - e|^2 / temperature for "euclidean"."""
    return (scores(z, codes, metric) if metric == "dot" else -scores(z, codes, metric)) / temperature


def index_backpropagation(z: Tensor, codes: Tensor, indices: Tensor, *, temperature: float = 1.0) -> Tensor:
    """(N, D): (h - stop_gradient(p) + p) codes, zero where an index is negative."""
    p = logits(z, codes, temperature).softmax(1)
    hard = F.one_hot(indices.clamp(min=0), len(codes)).to(p.dtype)
    return ((hard - p.detach() + p) @ codes) * (indices >= 0)[:, None]


def reinmax(z: Tensor, codes: Tensor, indices: Tensor) -> Tensor:
    """(N, D): 2 q - p / 2 in place of the probabilities that the gradient passes, q = (p + h) / 2 as a softmax.

    q is the softmax of log((p + h) / 2) + logits - stop_gradient(logits): the logits get 2 J(q) - J(p) / 2, with J the
    Jacobian of a softmax.
    """
    raw = logits(z, codes, 1.0)
    p = raw.softmax(1)
    hard = F.one_hot(indices.clamp(min=0), len(codes)).to(p.dtype)
    q = (((p + hard) / 2).detach().log() + raw - raw.detach()).softmax(1)
    soft = 2 * q - p / 2
    return ((hard - soft.detach() + soft) @ codes) * (indices >= 0)[:, None]


def gumbel_nearest(z: Tensor, codes: Tensor, uniform: Tensor) -> Tensor:
    """(N,) the largest of z . e - log(-log(1 - u)), for u (N, K) in (0, 1)."""
    return (logits(z, codes, 1.0) - (-(-uniform).log1p()).log()).argmax(1)


def gumbel_softmax(
    z: Tensor, codes: Tensor, indices: Tensor | None, uniform: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """(N, D) the codes of indices with the gradient of the mean of all codes under p, or without indices that mean."""
    p = ((logits(z, codes, 1.0) - (-(-uniform).log1p()).log()) / temperature).softmax(1)
    if indices is None:
        return p @ codes
    return (F.one_hot(indices, len(codes)) - p.detach() + p) @ codes


def assignment_entropy(
    z: Tensor, codes: Tensor, *, temperature: float = 0.01, metric: str = "dot", weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Entropies (N,) and the weighted mean (K,) of softmax(logits)."""
    weights = torch.ones_like(z[:, 0]) if weights is None else weights
    log_p = logits(z, codes, temperature, metric).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1) * (weights > 0), weights @ log_p.exp() / weights.sum()


def pattern_sums(logits: Tensor, weights: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """(sum of 2^g,) weighted sums of the probability of each pattern of each group of bits."""
    sums = []
    for group in logits.split(list(group_sizes), dim=1):
        places = torch.arange(group.shape[1] - 1, -1, -1, device=logits.device)
        bits = (torch.arange(2 ** group.shape[1], device=logits.device)[:, None] >> places) & 1
        sums.append(weights @ torch.where(bits == 1, group[:, None].sigmoid(), (-group[:, None]).sigmoid()).prod(-1))
    return torch.cat(sums)
