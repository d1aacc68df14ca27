"""The streams of cross-scale residual quantization (ESC): product quantizers that a tokenizer calls one by one."""

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.composite import DepthDropout, build_members
from vqkit.quantizers.output import Quantized, QuantizerOutput


class CrossScaleQuantizer(DepthDropout):
    """The streams of a `vqkit.tokenizers.cross_scale.CrossScaleTokenizer`, coarse first, and the dropout between them.

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

    Source: Gu, Diao 2024 (ESC, arXiv 2404.19441), sec. 3; losses are summed over streams and averaged over the
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
        super().__init__(streams, dim, channel_dim=1, dropout=dropout, seed=seed)
        self.groups = nn.ModuleList(streams)  # type: ignore[assignment]  # it forgets its element type

    @property
    def members(self) -> Iterable[BaseQuantizer]:
        """The quantizers of the streams; each takes (B, frames, dim)."""
        return self.groups

    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        """Refused: see the class."""
        raise self._by_itself()

    def lookup(self, indices: Tensor) -> Tensor:
        """What each stream adds, side by side: (B, frames, levels) -> (B, frames, dim)."""
        pairs = zip(self.groups, self.split_streams(indices), strict=True)
        return torch.cat([stream.lookup(levels) for stream, levels in pairs], dim=-1)

    def penalize(self, quantized: Quantized) -> tuple[Tensor, dict[str, Tensor]]:
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

    def join(self, outputs: Sequence[QuantizerOutput], used: Tensor | None) -> QuantizerOutput:
        """One result out of those of the streams.

        Args:
            outputs: of the streams, in their layout (B, frames, dim).
            used: (B,) how many streams each sample used.
        """
        nonfinite = torch.stack([output.nonfinite for output in outputs]).sum()
        if self.learning:
            self.nonfinite_seen.add_(nonfinite)
        # A stream's loss is a mean over the samples that used it; over all of them, the others count as 0.
        everything = torch.ones((), device=nonfinite.device)
        losses: dict[str, Tensor] = {}
        total = everything.new_zeros(())
        for number, output in enumerate(outputs):
            share = everything if used is None else (used > number).to(self.dtype).mean()
            total = total + share * output.loss
            for name, loss in output.losses.items():
                losses[name] = losses[name] + share * loss if name in losses else share * loss
        return QuantizerOutput(
            quantized=torch.cat([output.quantized for output in outputs], dim=-1).mT,
            indices=self.join_levels([output.indices for output in outputs], outputs[0].indices.shape[:2]),
            loss=total,
            losses=losses,
            nonfinite=nonfinite,
        )

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

    @property
    def streams(self) -> Sequence[BaseQuantizer]:
        """The quantizers of the streams; each takes (B, frames, dim)."""
        return self.groups

    def extra_repr(self) -> str:
        """Streams and layout."""
        return (
            f"num_streams={len(self.groups)}, dropout={self.dropout}, codebook_sizes={self.codebook_sizes}, "
            f"dim={self.dim}, channel_dim={self.channel_dim}"
        )
