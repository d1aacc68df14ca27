"""Residual quantization: each stage quantizes what the stages before it left over."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.kernels import Metric, residual_nearest
from vqkit.parts.compatibility import check_stages
from vqkit.parts.estimators import Estimator, StraightThrough
from vqkit.parts.selection import Noise, Selection
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.composite import build_members, joined_sizes, member_health, summed_losses
from vqkit.runtime import uncompiled


class ResidualQuantizer(BaseQuantizer):
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
    statistics of each need what it was given. (Where codes are so long that what is left over has a squared length
    beyond float32, `forward` leaves that vector out of the later stages and `encode` does not.)

    Any prefix of the stages decodes: `decode(indices[..., :2])`. Stages are meant to store codebooks: a fixed grid
    (FSQ) is the same at every stage, and too coarse for what the first one leaves over.

    Args:
        stage: builds one stage, and is called `num_stages` times so that no two share a codebook; or a list of one
            factory for each stage, which may differ in method and codebook size.
        num_stages: at least 1; None with a list.
        estimator: see above.
        dropout: probability, per sample and training step, that only the first n stages are used, n uniform in 1 ...
            num_stages. Dropped stages have index -1, no loss and no statistics.
        channel_dim: see `BaseQuantizer`; the stages themselves have -1.
        seed: of the dropout.

    Source: Zeghidour et al. 2021 (SoundStream, arXiv 2107.03312), algorithm 1 and sec. III-C; gradient of the first
    form as in AudioCraft, of the second as in Kumar et al. 2023 (DAC, arXiv 2306.06546).
    Differs: dropout is drawn for each sample (DAC draws it for a fixed share of the batch, hence never at batch size
    1). Losses are averaged over the stages that were used.

    Raises:
        IncompatibleParts: stages that leave over something else in training than they will later (`NSVQ` of their own,
            cascaded codebooks), or that the estimator over the sum would cut off.
        ValueError: an argument is out of its range, or stages differ in `dim` or share state.
    """

    level_axis = True

    def __init__(
        self,
        stage: Callable[[], BaseQuantizer] | Sequence[Callable[[], BaseQuantizer]],
        num_stages: int | None = None,
        *,
        estimator: Estimator | None = StraightThrough(),  # noqa: B008 - stateless
        dropout: float = 0.0,
        channel_dim: int = -1,
        seed: int = 0,
    ) -> None:
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout={dropout}: expected a probability in [0, 1]")
        stages = build_members(stage, num_stages, kind="stage", owner="ResidualQuantizer")
        super().__init__(stages[0].dim, channel_dim=channel_dim)
        _check_stages(stages, estimator)
        self.stages = nn.ModuleList(stages)
        self.estimator = estimator
        self.dropout = dropout
        self.seed = seed
        self.draws = 0
        self.num_codebooks = len(joined_sizes(stages))
        self.codebook_size = max(joined_sizes(stages))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The size of each codebook, coarse first."""
        return joined_sizes(self._stages)

    def _forward(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        total = torch.zeros_like(latents)
        indices, losses, weighted, used = [], [], [], []
        if self.stochastic:
            self._count_draw()
        active = self._draw_depths(latents) if self.dropout and self.stochastic else None
        trains_codes = self.estimator is not None and self.estimator.trains_codebook
        for number, stage in enumerate(self._stages):
            stage_valid = valid if active is None else valid & (active > number)
            residual = latents - (total if self.estimator is None else total.detach())
            output = stage(residual, stage_valid)
            total = total + (stage.lookup(output.indices) if trains_codes else output.quantized)
            indices.append(output.indices.reshape(*valid.shape, stage.num_codebooks))
            losses.append(output.losses)
            weighted.append(output.loss)
            used.append(stage_valid.any())
        stages_used = torch.stack(used).sum().clamp(min=1)
        mean_losses = {name: loss / stages_used for name, loss in summed_losses(losses).items()}
        quantized = total if self.estimator is None else self._estimate(self.estimator, latents, total, valid)
        return quantized, torch.cat(indices, dim=-1), sum(weighted) / stages_used, mean_losses

    def _encode(self, latents: Tensor, valid: Tensor) -> Tensor:
        metric = self._metric_of_all_stages
        if metric is None:
            return super()._encode(latents, valid)
        codebooks = [stage.nearest_codes() for stage in self._stages]
        indices = residual_nearest(latents, codebooks, metric=metric).indices
        return torch.where(valid.unsqueeze(-1), indices, -1)

    def _bottleneck(self, latents: Tensor) -> Tensor:
        total = torch.zeros_like(latents)
        for stage in self._stages:
            total = total + stage.bottleneck(latents - total)
        return total

    @property
    def _metric_of_all_stages(self) -> Metric | None:
        """The metric, if encoding is one residual search; None where a stage does more than that."""
        metrics = {stage.nearest_metric for stage in self._stages}
        return metrics.pop() if len(metrics) == 1 else None

    def lookup(self, indices: Tensor) -> Tensor:
        """Sum of the stages' vectors: (..., levels) int64 -> (..., dim), for any prefix of the levels."""
        total = torch.zeros(*indices.shape[:-1], self.dim, dtype=self.dtype, device=indices.device)
        first = 0
        for stage in self._stages:
            levels = indices[..., first : first + stage.num_codebooks]
            if not levels.shape[-1]:
                break
            total = total + stage.lookup(levels if stage.level_axis else levels.squeeze(-1))
            first += stage.num_codebooks
        return total

    @torch.no_grad()
    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Initialize the stages in sequence, each on what the stages before it leave over. See `BaseQuantizer`.

        Args:
            latents: tensors in the layout of `forward`.
            samples: vectors over all ranks; None means 64 per code, within 65,536 and 262,144, and at least 4 per code.
            seed: stage i uses seed + i.
        """
        rows, batch = self._collect(latents, self._enough_samples(samples))
        for number, stage in enumerate(self._stages):
            samples = max(len(rows), 1) * distributed.world_size()  # of this rank all; it may have none
            stage.initialize(rows.split(batch), samples=samples, seed=seed + number)
            rows = torch.cat([chunk - stage.lookup(stage.encode(chunk)) for chunk in rows.split(batch)])

    def step(self) -> None:
        """Fold the statistics of every stage."""
        for stage in self._stages:
            stage.step()

    @uncompiled
    def _count_draw(self) -> None:
        if self.learning:
            self.draws += 1

    @uncompiled
    def _noise(self, estimator: Estimator, count: int) -> Noise | None:
        if not (estimator.uses_noise and self.stochastic):
            return None
        seed, step = (torch.full((), number, device=self.latent_spread.device) for number in (self.seed, self.draws))
        return Noise(seed=seed, step=step, first=distributed.rank() * count, count=count)

    @uncompiled
    def _draw_depths(self, latents: Tensor) -> Tensor:
        """(B, 1, ...) how many stages each sample uses."""
        # The global number of a sample, if all ranks hold as many: then N ranks draw as one process would.
        samples = torch.arange(len(latents), device=latents.device) + distributed.rank() * len(latents)
        chance, depth = (distributed.counter_random(2 * samples + k, seed=self.seed, step=self.draws) for k in (0, 1))
        drawn = 1 + (depth * len(self.stages)).long()
        stages = torch.where(chance < self.dropout, drawn, len(self.stages))
        return stages.reshape(-1, *[1] * (latents.ndim - 2))

    def _estimate(self, estimator: Estimator, latents: Tensor, total: Tensor, valid: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return total
        rows, positions = latents.flatten(0, -2), valid.flatten()
        selection = Selection(
            latents=rows,
            z=rows,
            codes=None,
            indices=positions.long() - 1,
            selected=total.flatten(0, -2),
            valid=positions,
            noise=self._noise(estimator, len(rows)),
        )
        return estimator(selection).reshape(latents.shape)

    @property
    def _stages(self) -> Iterable[BaseQuantizer]:
        return self.stages  # type: ignore[return-value]  # nn.ModuleList forgets its element type

    def _health(self) -> dict[str, float]:
        return super()._health() | member_health(self._stages, "stage")

    def get_extra_state(self) -> Tensor:
        """How many dropout draws were made."""
        return torch.tensor([self.draws], dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the count of draws."""
        self.draws = int(state[0])

    def extra_repr(self) -> str:
        """Chain and layout, and how `encode` searches the stages."""
        encode = "stage by stage" if self._metric_of_all_stages is None else "all stages in one call"
        return (
            f"num_stages={len(self.stages)}, dropout={self.dropout}, dim={self.dim}, channel_dim={self.channel_dim}, "
            f"encode={encode!r}"
        )


def _check_stages(stages: list[BaseQuantizer], estimator: Estimator | None) -> None:
    dims = [stage.dim for stage in stages]
    if len(set(dims)) > 1:
        raise ValueError(f"stage built quantizers of dim {dims}: expected one size, since stages are summed")
    inner = [module for stage in stages for module in stage.modules() if isinstance(module, BaseQuantizer)]
    check_stages(dims[0], inner, estimator)
