"""A mixture of codebooks: the codes of several, weighted at each cell and summed."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.composite import SampleDropout, build_members
from vqkit.quantizers.initialization import MemberWarnings, collect_maps, enough_samples
from vqkit.quantizers.lengths import PrefixLengths, UniformLengths
from vqkit.quantizers.mixture_weights import MixtureWeights, SimplexWeights
from vqkit.quantizers.output import Quantized
from vqkit.quantizers.projected import LinearProjection, Projection
from vqkit.quantizers.reduction import MeanOverMembers, Reduction
from vqkit.quantizers.subsets import rank_of_subsets, subsets_of_rank
from vqkit.runtime import autocast_disabled


class MixtureQuantizer(SampleDropout):
    """The sum of what N basis codebooks say of a vector, each weighted: y = sum_i w_i(z) V_i Q_i(W_i z).

    Each book quantizes all cells between maps W_i and V_i of its own, and a net gives each cell a score for each book.
    `weights` makes weights of the m largest, in whole levels of b bits; the others are left out, with what their books
    would have said. So a rate is chosen after training: `quantizer.kept = m`. With `dropout=1.0` each sample of a
    training step draws its m uniformly from 1 ... N, and one model serves all.

        >>> book = functools.partial(Quantizer, "vq", dim=256, codebook_size=512)
        >>> sizes = {"dim": 256, "channel_dim": 1, "project_out": ConvProjection2d, "weight_net": WindowProjection2d}
        >>> MixtureQuantizer(book, 5, weights=SignedWeights(), **sizes)  # AdaCode
        >>> MixtureQuantizer(book, 5, weights=SimplexWeights(4), dropout=1.0, **sizes)  # M-AdaCode

    `indices` (B, *S, levels) hold the codes of the books in their order, and behind them a level of the weight of each;
    both are -1 for a book that a cell leaves out. They decode to what `forward` gave, bit for bit. No prefix of the
    levels means anything by itself: a lower rate is another `kept`. In a file (`vqkit.bitstream`) a cell takes, before
    entropy coding,

        log2 C(N, m) + m log2 K + (m - 1) b  bits:

    which books, their codes in increasing order of the books, and all weights but the last, which follows
    (`SimplexWeights`; `SignedWeights` sends m b). Where books differ in size, K is the largest, since the j-th code of
    a cell may be of any book. One file holds one m; cells that hold nothing at all, as under a mask, may be anywhere.

    Codebooks that shall stay as they were trained are frozen by the trainer (`freeze: [quantizer.books.0, ...]`), or
    are `FrozenCodebook`s. N searches for each cell make it N times as slow as one codebook.

    Args:
        book: builds a basis quantizer, and is called `num_books` times; or a list of one factory for each. Books may
            differ in method, `dim` and size, and have as many levels each.
        num_books: N; None with a list.
        dim: of the latents.
        weights: how scores become weights: `SimplexWeights` (a softmax), or `SignedWeights` as AdaCode has them.
        kept: m, how many books a cell keeps outside of training, and in training where `dropout` does not draw; None
            for all. It may be set later.
        weight_net: from (dim, N) to the map that gives scores; a linear one of each vector, a 1 x 1 convolution, by
            default.
        project_in: from (dim, dim of the book) to W_i.
        project_out: from (dim of the book, dim) to V_i. It sees zeros where a cell leaves the book out.
        dropout: probability, per sample and training step, that m is drawn; 1 for M-AdaCode.
        lengths: the distribution of m then.
        reduction: how the losses of the books make one. A book learns from the cells that keep it.
        channel_dim: see `BaseQuantizer`; the books themselves have -1.
        seed: of the draws.

    Source: AdaCode, Liu et al. 2023 (arXiv:2306.06513), of pictures, with signed weights, windows of attention in front
    of the scores, and convolutions of 3 x 3 as V_i; M-AdaCode, Jiang, Wang, Chen 2023 (arXiv:2309.11661), which sends
    weights and masks the unimportant ones.
    Differs: weights are rounded to levels, in training too, since what is decoded shall be what was trained. We could
    read no code of M-AdaCode: its precision of weights and its net that recovers masked ones are not known to us. Here
    the weights that are left are normalized again, nothing is recovered, and m is drawn for each sample.

    Raises:
        ValueError: an argument is out of its range, or books differ in their number of levels or share state.
    """

    member_name = "book"
    has_projection = True
    books: Sequence[BaseQuantizer]
    project_in: Sequence[Projection]
    project_out: Sequence[Projection]

    def __init__(
        self,
        book: Sequence[Callable[[], BaseQuantizer]] | Callable[[], BaseQuantizer],
        num_books: int | None = None,
        *,
        dim: int,
        weights: MixtureWeights = SimplexWeights(),  # noqa: B008 - stateless
        kept: int | None = None,
        weight_net: Callable[[int, int], Projection] = LinearProjection,
        project_in: Callable[[int, int], Projection] = LinearProjection,
        project_out: Callable[[int, int], Projection] = LinearProjection,
        dropout: float = 0.0,
        lengths: PrefixLengths = UniformLengths(),  # noqa: B008 - stateless
        reduction: Reduction = MeanOverMembers(),  # noqa: B008 - stateless
        channel_dim: int = -1,
        seed: int = 0,
    ) -> None:
        books = build_members(book, num_books, kind="book", owner="MixtureQuantizer")
        named: dict[str, Any] = {"channel_dim": channel_dim, "reduction": reduction, "seed": seed}
        super().__init__(books, dim, dropout=dropout, lengths=lengths, **named)
        levels = [member.num_codebooks for member in books]
        if len(set(levels)) > 1:
            raise ValueError(f"book built quantizers of {levels} levels: expected the same number of all")
        if not isinstance(weights, MixtureWeights):
            raise ValueError(f"weights={weights}: expected MixtureWeights, such as SimplexWeights()")
        self.books = nn.ModuleList(books)  # type: ignore[assignment]  # it forgets its element type
        self.weights = weights
        self.kept = kept
        self.num_codebooks = len(self.codebook_sizes)
        self.codebook_size = max(self.codebook_sizes)
        self.weight_net = weight_net(dim, len(books))
        self.project_in = nn.ModuleList(project_in(dim, member.dim) for member in books)  # type: ignore[assignment]
        self.project_out = nn.ModuleList(project_out(member.dim, dim) for member in books)  # type: ignore[assignment]
        if not all(part.pointwise for part in (self.weight_net, *self.project_in, *self.project_out)):
            self.positions_per_step = None

    @property
    def members(self) -> Iterable[BaseQuantizer]:
        """The books, in the order of the codes."""
        return self.books

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The sizes of the books, and for each of them 2^b, those of its weight."""
        codes = tuple(size for book in self.books for size in book.codebook_sizes)
        return codes + (2**self.weights.bits,) * len(self.books)

    @property
    def kept(self) -> int:
        """m, how many books a cell keeps where nothing is drawn; set it to choose a rate, None for all."""
        return self._kept

    @kept.setter
    def kept(self, count: int | None) -> None:
        if count is not None and (not 1 <= count <= len(self.books) or count != int(count)):
            raise ValueError(f"kept={count}: expected how many books a cell keeps, 1 ... {len(self.books)}, or None")
        count = None if count is None else int(count)
        self._kept = len(self.books) if count is None else count
        if "kept" in self.recorded_arguments():
            self.record(kept=count)

    def bits(self, kept: int) -> float:
        """Bits of a cell that keeps so many books, in a file before entropy coding: see the class."""
        codes = sum(map(math.log2, self._code_sizes))
        return math.log2(math.comb(len(self.books), kept)) + kept * codes + self.weights.sent(kept) * self.weights.bits

    @property
    def bits_per_token(self) -> float:
        """Those of a cell that keeps `kept` books; see `BaseQuantizer`."""
        return self.bits(self.kept)

    # ------------------------------------------------------------------ codes and weights

    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        """Weigh the books, quantize with those that are kept, and sum; see `BaseQuantizer`."""
        step = self.number_forward(latents)
        counts = self.sample_lengths(step, latents.shape[0], len(self.books))
        scores = self.weight_net(latents, valid)
        entered = [project(latents, valid) for project in self.project_in]
        # A map that diverged must not take codebooks along.
        sizes = [torch.linalg.vector_norm(part.detach(), dim=-1) for part in (scores, *entered)]
        finite = valid & (torch.stack(sizes) < torch.inf).all(0)
        scores = torch.where(finite.unsqueeze(-1), scores, 0)
        if self.passes_through:
            used = finite.unsqueeze(-1).expand_as(scores)
            weights, levels = self.weights.exact(scores, used), torch.full_like(scores, -1, dtype=torch.int64)
        else:
            count = self.kept if counts is None else counts.reshape(-1, *[1] * valid.ndim)
            weights, levels = self.weights(scores, count)
            levels = torch.where(finite.unsqueeze(-1), levels, -1)
            used = levels >= 0
        members = []
        for book, given, chosen in zip(self.books, entered, used.unbind(-1), strict=True):
            members.append(book.quantize(torch.where(chosen.unsqueeze(-1), given, 0), chosen))
        total = self._mixed(weights, used, [made.vectors for made in members])
        codes = self.join_levels([made.indices for made in members], valid.shape)
        return Quantized(total, torch.cat([codes, levels], dim=-1), valid, members=members, source=self)

    def lookup(self, indices: Tensor) -> Tensor:
        """(..., levels) int64 -> (..., dim); 0 where the weights are missing or -1."""
        codes, levels = self._codes(indices), indices[..., self._first_weight :]
        levels = nn.functional.pad(levels, (0, len(self.books) - levels.shape[-1]), value=-1)
        pairs = zip(self.books, codes.unbind(-2), strict=True)
        vectors = [book.lookup(own if book.level_axis else own.squeeze(-1)) for book, own in pairs]
        return self._mixed(self.weights.values(levels, self.dtype), (codes >= 0).any(-1), vectors)

    def _mixed(self, weights: Tensor, used: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """The weighted sum (..., dim) of what comes out of each book: of weights and which are used, (..., N)."""
        total: Tensor | float = 0.0
        parts = zip(self.project_out, vectors, weights.unbind(-1), used.unbind(-1), strict=True)
        for project, said, weight, chosen in parts:
            weighted = weight.unsqueeze(-1) * project(said.contiguous(), chosen)
            total = total + torch.where(chosen.unsqueeze(-1), weighted, 0)
        assert isinstance(total, Tensor)  # there is a book
        return total

    def _codes(self, indices: Tensor) -> Tensor:
        """(..., levels) of all levels or of the first ones -> the codes (..., N, levels of a book)."""
        codes = indices[..., : self._first_weight]
        codes = nn.functional.pad(codes, (0, self._first_weight - codes.shape[-1]), value=-1)
        return codes.unflatten(-1, (len(self.books), -1))

    @property
    def _first_weight(self) -> int:
        """How many levels of codes there are."""
        return len(self.books) * self.books[0].num_codebooks

    @property
    def _code_sizes(self) -> tuple[int, ...]:
        """The size of each level of a book's code; the largest, where books differ."""
        return tuple(map(max, zip(*(book.codebook_sizes for book in self.books), strict=True)))

    # ------------------------------------------------------------------ as a file

    @property
    def grid_sizes(self) -> tuple[int, ...]:
        """Of each m = 1 ... N the number of subsets, then of each of N slots the codes, then the weights that are sent;
        what a cell does not need is empty. See `BaseQuantizer`.
        """
        count = len(self.books)
        subsets = tuple(math.comb(count, kept) for kept in range(1, count + 1))
        return subsets + self._code_sizes * count + (2**self.weights.bits,) * self.weights.sent(count)

    def level_tables(self) -> list[Tensor | None]:
        """None of a file's grids is of one table; see `BaseQuantizer`."""
        return [None] * len(self.grid_sizes)

    def to_grids(self, indices: Tensor) -> list[Tensor]:
        """(B, *S, levels) -> the grids (B, *S) of `grid_sizes`, empty ones (B, 0); see `BaseQuantizer`.

        Raises:
            ValueError: levels are missing, or cells keep different numbers of books.
        """
        if indices.shape[-1] != self.num_codebooks:
            raise ValueError(
                f"indices has {indices.shape[-1]} levels: expected all {self.num_codebooks}, codes and weights; for a "
                "lower rate set `kept`, and encode again"
            )
        codes, levels, count = self._codes(indices), indices[..., self._first_weight :], len(self.books)
        used = levels >= 0
        kept = used.sum(-1)
        most = int(kept.max()) if kept.numel() else 0
        most = most or self.kept
        if ((kept != most) & (kept > 0)).any() or ((codes >= 0) != used.unsqueeze(-1)).any():
            raise ValueError(
                f"indices keep different numbers of books, up to {most}, or codes without weights: expected one `kept` "
                "of a file, as encode gives it in eval mode"
            )
        slots = used.int().argsort(dim=-1, descending=True, stable=True)[..., :most]
        chosen = codes.take_along_dim(slots.unsqueeze(-1), -2).flatten(-2)
        sent = levels.take_along_dim(slots, -1)[..., : self.weights.sent(most)]
        empty = indices.new_empty((*kept.shape[:1], 0) if kept.ndim > 1 else (0,))
        subsets = [empty] * count
        subsets[most - 1] = torch.where(kept > 0, rank_of_subsets(used), -1)
        pairs = ((chosen, len(self._code_sizes) * count), (sent, self.weights.sent(count)))
        return subsets + [grid for part, whole in pairs for grid in _filled(part, whole, empty)]

    def from_grids(self, grids: Sequence[Tensor]) -> Tensor:
        """What `to_grids` was given. Of a cell of which a grid is damaged, -1, nothing is left; see `BaseQuantizer`."""
        count, width = len(self.books), len(self._code_sizes)
        ends = [0, count, count * (1 + width), len(self.grid_sizes)]
        subsets, chosen, sent = (list(grids[first:last]) for first, last in pairwise(ends))
        some = [number for number, grid in enumerate(subsets) if grid.ndim > 2 or grid.shape[-1:].numel()]
        kept = some[0] + 1 if some else self.kept
        rank = subsets[kept - 1]
        there = torch.stack([rank, *chosen[: kept * width], *sent[: self.weights.sent(kept)]]).amin(0) >= 0
        used = subsets_of_rank(torch.where(there, rank, 0), count, kept)
        slots = used.int().argsort(dim=-1, descending=True, stable=True)[..., :kept]
        codes = torch.full((*rank.shape, count, width), -1, dtype=torch.int64, device=rank.device)
        values = torch.stack(chosen[: kept * width], -1).unflatten(-1, (kept, width))
        codes = codes.scatter(-2, slots.unsqueeze(-1).expand_as(values), values)
        own = [grid.clamp(min=0) for grid in sent[: self.weights.sent(kept)]]
        weights = torch.stack(own, -1) if own else values.new_zeros((*rank.shape, 0))
        levels = torch.full_like(codes[..., 0], -1).scatter(-1, slots, self.weights.follow(weights))
        return torch.where(there.unsqueeze(-1), torch.cat([codes.flatten(-2), levels], dim=-1), -1)

    # ------------------------------------------------------------------ before training

    @torch.no_grad()
    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Initialize each book on what its map makes of the same vectors, book i with seed + i; by default on
        `enough_samples` for the largest book. See `BaseQuantizer`.
        """
        batches = collect_maps(self, latents, enough_samples(max(self._code_sizes), samples))
        with MemberWarnings("book") as warned, autocast_disabled(self.latent_spread.device):
            for number, (book, project) in enumerate(zip(self.books, self.project_in, strict=True)):
                rows = [project(maps, valid)[valid] for maps, valid in batches]
                some = max(sum(map(len, rows)), 1) * distributed.world_size()  # of this rank all; it may have none
                with warned.by(number):
                    book.initialize(rows, samples=some, seed=seed + number)

    def extra_repr(self) -> str:
        """Sizes and layout."""
        return f"codebook_sizes={self.codebook_sizes}, kept={self.kept}, {super().extra_repr()}"


def _filled(part: Tensor, whole: int, empty: Tensor) -> list[Tensor]:
    """The columns of (..., n), and empty grids up to so many."""
    columns = list(part.unbind(-1))
    return columns + [empty] * (whole - len(columns))
