"""Split quantization: a semantic quantizer beside an acoustic one, with linear maps for each branch."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.parts.compatibility import check_stages
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.composite import DepthDropout, build_members, check_summed_levels, used
from vqkit.quantizers.initialization import MemberWarnings, collect_vectors, enough_samples
from vqkit.quantizers.output import Quantized
from vqkit.quantizers.reduction import MeanOverCodebooks, Reduction
from vqkit.runtime import autocast_disabled, uncompiled


class BranchedQuantizer(DepthDropout):
    """A sum of branches, each of which is a quantizer of what `enter` makes of the input.

    Subclasses write `enter` and `leave`, and give the sizes.

    Args:
        branches: the members, semantic first.
        dim: see `CompositeQuantizer`.
        dropout: see `DepthDropout`.
        reduction: see `CompositeQuantizer`.
        channel_dim: see `BaseQuantizer`.
        seed: of the dropout.
    """

    member_name = "branch"
    has_projection = True
    branches: Sequence[BaseQuantizer]
    unquantized: float = 0.0
    """Probability, per sample, branch and training step, that what enters a branch leaves it as it is."""

    def __init__(
        self,
        branches: Sequence[BaseQuantizer],
        dim: int,
        *,
        dropout: float,
        reduction: Reduction,
        channel_dim: int,
        seed: int,
    ) -> None:
        super().__init__(branches, dim, channel_dim=channel_dim, reduction=reduction, dropout=dropout, seed=seed)
        self.branches = nn.ModuleList(branches)  # type: ignore[assignment]  # it forgets its element type

    @abstractmethod
    def enter(self, number: int, latents: Tensor, total: Tensor) -> Tensor:
        """What branch `number` quantizes.

        Args:
            number: of the branch.
            latents: (..., dim) the input.
            total: (..., dim) the sum of the branches before.

        Returns:
            (..., dim of the branch)
        """

    @abstractmethod
    def leave(self, number: int, vectors: Tensor) -> Tensor:
        """What branch `number` adds to the sum, (..., dim), by its vectors; 0 for vectors of zeros."""

    @property
    def members(self) -> Iterable[BaseQuantizer]:
        """The branches, semantic first."""
        return self.branches

    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        """Quantize with one branch after the other; see `BaseQuantizer`."""
        step = self.number_forward(latents)
        depths, passed = (draw(step, latents.shape[0]) for draw in (self.sample_depths, self.sample_passed))
        total, members = torch.zeros_like(latents), []
        for number, branch in enumerate(self.branches):
            counts = valid if depths is None else used(valid, depths, number)
            given, counts = _finite(self.enter(number, latents, total), counts)
            members.append(branch.quantize(given, counts))
            vectors = members[-1].vectors
            if passed is not None:
                vectors = torch.where(passed[number].reshape(-1, *[1] * valid.ndim), given, vectors)
            total = total + self.leave(number, vectors)
        indices = self.join_levels([member.indices for member in members], valid.shape)
        return Quantized(total, indices, valid, members=members, source=self)

    def sample_passed(self, step: int | Tensor, batch_size: int) -> Tensor | None:
        """Which samples a branch leaves unquantized in this training forward, (branches, B) bool; None where none."""
        draws = self.unquantized and self.stochastic and not self.passes_through
        return self._sample_passed(step, batch_size) if draws else None

    @uncompiled
    def _sample_passed(self, step: int | Tensor, batch_size: int) -> Tensor:
        count, first = len(self.branches), distributed.rank() * batch_size
        samples = torch.arange(first, first + batch_size, device=self.latent_spread.device)
        numbers = torch.arange(count, device=samples.device)[:, None] + count * samples
        # Negative positions: `sample_lengths` has the others of this seed.
        return distributed.counter_random(-1 - numbers, seed=self.seed, step=step) < self.unquantized

    def lookup(self, indices: Tensor) -> Tensor:
        """Sum of the branches: (..., levels) int64 -> (..., dim), for any prefix of the levels."""
        total = torch.zeros(*indices.shape[:-1], self.dim, dtype=self.dtype, device=indices.device)
        for number, levels in enumerate(self.split_levels(indices)):
            total = total + self.leave(number, self.branches[number].lookup(levels))
        return total

    def chosen_vectors(self, quantized: Quantized) -> Tensor:
        """The sum of what the branches chose; see `BaseQuantizer`."""
        total = torch.zeros_like(quantized.vectors)
        for number, (branch, made) in enumerate(zip(self.branches, quantized.members, strict=True)):
            total = total + self.leave(number, branch.chosen_vectors(made))
        return total

    def prefix_vectors(self, quantized: Quantized, levels: int) -> Tensor:
        """The sum of the first branches; see `BaseQuantizer`."""
        pairs = zip(self.first_members(levels), quantized.members, strict=False)
        parts = [member.prefix_vectors(made, count) for (member, count), made in pairs]
        return torch.stack([self.leave(number, vectors) for number, vectors in enumerate(parts)]).sum(0)

    def check_first_levels(self, levels: int) -> None:
        """See `BaseQuantizer`."""
        check_summed_levels(self, levels)

    @torch.no_grad()
    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Initialize the branches in sequence, each on what it will be given, branch i with seed + i; by default on
        `enough_samples` for the largest codebook. See `BaseQuantizer`.
        """
        rows, batch = collect_vectors(self, latents, enough_samples(self.codebook_size, samples))
        samples = max(len(rows), 1) * distributed.world_size()  # of this rank all; it may have none
        total = torch.zeros_like(rows)
        with MemberWarnings("branch") as warned, autocast_disabled(rows.device):
            for number, branch in enumerate(self.branches):
                given = self.enter(number, rows, total)
                with warned.by(number):
                    branch.initialize(given.split(batch), samples=samples, seed=seed + number)
                chosen = torch.cat([branch.lookup(branch.encode(chunk)) for chunk in given.split(batch)])
                total = total + self.leave(number, chosen)

    def extra_repr(self) -> str:
        """Sizes and layout."""
        return f"codebook_sizes={self.codebook_sizes}, {super().extra_repr()}"


class SplitQuantizer(BranchedQuantizer):
    """Quantizers of the same latents, each between linear maps of its own, and their sum: y = sum_i V_i Q_i(W_i z).

    In Mimi a semantic codebook and an acoustic residual quantizer stand beside each other, so that the semantic one,
    which an objective distils, need not carry what the acoustic ones could. Any prefix of the levels decodes, the
    semantic ones first: `decode(indices[..., :1])`. The maps have no biases, so that a branch which is left out adds
    nothing.

        >>> stage = functools.partial(Quantizer, "ema", dim=256, codebook_size=2048)
        >>> SplitQuantizer([stage, functools.partial(ResidualQuantizer, stage, 7)], dim=512)  # Mimi

    Every branch keeps its own estimator, and its map W_i gets the gradient through it. One branch alone is a quantizer
    of another `dim` between maps, such as a residual chain that is projected once.

    Args:
        branch: a factory for each branch, semantic first; branches may differ in method, `dim` and number of levels.
        dim: of the latents.
        dropout: probability, per sample and training step, that only the first n branches are used, n uniform in 1 ...
            number of branches. Dropped branches have index -1, no loss and no statistics. The dropout of Mimi's
            acoustic levels is that of their `ResidualQuantizer`.
        unquantized: probability, per sample, branch and training step, that the branch passes on what it was given, and
            not its codes, which it chooses and learns from all the same; 0.5 in Mimi. The decoder then hears both.
        reduction: how the losses of the branches make one. By default each codebook weighs as much as any other; Mimi,
            which drops levels, has `MeanOverChoices()`, here and for the acoustic ones.
        channel_dim: see `BaseQuantizer`; the branches themselves have -1.
        seed: of the dropout.

    Source: Défossez et al. 2024 (Mimi, arXiv:2410.00037), sec. 3.3, and its released code.

    Raises:
        ValueError: an argument is out of its range, or branches share state.
    """

    def __init__(
        self,
        branch: Sequence[Callable[[], BaseQuantizer]],
        *,
        dim: int,
        dropout: float = 0.0,
        unquantized: float = 0.0,
        reduction: Reduction = MeanOverCodebooks(),  # noqa: B008 - stateless
        channel_dim: int = -1,
        seed: int = 0,
    ) -> None:
        if not 0 <= unquantized <= 1:
            raise ValueError(f"unquantized={unquantized}: expected a probability in [0, 1]")
        branches = _build(branch, "SplitQuantizer")
        super().__init__(branches, dim, dropout=dropout, reduction=reduction, channel_dim=channel_dim, seed=seed)
        self.unquantized = unquantized
        sizes = [member.dim for member in branches]
        self.project_in = nn.ModuleList(nn.Linear(dim, size, bias=False, dtype=torch.float32) for size in sizes)
        self.project_out = nn.ModuleList(nn.Linear(size, dim, bias=False, dtype=torch.float32) for size in sizes)

    def assign(self, latents: Tensor, valid: Tensor) -> Tensor:
        """The branches' own: none waits for what another one chose; see `BaseQuantizer`."""
        given = (_finite(self.enter(number, latents, latents), valid) for number in range(len(self.branches)))
        parts = [branch.assign(*pair) for branch, pair in zip(self.branches, given, strict=True)]
        return self.join_levels(parts, valid.shape)

    def enter(self, number: int, latents: Tensor, total: Tensor) -> Tensor:
        """The latents through the map of the branch; see `BranchedQuantizer`."""
        return self.project_in[number](latents)

    def leave(self, number: int, vectors: Tensor) -> Tensor:
        """Through the map out of the branch; see `BranchedQuantizer`."""
        return self.project_out[number](vectors)


class FeatureSplitQuantizer(BranchedQuantizer):
    """A semantic quantizer of another encoder's features, and an acoustic one of what these leave of the latents.

    The channels are those of the features f, then those of the latents z, and so are those of the result:

        s = Q_s(f),  y = V s + Q_a(z - V s)

    with s for an objective that compares it with a teacher, and y for the decoder. An encoder of two networks joins
    their outputs, and a decoder may read s too. Any prefix of the levels decodes, the semantic ones first.

    Every branch keeps its own estimator, and nothing is detached: V and the features' encoder are trained through y,
    and by what is left over for the acoustic branch.

        >>> code = functools.partial(Quantizer, "factorized", dim=1024, codebook_dim=8)
        >>> semantic = functools.partial(code, codebook_size=16384)
        >>> acoustic = functools.partial(ResidualQuantizer, functools.partial(code, codebook_size=4096), 7,
        ...                              estimator=None, dropout=1.0, reduction=SumOverMembers())
        >>> FeatureSplitQuantizer([semantic, acoustic], dropout=0.25, reduction=SumOverMembers())  # DualCodec

    Args:
        branch: two factories, semantic and acoustic; `dim` is the sum of theirs.
        dropout: see `SplitQuantizer`; with 2 p the acoustic branch is left out with probability p.
        reduction: see `SplitQuantizer`; `SumOverMembers()` for DualCodec, here and for the acoustic branch.
        channel_dim: see `BaseQuantizer`; the branches themselves have -1.
        seed: of the dropout.

    Source: Li et al. 2025 (DualCodec, arXiv:2505.13000), and its released code.
    Differs: V is a linear map without bias, where the released code has a ConvNeXt decoder, whose output is also what
    the teacher is compared with; the acoustic branch is left out for single samples, not for whole batches.

    Raises:
        IncompatibleParts: a semantic branch that leaves over something else in training than it will later.
        ValueError: an argument is out of its range, or branches share state.
    """

    def __init__(
        self,
        branch: Sequence[Callable[[], BaseQuantizer]],
        *,
        dropout: float = 0.0,
        reduction: Reduction = MeanOverCodebooks(),  # noqa: B008 - stateless
        channel_dim: int = -1,
        seed: int = 0,
    ) -> None:
        branches = _build(branch, "FeatureSplitQuantizer")
        if len(branches) != 2:
            raise ValueError(f"branch lists {len(branches)} factories: expected 2, a semantic and an acoustic one")
        semantic, acoustic = branches
        dim = semantic.dim + acoustic.dim
        super().__init__(branches, dim, dropout=dropout, reduction=reduction, channel_dim=channel_dim, seed=seed)
        inner = [module for module in semantic.modules() if isinstance(module, BaseQuantizer)]
        check_stages(semantic.dim, inner, None)
        self.project_out = nn.Linear(semantic.dim, acoustic.dim, bias=False, dtype=torch.float32)

    def enter(self, number: int, latents: Tensor, total: Tensor) -> Tensor:
        """The features, or what the semantic branch leaves of the latents; see `BranchedQuantizer`."""
        features = self.branches[0].dim
        return latents[..., features:] - total[..., features:] if number else latents[..., :features]

    def leave(self, number: int, vectors: Tensor) -> Tensor:
        """Features and latents of the semantic branch, or latents alone; see `BranchedQuantizer`."""
        if number:
            return torch.nn.functional.pad(vectors, (self.branches[0].dim, 0))
        return torch.cat([vectors, self.project_out(vectors)], dim=-1)


def _finite(given: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """What a branch is given, zeros where it does not count: a map that diverged must not take codebooks along."""
    counts = counts & (torch.linalg.vector_norm(given.detach(), dim=-1) < torch.inf)
    return torch.where(counts.unsqueeze(-1), given, 0), counts


def _build(branch: Sequence[Callable[[], BaseQuantizer]], owner: str) -> list[BaseQuantizer]:
    if callable(branch):
        raise ValueError(f"branch={branch}: expected a list of one factory for each branch, since branches differ")
    return build_members(branch, None, kind="branch", owner=owner)
