"""Codebooks: the code vectors, and all other state of a quantizer."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.clustering.kmeans import kmeans
from vqkit.functional import matching_map
from vqkit.precision import FullPrecisionModule, widened
from vqkit.runtime import autocast_disabled
from vqkit.saving.config import Configured
from vqkit.unsaved_buffers import UnsavedBuffers


class Codebook(Configured, UnsavedBuffers, FullPrecisionModule):
    """K trainable code vectors, learned by gradient.

    Statistics are recorded after the forward (`observe`) and folded in before a later one (`step`), so that no vector
    changes between a forward and its backward. What is pending is part of the state, summed over ranks when it is
    recorded: a checkpoint of any rank is complete.

    State:
        vectors: (K, D) float32 parameter.
        usage: (K,) running count of vectors per step that chose each code; starts at 1, uniform.
        pending_counts: (K,) counts since the last step.
        pending_sums: (K, D) sums of the vectors that chose each code, since the last step; (K, 0), and not saved,
            unless the codebook is trained by statistics.
        rewritten: (K,) the share of each row that was overwritten since whoever owns an optimizer last cleared it: the
            moments that it keeps for that row belong to a vector that is gone. Not saved.
        extra state: steps taken, the step of the last refresh, and the batches pending, as one int64 tensor.

    Class attributes:
        trained_by: "gradient" (a loss or an estimator must reach it), "statistics" (`fold`) or "nothing".
        rows: "writable" where single rows may be overwritten (restarts), "derived" where they are computed from other
            weights (`bake` stores them), "frozen" where they stay.
        cascaded: whether one table is searched and another is read.
        attention: whether keys stand in a space of their own, where they are compared with `queries` of the vectors.
        per_code: names of the tensors that hold a row for each code, of which `with_rows` makes others; none where a
            code is what it is by its place among the others.

    Args:
        codebook_size: K, at least 1.
        dim: D, at least 1.
        usage_decay: of the running usage, in [0, 1).
        seed: of the initial vectors and of every random choice made about this codebook.

    Source: initial vectors uniform in +-1/K, Esser et al. 2021 (arXiv:2012.09841); call the quantizer's `initialize`
    with data to replace them by k-means centres, without which a codebook that is far from its data's scale collapses.

    Raises:
        ValueError: an argument is out of its range.
    """

    trained_by: ClassVar[Literal["gradient", "statistics", "nothing"]] = "gradient"
    rows: ClassVar[Literal["writable", "derived", "frozen"]] = "writable"
    cascaded: ClassVar[bool] = False
    attention: ClassVar[bool] = False
    per_code: ClassVar[tuple[str, ...]] = ("vectors",)

    vectors: Tensor
    usage: Tensor
    pending_counts: Tensor
    pending_sums: Tensor
    rewritten: Tensor

    def __init__(self, codebook_size: int, dim: int, *, usage_decay: float = 0.99, seed: int = 0) -> None:
        super().__init__()
        if codebook_size < 1:
            raise ValueError(f"codebook_size={codebook_size}: expected the number of codes, at least 1")
        if dim < 1:
            raise ValueError(f"dim={dim}: expected the size of a code vector, at least 1")
        if not 0 <= usage_decay < 1:
            raise ValueError(f"usage_decay={usage_decay}: expected a decay in [0, 1), such as 0.99")
        self.codebook_size = codebook_size
        self.dim = dim
        self.usage_decay = usage_decay
        self.seed = seed
        self.steps = 0
        self.refreshed_at = 0
        self._pending_batches = 0
        self.build_vectors(torch.Generator().manual_seed(seed))
        self.register_buffer("usage", torch.ones(codebook_size, dtype=torch.float32))
        self.register_buffer("pending_counts", torch.zeros(codebook_size, dtype=torch.float32))
        sums = self.trained_by == "statistics"
        self.register_buffer(
            "pending_sums", torch.zeros(codebook_size, dim if sums else 0, dtype=torch.float32), persistent=sums
        )
        self.register_unsaved("rewritten", partial(torch.zeros, codebook_size, dtype=torch.float32))

    def build_vectors(self, generator: torch.Generator) -> None:
        """Register the code vectors, or what they are computed from: called once, by the constructor.

        Args:
            generator: of the initial values, seeded with `seed`.
        """
        self.vectors = nn.Parameter(_uniform(self.codebook_size, self.dim, generator))

    def forward(self) -> Tensor:
        """The code vectors (K, D): for search, losses and decoding alike."""
        return self.vectors

    def search_vectors(self, vectors: Tensor) -> Tensor:
        """What is searched, (K, D), given the code vectors that are read: the same, unless the codebook is cascaded, or
        keys (K, A) where there is `attention`.
        """
        return vectors

    def queries(self, z: Tensor) -> Tensor:
        """What is compared with the keys, (N, A), given vectors `z` (N, D); asked only where there is `attention`."""
        raise TypeError(f"{type(self).__name__} compares the vectors with the codes: attention is False")

    @property
    def noise_step(self) -> int:
        """Number of this training forward, for `Noise`."""
        return self.steps * 2**20 + self._pending_batches

    # ------------------------------------------------------------------ statistics

    @torch.no_grad()
    def observe(self, packed: Tensor) -> None:
        """Add a batch to the pending statistics.

        Args:
            packed: (K + K D,) counts and sums of the vectors of all ranks that chose each code, as
                `vqkit.kernels.segment_stats` packs them; (K,) unless the codebook is trained by statistics.
        """
        size, width = self.pending_sums.shape
        self.pending_counts.add_(packed[:size])
        self.pending_sums.add_(packed[size:].view(size, width))
        self._pending_batches += 1

    @torch.no_grad()
    def step(self) -> None:
        """Fold the pending statistics in; nothing happens if there are none."""
        if not self._pending_batches:
            return
        # A batch without one valid vector says nothing about usage: it must not age the codes.
        fresh = (1 - self.usage_decay) * (self.pending_counts.sum() > 0).to(self.usage.dtype)
        self.usage.mul_(1 - fresh).add_(fresh * self.pending_counts)
        if self.trained_by == "statistics":
            self.fold(fresh)
        self._forget_pending()
        self.steps += 1

    def fold(self, fresh: Tensor) -> None:
        """Learn from the pending statistics, where `trained_by` is "statistics"; `usage` is up to date already.

        Args:
            fresh: () 1 - gamma, the weight of this step's statistics; 0 where no vector was seen.
        """
        raise TypeError(f"{type(self).__name__} is trained by {self.trained_by}: it has nothing to fold")

    def _forget_pending(self) -> None:
        self.pending_counts.zero_()
        self.pending_sums.zero_()
        self._pending_batches = 0

    def assume_uniform_usage(self, vectors_per_step: int) -> None:
        """Count every code as chosen by its even share of `vectors_per_step`; for `initialize`."""
        self.usage.fill_(vectors_per_step / self.codebook_size)
        self._forget_pending()

    @torch.no_grad()
    def table(self) -> "FrozenCodebook":
        """The codes, bit for bit, as a plain stored table with the same usage; nothing is pending there."""
        table = (CascadedTable if self.cascaded else FrozenCodebook)(self.codebook_size, self.dim).to(self.usage)
        with autocast_disabled(self.usage.device):
            vectors = self()
        state = {"vectors": vectors, "usage": self.usage}
        if self.cascaded:
            state["index_vectors"] = self.search_vectors(vectors)
        table.load_state_dict(state, strict=False)  # without what is pending
        table.steps, table.refreshed_at = self.steps, self.refreshed_at
        return table

    def factory(self) -> Callable[[int, int], "Codebook"]:
        """What `Quantizer` can be given as `codebook` to build another one like this `table`."""
        return type(self)

    # ------------------------------------------------------------------ rewriting

    @torch.no_grad()
    def with_rows(
        self, source: Tensor, carried: Callable[[Tensor], Tensor], vectors: Tensor | None = None
    ) -> "Codebook":
        """A codebook of other rows, of the same class and with the same settings and counters.

        Args:
            source: (K',) which row each new one is a copy of.
            carried: from what is counted for each code, (K, ...), to what is counted for each new one, (K', ...).
            vectors: (K', D) code vectors instead of those of `source`.

        Raises:
            ValueError: the codes are not rows that can be taken one by one.
        """
        if not self.per_code:
            raise ValueError(
                f"{type(self).__name__} makes each code of all others, by their places: bake the quantizer, which "
                "stores them as a table, and cut that"
            )
        other = copy.deepcopy(self)
        other.codebook_size = len(source)
        other.record(codebook_size=len(source))
        for name in self.per_code:
            rows = getattr(self, name)
            taken = rows[source]
            trains = isinstance(rows, nn.Parameter)
            setattr(other, name, nn.Parameter(taken, requires_grad=rows.requires_grad) if trains else taken)
        for name in {"pending_counts", "rewritten"}.intersection(self.unsaved):
            other.register_unsaved(name, partial(torch.zeros, len(source), dtype=torch.float32))
        for name in ("usage", "pending_counts", "pending_sums"):
            setattr(other, name, carried(getattr(self, name)))
        other.rewritten = self.rewritten[source]
        if vectors is not None:
            other.write(vectors)
        return other

    def write(self, vectors: Tensor) -> None:
        """Make `vectors` (K, D) the code vectors; for `with_rows`."""
        self.vectors.copy_(vectors)

    @torch.no_grad()
    def overwrite(self, indices: Tensor, vectors: Tensor, *, share: Tensor, usage: Tensor) -> None:
        """Rewrite rows, in full or in part.

        Args:
            indices: (M,) distinct codes.
            vectors: (M, D) finite; row <- (1 - share) row + share vector.
            share: (M,) in [0, 1]; at 0 a row stays and at 1 it becomes the vector, bit for bit.
            usage: (M,) the running counts that the codes have afterwards.
        """
        weight = share.unsqueeze(-1)
        self.vectors.index_copy_(0, indices, torch.lerp(self.vectors[indices], vectors, weight))
        self.usage.index_copy_(0, indices, usage)
        self.rewritten.index_copy_(0, indices, 1 - (1 - self.rewritten[indices]) * (1 - share))

    @torch.no_grad()
    def initialize(self, samples: Tensor, *, vectors_per_step: int, seed: int) -> None:
        """Start from the k-means centres of `samples` (M, D), the same on every rank.

        Args:
            samples: finite vectors in the code space.
            vectors_per_step: how many vectors a training step will show, over all ranks; sets the scale of `usage`.
            seed: of the k-means.
        """
        centers, counts = kmeans(samples, self.codebook_size, seed=seed)
        self.write(distributed.from_first_rank(centers))
        self.usage.copy_(distributed.from_first_rank(counts) * (vectors_per_step / len(samples)))
        self._forget_pending()

    # ------------------------------------------------------------------ state

    def get_extra_state(self) -> Tensor:
        """Counters that the forward pass must know without asking the device."""
        return torch.tensor([self.steps, self.refreshed_at, self._pending_batches], dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the counters."""
        if not 0 <= int(state.min()) <= int(state.max()) < 2**40:  # `noise_step` has to fit an int64
            raise ValueError(f"the codebook's counters are {state.tolist()}: expected numbers of at least 0")
        self.steps, self.refreshed_at, self._pending_batches = (int(value) for value in state)

    def extra_repr(self) -> str:
        """Sizes and constants."""
        return f"codebook_size={self.codebook_size}, dim={self.dim}, usage_decay={self.usage_decay}"


class NormalCodebook(Codebook):
    """K trainable codes that start as N(0, 1): a soft choice among smaller ones has next to no gradient to pass on."""

    def build_vectors(self, generator: torch.Generator) -> None:
        """Normal codes; see `Codebook`."""
        self.vectors = nn.Parameter(torch.randn(self.codebook_size, self.dim, generator=generator, dtype=torch.float32))


class EMACodebook(Codebook):
    """K code vectors that follow the running mean of the vectors that choose them; no gradient.

    With counts c and sums s of a step: n <- decay n + (1 - decay) c, then e <- e + (1 - decay) (s - c e) / n.

    State:
        vectors: (K, D) float32 buffer.
        And that of `Codebook`, where `usage` is n.

    Args:
        codebook_size: K.
        dim: D.
        usage_decay: gamma, in [0, 1).
        seed: see `Codebook`.

    Source: van den Oord et al. 2017 (arXiv:1711.00937), appendix A.1; constants as in EnCodec (arXiv:2210.13438) and
    Mimi (2410.00037).
    Differs: those keep running sums m = n e and divide. The update above is the same algebra written for the mean
    itself: (decay n e + (1 - decay) s) / (decay n + (1 - decay) c). It makes three known faults impossible. A code
    that is not used does not move by a bit, however long; no smoothing constant pulls it to the origin; a row that is
    overwritten stays overwritten, since no sum remembers the old one. Statistics are summed over ranks and
    micro-batches before they are folded.
    """

    trained_by = "statistics"

    def build_vectors(self, generator: torch.Generator) -> None:
        """Uniform codes, as a buffer; see `Codebook`."""
        self.register_buffer("vectors", _uniform(self.codebook_size, self.dim, generator))

    def fold(self, fresh: Tensor) -> None:
        """Move the codes; see `Codebook`."""
        # n is at least (1 - gamma) c wherever c > 0, and where c = 0 the numerator is exactly 0.
        weight = fresh / self.usage.clamp(min=torch.finfo(self.usage.dtype).tiny)
        change = self.pending_sums - self.pending_counts.unsqueeze(-1) * self.vectors
        # A sum that overflowed, of what a diverged stage left over, moves no code.
        self.vectors.add_(torch.where(change.isfinite(), change * weight.unsqueeze(-1), 0))


class ProjectedCodebook(Codebook):
    """K codes that one trainable map makes of a base: e_k = W b_k + c.

    Every code moves at every step, since all share W: a code that no vector chooses does not die. Subclasses have
    another base (features, trained vectors) and another map (`projector`, from (K, base_dim) to (K, D)).

    State:
        base: (K, D) float32 buffer, never trained.
        projector: linear (D, D) with bias.
        And usage as in `Codebook`.

    Args:
        codebook_size: K.
        dim: D.
        usage_decay: see `Codebook`.
        seed: of the base and of the projector.

    Source: SimVQ, Zhu et al. 2024 (arXiv:2411.02038), eq. 6; base N(0, 1/sqrt(D)), projector as in torch.nn.Linear.
    Differs: the map has a bias, as the released code does and the paper does not; decoding reads the projected code
    (the released look-up reads the base).
    """

    rows = "derived"
    per_code: ClassVar[tuple[str, ...]] = ("base",)

    base: Tensor
    projector: nn.Module

    def build_vectors(self, generator: torch.Generator) -> None:
        """The base and the projector; see `Codebook`."""
        base = torch.randn(self.codebook_size, self.dim, generator=generator, dtype=torch.float32) / math.sqrt(self.dim)
        self.register_buffer("base", base)
        self.projector = nn.Linear(self.dim, self.dim, dtype=torch.float32)
        bound = 1 / math.sqrt(self.dim)
        for parameter in self.projector.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self) -> Tensor:
        """The projected codes (K, D)."""
        return self.projector(self.base)

    @torch.no_grad()
    def initialize(self, samples: Tensor, *, vectors_per_step: int, seed: int) -> None:
        """Set the map so that the codes have the mean and covariance of `samples` (M, D); see `Codebook`."""
        self.match_samples(samples, seed)
        self.assume_uniform_usage(vectors_per_step)

    def write(self, vectors: Tensor) -> None:
        """Change the base by as little as makes `vectors` (K, D) the codes; see `Codebook`.

        Raises:
            ValueError: no base makes the map give them.
        """
        if isinstance(self.projector, nn.Linear):
            with autocast_disabled(vectors.device):
                change = widened(vectors - self())
                self.base.add_((change @ torch.linalg.pinv(widened(self.projector.weight)).mT).to(self.base.dtype))
                error = (self() - vectors).norm()
            if error <= 1e-3 * change.norm() + 1e-5 * vectors.norm():
                return
        raise ValueError(
            f"{type(self).__name__}: its map gives no code vectors like these; bake the quantizer, which stores the "
            "codes as a table, and cut that"
        )

    def match_samples(self, samples: Tensor, seed: int) -> None:
        """Set the map for `initialize`.

        Args:
            samples: (M, D) finite, of all ranks.
            seed: of random choices.
        """
        assert isinstance(self.projector, nn.Linear)  # a subclass with another map matches it in its own way
        match_linear(self.projector, self.base, samples)


class FrozenCodebook(Codebook):
    """K codes that are stored and never trained: what `vqkit.bake` makes of every other codebook.

    State:
        vectors: (K, D) float32 buffer; zeros until they are loaded, or `initialize` puts k-means centres there.
        And usage as in `Codebook`.
    """

    trained_by = "nothing"
    rows = "frozen"

    def build_vectors(self, generator: torch.Generator) -> None:
        """Zeros, as a buffer; see `Codebook`."""
        self.register_buffer("vectors", torch.zeros(self.codebook_size, self.dim, dtype=torch.float32))


class CascadedTable(FrozenCodebook):
    """A stored table that is read, and another that is searched: what `vqkit.bake` makes of a cascaded codebook.

    State:
        index_vectors: (K, D) float32 buffer, searched.
        And that of `FrozenCodebook`.
    """

    cascaded = True
    per_code = ("vectors", "index_vectors")

    index_vectors: Tensor

    def build_vectors(self, generator: torch.Generator) -> None:
        """Zeros, as buffers; see `Codebook`."""
        super().build_vectors(generator)
        self.register_buffer("index_vectors", torch.zeros_like(self.vectors))

    def search_vectors(self, vectors: Tensor) -> Tensor:
        """The index vectors (K, D)."""
        return self.index_vectors

    @torch.no_grad()
    def initialize(self, samples: Tensor, *, vectors_per_step: int, seed: int) -> None:
        """Put k-means centres of `samples` (M, D) into both tables; see `Codebook`."""
        super().initialize(samples, vectors_per_step=vectors_per_step, seed=seed)
        self.index_vectors.copy_(self.vectors)


@torch.no_grad()
def match_linear(layer: nn.Linear, inputs: Tensor, samples: Tensor) -> None:
    """Set a linear layer so that it gives `inputs` the mean and covariance of `samples`; the same on every rank."""
    assert layer.bias is not None  # the mean has to go somewhere
    weight, bias = matching_map(inputs, samples)
    layer.weight.copy_(distributed.from_first_rank(weight))
    layer.bias.copy_(distributed.from_first_rank(bias))


def _uniform(codebook_size: int, dim: int, generator: torch.Generator) -> Tensor:
    return (torch.rand(codebook_size, dim, generator=generator, dtype=torch.float32) * 2 - 1) / codebook_size
