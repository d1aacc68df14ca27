"""What composites share: their members, and the draw of how much of them a sample uses."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqkit import distributed
from vqkit.parts.codebooks import Codebook
from vqkit.parts.compatibility import check_stages
from vqkit.parts.estimators import Estimator, StraightThrough
from vqkit.parts.selection import Noise, Selection
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.lengths import PrefixLengths, UniformLengths
from vqkit.quantizers.output import Quantized
from vqkit.quantizers.reduction import MeanOverMembers, MemberCounts, Reduction
from vqkit.runtime import ForwardNumbers, uncompiled

Builder = Callable[[], BaseQuantizer]


class CompositeQuantizer(BaseQuantizer):
    """A quantizer made of quantizers; the levels of its members, one after another, are the last axis of its indices.

    Subclasses keep the members in a module list of their own name, and write `quantize`, `lookup` and `initialize` with
    those of the members.

    Args:
        members: at least one, each with `channel_dim=-1`.
        dim: of the whole.
        channel_dim: see `BaseQuantizer`.
        reduction: how the losses of the members make one.

    Raises:
        ValueError: `reduction` is none, or a member has no codes.
    """

    level_axis = True
    member_name: str
    """What the composite calls a member, such as "stage": the argument of its constructor that builds them."""

    def __init__(self, members: Sequence[BaseQuantizer], dim: int, *, channel_dim: int, reduction: Reduction) -> None:
        super().__init__(dim, channel_dim=channel_dim)
        if not isinstance(reduction, Reduction):
            raise ValueError(f"reduction={reduction}: expected a Reduction, such as SumOverMembers()")
        self.reduction = reduction
        for member in members:
            member.check_has_codes(type(self).__name__)
        sizes = [size for member in members for size in member.codebook_sizes]
        self.num_codebooks = len(sizes)
        self.codebook_size = max(sizes)

    @property
    @abstractmethod
    def members(self) -> Iterable[BaseQuantizer]:
        """In the order of the levels."""

    @property
    def calls(self) -> Iterable[BaseQuantizer]:
        """The member of each of `Quantized.members`."""
        return self.members

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The size of each codebook, in the order of the last axis of the indices."""
        return tuple(size for member in self.members for size in member.codebook_sizes)

    @property
    def level_books(self) -> tuple[int, ...]:
        """Those of the members, of which each has its own; see `BaseQuantizer`."""
        books: list[int] = []
        for member in self.members:
            first, own = len(set(books)), member.level_books
            numbers = {book: first + place for place, book in enumerate(dict.fromkeys(own))}
            books += [numbers[book] for book in own]
        return tuple(books) if len(books) == len(self.level_sizes) else super().level_books

    def join_levels(self, indices: Iterable[Tensor], shape: Sequence[int]) -> Tensor:
        """Indices of each member, `shape` or (*shape, levels), side by side: (*shape, num_codebooks)."""
        pairs = zip(self.members, indices, strict=True)
        return torch.cat([part.reshape(*shape, member.num_codebooks) for member, part in pairs], dim=-1)

    def split_levels(self, indices: Tensor) -> list[Tensor]:
        """The indices of each member, as it decodes them, of those members that `indices` (..., levels) reaches."""
        parts, first = [], 0
        for member in self.members:
            levels = indices[..., first : first + member.num_codebooks]
            if not levels.shape[-1]:
                break
            parts.append(levels if member.level_axis else levels.squeeze(-1))
            first += member.num_codebooks
        return parts

    def has_index(self, indices: Tensor) -> Tensor:
        """Where any level has an index: (..., [levels]) -> (...) bool."""
        return (indices >= 0).any(-1) if self.level_axis else indices >= 0

    def first_members(self, levels: int) -> list[tuple[BaseQuantizer, int]]:
        """The members that the first levels reach, and how many of the levels of each."""
        found: list[tuple[BaseQuantizer, int]] = []
        for member in self.members:
            if levels > 0:
                found.append((member, min(levels, member.num_codebooks)))
            levels -= member.num_codebooks
        return found

    def level_tables(self) -> list[Tensor | None]:
        """Those of the members; see `BaseQuantizer`."""
        return [table for member in self.members for table in member.level_tables()]

    def sums(self, quantized: Quantized) -> dict[str, tuple[Tensor, Tensor]]:
        """How much was quantized, if a reduction here or in a member reads choices; see `BaseQuantizer`."""
        inner = (module for module in self.modules() if isinstance(module, CompositeQuantizer))
        if not any(composite.reduction.reads_choices for composite in inner):
            return {}
        own = self._quantized(quantized)
        return {"quantized": (own / distributed.world_size(), own)}

    def count(self, quantized: Quantized) -> MemberCounts:
        """How much each member quantized, in `self.dtype`: integers would divide in torch's default dtype."""
        own = mean = self._quantized(quantized)
        if quantized.sums:
            mean = quantized.sums["quantized"][0]
        ours, of_all = own[1:].view(-1, 2), mean[1:].view(-1, 2)
        # The loss of a member with sums is divided by what all ranks quantized, that of another by what this one did.
        rows = [(of_all if made.sums else ours)[number] for number, made in enumerate(quantized.members)]
        used, choices = torch.stack(rows).unbind(-1)
        some = torch.finfo(self.dtype).tiny
        return MemberCounts(
            vectors=mean[0].clamp(min=some),
            used=used,
            codebooks=[member.num_codebooks for member in self.calls],
            choices=choices,
            all_choices=of_all[:, 1].sum().clamp(min=some),
        )

    def given(self, quantized: Quantized) -> list[Tensor]:
        """Of each member () how many of the `valid` vectors it was given."""
        return [made.valid.sum() for made in quantized.members]

    def _quantized(self, quantized: Quantized) -> Tensor:
        """(1 + 2 M,) vectors; of each member, those that it was given, and the codes that it chose."""
        counts = [quantized.valid.sum()]
        for made, given in zip(quantized.members, self.given(quantized), strict=True):
            chosen = (made.indices >= 0).sum() if self.reduction.reads_choices else counts[0]
            counts += [given, chosen]
        dtype = self.dtype
        return torch.stack([count.to(dtype) for count in counts])

    def penalize(self, quantized: Quantized) -> tuple[Tensor, dict[str, Tensor]]:
        """The members' losses, and those of each name, added up as `reduction` has it; takes the members out."""
        losses: dict[str, Tensor] = {}
        total = quantized.vectors.new_zeros(())
        for member, share in zip(self.calls, self.reduction(self.count(quantized)), strict=True):
            loss, named = member.penalize(quantized.members.pop(0))  # the vectors that it held are free now
            total = total + share * loss
            for name, value in named.items():
                losses[name] = losses[name] + share * value if name in losses else share * value
        return total, losses

    def step(self) -> None:
        """Fold the statistics of every member."""
        for member in self.members:
            member.step()

    def strip_training(self) -> None:
        """Strip the members, which the configuration then lists one by one; see `BaseQuantizer`."""
        taken = self.recorded_arguments().keys()
        if self.member_name in taken:
            for member in self.members:
                member.strip_training()
            builders = [partial(type(member), **member.recorded_arguments()) for member in self.members]
            counts = dict.fromkeys(taken & {f"num_{self.member_name}s"})  # the list has its own length
            self.record(**{self.member_name: builders}, **counts)
        if self.recorded_arguments().get("estimator") is not None:  # over the sum; it may have trained codes
            self.estimator = StraightThrough()
            self.record(estimator=self.estimator)
        if "reduction" in taken:
            self.reduction = MeanOverMembers()
            self.record(reduction=self.reduction)

    def health(self) -> dict[str, float]:
        """What the members' `health` says, under "<member name>_<number>/"; non-finite inputs are counted here."""
        report = super().health()
        for number, member in enumerate(self.members):
            figures = member.health().items()
            report |= {f"{self.member_name}_{number}/{name}": value for name, value in figures if name != "nonfinite"}
        return report


class SampleDropout(CompositeQuantizer):
    """A composite of which a sample may use a part alone, drawn for each sample and training forward.

    Args:
        arguments: of the composite that it makes so.
        dropout: probability, per sample and training step, that it is cut short.
        lengths: the distribution of what is left of it then.
        seed: of the draws.
        named: arguments of the composite, too.

    State:
        extra state: how many training forwards were drawn for, as an int64 tensor.

    Raises:
        ValueError: `dropout` is no probability, or `lengths` no distribution.
    """

    def __init__(
        self,
        *arguments: Any,
        dropout: float,
        lengths: PrefixLengths = UniformLengths(),  # noqa: B008 - stateless
        seed: int,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout={dropout}: expected a probability in [0, 1]")
        if not isinstance(lengths, PrefixLengths):
            raise ValueError(f"lengths={lengths}: expected PrefixLengths, such as UniformLengths()")
        self.dropout = dropout
        self.lengths = lengths
        self.seed = seed
        self.noise_seed = seed  # of an estimator over the sum
        self.draws = 0
        self._numbers = ForwardNumbers()

    def number_forward(self, data: Tensor) -> int | Tensor:
        """The number of this training forward of `data`, or of the one that it recomputes: the step of its draws."""
        return self._number(data) if self.stochastic and not self.passes_through else 0

    def sample_lengths(self, step: int | Tensor, batch_size: int, whole: int) -> Tensor | None:
        """How much each sample uses in this training forward, (B,) int64; None where all use all.

        A function of the seed, of the step that `number_forward` gives and of the number of a sample among those of all
        ranks, if they hold as many each.

        Args:
            step: see `number_forward`.
            batch_size: B.
            whole: what a sample has that is not cut short.
        """
        draws = self.dropout and self.stochastic and not self.passes_through
        return self._sample(step, batch_size, whole) if draws else None

    def estimate_sum(
        self, estimator: Estimator, latents: Tensor, total: Tensor, valid: Tensor, step: int | Tensor
    ) -> Tensor:
        """What an estimator over the sum of all members passes on: (B, *S, dim), of the latents and the sum."""
        if not torch.is_grad_enabled():
            return total
        rows, positions = latents.flatten(0, -2), valid.flatten()
        noisy = estimator.uses_noise and self.stochastic
        selection = Selection(
            latents=rows,
            z=rows,
            codes=None,
            indices=positions.long() - 1,
            selected=total.flatten(0, -2),
            valid=positions,
            noise=Noise.of_step(self.noise_seed, step, len(rows), rows.device) if noisy else None,
        )
        return estimator(selection).reshape(latents.shape)

    @uncompiled  # a Python number, on which a compiler would specialise anew at every step
    def _number(self, data: Tensor) -> Tensor:
        if self.learning:
            self.draws += 1
        return self._numbers.find(data, self.draws)

    @uncompiled
    def _sample(self, step: int | Tensor, batch_size: int, whole: int) -> Tensor:
        samples = torch.arange(batch_size, device=self.latent_spread.device) + distributed.rank() * batch_size
        chance, length = (distributed.counter_random(2 * samples + k, seed=self.seed, step=step) for k in (0, 1))
        return torch.where(chance < self.dropout, self.lengths(length, whole), whole)

    def get_extra_state(self) -> Tensor:
        """How many dropout draws were made."""
        return torch.tensor([self.draws], dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the count of draws."""
        self.draws = int(state[0])

    def extra_repr(self) -> str:
        """Dropout and layout."""
        lengths = f", lengths={self.lengths}" if self.dropout else ""
        return f"dropout={self.dropout}{lengths}, dim={self.dim}, channel_dim={self.channel_dim}"


class DepthDropout(SampleDropout):
    """A composite of which a sample may use the first members alone."""

    def sample_depths(self, step: int | Tensor, batch_size: int) -> Tensor | None:
        """How many members each sample uses in this training forward: see `sample_lengths`."""
        return self.sample_lengths(step, batch_size, len(list(self.members)))


def check_summed_levels(composite: CompositeQuantizer, levels: int) -> None:
    """`BaseQuantizer.check_first_levels` of a composite whose members add up.

    Raises:
        ValueError: there are not as many levels, or they end inside of a member whose levels do not add up.
    """
    if not 1 <= levels <= composite.num_codebooks:
        raise ValueError(
            f"levels={levels}: expected 1 to {composite.num_codebooks}, the levels of {type(composite).__name__}"
        )
    for member, count in composite.first_members(levels):
        member.check_first_levels(count)


def used(valid: Tensor, depths: Tensor, number: int) -> Tensor:
    """(B, *S) bool, which of the `valid` vectors a member quantizes, by its number and the depths (B,) of samples."""
    return valid & (depths > number).reshape(-1, *[1] * (valid.ndim - 1))


def shares_of(quantized: Quantized, wholes: Sequence[Tensor]) -> list[Tensor]:
    """For `CompositeQuantizer.given`, of members on grids of their own: the part of the vectors that is as large as
    that of its grid which each member was given.

    Args:
        quantized: of the composite.
        wholes: of each member, () how much its grid holds where nothing is left out.
    """
    pairs = zip(quantized.members, wholes, strict=True)
    return [quantized.valid.sum() * (made.valid.sum().to(made.vectors) / whole.clamp(min=1)) for made, whole in pairs]


def build_members(
    build: Builder | Sequence[Builder], count: int | None, *, kind: str, owner: str
) -> list[BaseQuantizer]:
    """The members of a composite, each with a codebook of its own.

    Args:
        build: one factory for all, or a list of one for each.
        count: how many; needed for one factory, and None for a list.
        kind: what the composite calls a member, "stage" or "group", as in the names of its arguments.
        owner: the composite's name, for messages.

    Raises:
        ValueError: there are none, the count does not fit, or members share state or have a layout of their own.
    """
    name = f"num_{kind}s"
    if callable(build):
        if count is None or count < 1:
            raise ValueError(f"{name}={count}: expected at least 1, how often to call {kind}")
        members = [build() for _ in range(count)]
    else:
        if count not in (None, len(build)):
            raise ValueError(f"{name}={count}: expected None, since {kind} lists {len(build)} factories")
        if not build:
            raise ValueError(f"{kind}=[]: expected a factory for each {kind}, at least 1")
        members = [factory() for factory in build]
    if len({id(member) for member in members}) < len(members):
        raise ValueError(f"{kind} gave the same quantizer again: expected a new one at each call; codebooks have state")
    if any(member.channel_dim != -1 for member in members):
        raise ValueError(
            f"{kind} built quantizers with another channel_dim than -1: give channel_dim to {owner} instead"
        )
    for number, member in enumerate(members):
        if not member.index_per_position:
            raise ValueError(
                f"{kind} built a {type(member).__name__}, which has no index for each position: put {owner} inside of "
                "it, as its stage, or use it by itself"
            )
        _give_own_seed(member, number)
    return members


def check_sum(stages: Sequence[BaseQuantizer], estimator: Estimator | None) -> None:
    """Check members that are summed, and an estimator over their sum.

    Raises:
        IncompatibleParts: see `check_stages`.
        ValueError: they differ in `dim`.
    """
    dims = [stage.dim for stage in stages]
    if len(set(dims)) > 1:
        raise ValueError(f"stage built quantizers of dim {dims}: expected one size, since stages are summed")
    inner = [module for stage in stages for module in stage.modules() if isinstance(module, BaseQuantizer)]
    check_stages(dims[0], inner, estimator)


def build_one(build: Builder | Sequence[Builder], *, owner: str) -> BaseQuantizer:
    """The quantizer of a composite that has one; see `build_members`.

    Args:
        build: a factory, or a list of one.
        owner: the composite's name, for messages.
    """
    if not callable(build) and len(build) != 1:
        raise ValueError(
            f"quantizer lists {len(build)} factories: expected one; to join several, build a ResidualQuantizer or "
            "GroupedQuantizer of them"
        )
    return build_members(build, 1, kind="quantizer", owner=owner)[0]


def _give_own_seed(member: BaseQuantizer, number: int) -> None:
    """Give members of one factory, which have one seed, different restarts and noise, and dropout that is drawn apart
    from that of the composite: with one seed, short prefixes of tokens would be those of few levels. All members of a
    composite are cut at one depth, as a product of residuals is.

    The vectors that they start with stay equal, until `initialize` fits each to what it is given.
    """
    for part in member.modules():
        if isinstance(part, Codebook):
            part.seed = _derived(part.seed, number)
        elif isinstance(part, SampleDropout):
            part.seed, part.noise_seed = _derived(part.seed, 999_983), _derived(part.noise_seed, number)


def _derived(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number) % 2**62
