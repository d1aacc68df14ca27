"""Discriminators of what a network of speech hears."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from trainers.audio.networks.teacher import SpeechTeacher
from trainers.core.discriminator import Discriminator, DiscriminatorOutput, hidden_layers


class FeatureDiscriminator(Discriminator):
    """Judges frames by the features that a frozen network of speech has of them, of all its layers at once.

    Source: Li et al. 2023 (StyleTTS 2, [arXiv:2306.07691](https://arxiv.org/abs/2306.07691)), sec. 3.2.3; Casanova et
    al. 2024 (low frame-rate speech codec, [arXiv:2409.12117](https://arxiv.org/abs/2409.12117)) in its code (NeMo): the
    13 hidden states of WavLM base+, a linear map of a frame to 64 channels, three convolutions over 5 frames of 128,
    256 and 256 channels with leaky rectifiers of slope 0.1, and one over 3 frames for the logits; weight norm.
    Differs: channels of stereo are mixed before; the game is the adversary's (least squares there).

    Args:
        teacher: frozen; its weights are in no checkpoint and in no optimizer. All its layers are read.
        sample_rate: of the sound, in Hz.
        in_channels: C of the waveforms.
        channels: of the first layer; the others have 2, 4 and 4 times as many. 64 is the published size.

    Raises:
        ValueError: `in_channels` or `channels` is below 1.
    """

    axes = ("samples",)

    def __init__(self, teacher: SpeechTeacher, *, sample_rate: int, in_channels: int = 1, channels: int = 64) -> None:
        super().__init__(in_channels)
        if channels < 1:
            raise ValueError(f"channels={channels}: expected at least 1")
        self.teacher = teacher
        self.sample_rate = sample_rate
        widths = [channels, 2 * channels, 4 * channels, 4 * channels]
        self.enter = weight_norm(nn.Conv1d(len(teacher.layers) * teacher.width, channels, 1))
        self.layers = nn.ModuleList(weight_norm(nn.Conv1d(*pair, 5, padding=2)) for pair in pairwise(widths))
        self.to_logits = weight_norm(nn.Conv1d(widths[-1], 1, 3, padding=1))

    def judge(self, batch: Tensor) -> list[DiscriminatorOutput]:
        """`forward` behind its checks: one output, with a logit for each frame of the teacher."""
        heard = torch.cat(self.teacher(batch, self.sample_rate), dim=1)
        features = hidden_layers(self.layers, self.enter(heard), slope=0.1)
        return [DiscriminatorOutput(self.to_logits(features[-1]).flatten(1), features)]
