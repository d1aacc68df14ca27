"""The base of every quantizer: layouts, masks, non-finite inputs and dtypes are handled once per call.

Users call `forward`, `encode` and `decode`. Subclasses write `quantize` for vectors and `lookup` for indices, which
composites call on their members.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.functional import connected_zero
from vqkit.indices import check_indices
from vqkit.kernels import Metric, segment_stats
from vqkit.parts.codebooks import Codebook
from vqkit.parts.estimators import Estimator
from vqkit.parts.losses import Loss, SummedLoss
from vqkit.parts.selection import Selection
from vqkit.precision import FullPrecisionModule, narrowed
from vqkit.quantizers.output import Quantized, QuantizerOutput
from vqkit.runtime import (
    autocast_disabled,
    check_plain,
    fits_squares,
    inside_autograd_function,
    known,
    recomputing,
    transformed,
    uncompiled,
    warn_caller,
)
from vqkit.saving.pretrained import Pretrained
from vqkit.sharding import with_whole_weights
from vqkit.unsaved_buffers import UnsavedBuffers

WATCHED_VECTORS, WATCHED_STEP = 2048, 61
"""Of more vectors than these `health` watches every 61st: a prime, with which no axis of images or clips resonates."""


class BaseQuantizer(Pretrained, UnsavedBuffers, FullPrecisionModule, ABC):
    """A module from vectors to indices and back, in any layout.

    Users call `forward`, `encode` and `decode`: these move the channel axis, keep masked and non-finite vectors out,
    leave autocast, and restore layout and dtype. Subclasses write what stands behind them, for channel-last float32
    tensors: `quantize`, `penalize`, `lookup` and `initialize`. In eval mode `forward(x).quantized` equals
    `decode(encode(x))` bit for bit. `eval()`, `encode`, `decode` and whatever runs under `torch.no_grad()` change no
    state.

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
    index_per_position: bool = True
    """Whether each position of the input has an index, or one for each level, at its place in `indices`."""
    positions_per_step: int | None = 1
    """How many positions of a sequence are encoded together; None where only whole samples are."""
    has_projection: bool = False
    """Whether trainable maps stand between the input and the code space."""
    has_mask_token: bool = False
    """Whether a trained vector stands where an index is -1."""
    moments: int = 1
    """Numbers that the input holds for each of the `dim` channels: 2 where means are followed by log-variances."""

    codebook: Codebook | None
    estimator: Estimator | None
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
        self.codebook = None
        self.estimator = None
        self.passes_through = False
        self.noted_levels: tuple[tuple[int, ...], dict[int, Tensor]] | None = None  # of `first_levels`
        # Counters for `health`: tensors, so that the forward pass never waits for the device.
        self.register_unsaved("latent_spread", partial(torch.zeros, (), dtype=torch.float32))
        self.register_unsaved("nonfinite_seen", partial(torch.zeros, (), dtype=torch.int64))
        self._warned: set[str] = set()

    # ------------------------------------------------------------------ for users

    def forward(self, x: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantize.

        Args:
            x: floating point, (B, *S, D) or (B, D, *S), as `channel_dim` says.
            mask: (B, *S) bool, True where a vector counts; None means everywhere.

        Raises:
            ValueError: `x` or `mask` has the wrong shape or dtype.
            RuntimeError: in training, inside of an autograd function such as that of reentrant checkpointing, or under
                a transform of `torch.func`.
        """
        if transformed() or not torch.is_grad_enabled():
            self.check_counted()
        latents, valid, nonfinite = self.open(x, mask)
        if learning := self.learning:
            self.nonfinite_seen.add_(nonfinite)
        with autocast_disabled(x.device):
            quantized = self.quantize(latents, valid)
            if self.noted_levels is not None:
                counts, noted = self.noted_levels
                noted |= {n: self.prefix_vectors(quantized, n).movedim(-1, self.channel_dim) for n in counts}
            if self.training:
                share(quantized, learning)
            loss, losses = self.penalize(quantized)
        if not loss.requires_grad:
            loss = self.with_graph(loss)
        vectors = quantized.vectors
        if self.channel_dim != -1:
            vectors = vectors.movedim(-1, self.channel_dim)
        if vectors.dtype != x.dtype:
            vectors = narrowed(vectors, x.dtype)
        return QuantizerOutput(vectors, quantized.indices, loss, losses, nonfinite)

    @torch.no_grad()
    @with_whole_weights
    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Indices of `x`, as `forward(x, mask).indices` in eval mode; takes no part in training."""
        latents, valid, _ = self.open(x, mask)
        with autocast_disabled(x.device):
            return self.assign(latents, valid)

    @with_whole_weights
    def decode(self, indices: Tensor) -> Tensor:
        """Vectors of `indices`, in the layout of `forward`.

        Args:
            indices: integers, (B, *S) or (B, *S, levels); -1 decodes to 0. Levels may be all or the first ones, and
                those behind them count as -1.

        Returns:
            float32 (float64 once the module was moved to it).

        Raises:
            ValueError: not integers, or outside -1 ... codebook_size - 1.
        """
        sizes = self.codebook_sizes if self.level_axis else (self.codebook_size,)
        check_indices(indices, sizes, level_axis=self.level_axis)
        with autocast_disabled(indices.device):
            return self.lookup(indices.long()).movedim(-1, self.channel_dim)

    def open(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """From a user's layout to channel-last float32.

        Args:
            x: as for `forward`.
            mask: as for `forward`.

        Returns:
            latents (B, *S, D) in `self.dtype`, 0 where not valid; valid (B, *S) bool; nonfinite, () int64, how many
            unmasked vectors are not finite.

        Raises:
            ValueError: `x` or `mask` has the wrong shape or dtype, or `x` is no plain tensor on the quantizer's device.
        """
        check_plain("x", x, self.latent_spread.device)
        if not x.is_floating_point():
            raise ValueError(f"x has dtype {x.dtype}: expected floating point; use x.float(), or x.dequantize()")
        channels = self.moments * self.dim
        if x.ndim < 2 or not -x.ndim <= self.channel_dim < x.ndim or x.shape[self.channel_dim] != channels:
            times = "" if self.moments == 1 else f"{self.moments} x "
            raise ValueError(
                f"x has shape {tuple(x.shape)}: expected {times}dim={self.dim} channels on axis {self.channel_dim} "
                "behind a batch axis (channel_dim=-1 for (B, T, D), channel_dim=1 for (B, D, H, W))"
            )
        # Cast first: a float64 number may be finite, and infinite in float32.
        latents = x.to(self.latent_spread.dtype)
        if self.channel_dim != -1:
            latents = latents.movedim(self.channel_dim, -1)
        if mask is None and known(partial(fits_squares, latents), latents.device):
            valid = torch.ones(latents.shape[:-1], dtype=torch.bool, device=latents.device)
            return latents, valid, torch.zeros_like(self.nonfinite_seen)
        # Also False where the squared length overflows: distances, losses and sums could not hold such a vector.
        finite = torch.linalg.vector_norm(latents.detach(), dim=-1) < torch.inf
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

    # ------------------------------------------------------------------ for subclasses

    @abstractmethod
    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        """Choose a code for each vector.

        Args:
            latents: (B, *S, D) in `self.dtype`, finite; anything where not valid.
            valid: (B, *S) bool. What is not valid counts nowhere.
        """

    @abstractmethod
    def penalize(self, quantized: Quantized) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of what `quantize` just returned: their weighted sum (), and name -> scalar, unweighted.

        Vectors and sum together have a graph to every parameter in training, also where no vector is valid: data
        parallelism has to find them all.
        """

    @abstractmethod
    def lookup(self, indices: Tensor) -> Tensor:
        """Vectors for indices: (..., [levels]) int64 -> (..., D) in `self.dtype`; 0 where the index is -1."""

    @abstractmethod
    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Fit the codebook to data before training; the same on every rank.

        Args:
            latents: tensors in the layout of `forward`, for instance the encoder's outputs over a few batches; each
                rank gives its own. They are read until `samples` vectors are there.
            samples: how many vectors to use in all, over all ranks; None lets the quantizer decide. What most call
                `enough_samples` is 64 per code, within 65,536 and 262,144, and at least 4 per code.
            seed: of every random choice made here.

        Raises:
            ValueError: `samples` is below 1; `latents` held no finite vector, or vectors of another size.
        """

    def assign(self, latents: Tensor, valid: Tensor) -> Tensor:
        """The indices of `quantize` alone, where a quantizer has a shorter way to the same ones."""
        return self.quantize(latents, valid).indices

    def chosen_vectors(self, quantized: Quantized) -> Tensor:
        """`lookup(quantized.indices)`, (B, *S, dim), with a graph to the codebook: what was chosen, not what the
        estimator made of it.
        """
        return self.lookup(quantized.indices)

    def prefix_vectors(self, quantized: Quantized, levels: int) -> Tensor:
        """What the first levels alone would pass on, (B, *S, dim), with the gradient of what `quantize` just returned.

        Args:
            quantized: before `penalize` takes its members out.
            levels: how many, as `check_first_levels` allows.
        """
        return quantized.vectors

    def check_first_levels(self, levels: int) -> None:
        """Refuse a number of levels that have no vectors of their own.

        Raises:
            ValueError: there are not as many levels, or the vectors are no sum of what levels add.
        """
        if levels != self.num_codebooks:
            raise ValueError(
                f"levels={levels} of {type(self).__name__} with {self.num_codebooks} levels: expected "
                f"{self.num_codebooks}; the first ones add up to vectors in ResidualQuantizer, SplitQuantizer and "
                "FeatureSplitQuantizer alone"
            )

    def without_vectors(self, quantized: Quantized) -> Quantized:
        """What losses and statistics need of `quantized` when an estimator over a sum has taken its vectors."""
        return quantized

    def step(self) -> None:
        """Fold the statistics that were gathered since the last step into the codebook (an optimizer boundary)."""

    def check_has_codes(self, call: str) -> None:
        """Refuse what needs indices, where there are none: `codebook_sizes` is empty.

        Args:
            call: what needs them, for the message.

        Raises:
            ValueError: this is no quantizer; the message says what to do.
        """

    def strip_training(self) -> None:
        """Store the codes as plain tables and drop what only training needs, here and in what `to_config` writes.

        `bake` calls it on a copy. Subclasses do so for what their constructor takes.
        """

    def sums(self, quantized: Quantized) -> dict[str, tuple[Tensor, Tensor]]:
        """What `penalize` needs of all ranks: name -> what is added up over them, (M,), and what stays this rank's own.

        Args:
            quantized: what `quantize` just returned, in training.
        """
        return {}

    @property
    def nearest_metric(self) -> Metric | None:
        """The metric, where encoding is the nearest of `nearest_codes` and decoding reads it: what a composite has to
        know to search several quantizers in one call. None where it is anything else.
        """
        return None

    def nearest_codes(self) -> Tensor:
        """The codes (K, dim) that are searched by `nearest_metric`."""
        raise TypeError(f"{type(self).__name__} does not choose the nearest of stored codes: nearest_metric is None")

    # ------------------------------------------------------------------ what they share

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """How many codes each level chooses from; levels are the last axis of `by_level`."""
        return self.codebook_sizes

    @property
    def level_books(self) -> tuple[int, ...]:
        """Which codebook each of `level_sizes` chooses from, by number: equal where levels share one."""
        return tuple(range(len(self.level_sizes)))

    @property
    def book_sizes(self) -> tuple[int, ...]:
        """The size of each codebook that levels choose from, those that they share once."""
        pairs = list(zip(self.level_books, self.level_sizes, strict=True))
        return tuple(max(size for other, size in pairs if other == book) for book in dict.fromkeys(self.level_books))

    @property
    def bits_per_token(self) -> float:
        """Bits of a token with all its levels, before entropy coding; the mean, where those of a sample differ."""
        return sum(map(math.log2, self.codebook_sizes))

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Positions of a sequence for one index of each of `level_sizes`, where these are whole numbers."""
        return (1,) * len(self.level_sizes)

    @property
    def indices_per_step(self) -> tuple[int, ...]:
        """How many indices of each of `level_sizes` stand for `positions_per_step` positions of a sequence."""
        return (1,) * len(self.level_sizes)

    def interleave(self, indices: Tensor) -> Tensor:
        """Indices of a sequence in the order of time, (B, steps, ...), of `positions_per_step` positions each."""
        return indices

    def deinterleave(self, rows: Tensor) -> Tensor:
        """What `interleave` was given."""
        return rows

    def by_level(self, indices: Tensor) -> Tensor:
        """Indices with one column for each of `level_sizes`, -1 where a level has none: what counts them can tell
        levels apart that `indices` holds one after another.

        Args:
            indices: (B, ...) as `encode` returns them.
        """
        return indices

    @property
    def grid_sizes(self) -> tuple[int, ...]:
        """How many numbers each grid of `to_grids` chooses from: what a file holds."""
        return self.level_sizes

    def to_grids(self, indices: Tensor) -> list[Tensor]:
        """Indices as the grids that a file holds, of each of `grid_sizes`: (B, ...) as `encode` returns them, of all
        levels or of the first ones -> (B, *grid), coarse first.
        """
        return list(indices.unbind(-1)) if self.level_axis else [indices]

    def from_grids(self, grids: Sequence[Tensor]) -> Tensor:
        """What `to_grids` was given."""
        return torch.stack(list(grids), dim=-1) if self.level_axis else grids[0]

    def level_tables(self) -> list[Tensor | None]:
        """Of each of `grid_sizes` the stored codes, (K, D) in the code space; None where they are computed, since
        another machine rounds in another way.
        """
        return [None] * len(self.grid_sizes)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The size of each of the `num_codebooks` codebooks, in the order of the levels."""
        return (self.codebook_size,) * self.num_codebooks

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
        return self.training and torch.is_grad_enabled() and not recomputing()

    def check_counted(self) -> None:
        """Refuse a training forward of which nothing would be recorded.

        Raises:
            RuntimeError: it runs inside of an autograd function, where only the recomputation sees gradients, or under
                a transform of `torch.func`, which what is recorded could not leave.
        """
        if self.training and transformed():
            raise RuntimeError(
                f"{type(self).__name__} runs in training under a transform of torch.func (grad, vmap, jvp, ...), out "
                "of which it can record nothing: call .eval() on it, or use loss.backward() or torch.autograd.grad"
            )
        if self.training and inside_autograd_function():
            raise RuntimeError(
                f"{type(self).__name__} runs in training inside of an autograd function, as under "
                "torch.utils.checkpoint.checkpoint(use_reentrant=True): what it records and draws would not count; "
                "pass use_reentrant=False, or call .eval() on it"
            )

    def with_graph(self, loss: Tensor) -> Tensor:
        """A loss that has no graph, with one in training: its backward does nothing. No compiler can trace it."""
        return loss.detach().requires_grad_() if self.stochastic and not torch.compiler.is_compiling() else loss

    def health(self) -> dict[str, float]:
        """Read the counters kept during training, and warn once about each thing that is wrong.

        Waits for the device, unlike the forward pass. Subclasses add their figures to those of this method.
        """
        nonfinite = float(self.nonfinite_seen)
        if nonfinite > 0:
            self.warn_once(
                "nonfinite",
                f"{nonfinite:.0f} input vectors held NaN or infinity and were left out (index -1); look for "
                "an overflow in the encoder (lower learning rate, gradient clipping, bfloat16 instead of float16)",
            )
        return {"nonfinite": nonfinite}

    def warn_once(self, kind: str, message: str) -> None:
        """Warn of something once for each quantizer and `kind`, with its name in front."""
        if kind not in self._warned:
            self._warned.add(kind)
            warn_caller(f"{type(self).__name__}: {message}")


class VectorQuantizer(BaseQuantizer):
    """A quantizer of single vectors: subclasses write `choose` and `code_lookup` for (N, D) rows in the code space.

    Args:
        dim: size of the input's channel axis.
        codebook_dim: D, the size of the code space. If it differs from `dim`, two linear maps lead in and out
            (factorized codes, Yu et al. 2021, arXiv:2110.04627); None means `dim`.
        channel_dim: see `BaseQuantizer`.
        losses: penalties, each with its weight; names must differ.

    Raises:
        ValueError: a size is not positive.
    """

    losses: Iterable[Loss]

    def __init__(
        self,
        dim: int,
        *,
        codebook_dim: int | None = None,
        channel_dim: int = -1,
        losses: Sequence[Loss] = (),
    ) -> None:
        super().__init__(dim, channel_dim=channel_dim)
        if isinstance(losses, nn.Module):
            raise ValueError(f"losses={losses}: expected a list, [{losses}]")
        if codebook_dim is not None and codebook_dim < 1:
            raise ValueError(f"codebook_dim={codebook_dim}: expected at least 1, or None for dim={dim}")
        self.codebook_dim = codebook_dim or dim
        self.losses = nn.ModuleList(losses)  # type: ignore[assignment]  # it forgets its element type
        self.has_projection = self.codebook_dim != dim
        linear = self.has_projection
        self.project_in = nn.Linear(dim, self.codebook_dim, dtype=torch.float32) if linear else nn.Identity()
        self.project_out = nn.Linear(self.codebook_dim, dim, dtype=torch.float32) if linear else nn.Identity()

    @abstractmethod
    def choose(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        """Choose a code for each row of `latents` (N, D).

        Args:
            latents: in the code space; anything finite where not valid.
            valid: (N,) bool. What is not valid gets index -1 and counts nowhere.

        Returns:
            what is passed on (N, D), with the gradient of the estimator, and the selection.
        """

    @abstractmethod
    def code_lookup(self, indices: Tensor) -> Tensor:
        """Code vectors (N, D) of `indices` (N,), all of which are in range."""

    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        """Flatten, project into the code space, choose, and project out; see `BaseQuantizer`."""
        rows, counts = self.project_in(latents.reshape(-1, self.dim)), valid.reshape(-1)
        selection = None
        if self.passes_through:
            levels = (self.num_codebooks,) if self.level_axis else ()
            estimated, indices = rows.clone(), counts.new_full((len(rows), *levels), -1, dtype=torch.int64)
        else:
            estimated, selection = self.choose(rows, counts)
            indices = selection.indices
        vectors = self.project_out(estimated).reshape(latents.shape)
        complete = known(counts.all, counts.device)
        return Quantized(
            vectors=vectors if complete else torch.where(valid.unsqueeze(-1), vectors, 0),
            indices=indices.reshape(*valid.shape, *indices.shape[1:]),
            valid=valid,
            selection=selection,
            estimated=None if selection is None else estimated,
            source=None if selection is None else self,
            complete=complete,
        )

    def sums(self, quantized: Quantized) -> dict[str, tuple[Tensor, Tensor]]:
        """Those of the losses; see `BaseQuantizer`."""
        found = [loss for loss in self.losses if isinstance(loss, SummedLoss) and loss.training]
        selection = quantized.with_codes()
        return {loss.name: loss.sums(selection) for loss in found}

    def penalize(self, quantized: Quantized) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses with their weights; see `BaseQuantizer`."""
        losses: dict[str, Tensor] = {}
        selection, estimated = quantized.selection, quantized.estimated
        if selection is None:
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return sum((0 * item.flatten()[:1].sum() for item in trained), start=connected_zero(quantized.vectors)), {}
        if estimated is None:  # nor does any of the losses read it: see `without_vectors`
            selection = quantized.with_codes()
            estimated = selection.selected
        total: Tensor | None = None
        for loss in self.losses:
            losses[loss.name] = value = loss(selection, estimated)
            total = loss.weight * value if total is None else total + loss.weight * value
        if total is None and not torch.compiler.is_compiling():
            total = quantized.vectors.new_zeros(())  # of which `forward` makes something to start a backward from
        elif total is None or self.has_projection:  # no loss reaches the way out of the code space
            nothing = connected_zero(quantized.vectors)
            total = nothing if total is None else nothing + total
        return total, losses

    def strip_training(self) -> None:
        """Drop the losses; see `BaseQuantizer`."""
        if "losses" in self.recorded_arguments():
            self.losses = nn.ModuleList()  # type: ignore[assignment]
            self.record(losses=[])

    def lookup(self, indices: Tensor) -> Tensor:
        """Vectors for indices: (...) int64 -> (..., dim); 0 where the index is -1."""
        rows = indices.reshape(-1)
        found = rows >= 0
        vectors = self.project_out(self.code_lookup(rows.clamp(min=0)))
        if not known(found.all, found.device):
            vectors = torch.where(found.unsqueeze(-1), vectors, 0)
        return vectors.reshape(*indices.shape, self.dim)

    def chosen_vectors(self, quantized: Quantized) -> Tensor:
        """The chosen codes, projected out; see `BaseQuantizer`."""
        if quantized.selection is None:
            return quantized.vectors
        vectors = self.project_out(quantized.with_codes().selected).reshape(quantized.vectors.shape)
        return vectors if quantized.complete else torch.where(quantized.valid.unsqueeze(-1), vectors, 0)

    def without_vectors(self, quantized: Quantized) -> Quantized:
        """What it was given and which codes it chose, unless a loss reads more; a chain then holds one (N, D) for each
        stage, where it would hold three. See `BaseQuantizer`.
        """
        selection = quantized.selection
        if selection is None or not all(loss.fits_sums for loss in self.losses):
            return quantized
        if selection.codes is not None:
            selection = replace(selection, selected=selection.selected.new_empty(0))  # until `with_codes`
        nothing = quantized.vectors.new_zeros(()).expand_as(quantized.vectors)
        return replace(quantized, vectors=nothing, estimated=None, selection=selection)


def share(quantized: Quantized, learning: bool) -> None:
    """Add up over ranks what a training forward made: one collective for the statistics of all codebooks, and one for
    all that losses add up, however many members there are.

    A codebook that several members chose from observes the sum of their choices. Every rank has to call it, also
    without a valid vector, between `quantize` and `penalize` of the quantizer that a user calls.

    Args:
        quantized: of that quantizer, with what its members made.
        learning: whether statistics count; see `BaseQuantizer.learning`.
    """
    several = distributed.is_distributed()
    chosen, waiting = [], [quantized]
    while waiting:
        made = waiting.pop()
        waiting.extend(reversed(made.members))
        if made.source is not None and (several or made.source.codebook is not None):
            chosen.append(made)
    if chosen:
        _add_up(chosen, learning, several)


@uncompiled
def _add_up(chosen: Sequence[Quantized], learning: bool, several: bool) -> None:
    """`share` of what quantizers of vectors chose."""
    counted: dict[Codebook, Tensor] = {}
    summed: list[tuple[Quantized, str, Tensor, Tensor]] = []
    for made in chosen:
        assert made.source is not None  # `share` left out those without
        book = made.source.codebook
        if book is not None and made.selection is not None and learning and made.source.training:
            size, width = book.pending_sums.shape
            rows, codes = made.selection.z[:, :width], made.selection.indices
            if (several_codes := made.selection.several) is not None:
                rows, codes = rows.repeat_interleave(several_codes.shape[1], dim=0), several_codes.flatten()
            packed = segment_stats(rows, codes, size).packed
            counted[book] = counted[book] + packed if book in counted else packed
        if several:
            summed.extend((made, name, *sums) for name, sums in made.source.sums(made).items())
    if counted and several:
        total = distributed.all_reduce_sum(torch.cat(list(counted.values())))
        counted = dict(zip(counted, total.split([len(packed) for packed in counted.values()]), strict=True))
    for book, packed in counted.items():
        book.observe(packed)
    if summed:
        total = distributed.sum_over_ranks(torch.cat([sums for _, _, sums, _ in summed]))
        parts = total.split([len(sums) for _, _, sums, _ in summed])
        for (made, name, sums, own), part in zip(summed, parts, strict=True):
            (made.selection or made).sums[name] = part.to(sums.dtype), own
