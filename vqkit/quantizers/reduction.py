"""How the losses of a composite's members make one loss."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from vqkit.parts.part import ModelessPart


class Reduction(ModelessPart):
    """How much the loss of each member counts, which is a mean over the vectors that this member was given.

    Members are given as many vectors, except where quantizer dropout leaves the later ones out of a sample.

    Class attributes:
        reads_choices: whether `choices` matters, which costs several ranks a collective where members are dropped.
    """

    reads_choices: ClassVar[bool] = False

    @abstractmethod
    def forward(self, used: Tensor, count: Tensor, choices: Tensor) -> Tensor:
        """The factor of each member's loss, (M,).

        Args:
            used: (M,) how many vectors each of the M members was given on this rank.
            count: () how many vectors there are, at least 1.
            choices: () how many choices were made by all members, at least 1; the mean over ranks.
        """


class MeanOverMembers(Reduction):
    """The mean over members; where a sample does not use one, that counts as 0.

    Weights of losses do not depend on the number of members.

    Source: products of codebooks as in UniTok, Ma et al. 2025 (arXiv:2502.20321).
    """

    def forward(self, used: Tensor, count: Tensor, choices: Tensor) -> Tensor:
        """n_m / (M N) of member m with n_m vectors."""
        return used / (len(used) * count)


class SumOverMembers(Reduction):
    """The sum over members; where a sample does not use one, that counts as 0.

    Source: DAC, Kumar et al. 2023 (arXiv:2306.06546), over stages and with dropped samples as its released code has
    them; FQGAN, Bai et al. 2024 (arXiv:2411.16681), over branches; ESC, Gu, Diao 2024 (arXiv:2404.19441), over streams.
    """

    def forward(self, used: Tensor, count: Tensor, choices: Tensor) -> Tensor:
        """n_m / N of member m with n_m vectors."""
        return used / count


class MeanOverChoices(Reduction):
    """The mean over all choices that were made; where a sample does not use a member, that does not count.

    Source: EnCodec, Défossez et al. 2022 (arXiv:2210.13438), and Mimi, Défossez et al. 2024 (arXiv:2410.00037): the
    mean over the stages that a batch uses.
    Differs: they draw one number of stages for a batch. Drawn for each sample, those that use more stages count more.
    """

    reads_choices = True

    def forward(self, used: Tensor, count: Tensor, choices: Tensor) -> Tensor:
        """n_m / C of member m with n_m vectors, with C choices in all."""
        return used / choices
