"""Adversarial training: losses of discriminator and generator, feature matching, and both in one call."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from trainers.core.discriminator import Discriminator, DiscriminatorOutput
from trainers.core.regularization import Augmentation, Regularizer, Turn
from vqkit.parts.compatibility import check_names
from vqkit.precision import FullPrecisionModule
from vqkit.runtime import autocast_disabled

ADVERSARIAL = "adversarial"
"""Name of the generator's adversarial term."""


class AdversarialLoss(ABC):
    """The two sides of a game, as functions of logits.

    Attributes:
        threshold: logit between "fake" and "real", at which a discriminator's accuracy is counted.
    """

    threshold: float

    @abstractmethod
    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """What the discriminator minimizes, a scalar, of its logits for recordings and for reconstructions."""

    @abstractmethod
    def generator(self, fake: Tensor) -> Tensor:
        """What the codec minimizes, a scalar, of the logits for its reconstructions."""


class LeastSquares(AdversarialLoss):
    """Least-squares game: real logits to 1, fake ones to 0; the generator pulls them to 1.

    Source: Mao et al. 2017 (arXiv:1611.04076), eq. 9; for audio Kong et al. 2020 (HiFi-GAN, 2010.05646), eq. 1 and 2.
    """

    threshold = 0.5

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """E (1 - D(x))^2 + E D(x')^2."""
        return (1 - real).square().mean() + fake.square().mean()

    def generator(self, fake: Tensor) -> Tensor:
        """E (1 - D(x'))^2."""
        return (1 - fake).square().mean()


class Hinge(AdversarialLoss):
    """Hinge game: logits beyond the margin of 1 get no gradient, on either side.

    Source: Zeghidour et al. 2021 (SoundStream, arXiv:2107.03312), sec. III-E; Défossez et al. 2022 (EnCodec,
    2210.13438), sec. 3.4. Both clip the generator's side as well, max(0, 1 - D(x')), where Lim and Ye 2017
    (1705.02894) have -D(x'); clipped, a reconstruction that passes for real feels no pull.
    """

    threshold = 0.0

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """E max(0, 1 - D(x)) + E max(0, 1 + D(x'))."""
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def generator(self, fake: Tensor) -> Tensor:
        """E max(0, 1 - D(x'))."""
        return F.relu(1 - fake).mean()


class UnclippedHinge(Hinge):
    """Hinge game of images: the discriminator's side is `Hinge`'s, the generator's is -D(x') without a margin.

    Source: Lim and Ye 2017 (Geometric GAN, arXiv:1705.02894); Miyato et al. 2018 (SNGAN, 1802.05957), sec. 4;
    Esser et al. 2021 (VQGAN, 2012.09841) and Sun et al. 2024 (LlamaGen, 2406.06525) in their code, as `hinge`.
    Differs: the code of the last two halves the discriminator's side. Adam sees no such scale, but what is added to
    that side has half of its effect here: their weight of LeCAM becomes ours multiplied by 2.
    """

    def generator(self, fake: Tensor) -> Tensor:
        """-E D(x')."""
        return -fake.mean()


class HingeNonSaturating(Hinge):
    """Hinge game whose generator takes -log sigmoid of an item's mean logit.

    Source: Luo et al. 2024 (Open-MAGVIT2, arXiv:2409.04410) and Shi et al. 2024 (IBQ, 2412.02692) in their code
    (SEED-Voken), by default; the discriminator's side is halved there, see `UnclippedHinge`.
    """

    def generator(self, fake: Tensor) -> Tensor:
        """-E log sigmoid(mean of D(x'))."""
        return F.softplus(-fake.flatten(1).mean(1)).mean()


class NonSaturating(AdversarialLoss):
    """Logistic game: both sides are cross entropies of sigmoid(D); the generator takes -log sigmoid(D(x')).

    Source: Goodfellow et al. 2014 (arXiv:1406.2661), sec. 3; Karras et al. 2020 (StyleGAN2, 1912.04958) in its code.
    Differs: SEED-Voken's `non_saturate` takes the cross entropy of an image's mean logit, here each logit has its own.
    """

    threshold = 0.0

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """-E log sigmoid(D(x)) - E log(1 - sigmoid(D(x')))."""
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def generator(self, fake: Tensor) -> Tensor:
        """-E log sigmoid(D(x'))."""
        return F.softplus(-fake).mean()


class Vanilla(NonSaturating):
    """Logistic game whose generator takes -D(x'), as in the hinge game of images.

    Source: Esser et al. 2021 (VQGAN, arXiv:2012.09841) and Sun et al. 2024 (LlamaGen, 2406.06525) in their code, where
    `disc_loss` is `vanilla`. Differs: the discriminator's side is halved there, see `UnclippedHinge`.
    """

    def generator(self, fake: Tensor) -> Tensor:
        """-E D(x')."""
        return -fake.mean()


class FeatureMatching:
    """Mean absolute difference of the discriminator's features of recording and reconstruction.

    Source: Kumar et al. 2019 (MelGAN, arXiv:1910.06711), sec. 2.2; Kong et al. 2020 (HiFi-GAN, 2010.05646), eq. 4.
    """

    def distance(self, real: Tensor, fake: Tensor) -> Tensor:
        """Of one layer, both of the same shape, in float32 -> scalar."""
        return F.l1_loss(fake, real)


class RelativeFeatureMatching(FeatureMatching):
    """The same, in units of the mean magnitude of the recording's features: layers count alike, however large.

    Source: Défossez et al. 2022 (EnCodec, arXiv:2210.13438), sec. 3.4, eq. of the relative feature matching loss.
    """

    def distance(self, real: Tensor, fake: Tensor) -> Tensor:
        """Of one layer, both of the same shape, in float32 -> scalar."""
        # Silence through layers without bias gives features of exactly 0.
        return F.l1_loss(fake, real) / real.abs().mean().clamp_min(1e-6)


@dataclass(frozen=True)
class AdversaryOutput:
    """What one call of `Adversary` gives.

    Attributes:
        generator: "adversarial" and, where it has a weight, "feature_matching": unweighted float32 scalars for the
            codec; no gradient reaches the discriminators through them.
        discriminator: float32 scalar for the discriminators; no gradient reaches the codec through it. Where they do
            not learn it is a zero with a graph through them.
        figures: detached scalars to log: "logits_real", "logits_fake" (means), "accuracy" (share of the logits on the
            right side of the threshold, in [0, 1]), "discriminator_loss" and each regularizer's unweighted term; empty
            where discriminators do not learn.
    """

    generator: dict[str, Tensor]
    discriminator: Tensor
    figures: dict[str, Tensor]


class Adversary(FullPrecisionModule):
    """Discriminators with their game: in one call the codec's terms and the discriminators' loss.

    The two parts do not see each other's parameters, so that one backward of `sum of weighted generator terms +
    discriminator` gives every parameter the gradient that two alternating steps on the same batch would, and one
    optimizer with a parameter group for each side trains both. What must not be shared is clipping: clip the gradients
    of codec and discriminators each by its own norm.

    Its parameters stay in float32 where a model of 16 bits is trained, in which spectra cannot be computed.

    All terms are averages over the sub-discriminators, and feature matching over their layers too, so that adding a
    discriminator does not change what the weights mean.

    Differs: EnCodec averages as we do, HiFi-GAN and DAC sum. Their weights (adversarial 1, feature matching 2) become
    ours multiplied by the number of sub-discriminators, and for feature matching by the number of layers of all of
    them: DAC's multi-period and multi-band discriminators are 8, with 100 feature maps, hence 8 and 200. The
    discriminators' learning rate needs no correction under Adam, which does not see the scale of a loss.

    Args:
        discriminators: at least one; their sub-discriminators are judged side by side.
        loss: the game; None is `LeastSquares()`.
        matching: the distance of features; None is `FeatureMatching()`.
        weight: of the adversarial term, at least 0.
        feature_matching: weight of the feature matching term, at least 0; at 0 it is not computed.
        start_step: optimizer step from which the adversary takes part; only stored, the training task goes by it and
            calls `idle` before.
        head_start_steps: optimizer steps from `start_step` on in which discriminators learn alone, while the codec and
            what objectives train stay as they are, to the last bit: for a trained codec that comes without
            discriminators, whose first gradients would undo what it has learned; 0 for none.
        ramp_steps: optimizer steps behind these in which both weights grow linearly to their full value, while the
            discriminators learn at once; 0 for none.
        every_n_steps: discriminators learn at each n-th optimizer step, the one whose number, counted from 1, is a
            multiple of n; at the others the codec gets its terms from them as they are, for the cost of one pass.
        augmentation: what is done to originals and reconstructions before they are judged; None for nothing.
        regularizers: terms that are added to the discriminators' loss; their names differ.
        learning_rate: of the discriminators; None for the codec's.
        betas: of the discriminators' Adam.
        weight_decay: of all their parameters, at least 0.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> from trainers.audio import MultiPeriodDiscriminator
        >>> adversary = Adversary([MultiPeriodDiscriminator(periods=[2, 3], channels=4)])
        >>> reference = torch.randn(2, 1, 800)
        >>> output = adversary(reference, 0.9 * reference)
        >>> sorted(output.generator)
        ['adversarial', 'feature_matching']
    """

    def __init__(
        self,
        discriminators: Sequence[Discriminator],
        *,
        loss: AdversarialLoss | None = None,
        matching: FeatureMatching | None = None,
        weight: float = 1.0,
        feature_matching: float = 2.0,
        start_step: int = 0,
        head_start_steps: int = 0,
        ramp_steps: int = 0,
        every_n_steps: int = 1,
        augmentation: Augmentation | None = None,
        regularizers: Sequence[Regularizer] = (),
        learning_rate: float | None = None,
        betas: tuple[float, float] = (0.8, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        if not discriminators:
            raise ValueError("discriminators is empty: name at least one, or leave the adversary out")
        numbers = {"weight": weight, "feature_matching": feature_matching, "weight_decay": weight_decay}
        for name, value in numbers.items():
            if not value >= 0:
                raise ValueError(f"{name}={value}: expected a number of at least 0")
        counts = {"start_step": start_step, "head_start_steps": head_start_steps, "ramp_steps": ramp_steps}
        for name, steps in counts.items():
            if steps < 0:
                raise ValueError(f"{name}={steps}: expected 0 or more optimizer steps")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: expected at least 1 optimizer step")
        check_names(regularizer.name for regularizer in regularizers)
        if learning_rate is not None and not learning_rate > 0:
            raise ValueError(f"learning_rate={learning_rate}: expected a positive number, or None for the codec's")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas}: expected two numbers in [0, 1)")
        self.discriminators = nn.ModuleList(discriminators)
        self.loss = loss or LeastSquares()
        self.matching = matching or FeatureMatching()
        self.weight = weight
        self.feature_matching = feature_matching
        self.start_step = start_step
        self.head_start_steps = head_start_steps
        self.ramp_steps = ramp_steps
        self.every_n_steps = every_n_steps
        self.augmentation = augmentation
        self.regularizers = nn.ModuleList(regularizers)
        self.learning_rate = learning_rate
        self.betas = betas
        self.weight_decay = weight_decay

    def active(self, step: int) -> bool:
        """Whether the adversary takes part at an optimizer step, counted from 0."""
        return step >= self.start_step

    def learns_alone(self, step: int) -> bool:
        """Whether nothing but the discriminators learns at an optimizer step, counted from 0."""
        return 0 <= step - self.start_step < self.head_start_steps

    def learns(self, step: int) -> bool:
        """Whether the discriminators learn at an optimizer step, counted from 0."""
        return self.active(step) and (step + 1) % self.every_n_steps == 0

    def weights(self, step: int) -> dict[str, float]:
        """Weights of the generator's terms at an optimizer step, counted from 0.

        Returns:
            "adversarial" and "feature_matching": 0 before the head start is over, then rising linearly, in full
            `ramp_steps` later.
        """
        ramp = (step - self.start_step - self.head_start_steps + 1) / (self.ramp_steps + 1)
        share = min(1.0, max(0.0, ramp))
        return {ADVERSARIAL: share * self.weight, "feature_matching": share * self.feature_matching}

    def idle(self) -> Tensor:
        """A zero with a graph through all trainable parameters: what DistributedDataParallel wants of a step without
        the adversary.

        The gradients it leaves are zeros. Set them to None before the optimizer's step: Adam would count the step, and
        lose its bias correction for the first ones that matter.
        """
        return 0.0 * torch.stack([p.float().sum() for p in self.parameters() if p.requires_grad]).sum()

    def fold(self) -> None:
        """End an optimizer step: regularizers take in what its batches have shown. Every rank calls it."""
        for regularizer in self._regularizers():
            regularizer.fold()

    def forward(self, reference: Tensor, reconstruction: Tensor, *, step: int | None = None) -> AdversaryOutput:
        """Judge a batch of both.

        Args:
            reference: (B, C, ...), recordings or images.
            reconstruction: like `reference`, of the tokenizer, with its graph.
            step: optimizer step, counted from 0, by which it is known what happens every n steps; None if everything
                is to happen.

        Raises:
            ValueError: the shapes differ.
        """
        if reference.shape != reconstruction.shape:
            raise ValueError(
                f"reference has shape {tuple(reference.shape)} and reconstruction {tuple(reconstruction.shape)}: "
                "expected the same"
            )
        reference = reference.detach()
        if self.augmentation is not None:
            reference, reconstruction = self.augmentation(reference, reconstruction)
        learns = step is None or self.learns(step)
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            real = self._judge(reference) if learns or self.feature_matching else []
        passed = self._judge_frozen(reconstruction)
        with autocast_disabled(reconstruction.device):
            generator = {ADVERSARIAL: _mean(self.loss.generator(output.logits) for output in passed)}
            if self.feature_matching:
                generator["feature_matching"] = self._feature_distance(real, passed)
        if not learns:
            return AdversaryOutput(generator, self.idle(), {})
        fake = self._judge(reconstruction.detach())
        number = 0 if step is None else (step + 1) // self.every_n_steps
        turn = Turn(self._judge, reference, reconstruction.detach(), real, fake, number)
        return AdversaryOutput(generator, *self._discriminator_loss(turn))

    def _discriminator_loss(self, turn: Turn) -> tuple[Tensor, dict[str, Tensor]]:
        """The game and the regularizers of a turn, and the figures."""
        pairs = list(zip(turn.real, turn.fake, strict=True))
        regularizers = [regularizer for regularizer in self._regularizers() if regularizer.applies(turn.number)]
        terms = {regularizer.name: regularizer(turn) for regularizer in regularizers}
        with autocast_disabled(turn.reference.device):
            loss = _mean(self.loss.discriminator(real.logits, fake.logits) for real, fake in pairs)
            for regularizer in regularizers:
                loss = loss + regularizer.weight * terms[regularizer.name]
            figures = self._figures(turn.real, turn.fake) | {name: term.detach() for name, term in terms.items()}
        return loss, figures | {"discriminator_loss": loss.detach()}

    def _regularizers(self) -> list[Regularizer]:
        """Those that there are, as what they are: a `ModuleList` only says that they are modules."""
        return [regularizer for regularizer in self.regularizers if isinstance(regularizer, Regularizer)]

    def _judge(self, batch: Tensor) -> list[DiscriminatorOutput]:
        return [_in_float32(output) for discriminator in self.discriminators for output in discriminator(batch)]

    def _judge_frozen(self, batch: Tensor) -> list[DiscriminatorOutput]:
        """As `_judge`, as if the parameters were constants.

        Constants are passed in, instead of turning `requires_grad` off for a while: the module is not changed, so
        nothing is left behind by an exception, and hooks of DistributedDataParallel are not in question.
        """
        outputs = []
        for discriminator in self.discriminators:
            constants = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
            outputs += functional_call(discriminator, constants, (batch,))
        return [_in_float32(output) for output in outputs]

    def _feature_distance(self, real: list[DiscriminatorOutput], fake: list[DiscriminatorOutput]) -> Tensor:
        return _mean(
            self.matching.distance(r.detach(), f)
            for reals, fakes in zip(real, fake, strict=True)
            for r, f in zip(reals.features, fakes.features, strict=True)
        )

    @torch.no_grad()
    def _figures(self, real: list[DiscriminatorOutput], fake: list[DiscriminatorOutput]) -> dict[str, Tensor]:
        threshold = self.loss.threshold
        hits = [(r.logits > threshold).float().mean() + (f.logits <= threshold).float().mean() for r, f in
                zip(real, fake, strict=True)]  # fmt: skip
        return {
            "logits_real": _mean(output.logits.mean() for output in real),
            "logits_fake": _mean(output.logits.mean() for output in fake),
            "accuracy": _mean(hits) / 2,
        }


def _mean(scalars: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(scalars)).mean()


def _in_float32(output: DiscriminatorOutput) -> DiscriminatorOutput:
    return DiscriminatorOutput(output.logits.float(), [feature.float() for feature in output.features])
