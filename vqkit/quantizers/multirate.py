"""Residual quantization at several frame rates: coarse levels have an index for several frames."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from vqkit.parts.estimators import Estimator, StraightThrough
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.composite import build_members, check_sum, shares_of, used
from vqkit.quantizers.initialization import MemberWarnings, collect_maps, enough_samples
from vqkit.quantizers.output import Quantized
from vqkit.quantizers.pyramid import where_any
from vqkit.quantizers.reduction import MeanOverMembers, Reduction
from vqkit.quantizers.rows import RowQuantizer
from vqkit.runtime import autocast_disabled, known


class MultiRateQuantizer(RowQuantizer):
    """Residual levels of which each has an index for so many frames: the means of what is left over are quantized.

    For each level, coarse first: the mean over each `stride` frames of what is left over is quantized, repeated for
    these frames, added to the sum, and subtracted from what is left over. `indices` (B, L) holds the levels one after
    another, coarse first: of T frames T / strides[0] of the first level, then T / strides[1] of the second, and so on;
    (B, L, levels) for stages with levels of their own.

        >>> code = functools.partial(Quantizer, "factorized", dim=768, codebook_size=4096, codebook_dim=8)
        >>> snac = {"estimator": None, "reduction": SumOverMembers(), "channel_dim": 1}
        >>> quantizer = MultiRateQuantizer(code, [4, 2, 1], **snac)  # at 24 kHz
        >>> indices = quantizer.encode(latents)  # latents (B, 768, 12)
        >>> indices.shape, [level.shape for level in quantizer.split_levels(indices)]
        (torch.Size([B, 21]), [torch.Size([B, 3]), torch.Size([B, 6]), torch.Size([B, 12])])

    - By level: `split_levels(indices)`, and back `join_levels(levels)`.
    - In the order of time: `interleave(indices)`, (B, steps, ...), and back `deinterleave`. A step is the fewest frames
      that all strides divide, and holds its coarse index first. What several blocks or a stream give is joined there.
    - Coarse levels alone: `decode(prefix(indices, 2))`. A part of the row would be the indices of fewer frames.

    T has to be a multiple of all strides. `AudioTokenizer` fills sound up to it, as SNAC does.

    A level's index counts where any of its frames does, and stands for the mean of those. Frames that no index of the
    finest level with any touches decode to 0.

    Args:
        stage: builds one level, and is called for each stride so that no two share a codebook; or a list of one factory
            for each.
        strides: frames for each index of a level, coarse first, at least 1.
        estimator: over the sum, which detaches what is subtracted; None where each level keeps its own and nothing is
            detached, as in SNAC. See `ResidualQuantizer`.
        dropout: probability, per sample and training step, that only the first n levels are used, n uniform in 1 ...
            their number. Dropped levels have index -1, no loss and no statistics.
        reduction: how the losses of the levels, each a mean over its own indices, make one: `SumOverMembers()` for DAC,
            whose training SNAC follows.
        channel_dim: of (B, T, dim), or 1 for (B, dim, T); the stages themselves have -1.
        seed: of the dropout.

    Attributes:
        positions_per_step: frames of a step, the least common multiple of the strides.

    Source: Siuzdak et al. 2024 (SNAC, arXiv:2410.14411), sec. 3, and its released code, whose levels are `factorized`
    ones with `estimator=None`.
    Differs: masks, dropout and estimators over the sum, which it has not.

    Raises:
        IncompatibleParts: see `ResidualQuantizer`.
        ValueError: an argument is out of its range, or stages differ in `dim`, in their number of levels, or share
            state.
    """

    positions_per_step: int

    def __init__(
        self,
        stage: Sequence[Callable[[], BaseQuantizer]] | Callable[[], BaseQuantizer],
        strides: Sequence[int],
        *,
        estimator: Estimator | None = StraightThrough(),  # noqa: B008 - stateless
        dropout: float = 0.0,
        reduction: Reduction = MeanOverMembers(),  # noqa: B008 - stateless
        channel_dim: int = -1,
        seed: int = 0,
    ) -> None:
        if not strides or min(strides) < 1 or list(strides) != sorted(strides, reverse=True):
            raise ValueError(f"strides={list(strides)}: expected frames for each index, at least 1, coarse first")
        if not callable(stage) and len(stage) != len(strides):
            raise ValueError(f"stage lists {len(stage)} factories: expected one for each of strides={list(strides)}")
        count = len(strides) if callable(stage) else None
        stages = build_members(stage, count, kind="stage", owner="MultiRateQuantizer")
        check_sum(stages, estimator)
        super().__init__(stages, dropout=dropout, reduction=reduction, channel_dim=channel_dim, seed=seed)
        self.estimator = estimator
        self.strides = tuple(strides)
        self.positions_per_step = math.lcm(*strides)

    @property
    def cells(self) -> tuple[int, ...]:
        """Indices of each level in a step."""
        return tuple(self.positions_per_step // stride for stride in self.strides)

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Frames for one index of each of `level_sizes`."""
        return tuple(stride for stride in self.strides for _ in range(self.num_codebooks))

    # ------------------------------------------------------------------ the levels

    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        """Quantize level by level; see `BaseQuantizer`."""
        if latents.ndim != 3 or latents.shape[1] % self.positions_per_step:
            raise ValueError(
                f"x holds vectors of shape {tuple(latents.shape[:-1])}: expected (B, T) with a multiple of "
                f"{self.positions_per_step} frames, which strides={list(self.strides)} divide; fill them up and give a "
                "mask, or fill up the sound, as AudioTokenizer does"
            )
        estimator = None if self.passes_through else self.estimator
        step = self.number_forward(latents)
        depths = self.sample_lengths(step, latents.shape[0], len(self.stages))
        total, members = torch.zeros_like(latents), []
        for number, stage in enumerate(self.stages):
            residual, counts = latents, valid if depths is None else used(valid, depths, number)
            if number:  # a level that diverged must not take the finer ones along
                residual = latents - (total if estimator is None else total.detach())
                counts = counts & residual.isfinite().all(-1)
            made = stage.quantize(*self._shrink(number, residual, counts))
            trains_codes = estimator is not None and estimator.trains_codebook
            total = total + self._enlarge(number, stage.chosen_vectors(made) if trains_codes else made.vectors)
            members.append(made if estimator is None else stage.without_vectors(made))
        if estimator is not None:
            total = self.estimate_sum(estimator, latents, total, valid, step)
        return Quantized(
            vectors=total if known(valid.all, valid.device) else torch.where(valid.unsqueeze(-1), total, 0),
            indices=self.join_levels([made.indices for made in members]),
            valid=valid,
            members=members,
            source=self,
        )

    def given(self, quantized: Quantized) -> list[Tensor]:
        """As if a level that quantizes all its means were given all frames; see `CompositeQuantizer`."""
        wholes = [self._by_stride(number, quantized.valid).any(2).sum() for number in range(len(self.stages))]
        return shares_of(quantized, wholes)

    def _shrink(self, number: int, frames: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The means (B, T / stride, dim) over the valid ones of (B, T, dim), and where there are some."""
        if self.strides[number] == 1:
            return frames if known(valid.all, valid.device) else torch.where(valid.unsqueeze(-1), frames, 0), valid
        inside = self._by_stride(number, valid)
        # Divided first: sums may overflow where means do not.
        weights = inside / inside.sum(2, keepdim=True).clamp(min=1).to(frames.dtype)
        parts = self._by_stride(number, torch.where(valid.unsqueeze(-1), frames, 0))
        return (parts * weights.unsqueeze(-1)).sum(2), inside.any(2)

    def _by_stride(self, number: int, frames: Tensor) -> Tensor:
        """(B, T, ...) -> (B, T / stride, stride, ...)."""
        stride = self.strides[number]
        return frames.reshape(frames.shape[0], frames.shape[1] // stride, stride, *frames.shape[2:])

    def _enlarge(self, number: int, cells: Tensor) -> Tensor:
        """Each repeated for its frames: (B, T / stride, ...) -> (B, T, ...)."""
        stride = self.strides[number]
        shape = cells.shape[0], cells.shape[1], stride, *cells.shape[2:]
        return cells if stride == 1 else cells.unsqueeze(2).expand(shape).flatten(1, 2)

    # ------------------------------------------------------------------ indices

    def lookup(self, indices: Tensor) -> Tensor:
        """The sum of the levels: (B, L[, levels]) int64 -> (B, T, dim)."""
        parts = self.split_levels(indices)
        total, covered = None, None
        for number, (stage, part) in enumerate(zip(self.stages, parts, strict=True)):
            vectors = self._enlarge(number, stage.lookup(part))
            total = vectors if total is None else total + vectors
            some = self.has_index(part)
            touched = self._enlarge(number, some)
            covered = touched if covered is None else where_any(some, touched, covered)
        assert total is not None and covered is not None  # there is a first level
        return torch.where(covered.unsqueeze(-1), total, 0)

    def chosen_vectors(self, quantized: Quantized) -> Tensor:
        """The sum of what the levels chose; see `BaseQuantizer`."""
        total = torch.zeros_like(quantized.vectors)
        for number, (stage, made) in enumerate(zip(self.stages, quantized.members, strict=True)):
            total = total + self._enlarge(number, stage.chosen_vectors(made))
        return torch.where(quantized.valid.unsqueeze(-1), total, 0)

    def split_levels(self, indices: Tensor) -> list[Tensor]:
        """Of each level its indices: (B, L[, levels]) -> (B, T / stride[, levels]), coarse first.

        Raises:
            ValueError: `indices` are not those of whole steps.
        """
        width = sum(self.cells)
        if indices.ndim != 2 + self.level_axis or indices.shape[1] % width:
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}: expected (B, L{', levels' * self.level_axis}), L a "
                f"multiple of {width}, the indices of {self.positions_per_step} frames; `prefix` cuts levels off"
            )
        steps = indices.shape[1] // width
        return list(indices.split([steps * count for count in self.cells], dim=1))

    def join_levels(self, indices: Iterable[Tensor], shape: Sequence[int] = ()) -> Tensor:
        """What `split_levels` gave, in a row again: (B, T / stride[, levels]) of each level -> (B, L[, levels])."""
        return torch.cat(list(indices), dim=1)

    def interleave(self, indices: Tensor) -> Tensor:
        """In the order of time: (B, L[, levels]) -> (B, steps, n[, levels]), the n indices of a step coarse first."""
        parts = self.split_levels(indices)
        pairs = zip(parts, self.cells, strict=True)
        rows = [part.reshape(part.shape[0], part.shape[1] // count, count, *part.shape[2:]) for part, count in pairs]
        return torch.cat(rows, dim=2)

    def deinterleave(self, rows: Tensor) -> Tensor:
        """What `interleave` was given: (B, steps, n[, levels]) -> (B, L[, levels])."""
        return self.join_levels([part.flatten(1, 2) for part in rows.split(list(self.cells), dim=2)])

    # ------------------------------------------------------------------ before training

    @torch.no_grad()
    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Initialize the levels in sequence, each on what coarser ones leave over, level i with seed + i; by default on
        `enough_samples` frames, of which the coarsest level has at least 4 means per code. See `BaseQuantizer`.
        """
        least = 4 * self.codebook_size * self.strides[0] if samples is None else 0
        batches = collect_maps(self, latents, max(enough_samples(self.codebook_size, samples), least))
        totals = [torch.zeros_like(frames) for frames, _ in batches]
        with MemberWarnings("stage") as warned, autocast_disabled(self.latent_spread.device):
            for number, stage in enumerate(self.stages):
                pairs = zip(batches, totals, strict=True)
                cells = [self._shrink(number, frames - total, valid) for (frames, valid), total in pairs]
                with warned.by(number):
                    self.initialize_stage(stage, [means[some] for means, some in cells], seed + number)
                for total, (means, some) in zip(totals, cells, strict=True):
                    total += self._enlarge(number, stage.lookup(stage.assign(means, some)))

    def extra_repr(self) -> str:
        """Rates and layout."""
        return f"strides={list(self.strides)}, level_sizes={self.level_sizes}, {super().extra_repr()}"
