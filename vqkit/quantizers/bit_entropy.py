"""The entropy of codes that are bits: exact for each vector, in groups of bits for the batch."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit.kernels import pattern_sums
from vqkit.parts.codebooks import Codebook
from vqkit.parts.estimators import Estimator
from vqkit.parts.losses import SummedLoss
from vqkit.parts.selection import Selection

_LOG_2 = math.log(2)
_LARGEST_GROUP = 20


class BitEntropy(SummedLoss):
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

    Source: LFQ, Yu et al. 2023 (arXiv:2310.05737), eq. 5, weight 0.1, temperature 0.01; the product form and groups of
    9 bits are of BSQ, Zhao et al. 2024 (arXiv:2406.07548), sec. 3.3, with gamma_0 the first weight, gamma the second.
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
                f"{type(self).__name__} is defined for all patterns of bits as codes, but {type(codebook).__name__} "
                f"stores {codebook.codebook_size} of them: use Entropy(), or LFQ or BSQ"
            )

    def sums(self, selection: Selection) -> tuple[Tensor, Tensor]:
        """The probabilities of the patterns of each group, and the number of vectors; mean_n H(p_n) - D log 2."""
        logits = selection.z * selection.selected.detach().abs() * (4 / self.temperature)
        weights = selection.valid.to(logits.dtype)
        total = torch.cat([pattern_sums(logits, weights, self._sizes(selection)), weights.sum()[None]])
        # Each entropy less D log 2, its largest value: at a high temperature both are close to it, and their difference
        # is far smaller than the rounding of their sums.
        return total, selection.mean((bit_entropy(logits) - _LOG_2).sum(-1))

    def of_sums(self, selection: Selection, total: Tensor, own: Tensor) -> Tensor:
        """mean_n H(p_n) - diversity H(mean_n p_n)."""
        means = (total[:-1] / total[-1].clamp(min=1)).split([2**size for size in self._sizes(selection)])
        batch = sum(_entropy_below_uniform(part) for part in means)
        largest = (total[-1] > 0).to(own.dtype) * (selection.z.shape[-1] * _LOG_2)
        return own - self.diversity * batch + (1 - self.diversity) * largest

    def _sizes(self, selection: Selection) -> list[int]:
        return near_equal(selection.z.shape[-1], self.group_bits)


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
