"""Quantizers with other codebooks in the places of theirs."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from vqkit.functional import unit
from vqkit.kernels import nearest
from vqkit.parts.codebooks import Codebook
from vqkit.precision import widened
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.binary import BinaryQuantizer
from vqkit.quantizers.composite import CompositeQuantizer
from vqkit.quantizers.fsq import FSQ
from vqkit.quantizers.grouped import GroupedQuantizer
from vqkit.quantizers.quantizer import Quantizer
from vqkit.quantizers.residual import ResidualQuantizer
from vqkit.runtime import autocast_disabled
from vqkit.sharding import refuse_sharded
from vqkit.surgery.maps import CodeMap
from vqkit.surgery.results import LevelReport, Surgery
from vqkit.tokens.codebook_hash import codebook_hash

Value = TypeVar("Value")
Usage = Tensor | Sequence[Tensor] | None
"""How often each code was chosen: (K,); for several levels a sequence of such, or (L, K) as `total_counts` of
`CodebookUsage` gives it; None for the codebooks' own record.
"""


@dataclass(frozen=True, eq=False)
class Cut:
    """One codebook after an operation: a quantizer with it, the map and the report."""

    quantizer: Quantizer
    code_map: CodeMap
    report: LevelReport


def operate(quantizer: BaseQuantizer, call: str, operation: Callable[[Quantizer, int], Cut]) -> Surgery:
    """Operate on each codebook of a quantizer.

    Args:
        quantizer: of one codebook, or groups or residual stages of such.
        call: the name of the operation, for messages.
        operation: from a quantizer of one codebook and the number of its level to what becomes of it.

    Raises:
        ValueError: the quantizer has no codes that could be cut.
    """
    cuts: list[Cut] = []

    def each(part: BaseQuantizer) -> BaseQuantizer:
        refuse_unfit(part, call)
        if isinstance(part, Quantizer):
            cuts.append(operation(part, len(cuts)))
            return cuts[-1].quantizer
        assert isinstance(part, CompositeQuantizer)  # or it would be refused
        return with_members(part, [each(member) for member in part.members])

    whole = each(quantizer)
    maps, reports = [cut.code_map for cut in cuts], [cut.report for cut in cuts]
    return Surgery(whole, tuple(maps), tuple(reports), codebook_hash(quantizer))


def with_codebook(quantizer: Quantizer, codebook: Codebook) -> Quantizer:
    """A copy with another codebook of the same class and dimension."""
    other = copy.deepcopy(quantizer, {id(quantizer.codebook): codebook})
    other.codebook_size = codebook.codebook_size
    other.record(codebook_size=codebook.codebook_size)
    return other


def with_members(composite: CompositeQuantizer, members: Sequence[BaseQuantizer]) -> CompositeQuantizer:
    """A copy with other members, which its configuration then lists one by one."""
    pairs = zip(composite.members, members, strict=True)
    other = copy.deepcopy(composite, {id(old): new for old, new in pairs})
    other.codebook_size = max(other.codebook_sizes)
    builders = [partial(type(member), **member.recorded_arguments()) for member in members]
    other.record(**{other.member_name: builders, f"num_{other.member_name}s": None})  # the list has its own length
    return other


def refuse_unfit(quantizer: BaseQuantizer, call: str) -> None:
    """Raise ValueError, with what can be done instead, for a quantizer that is not cut by its codes."""
    refuse_sharded(quantizer, call, "save_pretrained it, and cut what from_pretrained gives")
    if isinstance(quantizer, Quantizer | GroupedQuantizer | ResidualQuantizer):
        sized = "codebook_size" if isinstance(quantizer, Quantizer) else quantizer.member_name
        if sized not in quantizer.recorded_arguments():
            raise ValueError(
                f"{call} got {type(quantizer).__name__}, whose constructor takes no {sized}: it could not be built "
                "with other codes; let it take one"
            )
        return
    quantizer.check_has_codes(call)
    name = type(quantizer).__name__
    if isinstance(quantizer, FSQ):
        fix = "its codes are a grid, not a table: build one with fewer `levels`, and train the decoder on"
    elif isinstance(quantizer, BinaryQuantizer):
        fix = "its codes are all signs, not a table: build one of fewer `bits`, and train on"
    else:
        fix = (
            "expected a Quantizer, or a GroupedQuantizer or ResidualQuantizer of such; operate on the quantizers "
            "inside, and build it anew around them"
        )
    raise ValueError(f"{call} got {name}: {fix}")


class Table:
    """The codes of a quantizer as they are clustered, and how often each is used.

    Where codes are compared by angle, they are on the unit sphere here, and their lengths are kept apart.

    Args:
        quantizer: of one codebook.
        usage: (K,) of each code; None for the codebook's own record.
        call: the name of the operation, for messages.
        rewrites: whether code vectors will be others afterwards.

    Raises:
        ValueError: `usage` does not fit, or codes of this kind cannot be rewritten.
    """

    def __init__(self, quantizer: Quantizer, usage: Tensor | None, call: str, *, rewrites: bool = True) -> None:
        codebook = quantizer.codebook
        if rewrites and (codebook.cascaded or codebook.attention):
            why = "reads another table than it searches" if codebook.cascaded else "searches keys, not its codes"
            raise ValueError(
                f"{call} got a {type(codebook).__name__}, which {why}: a mean of codes has no place there; prune and "
                "reorder keep codes as they are"
            )
        self.quantizer = quantizer
        self.spherical = quantizer.normalize or quantizer.search.metric == "cosine"
        with autocast_disabled(codebook.usage.device):
            self.codes = codes = codebook().detach()
        self.lengths = codes.norm(dim=1)
        self.points = unit(codes) if self.spherical else codes
        usage = codebook.usage if usage is None else usage
        if usage.shape != codebook.usage.shape or not (usage >= 0).all() or not usage.isfinite().all():
            raise ValueError(
                f"usage has shape {tuple(usage.shape)}: expected ({len(codes)},), finite and not negative, a count for "
                "each code; with several levels, a list of such"
            )
        self.usage = usage.to(codes.device, codes.dtype)

    @property
    def weights(self) -> Tensor:
        """(K,) positive: the usage, of which a millionth of the mean is the least, so that no code is forgotten."""
        usage = widened(self.usage)
        return usage.clamp(min=1e-6 * float(usage.mean())) if usage.any() else torch.ones_like(usage)

    def cut(self, code_map: CodeMap, vectors: Tensor | None = None) -> Cut:
        """The quantizer with the codes of a map.

        Args:
            code_map: which became which.
            vectors: (K', D) code vectors; None for those of `code_map.source`.
        """
        codebook = self.quantizer.codebook.with_rows(code_map.source, code_map.count, vectors)
        cut = with_codebook(self.quantizer, codebook)
        after = Table(cut, code_map.count(self.usage), "", rewrites=False)
        return Cut(cut, code_map, self.report(code_map, after))

    def cut_to(self, centers: Tensor) -> Cut:
        """The quantizer with other codes, each old one mapped to the nearest of them.

        New codes stand in the order of the most used old code of each, so that an order survives.

        Args:
            centers: (K', D) in the space of `points`; the code vectors, in the mean length of their codes if on the
                sphere.
        """
        new = nearest(self.points, centers).indices
        order = self.usage.argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        top = torch.full((len(centers),), -1, device=order.device).scatter_reduce_(0, new, rank, "amax")
        source = torch.where(top < 0, nearest(centers, self.points).indices, order[top])
        place = source.argsort(stable=True)
        inverse = torch.empty_like(place)
        inverse[place] = torch.arange(len(place), device=place.device)
        code_map = CodeMap(inverse[new], source[place])
        rows = centers
        if self.spherical:
            rows = rows * CodeMap(new, source).average(self.lengths, self.usage)[:, None]
        return self.cut(code_map, rows[place])

    def report(self, code_map: CodeMap, after: "Table") -> LevelReport:
        """Figures of a map to the codes of another table."""
        usage = widened(self.usage if self.usage.any() else torch.ones_like(self.usage))
        weights, points = usage / usage.sum(), widened(self.points)
        moved = (points - widened(after.points)[code_map.new]).square().sum(1)
        variance = float(weights @ (points - weights @ points).square().sum(1))
        distortion = float(weights @ moved)
        return LevelReport(
            before=len(self.points),
            after=len(after.points),
            distortion=distortion,
            relative_distortion=distortion / variance if variance else float("nan"),
            perplexity_before=_perplexity(self.usage),
            perplexity_after=_perplexity(after.usage),
        )


def size_of(sizes: int | Sequence[int], level: int, quantizer: BaseQuantizer) -> int:
    """The number of codes of a level, of which all have the same or each its own.

    Raises:
        ValueError: there is not one for each level.
    """
    return sizes if isinstance(sizes, int) else _one_each("codebook_size", sizes, quantizer)[level]


def usage_of(usage: Usage, level: int, quantizer: BaseQuantizer, name: str = "usage") -> Tensor | None:
    """The counts of a level, without the zeros that fill up those of smaller codebooks in `total_counts`.

    Raises:
        ValueError: there are not some for each level.
    """
    if usage is None or (isinstance(usage, Tensor) and usage.ndim == 1 and quantizer.num_codebooks == 1):
        return usage
    if isinstance(usage, Tensor) and usage.ndim != 2:
        raise ValueError(
            f"{name} has shape {tuple(usage.shape)}: expected counts of each of the {quantizer.num_codebooks} levels, "
            "a list of (K,) or (L, K)"
        )
    counts = _one_each(name, usage, quantizer)[level]
    return counts[: quantizer.codebook_sizes[level]] if isinstance(usage, Tensor) else counts


def _one_each(name: str, values: Sequence[Value] | Tensor, quantizer: BaseQuantizer) -> Any:
    levels = quantizer.num_codebooks
    if len(values) != levels:
        raise ValueError(f"{name} has {len(values)} entries: expected {levels}, one for each level")
    return values


def _perplexity(usage: Tensor) -> float:
    shares = widened(usage) / widened(usage).sum().clamp(min=torch.finfo(usage.dtype).tiny)
    return float(torch.exp2(-torch.special.xlogy(shares, shares).sum() / torch.tensor(2.0).log()))
