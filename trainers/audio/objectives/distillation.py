"""Features of a network of speech: taught to quantized vectors, and kept by reconstructions."""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.audio.networks.teacher import SpeechTeacher, on_frames
from trainers.core.objective import LatentObjective, Objective
from vqkit.runtime import autocast_disabled


class FeatureDistance(ABC):
    """How far predicted features are from a teacher's."""

    @abstractmethod
    def __call__(self, predicted: Tensor, features: Tensor) -> Tensor:
        """Scalar, of two tensors (B, F, frames)."""


class FrameCosine(FeatureDistance):
    """1 - cos of the F numbers of a frame, mean over frames.

    Source: Défossez et al. 2024 (Mimi, [arXiv:2410.00037](https://arxiv.org/abs/2410.00037)), sec. 3.3.3.
    """

    def __call__(self, predicted: Tensor, features: Tensor) -> Tensor:
        """See `FeatureDistance`."""
        return 1 - F.cosine_similarity(predicted, features, dim=1).mean()


class ChannelCosine(FeatureDistance):
    """-log sigmoid(cos) of what one of the F features does over time, mean over them: the "D axis".

    The cosine of a channel that has a mean far from 0 sees little else, and a short segment shows it few frames.

    Source: Zhang et al. 2023 (SpeechTokenizer, [arXiv:2308.16692](https://arxiv.org/abs/2308.16692)), sec. 3.2, as the
    authors state it: over time for each feature.
    """

    def __call__(self, predicted: Tensor, features: Tensor) -> Tensor:
        """See `FeatureDistance`."""
        return -F.logsigmoid(F.cosine_similarity(predicted, features, dim=2)).mean()


class FeatureL2(FeatureDistance):
    """Mean squared difference.

    Source: Li et al. 2025 (DualCodec, [arXiv:2505.13000](https://arxiv.org/abs/2505.13000)), in its code; Ye et al.
    2024 (X-Codec, [arXiv:2408.17175](https://arxiv.org/abs/2408.17175)).
    """

    def __call__(self, predicted: Tensor, features: Tensor) -> Tensor:
        """See `FeatureDistance`."""
        return F.mse_loss(predicted, features)


class FeatureDistillation(LatentObjective):
    """Teaches quantized vectors what a network of speech hears: a head predicts its features from them.

    By default from those of the first level alone, so that a first codebook becomes semantic:

    - SpeechTokenizer: `levels=1` of a `ResidualQuantizer`, `along=ChannelCosine()`, HuBERT's mean over all layers.
    - Mimi: `levels=1` of a `SplitQuantizer`, `along=FrameCosine()`, WavLM, `window=2.0`.
    - DualCodec: `levels=1` of a `FeatureSplitQuantizer`, `channels` those of the features, `along=FeatureL2()`, weight
      15, layer 16 of w2v-BERT 2.0 (there less its mean and over its deviation in a corpus).
    - X-Codec, X-Codec 2: `levels=None`, `along=FeatureL2()`, weight 5, and a head of some layers.

    The head is trained with the tokenizer, and is no part of it. Gradients reach the encoder through the quantizer
    (`vqkit.first_levels`).

    Args:
        teacher: whose features they are, the mean over its layers.
        channels: first channel of the vectors (B, D, frames) that is read, and the one behind the last.
        sample_rate: of the tokenizer's sound, in Hz.
        frame_rate: of the tokenizer, frames for each second.
        along: which distance of what is predicted.
        levels: how many of the first levels are read; None for all.
        head: from (B, channels, frames) to (B, F, frames); None is a linear map of each frame.
        window: frames of the codec over which features are averaged; see `on_frames`.
        weight: factor of the term in the total.
        name: under which the term is logged.

    Raises:
        ValueError: a size or rate is out of its range; in `forward` if the vectors have other channels or fewer frames
            than the sound, or the head gives something else.
    """

    def __init__(
        self,
        teacher: SpeechTeacher,
        *,
        channels: tuple[int, int],
        sample_rate: int,
        frame_rate: float,
        along: FeatureDistance = FrameCosine(),  # noqa: B008 - stateless
        levels: int | None = 1,
        head: nn.Module | None = None,
        window: float = 1.0,
        weight: float = 1.0,
        name: str = "distillation",
    ) -> None:
        super().__init__(weight=weight, name=name, levels=levels)
        first, last = channels
        if not 0 <= first < last:
            raise ValueError(
                f"channels={tuple(channels)}: expected the first one, and the one behind the last: (0, 512)"
            )
        for argument, value in (("sample_rate", sample_rate), ("frame_rate", frame_rate), ("window", window)):
            if not value > 0:
                raise ValueError(f"{argument}={value} of the objective {name!r}: expected a positive number")
        self.teacher = teacher
        self.channels = slice(first, last)
        self.sample_rate = sample_rate
        self.frame_rate = frame_rate
        self.along = along
        self.window = window
        self.head = nn.Conv1d(last - first, teacher.width, 1) if head is None else head

    @torch.no_grad()
    def features(self, waves: Tensor, frames: int) -> Tensor:
        """What the head shall predict, (B, F, frames), of waveforms (B, C, T)."""
        with autocast_disabled(waves.device):
            found = torch.stack(self.teacher(waves, self.sample_rate)).mean(0)
            return on_frames(found, self.teacher.frame_rate, frames, self.frame_rate, window=self.window)

    def predict(self, quantized: Tensor) -> Tensor:
        """What it does predict, (B, F, frames), of vectors (B, D, frames)."""
        if quantized.ndim != 3 or quantized.shape[1] < self.channels.stop:
            raise ValueError(
                f"quantized vectors of {self.name!r} have shape {tuple(quantized.shape)}: expected (B, D, frames) with "
                f"channels {self.channels.start} to {self.channels.stop - 1}"
            )
        return self.head(quantized[:, self.channels])

    def penalty(self, reference: Tensor, quantized: Tensor) -> Tensor:
        """See `LatentObjective`."""
        frames = math.ceil(reference.shape[-1] / self.sample_rate * self.frame_rate - 1e-6)
        if quantized.shape[-1] < frames:  # more are those by which a codec fills up its last step
            raise ValueError(
                f"{quantized.shape[-1]} frames of {reference.shape[-1] / self.sample_rate:g} s: expected {frames} by "
                f"frame_rate={self.frame_rate} of the objective {self.name!r}; give it the tokenizer's"
            )
        predicted, found = self.compared(self.predict(quantized[..., :frames])), self.features(reference, frames)
        if predicted.shape != found.shape:
            raise ValueError(
                f"the head of {self.name!r} gives {tuple(predicted.shape)}: expected {tuple(found.shape)}, the features"
            )
        with autocast_disabled(quantized.device):
            return self.along(predicted, found.to(predicted.dtype))


class FeatureReconstruction(Objective):
    """Keeps in a reconstruction what a network of speech hears in the original: a distance of its features.

    The mean over the teacher's layers, of each the distance. It says little of waveform and level, so it wants others
    beside it.

    Source: JHCodec (2026, [arXiv:2603.05887](https://arxiv.org/abs/2603.05887)), whose term is of this kind.
    Differs: the distance and the weight are a choice here.

    Args:
        teacher: whose features they are.
        sample_rate: of the sound, in Hz.
        distance: of the features.
        weight: factor of the term in the total.
        name: under which the term is logged.
    """

    axes = ("samples",)

    def __init__(
        self,
        teacher: SpeechTeacher,
        *,
        sample_rate: int,
        distance: FeatureDistance = FrameCosine(),  # noqa: B008 - stateless
        weight: float = 1.0,
        name: str = "features",
    ) -> None:
        super().__init__(weight=weight, name=name)
        self.teacher = teacher
        self.sample_rate = sample_rate
        self.between = distance

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (B, C, T) waveforms, a scalar."""
        with torch.no_grad():
            wanted = self.teacher(reference, self.sample_rate)
        found = self.teacher(reconstruction, self.sample_rate)
        return torch.stack([self.between(*pair) for pair in zip(found, wanted, strict=True)]).mean()
