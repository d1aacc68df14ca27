"""What every quantizer shares: layouts, masks, non-finite inputs, dtypes, and the one result type."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vqkit import distributed
from vqkit.kernels import Metric
from vqkit.precision import FullPrecisionModule, autocast_disabled
from vqkit.pretrained import Pretrained


@dataclass(frozen=True, eq=False)
class QuantizerOutput:
    """What a quantizer returns.

    Attributes:
        quantized: same shape and dtype as the input; 0 at positions that were left out.
        indices: int64, the input's shape without its channel axis; composites add a last axis of stages, groups or
            levels. -1 marks what was left out: masked positions, non-finite vectors, dropped stages.
        loss: scalar, the weighted sum of `losses`; always part of the graph in training.
        losses: name -> scalar, unweighted, for logging.
        nonfinite: int64 scalar, how many unmasked input vectors held a NaN or an infinity, or were so long that their
            squared length overflows, and were left out.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    losses: dict[str, Tensor]
    nonfinite: Tensor


torch.export.register_dataclass(QuantizerOutput, serialized_type_name="vqkit.QuantizerOutput")


@dataclass(frozen=True, eq=False)
class Noise:
    """Random numbers of one training forward.

    They are a function of a seed, of the number of the forward, and of a vector's number among those of all ranks (if
    these hold as many each). So a resumed run draws on as the first would have, a recomputation under activation
    checkpointing repeats what it recomputes, N ranks draw what one process with the joined batch would, and a part that
    asks again, for all rows or for some, is given the same numbers again.

    Attributes:
        seed: () int64.
        step: () int64.
        first: number of this rank's first vector in the joined batch.
        count: N, how many vectors this rank has.
    """

    seed: Tensor
    step: Tensor
    first: int
    count: int

    def uniform(self, columns: int, *, rows: slice = slice(None)) -> Tensor:
        """(rows, columns) float64 in (0, 1), for all N vectors or a slice of them."""
        return self._draw(self._positions(columns, rows))

    def normal(self, columns: int, *, rows: slice = slice(None)) -> Tensor:
        """(rows, columns) float64, standard normal, independent of `uniform` (Box, Muller 1958)."""
        radius, angle = self._draw(~self._positions(2 * columns, rows)).chunk(2, dim=-1)
        return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()

    def _draw(self, positions: Tensor) -> Tensor:
        return distributed.open_uniform(positions, seed=self.seed, step=self.step)

    def _positions(self, columns: int, rows: slice) -> Tensor:
        numbers = self.first + torch.arange(self.count, device=self.seed.device)[rows]
        return numbers.unsqueeze(-1) * columns + torch.arange(columns, device=self.seed.device)


@dataclass(frozen=True, eq=False)
class Selection:
    """Which code was chosen for each of N vectors of dimension D, out of K codes.

    Parts see all N rows, and `valid` says which of them count. They are not dropped, because a shape that depends on
    the data would cost a synchronisation on a GPU and could be neither compiled nor exported; a part that averages with
    `mean` and indexes with `indices >= 0` needs to know no more about masks.

    Attributes:
        latents: (N, D) the vectors as they came, with graph; z before `normalize`, where that is on.
        z: (N, D) the vectors that were compared with the codes, with graph.
        codes: (K, D) the codebook, with graph, or None where none is stored.
        indices: (N,) int64, -1 where not valid.
        selected: (N, D) the chosen codes, with graph to the codebook.
        valid: (N,) bool.
        noise: the random numbers of this forward, where a part draws some; None outside of training.
        matched: (N, D) the row that was searched, where one table is searched and another read; None where `selected`
            is that row.
    """

    latents: Tensor
    z: Tensor
    codes: Tensor | None
    indices: Tensor
    selected: Tensor
    valid: Tensor
    noise: Noise | None = None
    matched: Tensor | None = None

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `values` (N, ...) over the valid vectors and all trailing axes; 0, with a graph, if none is valid."""
        weight = self.valid.to(values.dtype)
        per_vector = values.flatten(1).mean(1) if values.ndim > 1 else values
        return (per_vector * weight).sum() / weight.sum().clamp(min=1)


def recomputing() -> bool:
    """Whether this forward is a recomputation of activation checkpointing, which must not count a batch twice.

    Only a recomputation runs a forward inside a backward pass. Always False while tracing.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class BaseQuantizer(Pretrained, FullPrecisionModule):
    """A module from vectors to indices and back, in any layout.

    Subclasses write `_forward` and `lookup` for channel-last float32 tensors; this class moves the channel axis, keeps
    masked and non-finite vectors out, leaves autocast, and restores layout and dtype. `forward(x).quantized` equals
    `decode(encode(x))` bit for bit in eval mode. `eval()`, `encode`, `decode` and everything under `torch.no_grad()`
    change no state.

    Args:
        dim: D, the size of the input's channel axis.
        channel_dim: which axis of the input holds the channels: -1 for (B, T, D) and (B, D), 1 for (B, D, T), (B, D, H,
            W), (B, D, T, H, W).

    Raises:
        ValueError: `dim` is not positive, or `channel_dim` is 0, the batch axis.
    """

    codebook_size: int
    """K; where the codebooks of a composite differ in size, that of the largest."""
    num_codebooks: int = 1
    level_axis: bool = False
    """Whether `indices` has a last axis of `num_codebooks` levels."""

    latent_spread: Tensor
    nonfinite_seen: Tensor

    def __init__(self, dim: int, *, channel_dim: int = -1) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim={dim}: expected the size of the channel axis, at least 1")
        if channel_dim == 0:
            raise ValueError("channel_dim=0 is the batch axis: use -1 for (B, T, D) or 1 for (B, D, H, W)")
        self.dim = dim
        self.channel_dim = channel_dim
        # Counters for `health`: tensors, so that the forward pass never waits for the device.
        self.register_buffer("latent_spread", torch.zeros((), dtype=torch.float32), persistent=False)
        self.register_buffer("nonfinite_seen", torch.zeros((), dtype=torch.int64), persistent=False)
        self._warned: set[str] = set()

    # ------------------------------------------------------------------ what subclasses write

    def _forward(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Quantize channel-last vectors.

        Args:
            latents: (B, *S, D) in `self.dtype`, finite, 0 where not valid.
            valid: (B, *S) bool.

        Returns:
            quantized (B, *S, D), indices (B, *S[, levels]), loss (), losses.
        """
        raise NotImplementedError

    def _encode(self, latents: Tensor, valid: Tensor) -> Tensor:
        """The indices of `_forward`, for `encode`, which needs no losses."""
        return self._forward(latents, valid)[1]

    def _bottleneck(self, latents: Tensor) -> Tensor:
        """The linear maps around the choice, for `bottleneck`: (..., D) -> (..., D)."""
        return latents

    def lookup(self, indices: Tensor) -> Tensor:
        """Vectors for indices: (..., [levels]) int64 -> (..., D) in `self.dtype`; 0 where the index is -1."""
        raise NotImplementedError

    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Fit the codebook to data before training; the same on every rank.

        Args:
            latents: tensors in the layout of `forward`, for instance the encoder's outputs over a few batches; each
                rank gives its own. They are read until `samples` vectors are there.
            samples: how many vectors to use in all, over all ranks; None lets the quantizer decide.
            seed: of every random choice made here.

        Raises:
            ValueError: `samples` is below 1; `latents` held no finite vector, or vectors of another size.
        """
        raise NotImplementedError

    def step(self) -> None:
        """Fold the statistics that were gathered since the last step into the codebook (an optimizer boundary)."""

    @property
    def nearest_metric(self) -> Metric | None:
        """The metric, where encoding is the nearest of `nearest_codes` and decoding reads it: what a composite has to
        know to search several quantizers in one call. None where it is anything else.
        """
        return None

    def nearest_codes(self) -> Tensor:
        """The codes (K, dim) that `nearest_metric` speaks of."""
        raise NotImplementedError

    # ------------------------------------------------------------------ what users call

    def forward(self, x: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantize.

        Args:
            x: floating point, (B, *S, D) or (B, D, *S), as `channel_dim` says.
            mask: (B, *S) bool, True where a vector counts; None means everywhere.

        Raises:
            ValueError: `x` or `mask` has the wrong shape or dtype.
        """
        latents, valid, nonfinite = self._enter(x, mask)
        if self.learning:
            self.nonfinite_seen.add_(nonfinite)
        with autocast_disabled(x.device):
            quantized, indices, loss, losses = self._forward(latents, valid)
            quantized = torch.where(valid.unsqueeze(-1), quantized, 0)
        return QuantizerOutput(quantized.movedim(-1, self.channel_dim).to(x.dtype), indices, loss, losses, nonfinite)

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Indices of `x`, as `forward(x, mask).indices` in eval mode; takes no part in training."""
        latents, valid, _ = self._enter(x, mask)
        with autocast_disabled(x.device):
            return self._encode(latents, valid)

    def bottleneck(self, x: Tensor) -> Tensor:
        """`x` through the linear maps into the code space and out of it, without a choice; `x` where there are none.

        It is what the quantizer would pass on if every vector were a code of its own: for pre-training without
        quantization (Gu, Diao 2024, arXiv 2404.19441, sec. 3.3), and as the ceiling of what a codebook can do.

        Args:
            x: as for `forward`; non-finite vectors become 0.

        Returns:
            Shape and dtype of `x`, with graph.
        """
        latents, valid, _ = self._enter(x, None)
        with autocast_disabled(x.device):
            passed = torch.where(valid.unsqueeze(-1), self._bottleneck(latents), 0)
        return passed.movedim(-1, self.channel_dim).to(x.dtype)

    def decode(self, indices: Tensor) -> Tensor:
        """Vectors of `indices`, in the layout of `forward`.

        Args:
            indices: integers, (B, *S) or (B, *S, levels); -1 decodes to 0.

        Returns:
            float32 (float64 once the module was moved to it).

        Raises:
            ValueError: not integers, or outside -1 ... codebook_size - 1.
        """
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise ValueError(f"indices has dtype {indices.dtype}: expected integers, as encode returns them")
        indices = indices.long()
        if self.level_axis and not 1 <= indices.shape[-1] <= self.num_codebooks:
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}: its last axis holds 1 to {self.num_codebooks} levels, "
                "coarse first"
            )
        # Reading values would break tracing; a traced decode trusts its caller.
        if not torch.compiler.is_compiling() and indices.numel():
            self._check_range(indices)
        with autocast_disabled(indices.device):
            return self.lookup(indices).movedim(-1, self.channel_dim)

    def health(self) -> dict[str, float]:
        """Read the counters kept during training, and warn once about each thing that is wrong.

        Waits for the device, unlike the forward pass.
        """
        report = self._health()
        if report["nonfinite"] > 0:
            self._warn_once(
                "nonfinite",
                f"{report['nonfinite']:.0f} input vectors held NaN or infinity and were left out (index -1); look for "
                "an overflow in the encoder (lower learning rate, gradient clipping, bfloat16 instead of float16)",
            )
        return report

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The size of each of the `num_codebooks` codebooks, in the order of the levels."""
        return (self.codebook_size,) * self.num_codebooks

    # ------------------------------------------------------------------ shared by subclasses

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of search, losses and statistics: float32, or float64 once the module was moved to it."""
        return self.latent_spread.dtype

    @property
    def stochastic(self) -> bool:
        """Whether random parts of training (quantizer dropout, noise) act: in training, with gradients on."""
        return self.training and torch.is_grad_enabled()

    @property
    def learning(self) -> bool:
        """Whether this forward counts: `stochastic`, and not the recomputation of one that has counted already."""
        return self.stochastic and not recomputing()

    def _health(self) -> dict[str, float]:
        return {"nonfinite": float(self.nonfinite_seen)}

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"{type(self).__name__}: {message}", stacklevel=3)

    def _enter(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, *S, D) latents in `self.dtype`, (B, *S) validity, and the count of non-finite vectors."""
        if not x.is_floating_point():
            raise ValueError(f"x has dtype {x.dtype}: expected floating point")
        if x.ndim < 2 or not -x.ndim <= self.channel_dim < x.ndim or x.shape[self.channel_dim] != self.dim:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: expected dim={self.dim} channels on axis {self.channel_dim} behind a "
                "batch axis (channel_dim=-1 for (B, T, D), channel_dim=1 for (B, D, H, W))"
            )
        # Cast first: a float64 number may be finite, and infinite in float32.
        latents = x.movedim(self.channel_dim, -1).to(self.dtype)
        # Also False where the squared length overflows: distances, losses and sums could not hold such a vector.
        finite = torch.linalg.vecdot(latents, latents) < torch.inf
        if mask is None:
            valid = finite
            nonfinite = (~finite).sum()
        else:
            if mask.dtype != torch.bool or mask.shape != finite.shape:
                raise ValueError(
                    f"mask has shape {tuple(mask.shape)} and dtype {mask.dtype}: expected {tuple(finite.shape)}, the "
                    "shape of x without its channels, and torch.bool (True where a vector counts)"
                )
            valid = finite & mask
            nonfinite = (mask & ~finite).sum()
        return torch.where(valid.unsqueeze(-1), latents, 0), valid, nonfinite

    def _check_range(self, indices: Tensor) -> None:
        sizes = self.codebook_sizes if self.level_axis else self.codebook_sizes[:1]
        levels = indices.unbind(-1) if len(set(sizes)) > 1 else [indices]
        for number, (level, size) in enumerate(zip(levels, sizes, strict=False)):
            low, high = (int(value) for value in level.aminmax())
            if low < -1 or high >= size:
                where = f" at level {number}" if len(levels) > 1 else ""
                raise ValueError(f"indices lie in {low} ... {high}{where}: expected -1 (left out) or 0 ... {size - 1}")

    def _enough_samples(self, samples: int | None) -> int:
        """The default of `initialize`: 64 vectors per code, within 65,536 and 262,144, and at least 4 per code."""
        if samples is None:
            return max(min(max(64 * self.codebook_size, 65_536), 262_144), 4 * self.codebook_size)
        return samples

    def _collect(self, latents: Iterable[Tensor], samples: int) -> tuple[Tensor, int]:
        """This rank's share of `samples` finite vectors (M, D), and how many of them a batch held on average."""
        if samples < 1:
            raise ValueError(f"samples={samples}: expected at least 1 vector, or None for the default")
        wanted = math.ceil(samples / distributed.world_size())
        rows: list[Tensor] = []
        collected, batches = 0, 0
        for x in latents:
            vectors, valid, _ = self._enter(x, None)
            rows.append(vectors[valid])
            collected += len(rows[-1])
            batches += 1
            if collected >= wanted:
                break
        # All ranks raise, or none: one that raised alone would leave the others waiting.
        if not int(distributed.all_reduce_sum(self.nonfinite_seen.new_tensor(collected))):
            raise ValueError("latents: expected at least one finite vector to initialize from, got none")
        nothing = self.latent_spread.new_zeros(0, self.dim)
        return torch.cat([nothing, *rows])[:wanted], math.ceil(collected / max(batches, 1))
