"""What composites share: building their members, and joining what the members report."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from vqkit.parts.codebooks import Codebook
from vqkit.quantizers.base import BaseQuantizer

Builder = Callable[[], BaseQuantizer]


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
        _draw_apart(member, number)
    return members


def _draw_apart(member: BaseQuantizer, number: int) -> None:
    """Give members of one factory, which have one seed, different restarts and noise.

    The vectors that they start with stay equal, until `initialize` fits each to what it is given.
    """
    for codebook in member.modules():
        if isinstance(codebook, Codebook):
            codebook.seed = (codebook.seed * 1_000_003 + number) % 2**62


def joined_sizes(members: Iterable[BaseQuantizer]) -> tuple[int, ...]:
    """The sizes of all codebooks, in the order of the last axis of the indices."""
    return tuple(size for member in members for size in member.codebook_sizes)


def summed_losses(reports: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Name -> sum over the members that report a loss of that name, in order of first appearance."""
    totals: dict[str, Tensor] = {}
    for report in reports:
        for name, value in report.items():
            totals[name] = totals[name] + value if name in totals else value
    return totals


def member_health(members: Iterable[BaseQuantizer], kind: str) -> dict[str, float]:
    """What the members' `health` says, under "<kind>_<number>/"; non-finite inputs are counted by the composite."""
    report: dict[str, float] = {}
    for number, member in enumerate(members):
        report |= {f"{kind}_{number}/{name}": value for name, value in member.health().items() if name != "nonfinite"}
    return report
