"""The streams of cross-scale residual quantization (ESC): product quantizers that a tokenizer calls one by one."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vqkit import distributed
from vqkit.quantizers.base import BaseQuantizer, QuantizerOutput
from vqkit.quantizers.composite import member_health, summed_losses
from vqkit.quantizers.grouped import GroupedQuantizer
from vqkit.runtime import uncompiled


class CrossScaleQuantizer(GroupedQuantizer):
    """The streams of a `vqkit.tokenizers.cross_scale.CrossScaleTokenizer`, coarse first, and the dropout between them.

    What a stream quantizes is what the decoder, given the streams before it, still lacks. That takes the decoder's
    blocks, which belong to the decoder: so the tokenizer walks through them, and calls one stream after another. Called
    by itself, this quantizer takes what is left over for all streams side by side, (B, dim, frames), as
    `GroupedQuantizer` does.

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

    def __init__(self, stream: Sequence[Callable[[], BaseQuantizer]], *, dropout: float = 0.0, seed: int = 0) -> None:
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout={dropout}: expected a probability in [0, 1]")
        super().__init__(stream, channel_dim=1)
        self.dropout = dropout
        self.seed = seed
        self.draws = 0

    @property
    def streams(self) -> list[BaseQuantizer]:
        """The quantizers of the streams; each takes (B, frames, dim)."""
        return list(self._groups)

    def draw_streams(self, batch_size: int) -> Tensor | None:
        """How many streams each sample uses in this training forward, (B,) int64; None where all use all.

        A function of the seed, of the number of training forwards so far and of the number of a sample among those of
        all ranks.
        """
        if not (self.dropout and self.stochastic):
            return None
        return self._draw(batch_size)

    # A Python number, on which a compiler would specialise anew at every step.
    @uncompiled
    def _draw(self, batch_size: int) -> Tensor:
        if self.learning:
            self.draws += 1
        # The global number of a sample, if all ranks hold as many: then N ranks draw as one process would.
        samples = torch.arange(batch_size, device=self.latent_spread.device) + distributed.rank() * batch_size
        chance, depth = (distributed.counter_random(2 * samples + k, seed=self.seed, step=self.draws) for k in (0, 1))
        drawn = 1 + (depth * len(self.groups)).long()
        return torch.where(chance < self.dropout, drawn, len(self.groups))

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
        shares = [everything if used is None else (used > n).to(self.dtype).mean() for n in range(len(outputs))]
        pairs = list(zip(shares, outputs, strict=True))
        losses = [{name: share * loss for name, loss in output.losses.items()} for share, output in pairs]
        frames = outputs[0].indices.shape[:2]
        return QuantizerOutput(
            quantized=torch.cat([output.quantized for output in outputs], dim=-1).mT,
            indices=torch.cat([output.indices.reshape(*frames, -1) for output in outputs], dim=-1),
            loss=torch.stack([share * output.loss for share, output in pairs]).sum(),
            losses=summed_losses(losses),
            nonfinite=nonfinite,
        )

    def split_levels(self, indices: Tensor) -> list[Tensor]:
        """Indices (B, frames, levels) of each whole stream that `levels` covers, as that stream decodes them.

        Raises:
            ValueError: the levels end within a stream.
        """
        widths = [stream.num_codebooks for stream in self.streams]
        ends = list(itertools.accumulate(widths))
        if indices.ndim != 3 or indices.shape[-1] not in ends:
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}: expected (B, frames, levels) with the levels of whole "
                f"streams, one of {ends}"
            )
        parts = indices.split(widths[: ends.index(indices.shape[-1]) + 1], dim=-1)
        pairs = zip(self.streams, parts, strict=False)
        return [part if stream.level_axis else part.squeeze(-1) for stream, part in pairs]

    def _health(self) -> dict[str, float]:
        return BaseQuantizer._health(self) | member_health(self.streams, "stream")

    def get_extra_state(self) -> Tensor:
        """How many dropout draws were made."""
        return torch.tensor([self.draws], dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the count of draws."""
        self.draws = int(state[0])

    def extra_repr(self) -> str:
        """Streams and layout."""
        return f"num_streams={len(self.groups)}, dropout={self.dropout}, {super().extra_repr()}"
