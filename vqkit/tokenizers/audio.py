"""A tokenizer of sound: any length, any sample rate, streams, and files too long for the memory."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from vqkit.backbones.protocol import properties_of
from vqkit.backbones.streaming import streaming
from vqkit.quantizers.base import BaseQuantizer
from vqkit.runtime import check_plain
from vqkit.tokenizers.chunking import pad_end, run_in_blocks
from vqkit.tokenizers.resampling import resample
from vqkit.tokenizers.tokenizer import Tokenizer, TokenizerOutput, first_tensor, in_dtype_of


class AudioTokenizer(Tokenizer):
    """An encoder, a quantizer and a decoder of waveforms (B, C, T) in [-1, 1].

    Waveforms of any length are filled with zeros to whole frames, and reconstructions cut back to it; to whole steps of
    frames with a `MultiRateQuantizer`, as SNAC does, and with a `MultiScaleQuantizer`, whose steps are as long as its
    last scale, and to whole windows of an encoder that fills them (`fills_windows`). What several blocks or a stream
    give in whole steps is joined with `join`.

    Three ways to use a trained one, with the same codes:

    - at once: `encode(wave, sample_rate)`, `decode(indices)`;
    - as it arrives, for causal models: `with codec.streaming(): codec.encode(chunk)`;
    - in bounded memory, for every model whose context is finite: `encode_blocks(chunks)`, `decode_blocks(indices)`.

    (Sums of floating point numbers are taken in another order for another length, so latents differ in their last bits.
    A code changes only where two were as near to a latent as that: `vqkit.kernels.nearest` can return the margin.)

    Args:
        encoder: from (B, C, T) to (B, dim, T / downsampling_factor); `vqkit.backbones.conv1d.ConvEncoder1d`.
        quantizer: with `channel_dim=1`.
        decoder: from (B, dim, frames) to (B, C, frames * downsampling_factor).
        sample_rate: of the waveforms that the model was made for, in Hz.

    Attributes:
        sample_rate: as given.
        channels: C, 1 for mono.
        downsampling_factor: samples for each frame.

    Raises:
        ValueError: `sample_rate` is not positive, encoder and decoder differ in channels or downsampling factor, or the
            quantizer takes maps of one size alone.

    Examples:
        >>> from vqkit import AudioTokenizer, Quantizer
        >>> from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
        >>> sizes = {"dim": 32, "channels": 8, "strides": (4, 5, 8), "causal": True}
        >>> quantizer = Quantizer("ema", dim=32, codebook_size=256, channel_dim=1)
        >>> codec = AudioTokenizer(ConvEncoder1d(**sizes), quantizer, ConvDecoder1d(**sizes), sample_rate=16000).eval()
        >>> indices = codec.encode(torch.zeros(1, 1, 1000))
        >>> indices.shape, codec.decode(indices, length=1000).shape
        (torch.Size([1, 7]), torch.Size([1, 1, 1000]))
    """

    def __init__(self, encoder: nn.Module, quantizer: BaseQuantizer, decoder: nn.Module, *, sample_rate: int) -> None:
        quantizer.check_has_codes(type(self).__name__)
        super().__init__(encoder, quantizer, decoder)
        if sample_rate < 1 or sample_rate != int(sample_rate):
            raise ValueError(f"sample_rate={sample_rate}: expected a positive whole number of Hz, such as 16000")
        if quantizer.positions_per_step is None:
            raise ValueError(
                f"quantizer={type(quantizer).__name__} takes maps of one size, and sound is a sequence of any length: "
                "expected a quantizer of single vectors, or a composite that takes sequences, such as "
                "ResidualQuantizer, MultiRateQuantizer, or MultiScaleQuantizer with axes=1"
            )
        self.sample_rate = sample_rate
        front, back = properties_of(encoder), properties_of(decoder)
        if front.downsampling_factor is None:
            raise ValueError(
                f"encoder={type(encoder).__name__} has no downsampling_factor: expected this attribute, the samples "
                "that make a frame"
            )
        self.channels = front.in_channels
        self.downsampling_factor = front.downsampling_factor
        for name, value, other in (
            ("out_channels", self.channels if back.out_channels is None else back.out_channels, self.channels),
            ("downsampling_factor", back.downsampling_factor, self.downsampling_factor),
        ):
            if value != other:
                raise ValueError(f"decoder.{name}={value}, but the encoder has {other}: build both with the same sizes")
        self._pending: Tensor | None = None
        self._is_streaming = False
        self._ended = False
        self._held_back = 0  # samples that a stream waits for before its first frames

    @property
    def frame_rate(self) -> float:
        """Frames for each second."""
        return self.sample_rate / self.downsampling_factor

    @property
    def frames_per_step(self) -> int:
        """Frames that are encoded together: 1, but for a `MultiRateQuantizer` or `MultiScaleQuantizer`."""
        return self.quantizer.positions_per_step or 1

    @property
    def level_rates(self) -> tuple[float, ...]:
        """Indices of each level for each second."""
        return tuple(self.frame_rate * count / self.frames_per_step for count in self.quantizer.indices_per_step)

    @property
    def kbps(self) -> float:
        """Kilobits for each second of sound, all levels, before any entropy coding."""
        pairs = zip(self.level_rates, self.quantizer.level_sizes, strict=True)
        return sum(rate * math.log2(size) for rate, size in pairs) / 1000

    @property
    def causal(self) -> bool:
        """Whether a frame depends on no later sample, nor a sample on a later frame: what streaming needs."""
        return bool(properties_of(self.encoder).causal and properties_of(self.decoder).causal)

    @property
    def latency(self) -> float | None:
        """Algorithmic delay in seconds: from the first sample of a frame to the last one that its sound waits for.

        One step of frames for causal models (whose first frames may wait for what padding mirrors); else what encoder
        and decoder look ahead comes on top, and None if that is unbounded.
        """
        if self.causal:
            return self._samples_per_step / self.sample_rate
        encoding, decoding = self._encoding_context, properties_of(self.decoder).context
        if encoding is None or decoding is None:
            return None
        return (self.downsampling_factor * (self.frames_per_step + decoding[1]) + encoding[1]) / self.sample_rate

    @property
    def _encoding_context(self) -> tuple[int, int] | None:
        """Samples before and after its own on which the indices of a frame depend; None without bound."""
        return properties_of(self.encoder).context

    # ------------------------------------------------------------------ at once

    def forward(self, data: Tensor) -> TokenizerOutput:
        """Encode, quantize and decode.

        Args:
            data: (B, C, T) in [-1, 1] at `sample_rate`, T at least 1.
        """
        self._check_no_stream("forward")
        self._check(data, least=1)
        output = self._reconstruct(self._whole_frames(data))
        return TokenizerOutput(output.reconstruction[..., : data.shape[-1]], output.quantizer)

    @torch.no_grad()
    def encode(self, data: Tensor, sample_rate: int | None = None) -> Tensor:
        """Indices of a waveform; of the frames that are complete, inside of `streaming()`.

        Args:
            data: (B, C, T) in [-1, 1].
            sample_rate: of `data`, in Hz; where it is not the model's, `data` is resampled. None says that it is.

        Returns:
            int64 (B, frames), with composites (B, frames, levels); at once, frames is T / downsampling_factor rounded
            up, T counted after resampling, or filled up further (see the class). With a `MultiRateQuantizer` or
            `MultiScaleQuantizer` (B, L), in its order.

        Raises:
            ValueError: shape or number of channels do not fit, there are no samples or one is not finite, another
                sample rate is given inside of `streaming()`, or the stream has ended.
        """
        wave = self._at_model_rate(self._checked(data, least=0 if self._is_streaming else 1), sample_rate)
        return self._encode_chunk(wave) if self._is_streaming else self._indices(self._whole_frames(wave))

    def decode(self, indices: Tensor, *, length: int | None = None) -> Tensor:
        """The waveform of indices, of all levels or of the first ones.

        Args:
            indices: what `encode` returned, or `encode(...)[..., :n]` for the first n levels of residual stages, and
                `quantizer.prefix(encode(...), n)` for those of a `MultiRateQuantizer` or `MultiScaleQuantizer`.
            length: samples to keep; None keeps whole frames.

        Returns:
            (B, C, frames * downsampling_factor) or (B, C, length), about in [-1, 1] and not clipped.

        Raises:
            ValueError: `length` is negative or more than the frames hold.
        """
        # A chunk of a stream may complete no frame.
        wave = self._no_samples(len(indices)) if indices.shape[1:2] == (0,) else self._sound(indices)
        if length is None:
            return wave
        if not 0 <= length <= wave.shape[-1]:
            raise ValueError(
                f"length={length}: expected 0 to {wave.shape[-1]}, the samples of "
                f"{wave.shape[-1] // self.downsampling_factor} frames"
            )
        return wave[..., :length]

    def _sound(self, indices: Tensor) -> Tensor:
        """`decode` to whole frames."""
        return super().decode(indices)

    def join(self, pieces: Iterable[Tensor]) -> Tensor:
        """Indices of consecutive pieces of sound, as blocks or a stream give them, in the order that `encode` has.

        Args:
            pieces: at least one, (B, frames[, levels]), or (B, L[, levels]) of whole steps.
        """
        return self.quantizer.deinterleave(torch.cat([self.quantizer.interleave(piece) for piece in pieces], dim=1))

    # ------------------------------------------------------------------ as it arrives

    @contextmanager
    def streaming(self) -> Iterator[Self]:
        """A stream: inside, `encode` and `decode` go on where the last call stopped.

            with codec.streaming():
                for chunk in microphone:  # (B, C, any number of samples)
                    send(codec.encode(chunk))  # frames that are complete, perhaps none
                send(codec.flush())  # the last, incomplete frame

        The codes, put together by `join`, are those of the joined chunks, and so is the sound. The algorithmic delay
        is `latency` seconds, one step of frames. Batch size and device stay those of the first chunk. Sound of
        another sample rate is resampled outside, by a resampler that streams too, such as `soxr.ResampleStream`.

        Raises:
            ValueError: the model is not causal (use `encode_blocks` and `decode_blocks`), or what is called inside is
                not `encode`, `flush` or `decode`.
        """
        if not self.causal:
            raise ValueError(
                "streaming needs a causal encoder and decoder, and these look ahead: build them with causal=True, or "
                "use encode_blocks and decode_blocks, which run any model block by block"
            )
        with torch.no_grad(), streaming(self.encoder), streaming(self.decoder):
            self._pending, self._is_streaming, self._ended = None, True, False
            self._held_back = properties_of(self.encoder).first_frames * self.downsampling_factor
            try:
                yield self
            finally:
                self._pending, self._is_streaming = None, False

    @torch.no_grad()
    def flush(self) -> Tensor:
        """End of a stream: the indices of what waited, with zeros behind to whole steps; mostly one step or none.

        Raises:
            ValueError: outside of `streaming()`, before the first chunk, or a second time; or the stream was too short
                for a model that mirrors its beginning.
        """
        if self._pending is None:
            raise ValueError(
                "flush ends a stream: call it once, inside of `with codec.streaming():` after the last chunk"
            )
        rest, self._pending, self._ended = self._pending, None, True
        if 0 < rest.shape[-1] <= self._held_back - self._samples_per_step:
            raise ValueError(
                f"the stream ends after {rest.shape[-1]} samples, and the model mirrors the first {self._held_back} of"
                " a recording in front of it: encode so short a recording at once, outside of streaming()"
            )
        return self._indices(self._whole_frames(rest)) if rest.shape[-1] else self._no_frames(len(rest))

    def _encode_chunk(self, wave: Tensor) -> Tensor:
        if self._ended:
            raise ValueError("the stream was ended by flush: open a new one with `with codec.streaming():`")
        if self._pending is not None and len(self._pending) != len(wave):
            raise ValueError(
                f"the stream began with {len(self._pending)} recordings and continues with {len(wave)}: keep the batch "
                "as it is, or open a new stream"
            )
        joined = wave if self._pending is None else torch.cat([self._pending, wave], dim=-1)
        whole = joined.shape[-1] // self._samples_per_step * self._samples_per_step
        whole, self._held_back = (whole, 0) if whole >= self._held_back else (0, self._held_back)
        self._pending = joined[..., whole:]
        return self._indices(joined[..., :whole]) if whole else self._no_frames(len(wave))

    def _no_frames(self, batch_size: int) -> Tensor:
        levels = (self.quantizer.num_codebooks,) if self.quantizer.level_axis else ()
        return torch.empty(batch_size, 0, *levels, dtype=torch.int64, device=self.quantizer.latent_spread.device)

    def _no_samples(self, batch_size: int) -> Tensor:
        weight = next(self.decoder.parameters(), self.quantizer.latent_spread)
        return weight.new_empty(batch_size, self.channels, 0)

    # ------------------------------------------------------------------ in bounded memory

    @torch.no_grad()
    def encode_blocks(self, chunks: Iterable[Tensor], *, frames_per_block: int = 256) -> Iterator[Tensor]:
        """`encode` of a recording that comes in pieces, in the memory of a block and its context.

        Args:
            chunks: consecutive pieces (B, C, any number of samples) at the model's sample rate, such as
                `wave.split(16000, dim=-1)`.
            frames_per_block: frames that are computed at once, rounded up to whole windows of attention.

        Yields:
            indices (B, frames[, levels]), or (B, L[, levels]) of whole steps; put together by `join`, which for all but
            a `MultiRateQuantizer` is along axis 1, they are those of the joined pieces.

        Raises:
            ValueError: the indices depend on unbounded context, `frames_per_block` is not positive, or a stream is
                open, which blocks would disturb.
        """
        context, hop = self._encoding_context, self.downsampling_factor
        frames = None if context is None else (math.ceil(context[0] / hop), math.ceil(context[1] / hop))
        pieces = map(self._checked, chunks)
        whole = self._frames_filled
        axes = {"out_per_hop": whole // self.frames_per_step, "out_dim": 1}
        steps = self._run_blocks(pieces, self._rows, frames, frames_per_block, whole, whole * hop, **axes)
        yield from map(self.quantizer.deinterleave, steps)

    @torch.no_grad()
    def decode_blocks(self, blocks: Iterable[Tensor], *, frames_per_block: int = 256) -> Iterator[Tensor]:
        """`decode` of indices that come in pieces, in the memory of a block and its context.

        Args:
            blocks: consecutive pieces (B, frames[, levels]), or (B, L[, levels]) of whole steps.
            frames_per_block: frames that are computed at once, rounded up to whole windows of attention.

        Yields:
            (B, C, samples); joined along the last axis they are the waveform of the joined pieces.

        Raises:
            ValueError: as for `encode_blocks`.
        """
        rows = map(self.quantizer.interleave, blocks)
        context = properties_of(self.decoder).context
        axes = {"dim": 1, "out_per_hop": self._samples_per_step}
        yield from self._run_blocks(rows, self._sound_of_rows, context, frames_per_block, self.frames_per_step, **axes)

    def _rows(self, wave: Tensor) -> Tensor:
        """`_indices` in the order of time."""
        return self.quantizer.interleave(self._indices(wave))

    def _sound_of_rows(self, rows: Tensor) -> Tensor:
        """`_sound` of indices in the order of time."""
        return self._sound(self.quantizer.deinterleave(rows))

    def _run_blocks(
        self,
        pieces: Iterable[Tensor],
        run: Callable[[Tensor], Tensor],
        context: tuple[int, int] | None,
        frames_per_block: int,
        hop: int,
        hop_length: int = 1,
        **axes: int,
    ) -> Iterator[Tensor]:
        """`run` over blocks of whole hops of frames.

        Args:
            pieces: see `run_in_blocks`.
            run: see `run_in_blocks`.
            context: frames before and after; None without bound.
            frames_per_block: at least so many.
            hop: frames of one.
            hop_length: of one along the axis of the pieces.
            axes: see `run_in_blocks`.
        """
        if frames_per_block < 1:
            raise ValueError(f"frames_per_block={frames_per_block}: expected at least 1")
        self._check_no_stream("encode_blocks or decode_blocks")
        if context is None:
            raise ValueError(
                "blocks need a bounded context, and this model has none: use encode and decode on the whole recording, "
                "or a backbone whose attention has a window"
            )
        window = math.lcm(properties_of(self.encoder).frames_per_window, hop)  # where blocks may begin
        block, left = (math.ceil(frames / window) * window // hop for frames in (frames_per_block, context[0]))
        context = left * hop_length, math.ceil(context[1] / hop) * hop_length
        return run_in_blocks(pieces, run, context=context, hop_length=hop_length, hops_per_block=block, **axes)

    # ------------------------------------------------------------------ what goes in

    def _latents(self, loader: Iterable[Any]) -> Iterator[Tensor]:
        return super()._latents(map(self._recording_of, loader))

    def _recording_of(self, batch: Any) -> Tensor:
        wave = first_tensor(batch)
        self._check(wave, least=1, wait=True)
        return self._whole_frames(wave)

    def _checked(self, wave: Tensor, *, least: int = 0) -> Tensor:
        self._check(wave, least=least, wait=True)
        if not torch.compiler.is_compiling() and not bool(wave.isfinite().all()):
            count = int((~wave.isfinite()).sum())
            raise ValueError(f"data holds {count} samples that are NaN or infinite: repair or leave out this recording")
        return in_dtype_of(self.encoder, wave)  # recordings are often read as float64

    def _check(self, wave: Tensor, *, least: int, wait: bool = False) -> None:
        check_plain("data", wave)
        if wave.ndim != 3 or wave.shape[1] != self.channels:
            raise ValueError(
                f"data has shape {tuple(wave.shape)}: expected (B, {self.channels}, T); mono from stereo is "
                "data.mean(1, keepdim=True), stereo from mono data.expand(-1, 2, -1), one recording (C, T) data[None]"
            )
        self._check_values(wave, wait=wait)
        if wave.shape[-1] < least:
            raise ValueError("data has no samples: expected at least one")

    @property
    def _conversions(self) -> str:
        return "int16 / 32768"

    def _lies_elsewhere(self, least: float, greatest: float, low: float, high: float) -> bool:
        """Whether another scale alone explains the values, as for `Tokenizer`; sound may lack negative values."""
        return super()._lies_elsewhere(min(least, -greatest), greatest, low, high)

    def _check_no_stream(self, call: str) -> None:
        if self._is_streaming:
            raise ValueError(f"{call} inside of streaming() would go on where the stream stopped: close it first")

    @property
    def _samples_per_step(self) -> int:
        return self.downsampling_factor * self.frames_per_step

    @property
    def _frames_filled(self) -> int:
        """Recordings are filled up to a multiple of so many frames."""
        front = properties_of(self.encoder)
        return math.lcm(self.frames_per_step, front.frames_per_window if front.fills_windows else 1)

    def _whole_frames(self, wave: Tensor) -> Tensor:
        return pad_end(wave, -wave.shape[-1] % (self.downsampling_factor * self._frames_filled))

    def _at_model_rate(self, wave: Tensor, sample_rate: int | None) -> Tensor:
        if sample_rate is None or sample_rate == self.sample_rate:
            return wave
        if sample_rate < 1:
            raise ValueError(f"sample_rate={sample_rate}: expected a positive number of Hz, or None for the model's")
        if self._is_streaming:
            raise ValueError(
                f"sample_rate={sample_rate} inside of streaming(), where the model has {self.sample_rate} Hz: resample "
                "the stream outside, for instance with soxr.ResampleStream"
            )
        return resample(wave, sample_rate, self.sample_rate)
