"""A tokenizer of sound that goes segment by segment, each at the volume of all others: EnCodec at 48 kHz."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from vqkit.backbones.protocol import properties_of
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.rows import RowQuantizer, first_levels_of
from vqkit.tokenizers.audio import AudioTokenizer
from vqkit.tokenizers.tokenizer import TokenizerOutput


@dataclass(frozen=True, eq=False)
class Segments:
    """A recording as segments that overlap.

    Attributes:
        indices: of each segment, (B, frames[, levels]); the last may have fewer frames.
        volumes: of each segment, (B, segments), by which its sound was divided. Sound cannot be had from the indices
            without them, and they are no part of `AudioTokenizer.kbps`.
        length: samples of the recording.
    """

    indices: Sequence[Tensor]
    volumes: Tensor
    length: int


class SegmentTokenizer(AudioTokenizer):
    """An `AudioTokenizer` of segments, whose encoder sees sound of volume 1.

    Networks with a norm over time (`backbones.encodec.TimeGroupNorm`) compute something else for another length, so
    that recordings are cut into segments of one length that overlap a little. Each is divided by its volume, the root
    mean square of all channels' mean, before the encoder, and multiplied by it behind the decoder:

    - `encode_segments` and `decode_segments` do that for a recording of any length;
    - `forward` does it for one segment, as in training;
    - `encode` gives the indices of one segment without its volume, and `decode` sound of volume 1 from them;
    - streams and blocks, which would lose volumes, are refused.

    Args:
        encoder: see `AudioTokenizer`.
        quantizer: see `AudioTokenizer`.
        decoder: see `AudioTokenizer`.
        sample_rate: in Hz.
        segment_seconds: longest segment.
        overlap: share of a segment that the next one has too, in [0, 1).

    Attributes:
        segment_length: samples of a segment.
        segment_stride: samples from the start of one to that of the next.

    Raises:
        ValueError: as for `AudioTokenizer`, or segments have no samples, or `overlap` is out of its range.

    Source: EnCodec (Defossez et al. 2022, https://arxiv.org/abs/2210.13438), section 3.1, and its released code: a
    second, of which 1 % overlap; at 48 kHz, stereo.
    Differs: a segment is refused where it is longer than `segment_seconds`, also by `forward`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        quantizer: BaseQuantizer,
        decoder: nn.Module,
        *,
        sample_rate: int,
        segment_seconds: float = 1.0,
        overlap: float = 0.01,
    ) -> None:
        super().__init__(encoder, quantizer, decoder, sample_rate=sample_rate)
        self.segment_length = int(segment_seconds * sample_rate)
        if self.segment_length < 1 or not 0 <= overlap < 1:
            raise ValueError(
                f"segment_seconds={segment_seconds}, overlap={overlap}: expected at least one sample, and an overlap of"
                " 0 to below 1"
            )
        self.segment_stride = max(1, int((1 - overlap) * self.segment_length))

    @property
    def latency(self) -> float:
        """Algorithmic delay in seconds: a segment, whose first frame depends on its last sample."""
        return self.segment_length / self.sample_rate

    def forward(self, data: Tensor) -> TokenizerOutput:
        """Encode, quantize and decode a segment at its volume.

        Args:
            data: (B, C, T) in [-1, 1] at `sample_rate`, T from 1 to `segment_length`.

        Raises:
            ValueError: shape or length do not fit.
        """
        self._check(data, least=1)
        self._check_length(data)
        volume = volume_of(data)
        output = self._reconstruct(self._whole_frames(data / volume))
        reconstruction = output.reconstruction[..., : data.shape[-1]]
        return TokenizerOutput(reconstruction * volume.to(reconstruction), output.quantizer)

    @torch.no_grad()
    def encode(self, data: Tensor, sample_rate: int | None = None) -> Tensor:
        """Indices of a segment, which do not tell its volume.

        Args:
            data: see `AudioTokenizer.encode`; at most a segment.
            sample_rate: see there.

        Raises:
            ValueError: see there; `data` is longer than a segment.
        """
        wave = self._at_model_rate(self._checked(data, least=1), sample_rate)
        self._check_length(wave)
        return self._indices(self._whole_frames(wave / volume_of(wave)))

    @torch.no_grad()
    def encode_segments(self, data: Tensor, sample_rate: int | None = None) -> Segments:
        """Indices and volumes of a recording.

        Args:
            data: see `AudioTokenizer.encode`; of any length.
            sample_rate: see there.

        Raises:
            ValueError: see there.
        """
        wave = self._at_model_rate(self._checked(data, least=1), sample_rate)
        starts = range(0, wave.shape[-1], self.segment_stride)
        pieces = [wave[..., start : start + self.segment_length] for start in starts]
        volumes = torch.cat([volume_of(piece)[..., 0] for piece in pieces], -1)
        return Segments([self.encode(piece) for piece in pieces], volumes, wave.shape[-1])

    @torch.no_grad()
    def decode_segments(self, segments: Segments, *, levels: int | None = None) -> Tensor:
        """The recording (B, C, T) of what `encode_segments` gave.

        Where segments overlap, one fades out while the next fades in.

        Args:
            segments: at least one.
            levels: how many levels of indices are used, the first ones; None: all.

        Raises:
            ValueError: there are no levels, or not so many; or as for `decode`.
        """
        kept = [first_levels_of(self.quantizer, indices, levels) for indices in segments.indices]
        pieces = [self.decode(indices)[..., : self.segment_length] for indices in kept]
        volumes = segments.volumes[:, None, None].unbind(-1)
        scaled = [piece * volume.to(piece) for piece, volume in zip(pieces, volumes, strict=True)]
        return overlap_add(scaled, self.segment_stride)[..., : segments.length]

    def decode(self, indices: Tensor, *, length: int | None = None) -> Tensor:
        """The sound of a segment, of volume 1; see `AudioTokenizer.decode`.

        Raises:
            ValueError: see there; there are more frames than a segment has.
        """
        filled = self._frames_filled
        steps = math.ceil(self.segment_length / (self.downsampling_factor * filled)) * filled // self.frames_per_step
        quantizer = self.quantizer
        most = steps * (sum(quantizer.cells) if isinstance(quantizer, RowQuantizer) else self.frames_per_step)
        if indices.ndim > 1 and indices.shape[1] > most:
            raise ValueError(
                f"indices has {indices.shape[1]} frames: expected at most {most}, those of a segment; decode_segments"
                " puts several together"
            )
        return super().decode(indices, length=length)

    @contextmanager
    def streaming(self) -> Iterator[Self]:
        """Refused: see the class."""
        self._refuse("streaming")
        yield self

    def encode_blocks(self, chunks: Iterable[Tensor], *, frames_per_block: int = 256) -> Iterator[Tensor]:
        """Refused: see the class."""
        self._refuse("encode_blocks")

    def decode_blocks(self, blocks: Iterable[Tensor], *, frames_per_block: int = 256) -> Iterator[Tensor]:
        """Refused: see the class."""
        self._refuse("decode_blocks")

    def _refuse(self, call: str) -> NoReturn:
        raise ValueError(
            f"{call} would lose the volume of each segment, and a frame depends on all of its segment: use"
            " encode_segments and decode_segments, which need the memory of one segment, and are given the recording"
            " at once"
        )

    def _check_length(self, wave: Tensor) -> None:
        if wave.shape[-1] > self.segment_length:
            raise ValueError(
                f"data has {wave.shape[-1]} samples: expected at most a segment, {self.segment_length}; encode_segments"
                " takes recordings of any length"
            )

    def _recording_of(self, batch: Any) -> Tensor:
        wave = super()._recording_of(batch)
        self._check_length(wave)
        return wave / volume_of(wave)

    def _whole_frames(self, wave: Tensor) -> Tensor:
        fills = properties_of(self.encoder).fills_frames and self._frames_filled == 1
        return wave if fills else super()._whole_frames(wave)


def volume_of(wave: Tensor) -> Tensor:
    """Root mean square of the mean of all channels, (B, C, T) -> (B, 1, 1); never 0, in float32 or wider."""
    wave = wave.to(torch.promote_types(wave.dtype, torch.float32))
    return wave.mean(1, keepdim=True).square().mean(-1, keepdim=True).sqrt() + 1e-8


def overlap_add(pieces: Sequence[Tensor], stride: int) -> Tensor:
    """Pieces of a signal on top of each other, with weights that rise and fall along each, and sum to 1.

    Args:
        pieces: (..., samples), at least one, as long as the first or shorter.
        stride: samples from the start of one to that of the next, at most those of a piece.

    Returns:
        (..., samples) from the start of the first to the end of the last.
    """
    steps = torch.arange(1, pieces[0].shape[-1] + 1, dtype=pieces[0].dtype, device=pieces[0].device)
    weights = torch.minimum(steps, steps.flip(0))
    total = stride * (len(pieces) - 1) + pieces[-1].shape[-1]
    signal, weight = pieces[0].new_zeros(*pieces[0].shape[:-1], total), weights.new_zeros(total)
    for number, piece in enumerate(pieces):
        place = slice(number * stride, number * stride + piece.shape[-1])
        signal[..., place] += weights[: piece.shape[-1]] * piece
        weight[place] += weights[: piece.shape[-1]]
    return signal / weight
