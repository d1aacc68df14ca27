"""From waveforms to the hidden states of networks of transformers, on whole frames and with gradients."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.precision import FullPrecisionModule

WHOLE = 2**15
"""What Kaldi's features take for full scale: samples of 16 bits."""


class FrontEnd(FullPrecisionModule, ABC):
    """A network of transformers behind its own features of waveforms, which lead gradients back to them.

    Frame i is that of the samples from i `hop` on: waveforms are filled with zeros so that ceil(T / hop) frames come
    out, each with the middle of its window in the middle of its samples.

    Args:
        network: without its heads.
        extractor: its feature extractor of transformers, for the numbers in it; its own code runs in numpy.

    Attributes:
        sample_rate: of the waveforms, in Hz.
        hop: samples for each frame.
        depth: transformer layers; there is one hidden state more.
        width: F.
    """

    hop: int
    depth: int
    width: int

    def __init__(self, network: nn.Module, extractor: Any) -> None:
        super().__init__()
        self.network = network
        self.sample_rate = int(extractor.sampling_rate)

    @abstractmethod
    def forward(self, waves: Tensor) -> list[Tensor]:
        """Hidden states (B, frames, F) of waveforms (B, T): what enters the first layer, and what each one gives."""

    def keep_layers(self, count: int) -> None:
        """Drop the transformer layers behind the first `count`."""
        encoder: Any = getattr(self.network, "encoder", self.network)
        encoder.layers = encoder.layers[:count]

    def padded(self, waves: Tensor, window: int) -> Tensor:
        """(B, T) filled up for windows of so many samples, one every `hop`, around the middle of each frame."""
        frames = math.ceil(waves.shape[-1] / self.hop)
        before = max(window - self.hop, 0) // 2
        return F.pad(waves, (before, (frames - 1) * self.hop + window - waves.shape[-1] - before))


class RawWaves(FrontEnd):
    """wav2vec 2.0, HuBERT, WavLM and their kin: convolutions of the samples, and a transformer.

    Raises:
        ValueError: the network has no such convolutions.
    """

    def __init__(self, network: nn.Module, extractor: Any) -> None:
        super().__init__(network, extractor)
        config: Any = network.config
        strides, kernels = config.conv_stride, config.conv_kernel
        self.hop = math.prod(strides)
        steps = [math.prod(strides[:number]) for number in range(len(strides))]
        self.window = 1 + sum((size - 1) * step for size, step in zip(kernels, steps, strict=True))
        self.depth, self.width = config.num_hidden_layers, config.hidden_size
        self.normalized = bool(extractor.do_normalize)

    def forward(self, waves: Tensor) -> list[Tensor]:
        """See `FrontEnd`."""
        if self.normalized:
            variance, mean = torch.var_mean(waves, dim=-1, correction=0, keepdim=True)
            waves = (waves - mean) / (variance + 1e-7).sqrt()
        output = self.network(self.padded(waves, self.window), output_hidden_states=True)
        return list(output.hidden_states)


class WhisperMel(FrontEnd):
    """The encoder of Whisper, on as many frames as there are.

    Its last hidden state is the one behind the last norm. Published use fills every recording up to 30 seconds, at
    which this one costs as much as that.
    """

    def __init__(self, network: nn.Module, extractor: Any) -> None:
        encoder: Any = network.encoder
        super().__init__(encoder, extractor)
        config: Any = network.config
        self.size, self.step = int(extractor.n_fft), int(extractor.hop_length)
        self.hop = self.step * int(encoder.conv2.stride[0])
        self.depth, self.width = config.encoder_layers, config.d_model
        self.longest = int(config.max_source_positions)
        self.register_buffer("window", torch.hann_window(self.size))
        self.register_buffer("bands", torch.as_tensor(extractor.mel_filters, dtype=torch.float32))
        self.window: Tensor
        self.bands: Tensor

    def log_mel(self, waves: Tensor) -> Tensor:
        """(B, bands, T / step) of waveforms (B, T) of whole frames, as Whisper's extractor has it."""
        spectrum = torch.stft(waves, self.size, self.step, window=self.window, return_complex=True)[..., :-1]
        power = spectrum.real.square() + spectrum.imag.square()
        loudness = (self.bands.mT @ power).clamp(min=1e-10).log10()
        return (torch.maximum(loudness, loudness.amax(dim=(1, 2), keepdim=True) - 8) + 4) / 4

    def forward(self, waves: Tensor) -> list[Tensor]:
        """See `FrontEnd`."""
        waves = self.padded(waves, self.hop)
        frames = waves.shape[-1] // self.hop
        if frames > self.longest:
            raise ValueError(
                f"waves of {waves.shape[-1] / self.sample_rate:g} s: Whisper hears at most "
                f"{self.longest * self.hop / self.sample_rate:g} s; take shorter segments"
            )
        network: Any = self.network
        state = F.gelu(network.conv2(F.gelu(network.conv1(self.log_mel(waves)))))
        states = [state.mT + network.embed_positions.weight[:frames]]
        for number, layer in enumerate(network.layers, start=1):
            state = layer(states[-1], None)
            state = state[0] if isinstance(state, tuple) else state  # as some versions of transformers return it
            states.append(network.layer_norm(state) if number == self.depth else state)
        return states


class KaldiBands(FrontEnd):
    """w2v-BERT 2.0: pairs of frames of logarithmic mel bands by Kaldi's recipe, normalized over each recording."""

    def __init__(self, network: nn.Module, extractor: Any) -> None:
        super().__init__(network, extractor)
        config: Any = network.config
        self.stride, self.size, self.step = int(extractor.stride), 400, 160
        self.hop = self.stride * self.step
        self.depth, self.width = config.num_hidden_layers, config.hidden_size
        self.register_buffer("window", torch.as_tensor(extractor.window, dtype=torch.float32))
        self.register_buffer("bands", torch.as_tensor(extractor.mel_filters, dtype=torch.float32))
        self.window: Tensor
        self.bands: Tensor

    def log_mel(self, waves: Tensor) -> Tensor:
        """(B, frames, bands) of waveforms (B, T), before they are normalized."""
        rows = (waves * WHOLE).unfold(-1, self.size, self.step)
        rows = rows - rows.mean(-1, keepdim=True)
        before = F.pad(rows[..., :-1], (1, 0), mode="replicate")
        spectrum = torch.fft.rfft((rows - 0.97 * before) * self.window, n=512)
        power = spectrum.real.square() + spectrum.imag.square()
        return (power @ self.bands).clamp(min=torch.finfo(torch.float32).eps).log()

    def forward(self, waves: Tensor) -> list[Tensor]:
        """See `FrontEnd`."""
        bands = self.log_mel(self.padded(waves, self.size + (self.stride - 1) * self.step))
        variance, mean = torch.var_mean(bands, dim=1, keepdim=True)
        bands = (bands - mean) / (variance + 1e-7).sqrt()
        output = self.network(bands.unflatten(1, (-1, self.stride)).flatten(2), output_hidden_states=True)
        return list(output.hidden_states)


FRONT_ENDS: dict[str, type[FrontEnd]] = {
    "whisper": WhisperMel,
    "wav2vec2-bert": KaldiBands,
    **dict.fromkeys(("wavlm", "hubert", "wav2vec2", "unispeech", "unispeech-sat", "data2vec-audio"), RawWaves),
}
"""By the `model_type` of a network's config.json."""
