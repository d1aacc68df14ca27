"""Cross-scale residual quantization (ESC): streams of codes that refine the decoder's own features, scale by scale."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.backbones.esc import ESCDecoder, ESCEncoder
from vqkit.quantizers.base import QuantizerOutput
from vqkit.quantizers.initialization import enough_samples
from vqkit.tokenizers.audio import AudioTokenizer
from vqkit.tokenizers.chunking import run_in_blocks
from vqkit.tokenizers.cross_scale_streams import CrossScaleQuantizer
from vqkit.tokenizers.tokenizer import TokenizerOutput, first_tensor


class CrossScaleTokenizer(AudioTokenizer):
    """An encoder with latents at several scales, a decoder that is refined at each, and the streams between them.

    Stream 0 quantizes the coarsest latents. Stream 1 quantizes what it left over; each later one what the decoder's
    features lack to the encoder's at the next scale, after one more of the decoder's blocks. A stream's codes are added
    to the features before the decoder goes on, so that every whole number of streams decodes:
    `decode(indices[..., :3 * n])` for streams of 3 codebooks, n times 1.5 kbit/s in ESC.

    Interface, results and training are those of `AudioTokenizer`, with indices (B, frames, levels): stream by stream.
    `output.quantizer.quantized` holds what each stream added, side by side. Nothing on the way is detached: gradients
    reach encoder and decoder through each stream's linear maps and losses, as published.

    Args:
        encoder: from (B, C, T) to a list of latents (B, dims[i], frames), coarsest first;
            `vqkit.backbones.esc.ESCEncoder`.
        quantizer: at most one stream more than the encoder has scales.
        decoder: `blocks[i]` from latents of scale i to those of scale i + 1, and `head` from those of the last block to
            (B, C, T); `vqkit.backbones.esc.ESCDecoder`.
        sample_rate: in Hz.

    Source: Gu, Diao 2024 (ESC, arXiv 2404.19441), sec. 3.
    Differs: recordings of any length are filled with zeros to whole frames (the training code refuses other lengths);
    `vqkit.backbones.windowed_attention` tells of windows at the end of a recording.

    Raises:
        ValueError: the streams' dims are not those of the scales, or as for `AudioTokenizer`.
    """

    # What any other backbone has to offer, too.
    encoder: ESCEncoder
    quantizer: CrossScaleQuantizer
    decoder: ESCDecoder

    def __init__(
        self, encoder: nn.Module, quantizer: CrossScaleQuantizer, decoder: nn.Module, *, sample_rate: int
    ) -> None:
        if not isinstance(quantizer, CrossScaleQuantizer):
            raise ValueError(
                f"quantizer={type(quantizer).__name__}: expected a CrossScaleQuantizer, which has one quantizer for "
                "each stream; any method can be one of them"
            )
        super().__init__(encoder, quantizer, decoder, sample_rate=sample_rate)
        scales, mirrored = (list(getattr(part, "dims", [])) for part in (encoder, decoder))
        if not scales or scales != mirrored:
            raise ValueError(
                f"encoder.dims={scales} and decoder.dims={mirrored}: expected the same latents at each scale, so build "
                "both with the same sizes"
            )
        dims = [stream.dim for stream in quantizer.streams]
        if dims != [scales[0], *scales][: len(dims)]:
            raise ValueError(
                f"quantizer has streams of dim {dims}: expected {[scales[0], *scales]}, what encoder and decoder have "
                "at each scale, or the first of these"
            )

    @property
    def latency(self) -> float | None:
        """Algorithmic delay in seconds, at most: codes wait for the encoder and for the decoder's refinement, the sound
        for the decoder once more. None if one of them looks ahead without bound.
        """
        encoder, decoder = (getattr(part, "context", None) for part in (self.encoder, self.decoder))
        if encoder is None or decoder is None:
            return None
        return (self.downsampling_factor * (1 + 2 * decoder[1]) + encoder[1]) / self.sample_rate

    # ------------------------------------------------------------------ at once

    def forward(self, data: Tensor) -> TokenizerOutput:
        """Encode, quantize and decode.

        Args:
            data: (B, C, T) in [-1, 1] at `sample_rate`, T at least 1.
        """
        latents = self.encoder(self._whole_frames(data))
        used = self.quantizer.sample_depths(len(data))
        decoded, outputs = self._refine(latents, used)
        wave = self._finish(decoded, len(outputs))
        return TokenizerOutput(wave[..., : data.shape[-1]], self.quantizer.join(outputs, used))

    @torch.no_grad()
    def encode(self, data: Tensor, sample_rate: int | None = None) -> Tensor:
        """Indices (B, frames, levels) of a waveform, stream by stream; see `AudioTokenizer.encode`.

        Args:
            data: (B, C, T) in [-1, 1].
            sample_rate: of `data`, in Hz; where it is not the model's, `data` is resampled. None says that it is.
        """
        wave = self._checked(data)
        self._check_filled(wave)
        return self._indices(self._whole_frames(self._at_model_rate(wave, sample_rate)))

    def decode(self, indices: Tensor, *, length: int | None = None) -> Tensor:
        """The waveform of the indices of all streams, or of the first ones.

        Args:
            indices: int64 (B, frames, levels): what `encode` returned, or the levels of its first streams; -1 adds
                nothing.
            length: samples to keep; None keeps whole frames.

        Raises:
            ValueError: the levels end within a stream, or `length` is negative or more than the frames hold.
        """
        parts = self.quantizer.split_streams(indices)
        samples = indices.shape[1] * self.downsampling_factor
        if length is not None and not 0 <= length <= samples:
            raise ValueError(f"length={length}: expected 0 to {samples}, the samples of {indices.shape[1]} frames")

        def add(number: int, decoded: Tensor | None) -> Tensor:
            return self.quantizer.streams[number].decode(parts[number]).mT.to(self._dtype)

        if not samples:
            return self._no_samples(len(indices))
        wave = self._finish(self._walk(add, len(parts)), len(parts))
        return wave if length is None else wave[..., :length]

    # ------------------------------------------------------------------ the walk through the decoder

    def _walk(self, add: Callable[[int, Tensor | None], Tensor], count: int) -> Tensor:
        """The decoder's features after `count` streams; `add(number, decoded)` is what a stream adds to them."""
        decoded = add(0, None)
        for number in range(1, count):
            if number > 1:
                decoded = self.decoder.blocks[number - 2](decoded)
            decoded = decoded + add(number, decoded)
        return decoded

    def _lacking(self, latents: list[Tensor], number: int, decoded: Tensor | None) -> Tensor:
        """What the decoder's features lack at the scale of a stream, (B, dim, frames); of none, everything."""
        # In the decoder's dtype also under autocast, in which `decode` will add the codes.
        wanted = latents[max(number - 1, 0)].to(self._dtype)
        return wanted if decoded is None else wanted - decoded

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

    def _finish(self, decoded: Tensor, count: int) -> Tensor:
        """The waveform, from the features after `count` streams."""
        for block in self.decoder.blocks[max(count - 2, 0) :]:
            decoded = block(decoded)
        return self.decoder.head(decoded)

    def _refine(
        self, latents: list[Tensor], used: Tensor | None, count: int | None = None
    ) -> tuple[Tensor, list[QuantizerOutput]]:
        """Quantize with the first `count` streams: the features then, and the streams' outputs."""
        outputs: list[QuantizerOutput] = []

        def add(number: int, decoded: Tensor | None) -> Tensor:
            lacking = self._lacking(latents, number, decoded).mT
            mask = None if used is None else (used > number).unsqueeze(-1).expand(lacking.shape[:2])
            outputs.append(self.quantizer.streams[number](lacking, mask))
            return outputs[-1].quantized.mT

        return self._walk(add, len(self.quantizer.streams) if count is None else count), outputs

    @torch.no_grad()
    def _indices(self, wave: Tensor) -> Tensor:
        outputs = self._refine(self.encoder(wave), None)[1]
        return torch.cat([output.indices.reshape(*output.indices.shape[:2], -1) for output in outputs], dim=-1)

    # ------------------------------------------------------------------ in bounded memory

    def encode_blocks(self, chunks: Iterable[Tensor], *, frames_per_block: int = 256) -> Iterator[Tensor]:
        """`encode` of a recording that comes in pieces; see `AudioTokenizer.encode_blocks`.

        A later stream depends on what the decoder made of the earlier ones, so blocks overlap by the context of both.

        Args:
            chunks: consecutive pieces (B, C, any number of samples) at the model's sample rate.
            frames_per_block: frames that are computed at once, rounded up to whole windows.

        Yields:
            indices (B, frames, levels).
        """
        self._check_blocks(frames_per_block)
        context = [
            before + after * self.downsampling_factor
            for before, after in zip(self.encoder.context, self.decoder.context, strict=True)
        ]
        yield from run_in_blocks(
            (self._checked(chunk) for chunk in chunks),
            self._indices,
            context=(context[0], context[1]),
            hop_length=self.downsampling_factor,
            hops_per_block=self._whole_windows(frames_per_block),
            out_dim=1,
        )

    @torch.no_grad()
    def decode_blocks(self, blocks: Iterable[Tensor], *, frames_per_block: int = 256) -> Iterator[Tensor]:
        """`decode` of indices that come in pieces; see `AudioTokenizer.decode_blocks`.

        Args:
            blocks: consecutive pieces (B, frames, levels).
            frames_per_block: frames that are computed at once, rounded up to whole windows.

        Yields:
            (B, C, samples).
        """
        self._check_blocks(frames_per_block)
        yield from run_in_blocks(
            blocks,
            self.decode,
            context=self.decoder.context,
            hops_per_block=self._whole_windows(frames_per_block),
            dim=1,
            out_per_hop=self.downsampling_factor,
        )

    def _whole_windows(self, frames: int) -> int:
        window = int(getattr(self.encoder, "frames_per_window", 1))
        return math.ceil(frames / window) * window

    # ------------------------------------------------------------------ before training

    @torch.no_grad()
    def initialize(self, loader: Iterable[Any], *, samples: int | None = None, seed: int = 0) -> None:
        """Fit the streams in sequence, each to what those before it leave over; see `Tokenizer.initialize`.

        The recordings are kept, and encoded anew for each stream, since the latents of all scales are many times as
        large.

        Args:
            loader: batches, as for `Tokenizer.initialize`.
            samples: frames to use, over all ranks; None lets the quantizer decide.
            seed: stream i uses seed + i.
        """
        wanted = math.ceil(enough_samples(self.quantizer.codebook_size, samples) / distributed.world_size())
        waves: list[Tensor] = []
        frames = 0
        for batch in loader:
            waves.append(self._whole_frames(first_tensor(batch)))
            frames += waves[-1].shape[0] * waves[-1].shape[-1] // self.downsampling_factor
            if frames >= wanted:
                break
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            for number, stream in enumerate(self.quantizer.streams):
                stream.initialize(self._left_over(waves, number), samples=samples, seed=seed + number)
        finally:
            for module in training:
                module.training = True

    def _left_over(self, waves: Iterable[Tensor], number: int) -> Iterator[Tensor]:
        """What stream `number` quantizes, (B, frames, dim), for each batch."""
        weight = next(self.encoder.parameters())
        for wave in waves:
            latents = self.encoder(wave.to(weight.device))
            decoded = self._refine(latents, None, number)[0] if number else None
            if number > 1:
                decoded = self.decoder.blocks[number - 2](decoded)
            yield self._lacking(latents, number, decoded).mT
