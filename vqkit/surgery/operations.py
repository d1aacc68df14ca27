"""Operations on trained codebooks. Each leaves its quantizer as it was, and returns a `Surgery`."""

import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from vqkit import distributed
from vqkit.clustering.kmeans import kmeans
from vqkit.functional import unit
from vqkit.kernels import nearest
from vqkit.precision import widened
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.grouped import GroupedQuantizer
from vqkit.quantizers.initialization import collect_vectors, enough_samples
from vqkit.quantizers.quantizer import Quantizer, spread
from vqkit.quantizers.residual import ResidualQuantizer
from vqkit.surgery.maps import CodeMap
from vqkit.surgery.orders import used
from vqkit.surgery.rebuilding import (
    Cut,
    Table,
    Usage,
    operate,
    refuse_unfit,
    size_of,
    usage_of,
    with_codebook,
    with_members,
)
from vqkit.surgery.results import Surgery
from vqkit.tokens.codebook_hash import codebook_hash

ENOUGH_COUNTS = 10
"""Vectors for each code below which `prune` warns: a code that a small sample never chose need not be dead."""
STEP = 0.01
"""How far a new half of a code is from it, as a fraction of the codes' spread: that of `LBGSplitting`."""


@torch.no_grad()
def shrink(
    quantizer: BaseQuantizer,
    codebook_size: int | Sequence[int],
    *,
    usage: Usage = None,
    restarts: int = 4,
    iterations: int = 50,
    seed: int = 0,
) -> Surgery:
    """Fewer codes by k-means of the code vectors, each weighted by its usage.

    The centers minimise sum_k u_k |c_k - c'_m(k)|^2. Where codes are compared by angle, they are clustered on the unit
    sphere. Codes that are computed (SimVQ) are clustered as they are searched; their base changes by as little as
    makes the map give the centers. Afterwards the decoder should be trained on, with the encoder frozen.

    Args:
        quantizer: a `Quantizer`, or groups of such.
        codebook_size: K', 1 ... K; a list of one for each level will do.
        usage: (K,) how often each code was chosen, over a data set at best; for several levels a list of such, or
            (L, K) of `CodebookUsage.total_counts`. None takes the running usage of the codebooks.
        restarts: seedings, of which the one with the least sum is kept.
        iterations: most rounds of Lloyd for each.
        seed: of the first seeding.

    Raises:
        ValueError: the codes are no table that can be cut, stages are residual, or an argument does not fit.

    Source: Mao et al. 2023, "Extreme Image Compression using Fine-tuned VQGANs" (https://arxiv.org/abs/2307.08265),
        which cuts the codebook of one VQGAN by k-means and tunes the model for each rate.
    Differs: there each code counts alike; what is frozen while it is tuned is not said in what we read.
    """
    if any(isinstance(part, ResidualQuantizer) for part in quantizer.modules()):  # groups may hold some
        raise ValueError(
            "shrink got a ResidualQuantizer: other codes of a stage leave other residuals to the next one; "
            "shrink_from_latents cuts the stages one after the other"
        )

    def operation(part: Quantizer, level: int) -> Cut:
        table = Table(part, usage_of(usage, level, quantizer), "shrink")
        size = _smaller(size_of(codebook_size, level, quantizer), table, "shrink")
        if restarts < 1:
            raise ValueError(f"restarts={restarts}: expected at least 1 seeding")
        return table.cut_to(_cluster(table, size, restarts, iterations, seed))

    return operate(quantizer, "shrink", operation)


@torch.no_grad()
def shrink_from_latents(
    quantizer: BaseQuantizer,
    latents: Iterable[Tensor],
    codebook_size: int | Sequence[int],
    *,
    samples: int | None = None,
    iterations: int = 50,
    seed: int = 0,
) -> Surgery:
    """Fewer codes by k-means of latents, which starts from the centers of `shrink`.

    Residual stages are cut one after the other, each on what the new stages before it leave over.

    Args:
        quantizer: a `Quantizer`, or groups or residual stages of such.
        latents: tensors in the layout of `forward`, such as the encoder's outputs.
        codebook_size: see `shrink`.
        samples: vectors to use, over all ranks; None means 64 for each old code, within 65,536 and 262,144, and at
            least 4 for each.
        iterations: most rounds of Lloyd.
        seed: of the seeding.

    Raises:
        ValueError: as for `shrink`, or `latents` hold no finite vector of the right size.
    """
    refuse_unfit(quantizer, "shrink_from_latents")
    rows, _ = collect_vectors(quantizer, latents, enough_samples(quantizer.codebook_size, samples))
    rows = distributed.gather_rows(rows)
    cuts: list[Cut] = []

    def each(part: BaseQuantizer, given: Tensor) -> BaseQuantizer:
        refuse_unfit(part, "shrink_from_latents")
        if isinstance(part, Quantizer):
            cuts.append(_fit(part, given, size_of(codebook_size, len(cuts), quantizer), iterations, seed))
            return cuts[-1].quantizer
        members = []
        if isinstance(part, GroupedQuantizer):
            for group, channels in zip(part.groups, given.split([g.dim for g in part.groups], dim=-1), strict=True):
                members.append(each(group, channels))
            return with_members(part, members)
        assert isinstance(part, ResidualQuantizer)  # or it would be refused
        for stage in part.stages:
            members.append(each(stage, given))
            given = given - members[-1].decode(members[-1].encode(given))
        return with_members(part, members)

    whole = each(quantizer, rows)
    maps, reports = tuple(cut.code_map for cut in cuts), tuple(cut.report for cut in cuts)
    return Surgery(whole, maps, reports, codebook_hash(quantizer))


@torch.no_grad()
def prune(
    quantizer: BaseQuantizer, counts: Tensor | Sequence[Tensor], *, keep: Callable[[Tensor], Tensor] = used
) -> Surgery:
    """Leave out codes. The others stay as they are: on the data of the counts, nothing changes with `used`.

    Args:
        quantizer: a `Quantizer`, or groups or residual stages of such.
        counts: how often each code was chosen, over a data set, as `usage` of `shrink`. A warning says where there are
            fewer than ten vectors for each code.
        keep: from the counts to (K,) bool, which codes stay: `used`, `functools.partial(used, min_count=10)`,
            `functools.partial(most_used, codebook_size=256)`, or a function of yours.

    Raises:
        ValueError: the codes are no table, `counts` do not fit, or no code would be left.
    """

    def operation(part: Quantizer, level: int) -> Cut:
        table = Table(part, usage_of(counts, level, quantizer, "counts"), "prune", rewrites=False)
        if table.usage.sum() < ENOUGH_COUNTS * len(table.usage):
            warnings.warn(
                f"prune has counts of {int(table.usage.sum())} vectors for {len(table.usage)} codes: a code that so "
                f"few never chose may be needed by others; count {ENOUGH_COUNTS} for each code or more",
                stacklevel=4,
            )
        kept = keep(table.usage)
        if kept.shape != table.usage.shape or kept.dtype != torch.bool:
            raise ValueError(
                f"keep gave {tuple(kept.shape)} {kept.dtype}: expected ({len(table.usage)},) bool, True for each code "
                "that stays"
            )
        source = torch.nonzero(kept).squeeze(1)
        if not len(source):
            raise ValueError("keep leaves no code: expected (K,) bool with some True; lower the least count")
        new = nearest(table.points, table.points[source]).indices
        new[source] = torch.arange(len(source), device=new.device)  # of two equal codes, each stays itself
        return table.cut(CodeMap(new, source))

    return operate(quantizer, "prune", operation)


@torch.no_grad()
def grow(
    quantizer: BaseQuantizer,
    codebook_size: int | Sequence[int],
    *,
    usage: Usage = None,
    step: float = STEP,
    seed: int = 0,
) -> Surgery:
    """More codes: the most used ones are split, again and again.

    Old codes keep their indices and vectors, and new ones stand behind them, a small step beside their origin, so what
    was tokenized decodes as before. Training moves the halves apart.

    Args:
        quantizer: a `Quantizer`, or groups or residual stages of such.
        codebook_size: K', at least K; a list of one for each level will do.
        usage: see `shrink`; the halves have half of it each.
        step: length of the step, as a fraction of the spread of the codes; positive.
        seed: of the directions.

    Raises:
        ValueError: as for `shrink`.
    """

    def operation(part: Quantizer, level: int) -> Cut:
        table = Table(part, usage_of(usage, level, quantizer), "grow")
        size = size_of(codebook_size, level, quantizer)
        if size < len(table.usage):
            raise ValueError(f"codebook_size={size}: grow expected at least {len(table.usage)}; use shrink")
        parents = torch.empty(0, dtype=torch.int64, device=table.usage.device)
        pieces = torch.ones_like(table.usage)
        while missing := size - len(table.usage) - len(parents):
            order = (table.usage / pieces).argsort(descending=True, stable=True)[: max(1, missing // 2)]
            pieces[order] += 1
            parents = torch.cat([parents, order])
        return _split(table, parents, step, seed)

    return operate(quantizer, "grow", operation)


@torch.no_grad()
def split(quantizer: Quantizer, codes: Tensor | Sequence[int], *, step: float = STEP, seed: int = 0) -> Surgery:
    """Each of some codes becomes two; see `grow`, which chooses them by usage.

    Args:
        quantizer: of one codebook.
        codes: (M,) indices; one that is listed twice becomes three.
        step: see `grow`.
        seed: see `grow`.

    Raises:
        ValueError: `codes` has others than 0 ... K - 1, or the codes are no table.
    """
    _refuse_composite(quantizer, "split")
    table = Table(quantizer, None, "split")
    parents = torch.as_tensor(codes, dtype=torch.int64, device=table.usage.device)
    if parents.ndim != 1 or not ((parents >= 0) & (parents < len(table.usage))).all():
        raise ValueError(f"codes={codes}: expected (M,) indices in 0 ... {len(table.usage) - 1}")
    return operate(quantizer, "split", lambda _, __: _split(table, parents, step, seed))


@torch.no_grad()
def merge(quantizers: Sequence[Quantizer]) -> tuple[Surgery, ...]:
    """All codes of several quantizers in one, the first one's first; its settings are kept.

    Args:
        quantizers: of one codebook each and one code space: the same `dim`, metric and `normalize`, and no projections,
            which would be others.

    Returns:
        A `Surgery` for each of them, all with the same new quantizer; its map is an offset. A code that comes from
        another quantizer stands for the nearest one.

    Raises:
        ValueError: they do not have one code space.
    """
    if not quantizers:
        raise ValueError("quantizers=[]: expected one at least")
    for quantizer in quantizers:
        _refuse_composite(quantizer, "merge")
    spaces = [(part.dim, part.search.metric, part.normalize, part.has_projection) for part in quantizers]
    if len(set(spaces)) > 1 or spaces[0][-1]:
        raise ValueError(
            f"merge got quantizers of (dim, metric, normalize, projection) {spaces}: expected one space without "
            "projections; those of different encoders have nothing in common"
        )
    tables = [Table(part, None, "merge") for part in quantizers]
    first = quantizers[0].codebook
    vectors = torch.cat([table.codes.to(tables[0].codes) for table in tables])
    usage = torch.cat([table.usage.to(tables[0].usage) for table in tables])
    points = torch.cat([table.points.to(tables[0].points) for table in tables])
    maps: list[CodeMap] = []
    for own in points.split([len(table.points) for table in tables]):
        codes = torch.arange(len(own), device=points.device)
        new = codes + sum(len(code_map.new) for code_map in maps)
        maps.append(CodeMap(new, nearest(points, own).indices.index_copy(0, new, codes)))
    # What is pending belongs to the single quantizers, of which each has its own.
    merged = first.with_rows(maps[0].source, lambda counts: counts.new_zeros(len(vectors), *counts.shape[1:]), vectors)
    merged.usage.copy_(usage)
    whole = with_codebook(quantizers[0], merged)
    after = Table(whole, None, "merge")
    return tuple(
        Surgery(whole, (code_map,), (table.report(code_map, after),), codebook_hash(table.quantizer))
        for table, code_map in zip(tables, maps, strict=True)
    )


@torch.no_grad()
def reorder(quantizer: BaseQuantizer, by: Callable[[Tensor, Tensor], Tensor], *, usage: Usage = None) -> Surgery:
    """The same codes in another order, such that indices compress or show something.

    Args:
        quantizer: a `Quantizer`, or groups or residual stages of such.
        by: from code vectors (K, D) and usage (K,) to the codes (K,) in their new order: `usage_order`,
            `principal_axis_order`, `chain_order`, or a function of yours.
        usage: see `shrink`.

    Raises:
        ValueError: `by` gives no permutation, or the codes are no table.
    """

    def operation(part: Quantizer, level: int) -> Cut:
        table = Table(part, usage_of(usage, level, quantizer), "reorder", rewrites=False)
        source = by(table.points, table.usage)
        numbers = torch.arange(len(table.usage), device=table.usage.device)
        if source.shape != numbers.shape or not torch.equal(source.sort().values, numbers):
            raise ValueError(f"by gave {source}: expected a permutation of 0 ... {len(numbers) - 1}")
        new = torch.empty_like(source)
        new[source] = numbers
        return table.cut(CodeMap(new, source))

    return operate(quantizer, "reorder", operation)


@torch.no_grad()
def transplant(quantizer: Quantizer, vectors: Tensor) -> Surgery:
    """Other code vectors, such as those of another run or of k-means, in the place of the trained ones.

    Args:
        quantizer: of one codebook.
        vectors: (K', D) finite, in the code space.

    Raises:
        ValueError: the vectors do not fit, or the codes are no table.
    """
    _refuse_composite(quantizer, "transplant")
    width = quantizer.codebook_dim
    if vectors.ndim != 2 or vectors.shape[1] != width or not len(vectors) or not vectors.isfinite().all():
        raise ValueError(f"vectors has shape {tuple(vectors.shape)}: expected finite (K', {width})")
    table = Table(quantizer, None, "transplant")
    vectors = vectors.detach().to(table.points)
    centers = unit(vectors) if table.spherical else vectors
    new, source = nearest(table.points, centers).indices, nearest(centers, table.points).indices
    return operate(quantizer, "transplant", lambda _, __: table.cut(CodeMap(new, source), vectors))


def _refuse_composite(quantizer: BaseQuantizer, call: str) -> None:
    refuse_unfit(quantizer, call)
    if not isinstance(quantizer, Quantizer):
        raise ValueError(f"{call} got {type(quantizer).__name__}: expected a Quantizer, one codebook; give it a member")


def _smaller(codebook_size: int, table: Table, call: str) -> int:
    if not 1 <= codebook_size <= len(table.usage):
        raise ValueError(f"codebook_size={codebook_size}: {call} expected 1 ... {len(table.usage)}; `grow` adds codes")
    return codebook_size


def _cluster(table: Table, codebook_size: int, restarts: int, iterations: int, seed: int) -> Tensor:
    """(K', D) the centers of the best of some runs of k-means."""
    best, least = table.points[:0], torch.inf
    constrain = unit if table.spherical else None
    for number in range(restarts):
        centers, _ = kmeans(
            table.points,
            codebook_size,
            weights=table.weights,
            iterations=iterations,
            seed=seed + number,
            constrain=constrain,
        )
        chosen = centers[nearest(table.points, centers).indices]
        cost = float(table.weights @ widened(table.points - chosen).square().sum(1))
        if cost < least:
            best, least = centers, cost
    return best


def _fit(part: Quantizer, rows: Tensor, codebook_size: int, iterations: int, seed: int) -> Cut:
    """A codebook cut to the centers of latents (N, dim)."""
    indices = part.encode(rows)
    counts = torch.bincount(indices, minlength=part.codebook_size)
    table = Table(part, counts, "shrink_from_latents")
    size = _smaller(codebook_size, table, "shrink_from_latents")
    z = part.project_in(rows)
    start = _cluster(table, size, 1, iterations, seed)
    fitted = kmeans(
        unit(z) if table.spherical else z,
        size,
        iterations=iterations,
        seed=seed,
        centers=start,
        constrain=unit if table.spherical else None,
    )
    return table.cut_to(fitted.centers)


def _split(table: Table, parents: Tensor, step: float, seed: int) -> Cut:
    """New codes beside their parents (M,), behind the old ones."""
    if not step > 0:
        raise ValueError(f"step={step}: expected a fraction of the codes' spread, above 0, such as {STEP}")
    codes = table.codes
    numbers = torch.arange(len(codes), device=codes.device)
    # `kmeans` counts copies apart alike: where all codes are one, a fraction of their length.
    length = step * torch.maximum(spread(codes), 1e-3 * codes.square().mean().sqrt())
    places = torch.arange(parents.numel() * codes.shape[1], device=codes.device)
    drawn = distributed.counter_random(places, seed=seed, step=0).reshape(-1, codes.shape[1]).to(codes.dtype)
    vectors = torch.cat([codes, codes[parents] + length * 3**0.5 * (2 * drawn - 1)])
    return table.cut(CodeMap(numbers, torch.cat([numbers, parents])), vectors)
