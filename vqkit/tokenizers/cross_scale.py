"""Cross-scale residual quantization (ESC): streams of codes that refine the decoder's own features, scale by scale."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.backbones.esc import ESCDecoder, ESCEncoder
from vqkit.backbones.protocol import properties_of
from vqkit.indices import check_indices
from vqkit.precision import narrowed
from vqkit.quantizers.base import BaseQuantizer, share
from vqkit.quantizers.composite import DepthDropout, build_members
from vqkit.quantizers.initialization import INITIALIZE_FIRST, MemberWarnings, enough_samples
from vqkit.quantizers.output import Quantized, QuantizerOutput
from vqkit.quantizers.reduction import SumOverMembers
from vqkit.runtime import autocast_disabled, evaluating
from vqkit.sharding import as_forward, refuse_sharded
from vqkit.tokenizers.audio import AudioTokenizer
from vqkit.tokenizers.tokenizer import TokenizerOutput, in_dtype_of


class CrossScaleQuantizer(DepthDropout):
    """The streams of a `CrossScaleTokenizer`, coarse first, and the dropout between them.

    What a stream quantizes is what the decoder, given the streams before it, still lacks. That takes the decoder's
    blocks, which belong to the decoder: so the tokenizer walks through them, and calls one stream after another. This
    quantizer cannot be called by itself.

    ESC-Base has six streams of 3 x 1024 codes, 1.5 kbit/s each:

        >>> product = lambda dim: partial(GroupedQuantizer, partial(
        ...     Quantizer, "factorized", dim=dim // 3, codebook_size=1024, codebook_dim=8), 3)
        >>> CrossScaleQuantizer([product(dim) for dim in (1536, 1536, 1536, 2304, 3072, 4608)], dropout=0.75)

    Args:
        stream: builds each stream; its `dim` is that of the latents at its scale: the first two at the coarsest, each
            further one at the next.
        dropout: probability, per sample and training step, that only the first n streams are used, n uniform in 1 ...
            number of streams. Dropped streams have index -1, no loss and no statistics.
        seed: of the dropout.

    Source: Gu, Diao 2024 (ESC, arXiv:2404.19441), sec. 3; losses are summed over streams and averaged over the
    codebooks of one, as in its training code.
    Differs: dropout is drawn for each sample (published: for each batch; the expected loss is the same). The linear
    maps of our `factorized` codes have biases (published: none; with biases of 0 they are the published ones).

    Raises:
        ValueError: an argument is out of its range, or streams share state.
    """

    member_name = "stream"
    groups: Sequence[BaseQuantizer]

    def __init__(self, stream: Sequence[Callable[[], BaseQuantizer]], *, dropout: float = 0.0, seed: int = 0) -> None:
        streams = build_members(stream, None, kind="stream", owner="CrossScaleTokenizer")
        dim = sum(member.dim for member in streams)
        super().__init__(streams, dim, channel_dim=1, reduction=SumOverMembers(), dropout=dropout, seed=seed)
        self.groups = nn.ModuleList(streams)  # type: ignore[assignment]  # it forgets its element type

    @property
    def streams(self) -> Sequence[BaseQuantizer]:
        """The quantizers of the streams; each takes (B, frames, dim)."""
        return self.groups

    @property
    def members(self) -> Iterable[BaseQuantizer]:
        """The streams, coarse first."""
        return self.groups

    def quantize_stream(self, number: int, lacking: Tensor, depths: Tensor | None) -> tuple[Quantized, Tensor]:
        """Quantize with one stream.

        Each stream's input comes from another block of the decoder, which may overflow: so each is looked at anew.

        Args:
            number: of the stream.
            lacking: (B, frames, dim) what the decoder's features lack at the stream's scale.
            depths: (B,) how many streams each sample uses; None means all.

        Returns:
            what the stream made, and how many of the vectors that it was to quantize are not finite.
        """
        used = None if depths is None else (depths > number).unsqueeze(-1).expand(lacking.shape[:2])
        latents, valid, nonfinite = self.groups[number].open(lacking, used)
        with autocast_disabled(lacking.device):
            return self.groups[number].quantize(latents, valid), nonfinite

    def join(self, members: list[Quantized], nonfinite: Sequence[Tensor], dtype: torch.dtype) -> QuantizerOutput:
        """One result out of those of `quantize_stream`, with vectors in `dtype`."""
        spoilt = torch.stack(list(nonfinite)).sum()
        if learning := self.learning:
            self.nonfinite_seen.add_(spoilt)
        quantized = Quantized(
            vectors=torch.cat([made.vectors for made in members], dim=-1),
            indices=self.join_levels([made.indices for made in members], members[0].valid.shape),
            valid=torch.ones_like(members[0].valid),  # the losses are means over all frames
            members=members,
            source=self,
        )
        with autocast_disabled(spoilt.device):
            if self.training:
                share(quantized, learning)
            loss, losses = self.penalize(quantized)
        if not loss.requires_grad:
            loss = self.with_graph(loss)
        vectors = narrowed(quantized.vectors.mT, dtype)
        return QuantizerOutput(vectors, quantized.indices, loss, losses, spoilt)

    def lookup(self, indices: Tensor) -> Tensor:
        """What each stream adds, side by side: (B, frames, levels) -> (B, frames, dim)."""
        pairs = zip(self.groups, self.split_streams(indices), strict=True)
        return torch.cat([stream.lookup(levels) for stream, levels in pairs], dim=-1)

    def split_streams(self, indices: Tensor) -> list[Tensor]:
        """Indices (B, frames, levels) of each whole stream that `levels` covers, as that stream decodes them.

        Raises:
            ValueError: the levels end within a stream.
        """
        ends = list(itertools.accumulate(stream.num_codebooks for stream in self.groups))
        if indices.ndim != 3 or indices.shape[-1] not in ends:
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}: expected (B, frames, levels) with the levels of whole "
                f"streams, one of {ends}"
            )
        return self.split_levels(indices)

    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        """Refused: see the class."""
        raise self._by_itself()

    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Refused: see the class."""
        raise self._by_itself()

    def _by_itself(self) -> TypeError:
        return TypeError(
            f"{type(self).__name__} cannot be called by itself: what a stream quantizes depends on the decoder, so "
            "call the CrossScaleTokenizer that it belongs to"
        )

    def extra_repr(self) -> str:
        """Streams and layout."""
        return (
            f"num_streams={len(self.groups)}, dropout={self.dropout}, codebook_sizes={self.codebook_sizes}, "
            f"dim={self.dim}, channel_dim={self.channel_dim}"
        )


class CrossScaleTokenizer(AudioTokenizer):
    """An encoder with latents at several scales, a decoder that is refined at each, and the streams between them.

    Stream 0 quantizes the coarsest latents. Stream 1 quantizes what it left over; each later one what the decoder's
    features lack to the encoder's at the next scale, after one more of the decoder's blocks. A stream's codes are added
    to the features before the decoder goes on, so that every whole number of streams decodes:
    `decode(indices[..., :3 * n])` for streams of 3 codebooks, n times 1.5 kbit/s in ESC.

    Interface, results and training are those of `AudioTokenizer`, with indices (B, frames, levels): stream by stream.
    `output.quantizer.quantized` holds what each stream added, side by side. Nothing on the way is detached: gradients
    reach encoder and decoder through each stream's linear maps and losses, as published. Codes wait for the decoder,
    too: its context adds to the latency, and to the overlap of the blocks of `encode_blocks`.

    Args:
        encoder: from (B, C, T) to a list of latents (B, dims[i], frames), coarsest first;
            `vqkit.backbones.esc.ESCEncoder`.
        quantizer: at most one stream more than the encoder has scales.
        decoder: `blocks[i]` from latents of scale i to those of scale i + 1, and `head` from those of the last block to
            (B, C, T); `vqkit.backbones.esc.ESCDecoder`.
        sample_rate: in Hz.

    Source: Gu, Diao 2024 (ESC, arXiv:2404.19441), sec. 3.
    Differs: recordings of any length are filled with zeros to whole frames (the training code refuses other lengths);
    `vqkit.backbones.swin2d` tells of windows at the end of a recording.

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
        scales, mirrored = (list(properties_of(part).dims) for part in (encoder, decoder))
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
    def _encoding_context(self) -> tuple[int, int] | None:
        """That of the encoder, and of the decoder: a later stream depends on what it made of the earlier ones."""
        encoder, decoder = super()._encoding_context, properties_of(self.decoder).context
        if encoder is None or decoder is None:
            return None
        hop = self.downsampling_factor
        return encoder[0] + decoder[0] * hop, encoder[1] + decoder[1] * hop

    # ------------------------------------------------------------------ of whole frames

    def _reconstruct(self, wave: Tensor) -> TokenizerOutput:
        self.quantizer.check_counted()
        latents, count = self.encoder(wave), len(self.quantizer.streams)
        depths = self.quantizer.sample_depths(self.quantizer.number_forward(wave), wave.shape[0])
        made: list[Quantized] = []
        nonfinite: list[Tensor] = []

        def add(number: int, decoded: Tensor) -> Tensor:
            quantized, spoilt = self.quantizer.quantize_stream(number, self._lacking(latents, number, decoded), depths)
            made.append(quantized)
            nonfinite.append(spoilt)
            return quantized.vectors

        reconstruction = self._finish(self._walk(add, count), count)
        return TokenizerOutput(reconstruction, self.quantizer.join(made, nonfinite, self._dtype))

    @as_forward
    def _indices(self, wave: Tensor) -> Tensor:
        last = len(self.quantizer.streams) - 1
        lacking, indices = self._left_over(self.encoder(wave), last)
        indices.append(self.quantizer.streams[last].encode(lacking))
        return self.quantizer.join_levels(indices, lacking.shape[:2])

    @as_forward
    def _sound(self, indices: Tensor) -> Tensor:
        check_indices(indices, self.quantizer.codebook_sizes, level_axis=True)
        parts = self.quantizer.split_streams(indices.long())
        decoded = self._walk(lambda number, _: self._vectors(number, parts[number]), len(parts))
        return self._finish(decoded, len(parts))

    # ------------------------------------------------------------------ the walk through the decoder

    def _walk(self, add: Callable[[int, Tensor], Tensor], count: int) -> Tensor:
        """The decoder's features (B, dim, frames) after `count` streams; a scalar 0 after none.

        `add(number, features)` is what a stream adds, (B, frames, dim), to the features at its scale.
        """
        decoded = torch.zeros(())
        for number in range(count):
            decoded = self._at_scale_of(number, decoded)
            decoded = decoded + add(number, decoded).mT.to(self._dtype)
        return decoded

    def _at_scale_of(self, number: int, decoded: Tensor) -> Tensor:
        """The features at the scale of a stream, from those after the stream before it."""
        return decoded if number < 2 else self.decoder.blocks[number - 2](decoded)

    def _lacking(self, latents: list[Tensor], number: int, decoded: Tensor) -> Tensor:
        """What the features lack at the scale of a stream, (B, frames, dim)."""
        # In the decoder's dtype also under autocast, in which `decode` will add the codes.
        return (latents[max(number - 1, 0)].to(self._dtype) - decoded).mT

    def _vectors(self, number: int, indices: Tensor) -> Tensor:
        """What a stream adds by its indices, (B, frames, dim)."""
        with autocast_disabled(indices.device):
            return self.quantizer.streams[number].lookup(indices)

    @torch.no_grad()
    def _left_over(self, latents: list[Tensor], number: int) -> tuple[Tensor, list[Tensor]]:
        """What is left for stream `number` to quantize, (B, frames, dim), and the indices of the streams before it."""
        indices: list[Tensor] = []

        def add(before: int, decoded: Tensor) -> Tensor:
            indices.append(self.quantizer.streams[before].encode(self._lacking(latents, before, decoded)))
            return self._vectors(before, indices[-1])

        decoded = self._at_scale_of(number, self._walk(add, number))
        return self._lacking(latents, number, decoded), indices

    def _finish(self, decoded: Tensor, count: int) -> Tensor:
        """The waveform, from the features after `count` streams."""
        for block in self.decoder.blocks[max(count - 2, 0) :]:
            decoded = block(decoded)
        return self.decoder.head(decoded)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

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
        refuse_sharded(self, "initialize", INITIALIZE_FIRST)
        wanted = math.ceil(enough_samples(self.quantizer.codebook_size, samples) / distributed.world_size())
        waves: list[Tensor] = []
        frames = 0
        for batch in loader:
            waves.append(in_dtype_of(self.encoder, self._recording_of(batch)))
            frames += waves[-1].shape[0] * waves[-1].shape[-1] // self.downsampling_factor
            if frames >= wanted:
                break
        device = next(self.encoder.parameters()).device
        with evaluating(self), MemberWarnings("stream") as warned:
            for number, stream in enumerate(self.quantizer.streams):
                left_over = (self._left_over(self.encoder(wave.to(device)), number)[0] for wave in waves)
                with warned.by(number):
                    stream.initialize(left_over, samples=samples, seed=seed + number)
