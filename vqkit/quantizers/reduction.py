"""How the losses of a composite's members make one loss."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vqkit.saving.config import Configured


class MemberCounts(NamedTuple):
    """How much each of the M members of a composite had to quantize.

    Attributes:
        vectors: () how many vectors the composite was given, above 0.
        used: (M,) how many of them each member was given: all, except where dropout leaves members out.
        codebooks: how many codebooks each member has.
        choices: (M,) how many codes each member chose, from all of its codebooks, where the reduction reads that.
        all_choices: () how many they chose together, above 0.

    They are of this rank. Where a reduction reads choices, `vectors` and `all_choices` are means over ranks, which have
    drawn differently, and so is what belongs to a member that divides by such means itself.
    """

    vectors: Tensor
    used: Tensor
    codebooks: Sequence[int]
    choices: Tensor
    all_choices: Tensor


class Reduction(Configured, ABC):
    """How much the loss of each member counts, which is a mean over the vectors that this member was given.

    Class attributes:
        reads_choices: whether it reads `choices`, which costs several ranks a collective.
    """

    reads_choices: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, counts: MemberCounts) -> Tensor:
        """The factor of each member's loss, (M,)."""


class MeanOverMembers(Reduction):
    """The mean over members; what a member is not given counts as 0.

    Weights of losses do not depend on the number of members.

    Source: products of codebooks as in UniTok, Ma et al. 2025 (arXiv:2502.20321).
    """

    def __call__(self, counts: MemberCounts) -> Tensor:
        """1 / M, times the share of the vectors."""
        return counts.used / (len(counts.used) * counts.vectors)


class MeanOverCodebooks(Reduction):
    """The mean over all codebooks of the members; what a member is not given counts as 0.

    Source: Mimi, Défossez et al. 2024 (arXiv:2410.00037), a semantic codebook beside a chain of several, without
    dropout.
    """

    def __call__(self, counts: MemberCounts) -> Tensor:
        """The share of the codebooks, times that of the vectors."""
        parts = [number * used for number, used in zip(counts.codebooks, counts.used, strict=True)]
        return torch.stack(parts) / (sum(counts.codebooks) * counts.vectors)


class SumOverMembers(Reduction):
    """The sum over members; what a member is not given counts as 0.

    Source: DAC, Kumar et al. 2023 (arXiv:2306.06546), over stages and with dropped samples as its released code has
    them; FQGAN, Bai et al. 2024 (arXiv:2411.16681), over branches; ESC, Gu, Diao 2024 (arXiv:2404.19441), over streams.
    """

    def __call__(self, counts: MemberCounts) -> Tensor:
        """The share of the vectors."""
        return counts.used / counts.vectors


class MeanOverChoices(Reduction):
    """The mean over all codes that were chosen; what dropout leaves out does not count.

    Source: EnCodec, Défossez et al. 2022 (arXiv:2210.13438), and Mimi, Défossez et al. 2024 (arXiv:2410.00037): the
    mean over the codebooks that a batch uses.
    Differs: they draw one number of stages for a batch. Drawn for each sample, those that use more stages count more.
    """

    reads_choices = True

    def __call__(self, counts: MemberCounts) -> Tensor:
        """The share of the choices."""
        return counts.choices / counts.all_choices
