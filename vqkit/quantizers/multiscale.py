"""Multi-scale residual quantization: each scale quantizes, on a grid of its own, what coarser ones leave over."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor, nn

from vqkit.parts.compatibility import check_scales, check_stages
from vqkit.parts.estimators import Estimator, StraightThrough, straight_through
from vqkit.parts.losses import CodebookLoss, Commitment, Loss
from vqkit.parts.selection import Selection
from vqkit.quantizers.base import WATCHED_STEP, WATCHED_VECTORS, BaseQuantizer, VectorQuantizer
from vqkit.quantizers.binary import BinaryQuantizer
from vqkit.quantizers.composite import build_members, shares_of, used
from vqkit.quantizers.flips import BitFlips
from vqkit.quantizers.initialization import MemberWarnings, collect_maps, enough_samples
from vqkit.quantizers.output import Quantized
from vqkit.quantizers.phi import PhiConvolutions, scale_map
from vqkit.quantizers.pyramid import Pyramid, any_of_each
from vqkit.quantizers.quantizer import Quantizer, spread
from vqkit.quantizers.reduction import MeanOverMembers
from vqkit.quantizers.resizing import AreaResizing, CubicResizing, LinearResizing, Resizing
from vqkit.quantizers.rows import RowQuantizer
from vqkit.runtime import autocast_disabled, known, uncompiled


@dataclass(frozen=True, eq=False)
class QuantizedScales(Quantized):
    """What a multi-scale quantizer made.

    Attributes:
        compared: for each scale the latents and the sum of all codes up to it, at full size, as a selection.
    """

    compared: Sequence[Selection] = field(default_factory=list)


class MultiScaleQuantizer(RowQuantizer):
    """A map as a sum of maps that grow from one vector to full size: each is quantized on its own small grid.

    For each scale, coarse first: the mean of what is left over in each cell of its grid is quantized, enlarged to full
    size, smoothed by a convolution phi, added to the sum, and subtracted from what is left over. `indices` holds the
    grids one after another, coarse first, each in the order of its axes: (B, L), or (B, L, levels) for a stage with
    levels (`BSQ` of many bits, `GroupedQuantizer`). Whole scales decode from the front: `decode(indices[:, :n])` for n
    in `ends`.

        >>> stage = functools.partial(Quantizer, "vq", dim=32, codebook_size=4096)
        >>> scales = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]
        >>> quantizer = MultiScaleQuantizer(stage, scales, channel_dim=1)  # VAR
        >>> quantizer.encode(latents).shape  # latents (B, 32, 16, 16)
        torch.Size([B, 680])
        >>> bits = functools.partial(BSQ, 32)
        >>> plain = functools.partial(MultiScaleQuantizer, num_phis=0, losses=[], estimator=None, channel_dim=1)
        >>> quantizer = plain(bits, scales, up=LinearResizing(), flips=BitFlips())  # Infinity

    One factory is called once, and all scales share its codebook; a list has a factory for each scale. A shared
    codebook takes the statistics of all scales as one batch, and its policies draw from the vectors of all scales.

    A cell counts where any of its positions does, and holds the mean of those. Positions that no counted cell of the
    finest scale touches decode to 0.

    A sequence (B, T, dim), T a multiple of the last scale, is quantized in blocks of that size, each by itself, and its
    indices stand block after block: `encode(x)[:, L:]` is `encode` of what follows the first block. `prefix(indices,
    n)` has the first n scales of every block. So sound of any length has scales: `AudioTokenizer` fills it up to whole
    blocks, and a stream waits for one.

        >>> bits = functools.partial(BSQ, 14, dim=64)
        >>> sound = {"axes": 1, "up": LinearResizing(), "num_phis": 0, "losses": [], "estimator": None}
        >>> quantizer = MultiScaleQuantizer(bits, [1, 2, 4, 8, 16], channel_dim=1, **sound)
        >>> quantizer.encode(latents).shape  # latents (B, 64, 48)
        torch.Size([B, 93])

    Args:
        stage: builds the quantizer of all scales; or a list of one factory for each.
        scales: size of each grid, coarse first: a number for the same along all axes, or one for each axis. The last is
            the size of the latents, or of a block along one axis; maps of another size are refused.
        axes: of the latents, 1, 2 or 3, where all scales are numbers.
        up: how a grid is enlarged. A grid is made by the mean over a cell.
        num_phis: how many convolutions the scales share; None: 4, or one for each of fewer scales; 0 for none.
        phi_ratio: of the convolution in phi, in (0, 1].
        level_sizes: codes of each scale, the first so many of the shared codebook; None: all.
        losses: penalties of the sum after each scale against the latents, averaged over the scales; None means
            `[Commitment(0.25), CodebookLoss()]`. They replace those of the stages that have the same names; [] leaves
            the stages theirs.
        estimator: over the sum; None where each stage keeps its own and nothing is detached. See `ResidualQuantizer`.
        flips: bits that are turned over in training, of LFQ and BSQ, before finer scales see the sum. `indices` are
            those of the bits as they were.
        dropout: probability, per sample and training step, that only the first n scales are used, n uniform in 1 ...
            their number. Dropped scales have index -1, no loss and no statistics.
        channel_dim: see `BaseQuantizer`; the stages themselves have -1.
        seed: of dropout and flips.

    Attributes:
        grids: size of each scale along each axis.
        ends: number of vectors of all scales up to each; the last is L.
        positions_per_step: positions of a block along one axis; None along more.

    Source: VAR, Tian et al. 2024 (arXiv:2404.02905), algorithms 1 and 2, with the
    scales, four phis and losses of its release; `level_sizes` VCQ (arXiv:2605.06207),
    whose codebook grows along the sequence; bits Infinity, Han et al. 2024
    (arXiv:2412.04431), sec. 3.2 and 3.4.
    Differs: masks; any number of axes, also for `CubicResizing`; blocks of sequences; a codebook that `EMACodebook`
    moves by all scales.
    Phi learns from the codebook loss alone, as published, so that a phi without it is refused.

    Raises:
        IncompatibleParts: parts that cannot work together; those of `ResidualQuantizer`, too.
        ValueError: an argument is out of its range, or stages differ in `dim`, in levels or share state.
    """

    losses: Sequence[Loss]

    def __init__(
        self,
        stage: Sequence[Callable[[], BaseQuantizer]] | Callable[[], BaseQuantizer],
        scales: Sequence[int | Sequence[int]],
        *,
        axes: int = 2,
        up: Resizing = CubicResizing(),  # noqa: B008 - stateless
        num_phis: int | None = None,
        phi_ratio: float = 0.5,
        level_sizes: Sequence[int] | None = None,
        losses: Sequence[Loss] | None = None,
        estimator: Estimator | None = StraightThrough(),  # noqa: B008 - stateless
        flips: BitFlips | None = None,
        dropout: float = 0.0,
        channel_dim: int = -1,
        seed: int = 0,
    ) -> None:
        pyramid = Pyramid(scales, axes, up)
        grids = pyramid.grids
        losses = [Commitment(), CodebookLoss()] if losses is None else losses
        stages = _stages(stage, len(grids))
        mean = MeanOverMembers()  # over the scales
        super().__init__(stages, dropout=dropout, reduction=mean, channel_dim=channel_dim, seed=seed)
        self.pyramid = pyramid
        self.grids, self.ends = grids, pyramid.ends
        self.positions_per_step = grids[-1][0] if len(grids[0]) == 1 else None
        phis = _num_phis(num_phis, phi_ratio, len(grids))
        check_stages(self.dim, [part for one in stages for part in _quantizers(one)], estimator)
        check_scales(losses, estimator, phi=phis > 0)
        _check_flips(flips, stages)
        _leave_out(stages, {loss.name for loss in losses})
        self.prefixes = _prefixes(level_sizes, stages, len(grids))
        self.losses = nn.ModuleList(losses)  # type: ignore[assignment]
        self.estimator = estimator
        self.flips = flips
        self.phi = PhiConvolutions(self.dim, len(grids[0]), scale_map(len(grids), phis), phi_ratio) if phis else None

    @property
    def cells(self) -> tuple[int, ...]:
        """Vectors of each scale."""
        return tuple(map(math.prod, self.grids))

    @property
    def level_books(self) -> tuple[int, ...]:
        """A codebook for all scales, or one for each, times the levels of a stage; see `BaseQuantizer`."""
        return tuple(range(len(self.stages) * self.num_codebooks)) * (len(self.grids) // len(self.stages))

    # ------------------------------------------------------------------ the chain

    def quantize(self, latents: Tensor, valid: Tensor) -> QuantizedScales:
        """Quantize scale by scale; see `BaseQuantizer`."""
        blocks, counts = self._blocks(latents), self._blocks(valid)
        step = self.number_forward(latents)
        depths = self.sample_lengths(step, len(latents), len(self.grids))
        if depths is not None and self.positions_per_step is not None:
            depths = depths.repeat_interleave(latents.shape[1] // self.positions_per_step)
        disturbs = self.stochastic and not self.passes_through
        shared = self.learning and not self.passes_through and len(self.stages) < len(self.grids)
        if shared:
            self._refresh(blocks, counts, depths)
        walked = self._walk(blocks, counts, depths=depths, flips=self.flips if disturbs else None, step=step)
        if shared:
            for quantizer in _codebook_owners(self.stages[0]):
                z, counted = _all_vectors(quantizer, walked)
                some = slice(None, None, WATCHED_STEP if len(z) > WATCHED_VECTORS else 1)
                quantizer.latent_spread.copy_(spread(z[some], counted[some]))
        total, estimator = self._joined(walked[-1].total, latents), None if self.passes_through else self.estimator
        if estimator is not None:
            total = self.estimate_sum(estimator, latents, total, valid, step)
        penalized = list(self.losses) and not self.passes_through
        return QuantizedScales(
            vectors=total if known(valid.all, valid.device) else torch.where(valid.unsqueeze(-1), total, 0),
            indices=self._row(walked, latents),
            valid=valid,
            members=[scale.made for scale in walked],
            source=self,
            compared=[_against(blocks, scale) for scale in walked] if penalized else [],
        )

    def assign(self, latents: Tensor, valid: Tensor) -> Tensor:
        """Without what only a loss needs; see `BaseQuantizer`."""
        return self._row(self._walk(self._blocks(latents), self._blocks(valid)), latents)

    def _walk(
        self,
        latents: Tensor,
        valid: Tensor,
        *,
        depths: Tensor | None = None,
        flips: BitFlips | None = None,
        step: int | Tensor = 0,
    ) -> list["_Scale"]:
        """What each scale makes of what those before it leave over.

        Args:
            latents: (B, *S, dim), of the last grid's size.
            valid: (B, *S) bool.
            depths: (B,) how many scales each uses; None: all.
            flips: that disturb the sum.
            step: of their draws.
        """
        own = self.estimator is None or self.passes_through  # each stage passes on what its estimator makes
        walked: list[_Scale] = []
        total = codes = torch.zeros_like(latents)
        for number, stage in enumerate(self.calls):
            residual = latents - (total if own else total.detach())
            counts = valid if depths is None else used(valid, depths, number)
            if number:  # a stage that diverged must not take the later ones along
                counts = counts & residual.isfinite().all(-1)
            made = self._choose(number, *self.pyramid.shrink(number, residual, counts))
            chosen = made.vectors if self.passes_through else stage.chosen_vectors(made)
            vectors, made = (made.vectors, made) if own else (chosen, stage.without_vectors(made))
            if flips is not None and (flips.num_scales is None or number < flips.num_scales):
                assert isinstance(stage, BinaryQuantizer)  # or they were refused
                draw = step * len(self.grids) + number
                chosen = stage.lookup(flips(stage, made.indices, draw=draw, seed=self.seed))
                vectors = straight_through(chosen, vectors)
            total = total + self._enlarge(number, vectors, made.valid)
            separate = own and self.losses and torch.is_grad_enabled()
            codes = codes + self._enlarge(number, chosen, made.valid) if separate else total
            walked.append(_Scale(made, total, codes, counts))
        return walked

    def _blocks(self, maps: Tensor) -> Tensor:
        """Maps of the last grid's size: (B, *S, ...) as they are, or of sequences (B, T, ...) all blocks.

        Raises:
            ValueError: they have another size.
        """
        size, full = self.positions_per_step, self.grids[-1]
        if size is None and maps.shape[1 : 1 + len(full)] == full:
            return maps
        if size is None or maps.ndim < 2 or maps.shape[1] % size:
            expected = f"{full}, the last of scales" if size is None else f"a multiple of ({size},), the last of scales"
            raise ValueError(
                f"x is a map of {tuple(maps.shape[1:-1])} vectors: expected {expected}; build another "
                "MultiScaleQuantizer for maps of another size, or resize the input"
            )
        return maps.reshape(maps.shape[0] * (maps.shape[1] // size), size, *maps.shape[2:])

    def _joined(self, blocks: Tensor, like: Tensor) -> Tensor:
        """What stands for each block, in a row again: (blocks, n, ...) -> (B, m, ...); `like` (B, *S, ...)."""
        if self.positions_per_step is None:
            return blocks
        return blocks.unflatten(0, (like.shape[0], like.shape[1] // self.positions_per_step)).flatten(1, 2)

    def _row(self, walked: Sequence["_Scale"], like: Tensor) -> Tensor:
        """The indices (B, L[, levels]) of all scales; `like` as for `_joined`."""
        return self._joined(self.pyramid.join([scale.made.indices for scale in walked]), like)

    @uncompiled  # Python numbers, on which a compiler would specialise anew at every step
    @torch.no_grad()
    def _refresh(self, latents: Tensor, valid: Tensor, depths: Tensor | None) -> None:
        """Let the policies of a shared codebook draw from the vectors of all scales, before the first one is searched:
        where some are due, these vectors are found with the codes as they are.
        """
        quantizers = _codebook_owners(self.stages[0])
        for quantizer in quantizers:
            if quantizer.auto_step:
                quantizer.step()
        if any(map(_is_due, quantizers)):
            walked = self._walk(latents, valid, depths=depths)
            for quantizer in quantizers:
                quantizer.refresh(*_all_vectors(quantizer, walked))

    def _choose(self, number: int, cells: Tensor, counted: Tensor) -> Quantized:
        """What the stage of a scale makes of (B, *grid, dim), of which those (B, *grid) are counted."""
        stage = self.calls[number]
        if self.stochastic:
            for quantizer in _codebook_owners(stage):
                quantizer.call_number = number
        if self.prefixes is not None:
            assert isinstance(stage, Quantizer)  # or they were refused
            stage.prefix = self.prefixes[number]
        return stage.quantize(cells, counted)

    def _enlarge(self, number: int, cells: Tensor, counted: Tensor) -> Tensor:
        """What a scale adds to the sum: (B, *grid, dim), of which those (B, *grid) count, to (B, *S, dim)."""
        maps = self.pyramid.enlarge(number, cells)
        if self.phi is None or self.passes_through:
            return maps
        maps = self.phi(number, maps)
        if known(counted.all, counted.device):
            return maps
        return torch.where(any_of_each(counted, maps), maps, 0)  # phi has a bias

    # ------------------------------------------------------------------ losses

    def given(self, quantized: Quantized) -> list[Tensor]:
        """As if a scale that quantizes all its cells were given all positions; see `CompositeQuantizer`."""
        valid = self._blocks(quantized.valid)
        flags = valid.unsqueeze(-1).to(self.dtype)
        wholes = [self.pyramid.shrink(number, flags, valid)[1].sum() for number in range(len(self.grids))]
        return shares_of(quantized, wholes)

    def penalize(self, quantized: Quantized) -> tuple[Tensor, dict[str, Tensor]]:
        """The stages' losses and those of the sums, averaged over the scales; see `BaseQuantizer`."""
        assert isinstance(quantized, QuantizedScales)
        total, losses = super().penalize(quantized)
        positions = quantized.valid.sum().clamp(min=1).to(total)
        for penalty in self.losses if quantized.compared else ():
            parts = [penalty(sums, sums.selected) * (sums.valid.sum() / positions) for sums in quantized.compared]
            losses[penalty.name] = torch.stack(parts).mean()
            total = total + penalty.weight * losses[penalty.name]
        if self.passes_through and self.phi is not None:
            total = total + sum(0 * parameter.flatten()[:1].sum() for parameter in self.phi.parameters())
        return total, losses

    def strip_training(self) -> None:
        """No losses and no flips; stages pass gradients straight through, and with them phi; see `BaseQuantizer`."""
        shared = len(self.stages) < len(self.grids)
        super().strip_training()
        stage = self.recorded_arguments()["stage"]
        self.losses, self.estimator, self.flips = nn.ModuleList(), None, None  # type: ignore[assignment]
        self.record(stage=stage[0] if shared else stage, estimator=None, losses=[], flips=None)

    # ------------------------------------------------------------------ indices

    def lookup(self, indices: Tensor) -> Tensor:
        """The sum of whole scales from the front, or of whole blocks: (B, n[, levels]) int64 -> (B, *S, dim)."""
        parts = self._parts(indices)
        counted = [self.has_index(part) for part in parts]
        covered = self.pyramid.cover(counted, self.dtype)
        vectors = torch.where(covered.unsqueeze(-1), self._sums(parts, counted)[-1], 0)
        return self._in_order(vectors, indices)

    def _sums(self, parts: Sequence[Tensor], counted: Sequence[Tensor]) -> list[Tensor]:
        """The sum (B, *S, dim) after each scale."""
        triples = zip(self.calls, parts, counted, strict=False)
        added = [self._enlarge(number, one.lookup(part), some) for number, (one, part, some) in enumerate(triples)]
        return list(accumulate(added))

    def _parts(self, indices: Tensor) -> list[Tensor]:
        """Of each scale (B, *grid[, levels]), of sequences of all blocks; of the first scales where there is no more.

        Raises:
            ValueError: `indices` are neither whole scales from the front nor whole blocks.
        """
        whole, blocks = self.ends[-1], self.positions_per_step is not None
        if indices.ndim == 2 + self.level_axis:
            if indices.shape[1] in self.ends:
                return self.pyramid.split(indices)
            if blocks and indices.shape[1] % whole == 0:
                rows = indices.shape[0] * (indices.shape[1] // whole)
                return self.pyramid.split(indices.reshape(rows, whole, *indices.shape[2:]))
        raise ValueError(
            f"indices has shape {tuple(indices.shape)}: expected (B, n{', levels' * self.level_axis}) of whole scales, "
            f"coarse first, n one of {', '.join(map(str, self.ends))}" + f", or a multiple of {whole}" * blocks
        )

    def _in_order(self, rows: Tensor, indices: Tensor) -> Tensor:
        """What stands for each block of these indices, in a row: see `_joined`."""
        if self.positions_per_step is None or indices.shape[1] in self.ends:
            return rows
        return rows.unflatten(0, (indices.shape[0], indices.shape[1] // self.ends[-1])).flatten(1, 2)

    def split_levels(self, indices: Tensor) -> list[Tensor]:
        """Of each scale its indices: (B, n[, levels]) -> (B, *grid[, levels]), of sequences (B, blocks * grid); of the
        first scales where `indices` holds no more.

        Raises:
            ValueError: `indices` are neither whole scales from the front nor whole blocks.
        """
        return [self._in_order(part, indices) for part in self._parts(indices)]

    def join_levels(self, indices: Iterable[Tensor], shape: Sequence[int] = ()) -> Tensor:
        """What `split_levels` gave, in a row again: (B, *grid, ...) of each scale -> (B, n, ...)."""
        parts = list(indices)
        if self.positions_per_step is None:
            return self.pyramid.join(parts)
        blocks = parts[0].shape[1] // self.cells[0]
        rows = [part.unflatten(1, (blocks, cells)) for part, cells in zip(parts, self.cells, strict=False)]
        return torch.cat(rows, dim=2).flatten(1, 2)

    def interleave(self, indices: Tensor) -> Tensor:
        """In the order of time: (B, L[, levels]) -> (B, blocks, n[, levels]); maps as they are.

        Raises:
            ValueError: `indices` of a sequence are no whole blocks.
        """
        if self.positions_per_step is None:
            return indices
        if indices.ndim != 2 + self.level_axis or indices.shape[1] % self.ends[-1]:
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}: expected (B, L{', levels' * self.level_axis}), L a "
                f"multiple of {self.ends[-1]}, those of a block; `prefix` cuts scales off"
            )
        return indices.unflatten(1, (indices.shape[1] // self.ends[-1], self.ends[-1]))

    def deinterleave(self, rows: Tensor) -> Tensor:
        """What `interleave` was given."""
        return rows if self.positions_per_step is None else rows.flatten(1, 2)

    @property
    def decoding(self) -> str:
        """See `Quantizer`."""
        said = f"up={self.pyramid.up} phi_ratio={self.phi and self.phi.ratio}"
        # Two blocks of 1 and 2 cells have as many indices of each scale as one of 2 and 4.
        return said if self.positions_per_step is None else f"{said} scales={self.cells}"

    def level_tables(self) -> list[Tensor | None]:
        """Those of the stage of each scale; see `BaseQuantizer`."""
        tables = [table for stage in self.calls for table in stage.level_tables()]
        return [None if table is None else table[:size] for table, size in zip(tables, self.level_sizes, strict=True)]

    # ------------------------------------------------------------------ for the generator

    @torch.no_grad()
    def next_scale_inputs(self, indices: Tensor, *, resizing: Resizing = AreaResizing()) -> Tensor:  # noqa: B008
        """What a generator of the next scale reads: the sum of the scales before, at the size of that scale.

        Args:
            indices: (B, n[, levels]), whole scales from the front: all of them in training, those that there are while
                a generator samples, which reads the last of the result. Or whole blocks of sequences.
            resizing: how the sum is resized; `LinearResizing` is Infinity's.

        Returns:
            (B, m, dim): for the second scale to that after the last given, where there is one, their vectors one after
            another, in the order of `indices`; of each block, where there are several.

        Source: VAR, Tian et al. 2024 (arXiv:2404.02905), sec. 3.2.

        Raises:
            ValueError: `indices` is not so.
        """
        self.check_codes(indices)
        with autocast_disabled(indices.device):
            parts = self._parts(indices.long())
            sums = self._sums(parts, [self.has_index(part) for part in parts])
            return self._in_order(self.pyramid.resize_sums(sums, resizing), indices)

    @torch.no_grad()
    def self_corrected(
        self,
        x: Tensor,
        flips: BitFlips,
        *,
        step: int,
        mask: Tensor | None = None,
        resizing: Resizing = LinearResizing(),  # noqa: B008 - stateless
    ) -> tuple[Tensor, Tensor]:
        """What a generator of bits is trained with: inputs that hold mistakes, and the codes that mend them.

        The bits of each scale are turned over at random before they are summed, and the next scale quantizes what
        *this* sum leaves over.

        Args:
            x: as for `forward`.
            flips: how often bits are turned over.
            step: of the training; each draws anew.
            mask: as for `forward`.
            resizing: as for `next_scale_inputs`.

        Returns:
            indices (B, L[, levels]), and what `next_scale_inputs` would give for the disturbed ones, (B, m, dim).

        Source: Infinity, Han et al. 2024 (arXiv:2412.04431), algorithm 2.

        Raises:
            ValueError: `x` or `mask` is not so, or the stages have no bits.
        """
        _check_flips(flips, self.calls)
        latents, valid, _ = self.open(x, mask)
        with autocast_disabled(x.device):
            walked = self._walk(self._blocks(latents), self._blocks(valid), flips=flips, step=step)
            inputs = self.pyramid.resize_sums([scale.total for scale in walked], resizing)
            return self._row(walked, latents), self._joined(inputs, latents)

    # ------------------------------------------------------------------ before training

    @torch.no_grad()
    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Initialize each stage on what those before it leave over, that of scale s with seed + s; a shared one on the
        vectors of all scales, as they would be if coarser scales were exact. By default on `enough_samples` vectors of
        full size. See `BaseQuantizer`.
        """
        batches = [
            (self._blocks(maps), self._blocks(valid))
            for maps, valid in collect_maps(self, latents, enough_samples(self.codebook_size, samples))
        ]
        shared = len(self.stages) < len(self.grids)
        totals = [torch.zeros_like(maps) for maps, _ in batches]
        pooled: list[list[Tensor]] = [[] for _ in batches]
        with MemberWarnings("scale") as warned, autocast_disabled(self.latent_spread.device):
            for number, stage in enumerate(self.calls):
                pairs = zip(batches, totals, strict=True)
                cells = [self.pyramid.shrink(number, maps - total, valid) for (maps, valid), total in pairs]
                if not shared:
                    with warned.by(number):
                        self.initialize_stage(stage, [vectors[counted] for vectors, counted in cells], seed + number)
                for rows, total, (vectors, counted) in zip(pooled, totals, cells, strict=True):
                    if shared:
                        rows.append(torch.cat([vectors, counted.unsqueeze(-1).to(vectors)], -1).flatten(1, -2))
                    else:
                        vectors = stage.lookup(stage.assign(vectors, counted))
                    total += self._enlarge(number, vectors, counted)
            if shared:  # a sample after another, so that ranks together hold what one process would
                joined = [torch.cat(rows, 1).flatten(0, 1) for rows in pooled]
                self.initialize_stage(self.stages[0], [rows[rows[:, -1] > 0, :-1] for rows in joined], seed)

    def extra_repr(self) -> str:
        """Scales and layout."""
        scales = [grid[0] if len(set(grid)) == 1 else grid for grid in self.grids]
        return (
            f"scales={scales}, up={self.pyramid.up}, level_sizes={self.prefixes}, dropout={self.dropout}, "
            f"dim={self.dim}, channel_dim={self.channel_dim}"
        )


@dataclass(frozen=True, eq=False)
class _Scale:
    """What a scale made; the sum up to it as it is passed on, and as the codes alone give it (B, *S, dim); which
    positions (B, *S) use it.
    """

    made: Quantized
    total: Tensor
    codes: Tensor
    used: Tensor


def _codebook_owners(stage: BaseQuantizer) -> list[Quantizer]:
    return [part for part in stage.modules() if isinstance(part, Quantizer)]


def _is_due(quantizer: Quantizer) -> bool:
    """Whether a policy acts when the quantizer is refreshed next."""
    codebook = quantizer.codebook
    fresh = codebook.refreshed_at < codebook.steps
    return fresh and any(codebook.steps % policy.every == 0 for policy in quantizer.maintenance)


def _all_vectors(quantizer: Quantizer, walked: Sequence[_Scale]) -> tuple[Tensor, Tensor]:
    """What a shared quantizer was given at all scales, (N, D) in its code space, and what of it counts (N,): one sample
    after another, so that ranks together hold what one process would.
    """
    z, counted = [], []
    for scale in walked:
        shape = len(scale.used), scale.made.valid.shape[1:].numel()
        for leaf in scale.made.leaves():
            if leaf.source is quantizer and leaf.selection is not None:
                z.append(leaf.selection.z.detach().view(*shape, quantizer.codebook_dim))
                counted.append(leaf.selection.valid.view(shape))
    return torch.cat(z, 1).flatten(0, 1), torch.cat(counted, 1).flatten()


def _against(latents: Tensor, scale: _Scale) -> Selection:
    """The latents beside the sum up to a scale."""
    rows, used = latents.flatten(0, -2), scale.used.flatten()
    return Selection(
        latents=rows, z=rows, codes=None, indices=used.long() - 1, selected=scale.codes.flatten(0, -2), valid=used
    )


def _stages(
    stage: Sequence[Callable[[], BaseQuantizer]] | Callable[[], BaseQuantizer], scales: int
) -> list[BaseQuantizer]:
    if not callable(stage) and len(stage) != scales:
        raise ValueError(
            f"stage lists {len(stage)} factories: expected one for each of {scales} scales, or one for all"
        )
    return build_members(stage, 1 if callable(stage) else None, kind="stage", owner="MultiScaleQuantizer")


def _quantizers(stage: BaseQuantizer) -> list[BaseQuantizer]:
    return [part for part in stage.modules() if isinstance(part, BaseQuantizer)]


def _num_phis(num_phis: int | None, ratio: float, scales: int) -> int:
    phis = min(4, scales) if num_phis is None else num_phis
    if not 0 <= phis <= scales:
        raise ValueError(f"num_phis={num_phis}: expected 0 ... {scales}, at most one for each scale, or None")
    if not 0 < ratio <= 1:
        raise ValueError(f"phi_ratio={ratio}: expected a number above 0 and at most 1, 0.5 in VAR; num_phis=0 for none")
    return phis


def _prefixes(sizes: Sequence[int] | None, stages: Sequence[BaseQuantizer], scales: int) -> tuple[int, ...] | None:
    if sizes is None:
        return None
    one = len(stages) < scales and len(sizes) == scales and isinstance(stages[0], Quantizer)
    if one and min(sizes) >= 1 and max(sizes) == stages[0].codebook_size:
        return tuple(sizes)
    raise ValueError(
        f"level_sizes={list(sizes)}: expected for each of {scales} scales how many codes it has of one Quantizer's "
        f"codebook, the largest of them all {stages[0].codebook_size}; give scales with codebooks of their own a list "
        "of stages"
    )


def _check_flips(flips: BitFlips | None, stages: Sequence[BaseQuantizer]) -> None:
    others = [type(stage).__name__ for stage in stages if not isinstance(stage, BinaryQuantizer)]
    if flips is not None and others:
        raise ValueError(
            f"flips={flips}: {others[0]} has no bits to turn over: use LFQ or BSQ as stage, or leave it out"
        )


def _leave_out(stages: Sequence[BaseQuantizer], names: set[str]) -> None:
    """Take losses of these names from the stages, since the sums have their own."""
    for stage in stages:
        for part in _quantizers(stage):
            if isinstance(part, VectorQuantizer):
                part.losses = nn.ModuleList(loss for loss in part.losses if loss.name not in names)  # type: ignore[assignment]
