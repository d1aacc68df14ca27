"""Residual quantization: each stage quantizes the residual of the stages before it."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.kernels import Metric, residual_nearest
from vqkit.parts.estimators import Estimator, StraightThrough
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.composite import DepthDropout, build_members, check_sum, check_summed_levels, used
from vqkit.quantizers.initialization import MemberWarnings, collect_vectors, enough_samples
from vqkit.quantizers.lengths import PrefixLengths, UniformLengths
from vqkit.quantizers.output import Quantized
from vqkit.quantizers.reduction import MeanOverMembers, Reduction
from vqkit.runtime import autocast_disabled, fits_squares, known


class ResidualQuantizer(DepthDropout):
    """A chain of quantizers of the same `dim`; indices gain a last axis of stages, coarse first.

    Where the gradient passes is a choice:

    - `estimator=StraightThrough()` (or another): the stages see z minus the detached sum of the stages before, and the
      estimator is applied once to the sum. The encoder gets the decoder's gradient once, whatever the number of stages,
      and every stage's commitment.
      An estimator that trains codes by the error (`NSVQ`, `DiVeQ`) trains those of all stages through the sum.
    - `estimator=None`: each stage keeps its own estimator and nothing is detached (DAC). Needed for stages with
      trainable projections or estimators that differentiate their choice, which the first form would cut off from the
      decoder.

    `encode` searches all stages in one call where each is the nearest code of a stored or derived codebook (no
    `codebook_dim`, no `normalize`, one metric); `repr` tells. Training goes stage by stage, since the losses and
    statistics of each need what it was given.

    Any prefix of the stages decodes: `decode(indices[..., :2])`. Stages are meant to store codebooks: a fixed grid
    (FSQ) is the same at every stage, and too coarse for what the first one leaves over.

    Args:
        stage: builds one stage, and is called `num_stages` times so that no two share a codebook; or a list of one
            factory for each stage, which may differ in method and codebook size.
        num_stages: at least 1; None with a list.
        estimator: see above.
        dropout: probability, per sample and training step, that only the first n stages are used. Dropped stages have
            index -1, no loss and no statistics.
        lengths: the distribution of n.
        reduction: how the losses of the stages make one: `SumOverMembers()` for DAC, `MeanOverChoices()` for EnCodec
            and Mimi.
        channel_dim: see `BaseQuantizer`; the stages themselves have -1.
        seed: of the dropout.

    Source: Zeghidour et al. 2021 (SoundStream, arXiv:2107.03312), algorithm 1 and sec. III-C; gradient of the first
    form as in AudioCraft, of the second as in Kumar et al. 2023 (DAC, arXiv:2306.06546).
    Differs: dropout is drawn for each sample (DAC draws it for a fixed share of the batch, hence never at batch size
    1; EnCodec and Mimi draw it for a batch).

    Raises:
        IncompatibleParts: stages that leave over something else in training than they will later (`NSVQ` of their own,
            cascaded codebooks), or that the estimator over the sum would cut off.
        ValueError: an argument is out of its range, or stages differ in `dim` or share state.
    """

    member_name = "stage"
    stages: Sequence[BaseQuantizer]

    def __init__(
        self,
        stage: Sequence[Callable[[], BaseQuantizer]] | Callable[[], BaseQuantizer],
        num_stages: int | None = None,
        *,
        estimator: Estimator | None = StraightThrough(),  # noqa: B008 - stateless
        dropout: float = 0.0,
        lengths: PrefixLengths = UniformLengths(),  # noqa: B008 - stateless
        reduction: Reduction = MeanOverMembers(),  # noqa: B008 - stateless
        channel_dim: int = -1,
        seed: int = 0,
    ) -> None:
        stages = build_members(stage, num_stages, kind="stage", owner="ResidualQuantizer")
        named = {"channel_dim": channel_dim, "reduction": reduction}
        super().__init__(stages, stages[0].dim, dropout=dropout, lengths=lengths, seed=seed, **named)
        check_sum(stages, estimator)
        self.stages = nn.ModuleList(stages)  # type: ignore[assignment]  # it forgets its element type
        self.estimator = estimator
        lengths(torch.zeros(1), len(stages))  # those of another number of stages are refused here

    @property
    def members(self) -> Iterable[BaseQuantizer]:
        """The stages, coarse first."""
        return self.stages

    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        """Quantize with one stage after the other; see `BaseQuantizer`."""
        estimator = None if self.passes_through else self.estimator
        step = self.number_forward(latents)
        depths = self.sample_depths(step, latents.shape[0])
        total, members = torch.zeros_like(latents), []
        for number, stage in enumerate(self.stages):
            residual, counts = latents, valid if depths is None else used(valid, depths, number)
            if number:  # a stage that diverged must not take the later ones along
                residual = latents - (total if estimator is None else total.detach())
                if not known(partial(fits_squares, residual), residual.device):
                    counts = counts & residual.isfinite().all(-1)
                    residual = torch.where(counts.unsqueeze(-1), residual, 0)
            made = stage.quantize(residual, counts)
            trains_codes = estimator is not None and estimator.trains_codebook
            total = total + (stage.chosen_vectors(made) if trains_codes else made.vectors)
            members.append(made if estimator is None else stage.without_vectors(made))
        vectors = total if estimator is None else self.estimate_sum(estimator, latents, total, valid, step)
        indices = self.join_levels([member.indices for member in members], valid.shape)
        return Quantized(vectors, indices, valid, members=members, source=self)

    def assign(self, latents: Tensor, valid: Tensor) -> Tensor:
        """One search of all stages, where each is the nearest code by one metric; see `BaseQuantizer`."""
        metric = self._metric_of_all_stages
        if metric is None:
            return super().assign(latents, valid)
        codebooks = [stage.nearest_codes() for stage in self.stages]
        indices = residual_nearest(latents, codebooks, metric=metric).indices
        return torch.where(valid.unsqueeze(-1), indices, -1)

    @property
    def _metric_of_all_stages(self) -> Metric | None:
        """The metric, if encoding is one residual search; None where a stage does more than that."""
        metrics = {stage.nearest_metric for stage in self.stages}
        return metrics.pop() if len(metrics) == 1 else None

    def lookup(self, indices: Tensor) -> Tensor:
        """Sum of the stages' vectors: (..., levels) int64 -> (..., dim), for any prefix of the levels."""
        total = torch.zeros(*indices.shape[:-1], self.dim, dtype=self.dtype, device=indices.device)
        for stage, levels in zip(self.stages, self.split_levels(indices), strict=False):
            total = total + stage.lookup(levels)
        return total

    def chosen_vectors(self, quantized: Quantized) -> Tensor:
        """The sum of what the stages chose; see `BaseQuantizer`."""
        pairs = zip(self.stages, quantized.members, strict=True)
        return sum((stage.chosen_vectors(made) for stage, made in pairs), start=torch.zeros_like(quantized.vectors))

    def prefix_vectors(self, quantized: Quantized, levels: int) -> Tensor:
        """The sum of the first stages; see `BaseQuantizer`."""
        if self.estimator is not None:  # it stands over the sum, whose gradient the first stages share
            indices = quantized.indices
            later = self.lookup(indices) - self.lookup(indices[..., :levels])
            return quantized.vectors - later.detach()
        pairs = zip(self.first_members(levels), quantized.members, strict=False)
        parts = [member.prefix_vectors(made, count) for (member, count), made in pairs]
        return torch.stack(parts).sum(0)

    def check_first_levels(self, levels: int) -> None:
        """See `BaseQuantizer`."""
        check_summed_levels(self, levels)

    @torch.no_grad()
    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Initialize the stages in sequence, each on what the stages before it leave over. See `BaseQuantizer`.

        Args:
            latents: tensors in the layout of `forward`.
            samples: vectors over all ranks; None means 64 per code, within 65,536 and 262,144, and at least 4 per code.
            seed: stage i uses seed + i.
        """
        rows, batch = collect_vectors(self, latents, enough_samples(self.codebook_size, samples))
        samples = max(len(rows), 1) * distributed.world_size()  # of this rank all; it may have none
        with MemberWarnings("stage") as warned, autocast_disabled(rows.device):
            for number, stage in enumerate(self.stages):
                with warned.by(number):
                    stage.initialize(rows.split(batch), samples=samples, seed=seed + number)
                rows = torch.cat([chunk - stage.lookup(stage.encode(chunk)) for chunk in rows.split(batch)])

    def extra_repr(self) -> str:
        """Chain and layout, and how `encode` searches the stages."""
        encode = "stage by stage" if self._metric_of_all_stages is None else "all stages in one call"
        return f"num_stages={len(self.stages)}, {super().extra_repr()}, encode={encode!r}"
