"""What is added to the discriminators' loss, and what is done to images before they are judged."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.core.discriminator import DiscriminatorOutput
from vqkit.distributed import all_reduce_sum, world_size
from vqkit.precision import FullPrecisionModule
from vqkit.runtime import autocast_disabled


class Augmentation(nn.Module, ABC):
    """A change of originals and reconstructions, differentiable, before discriminators see them."""

    @abstractmethod
    def forward(self, reference: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """Both (B, C, ...), changed alike: item i of the one as item i of the other."""


@dataclass(frozen=True)
class Turn:
    """What the discriminators said in one step in which they learn.

    Attributes:
        judge: the outputs of all sub-discriminators for a batch, in float32.
        reference: (B, C, ...), as they were judged, without graph.
        reconstruction: the same of the reconstructions.
        real: outputs for `reference`, with the graph to the discriminators.
        fake: outputs for `reconstruction`, likewise.
        number: of the turn: the steps so far in which the discriminators learned or could have, this one included.
    """

    judge: Callable[[Tensor], list[DiscriminatorOutput]]
    reference: Tensor
    reconstruction: Tensor
    real: list[DiscriminatorOutput]
    fake: list[DiscriminatorOutput]
    number: int


class Regularizer(FullPrecisionModule, ABC):
    """A term of the discriminators' loss; averaged over sub-discriminators.

    Args:
        weight: factor of the term, above 0.
        name: under which the unweighted term is logged.

    Raises:
        ValueError: `weight` is not positive.
    """

    def __init__(self, *, weight: float, name: str) -> None:
        super().__init__()
        if not weight > 0:
            raise ValueError(f"{name}: weight={weight}: expected a positive number; leave the regularizer out for none")
        self.weight = weight
        self.name = name

    def applies(self, turn: int) -> bool:
        """Whether there is a term in a turn of this number."""
        return True

    @abstractmethod
    def forward(self, turn: Turn) -> Tensor:
        """The unweighted term, a float32 scalar."""

    def fold(self) -> None:
        """Take in what the batches of an optimizer step have shown; every rank calls it."""


class LeCAM(Regularizer):
    """Keeps logits near moving averages of the other side's, which limits how sure a discriminator of few data gets.

        E max(0, D(x) - a_fake)^2 + E max(0, a_real - D(x'))^2

    The averages a are those of all ranks, sub-discriminators and accumulated batches, corrected for their start, and
    move once an optimizer step. In the first step there are none, and the term is 0. Costs no pass.

    Source: Tseng et al. 2021 (arXiv:2104.03310), R_LC, clipped as in its code and in SEED-Voken's.
    Differs: averages take a batch in after its step (in that code before), and start without the bias of their first
        values; 1d-tokenizer squares the difference of the batch's mean logit, we average the squares over logits.

    Args:
        weight: 0.05 in Open-MAGVIT2 and IBQ, 0.001 in 1d-tokenizer, beside halves of a hinge: 0.1 and 0.002 here.
        decay: of the averages, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """

    averages: Tensor

    def __init__(self, *, weight: float, decay: float = 0.999) -> None:
        super().__init__(weight=weight, name="lecam")
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: expected a number in [0, 1), such as 0.999")
        self.decay = decay
        # Discounted sums of real logits, of fake ones, and of ones; those of the batches since the last step.
        self.register_buffer("averages", torch.zeros(3))
        self._pending: Tensor | None = None

    def forward(self, turn: Turn) -> Tensor:
        """The term of a turn, noted for `fold`."""
        real, fake = (torch.stack([o.logits.mean() for o in side]).mean() for side in (turn.real, turn.fake))
        seen = torch.stack([real, fake, torch.ones_like(real)]).detach()
        self._pending = seen if self._pending is None else self._pending + seen
        started = self.averages[2] > 0
        real_average, fake_average = self.averages[:2] / torch.where(started, self.averages[2], 1)
        terms = [
            F.relu(real.logits - fake_average).square().mean() + F.relu(real_average - fake.logits).square().mean()
            for real, fake in zip(turn.real, turn.fake, strict=True)
        ]
        return torch.where(started, torch.stack(terms).mean(), 0)

    def fold(self) -> None:
        """Move the averages by the batches of a step; logits that are not finite leave them where they are."""
        if self._pending is None:
            return
        mean = self._pending / self._pending[2]
        mean = all_reduce_sum(mean.to(self.averages.dtype)) / world_size()
        moved = self.decay * self.averages + mean
        self.averages.copy_(torch.where(moved.isfinite().all(), moved, self.averages))
        self._pending = None


class R1(Regularizer):
    """Gradient penalty on the originals, at every n-th turn of the discriminators, then n times as strong.

        n * weight / 2 * E |grad_x D(x)|^2

    D(x) of a patch discriminator is the mean of an item's logits, as in the losses. x is what the discriminator sees,
    behind an augmentation. Costs, at each n-th turn, one more forward of the discriminators on the originals, its
    backward to them, and the backward of both; in full precision under autocast.

    Source: Mescheder et al. 2018 (arXiv:1801.04406), eq. 9; at every n-th step: Karras et al. 2020 (StyleGAN2,
    1912.04958), app. B.

    Args:
        weight: gamma; 10 in both papers' defaults.
        every_n_turns: n, at least 1; 16 in StyleGAN2.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, *, weight: float = 10.0, every_n_turns: int = 16) -> None:
        super().__init__(weight=weight, name="r1")
        if every_n_turns < 1:
            raise ValueError(f"every_n_turns={every_n_turns}: expected at least 1")
        self.every_n_turns = every_n_turns

    def applies(self, turn: int) -> bool:
        """At each n-th turn."""
        return turn % self.every_n_turns == 0

    def forward(self, turn: Turn) -> Tensor:
        """N / 2 * E |grad_x D(x)|^2."""
        with autocast_disabled(turn.reference.device), torch.enable_grad():
            images = turn.reference.detach().requires_grad_()
            penalties = []
            for output in turn.judge(images):
                judged = output.logits.flatten(1).mean(1).sum()
                (gradient,) = torch.autograd.grad(judged, images, create_graph=True)
                penalties.append(gradient.float().square().flatten(1).sum(1).mean())
            return self.every_n_turns / 2 * torch.stack(penalties).mean()


class BalancedConsistency(Regularizer):
    """Logits of an image and of its augmented copy are to be equal, for originals and for reconstructions.

        E (D(x) - D(T(x)))^2 + E (D(x') - D(T(x')))^2

    Costs two more forwards and backwards of the discriminators.

    Source: Zhao et al. 2020 (arXiv:2002.04724), alg. 1 (bCR), with one weight for both sides.

    Args:
        augmentation: T; in the paper shifts and flips.
        weight: 10 in the paper, 4 in UniTok.

    Raises:
        ValueError: `weight` is not positive.
    """

    def __init__(self, augmentation: Augmentation, *, weight: float = 10.0) -> None:
        super().__init__(weight=weight, name="consistency")
        self.augmentation = augmentation

    def forward(self, turn: Turn) -> Tensor:
        """The term of a turn."""
        changed = self.augmentation(turn.reference, turn.reconstruction)
        pairs = zip((turn.real, turn.fake), map(turn.judge, changed), strict=True)
        terms = [
            F.mse_loss(theirs.logits, ours.logits) for side in pairs for ours, theirs in zip(*side, strict=True)
        ]  # fmt: skip
        return 2 * torch.stack(terms).mean()
