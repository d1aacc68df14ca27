"""The entropy of codes that are bits: exact for each vector, in groups of bits for the batch."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit import distributed
from vqkit.parts.codebooks import Codebook
from vqkit.parts.estimators import Estimator
from vqkit.parts.losses import Loss
from vqkit.parts.selection import Selection

_LOG_2 = math.log(2)
_LARGEST_GROUP = 20
_BLOCK_NUMBERS = 2**20
"""Probabilities that are held at once."""


class BitEntropy(Loss):
    """Makes each bit decided and all patterns of bits equally used: mean_n H(p_n) - diversity H(mean_n p_n), in nats.

    p_n is softmax over all codes c in {-s, s}^D of 2 z_n . c / temperature. It is a product over bits, each of which is
    set with probability sigma(4 s z_i / temperature), so that the first entropy is a sum over bits, exactly:
    H(p_n) = sum_i H_b(sigma(4 s z_i / temperature)). The mean over vectors is no product. Its entropy is taken over
    groups of neighbouring bits, as equal in size as can be, and summed: exact where one group holds all bits, and an
    upper bound of it otherwise. s is the size of a code's entries: 1 for LFQ, 1 / sqrt(D) for BSQ.

    In training the mean of the second term is over the valid vectors of all ranks, so that every rank has to compute it
    at every step; in eval mode it is over this rank's. Memory is O(N D + 2^group_bits), whatever the codebook's size.

    At the default temperature a bit with |z_i| above 0.025 / s counts as decided, and gets next to no gradient.

    Args:
        weight: factor in the total.
        temperature: positive.
        diversity: weight of the second entropy relative to the first, at least 0.
        group_bits: the most bits in a group, in 1 ... 20.

    Source: LFQ, Yu et al. 2023 (arXiv 2310.05737), eq. 5, weight 0.1, temperature 0.01; the product form and groups of
    9 bits are of BSQ, Zhao et al. 2024 (arXiv 2406.07548), sec. 3.3, with gamma_0 the first weight, gamma the second.
    Differs: no eps is added in the logarithms; the number of bits need not be a multiple of the group's; BSQ's released
    code divides both entropies by 1 / temperature, which is 1 in its configurations.

    Raises:
        ValueError: an argument is out of its range.
    """

    name = "entropy"

    def __init__(
        self, weight: float = 0.1, *, temperature: float = 0.01, diversity: float = 1.0, group_bits: int = 9
    ) -> None:
        super().__init__(weight)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature}: expected a positive number, 0.01 for LFQ and 1.0 for BSQ")
        if not 0 <= diversity < math.inf:
            raise ValueError(f"diversity={diversity}: expected a number of at least 0, 1.0 in the papers")
        if not (isinstance(group_bits, int) and 1 <= group_bits <= _LARGEST_GROUP):
            raise ValueError(
                f"group_bits={group_bits}: expected 1 to {_LARGEST_GROUP}, since 2^group_bits numbers are held; 9 in "
                "the paper"
            )
        self.temperature = temperature
        self.diversity = diversity
        self.group_bits = group_bits

    def conflicts(self, codebook: Codebook | None, estimator: Estimator | None) -> Iterator[str]:
        """The codes have to be all patterns of bits."""
        if codebook is not None:
            yield (
                f"{type(self).__name__} speaks of codes that are all patterns of bits, but {type(codebook).__name__} "
                f"stores {codebook.codebook_size} of them: use Entropy(), or LFQ or BSQ"
            )

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """mean_n H(p_n) - diversity H(mean_n p_n)."""
        logits = selection.z * selection.selected.detach().abs() * (4 / self.temperature)
        weights = selection.valid.to(logits.dtype)
        sizes = near_equal(logits.shape[-1], self.group_bits)
        total = torch.cat([pattern_sums(logits, weights, sizes), weights.sum()[None]])
        if self.training:
            total = distributed.sum_over_ranks(total)
        mean = total[:-1] / total[-1].clamp(min=1)
        # Each entropy less D log 2, its largest value: at a high temperature both are close to it, and their difference
        # is far smaller than the rounding of their sums.
        per_sample = selection.mean((bit_entropy(logits) - _LOG_2).sum(-1))
        batch = sum(_entropy_below_uniform(part) for part in mean.split([2**size for size in sizes]))
        largest = (total[-1] > 0).to(logits.dtype) * (logits.shape[-1] * _LOG_2)
        return per_sample - self.diversity * batch + (1 - self.diversity) * largest


def near_equal(number: int, largest: int) -> list[int]:
    """Sizes that add up to `number`, as few as can be without exceeding `largest`, and differing by at most 1."""
    parts = -(-number // largest)
    return [number // parts + (part < number % parts) for part in range(parts)]


def _entropy_below_uniform(probabilities: Tensor) -> Tensor:
    """-sum_k p_k log(K p_k) over K of them, which is their entropy less log K; 0 log 0 is 0."""
    ratios = len(probabilities) * probabilities
    return -(probabilities * ratios.clamp(min=torch.finfo(ratios.dtype).tiny).log()).sum()


def bit_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of bits that are set with probability sigma(logits), elementwise.

    log(1 + exp(-|a|)) + |a| sigma(-|a|): two terms of one sign, so that nothing cancels where a bit is all but certain.
    """
    size = logits.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


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
    """
    return torch.ops.vqkit.pattern_sums(logits, weights, list(group_sizes))


def sum_patterns(logits: Tensor, weights: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """`pattern_sums` without gradient: blocks of rows, two halves of each group."""
    sums = [logits.new_zeros(2 ** (size // 2), 2 ** (size - size // 2)) for size in group_sizes]
    for rows in _blocks(logits, group_sizes):
        for total, group in zip(sums, logits[rows].split(list(group_sizes), 1), strict=True):
            left, right = _halves(group)
            total.addmm_((_probabilities(left) * weights[rows, None]).T, _probabilities(right))
    return torch.cat([total.flatten() for total in sums])


_pattern_sums = torch.library.custom_op("vqkit::pattern_sums", sum_patterns, mutates_args=())


@_pattern_sums.register_fake
def _pattern_sums_fake(logits: Tensor, weights: Tensor, group_sizes: Sequence[int]) -> Tensor:
    return logits.new_empty(sum(2**size for size in group_sizes))


def sum_patterns_backward(dsums: Tensor, logits: Tensor, weights: Tensor, group_sizes: Sequence[int]) -> Tensor:
    """Gradient of `pattern_sums` to the logits, from that of the sums."""
    gradients = dsums.split([2**size for size in group_sizes])
    result = torch.empty_like(logits)
    for rows in _blocks(logits, group_sizes):
        parts = []
        for gradient, group in zip(gradients, logits[rows].split(list(group_sizes), 1), strict=True):
            left, right = _halves(group)
            p, q = _probabilities(left), _probabilities(right)
            gradient = gradient.view(p.shape[1], q.shape[1])
            parts += [_dlogits(left, p * (q @ gradient.T)), _dlogits(right, q * (p @ gradient))]
        result[rows] = torch.cat(parts, 1) * weights[rows, None]
    return result


_pattern_sums_backward = torch.library.custom_op("vqkit::pattern_sums_backward", sum_patterns_backward, mutates_args=())


@_pattern_sums_backward.register_fake
def _pattern_sums_backward_fake(dsums: Tensor, logits: Tensor, weights: Tensor, group_sizes: Sequence[int]) -> Tensor:
    return torch.empty_like(logits)


def _setup(ctx, inputs: tuple, output: Tensor) -> None:  # type: ignore[no-untyped-def]
    logits, weights, ctx.group_sizes = inputs
    ctx.save_for_backward(logits, weights)


def _autograd(ctx, dsums: Tensor) -> tuple:  # type: ignore[no-untyped-def]
    return torch.ops.vqkit.pattern_sums_backward(dsums, *ctx.saved_tensors, ctx.group_sizes), None, None


_pattern_sums.register_autograd(_autograd, setup_context=_setup)


def _blocks(logits: Tensor, group_sizes: Sequence[int]) -> Iterator[slice]:
    number = max(1, _BLOCK_NUMBERS >> (max(group_sizes) + 1) // 2)
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
