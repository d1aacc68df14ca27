"""How a codebook is used over a whole set of data: a streaming histogram and the figures read from it."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from vqkit import distributed
from vqkit.indices import check_indices
from vqkit.unsaved_buffers import UnsavedBuffers

FIGURES = (
    "usage",
    "perplexity",
    "entropy",
    "normalized_entropy",
    "gini",
    "dead",
    "top_code",
    "top_percent",
    "tokens",
)
"""What `CodebookUsage.compute` reports, explained there."""


LARGEST_HISTOGRAM = 2**28


def countable(codebook_sizes: Sequence[int]) -> bool:
    """Whether there are codebooks, and a histogram of them fits the memory, so that `CodebookUsage` can count them."""
    return 0 < max(codebook_sizes, default=0) * len(codebook_sizes) <= LARGEST_HISTOGRAM


class CodebookUsage(UnsavedBuffers):
    """Counts codes over any number of batches, and describes their distribution.

    Usage and perplexity are properties of a set: averaged over batches they mislead, because a batch of N tokens
    cannot use more than N codes. So `update` only counts, and `compute` reads the histogram of everything since the
    last `reset`, summed over ranks once. The counts are buffers (moved with the module), but never part of a
    checkpoint.

    Args:
        codebook_size: K, at least 1; or one for each level, as `quantizer.codebook_sizes` lists them.
        num_codebooks: levels L of a composite quantizer; with L > 1 the last axis of the indices holds the levels. None
            means as many as sizes are listed, 1 for a single number.
        books: the number of the codebook that each level chooses from, as `quantizer.level_books` lists them; None
            means one for each level.

    Raises:
        ValueError: a size is not positive, sizes or books are not one for each level, or more than 2^28 codes would be
            counted.
    """

    counts: Tensor

    def __init__(
        self,
        codebook_size: int | Sequence[int],
        *,
        num_codebooks: int | None = None,
        books: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        sizes = (codebook_size,) * (num_codebooks or 1) if isinstance(codebook_size, int) else tuple(codebook_size)
        if not sizes or min(sizes) < 1 or (num_codebooks is not None and num_codebooks < 1):
            raise ValueError(f"codebook_size={codebook_size}, num_codebooks={num_codebooks}: expected at least 1")
        if num_codebooks not in (None, len(sizes)):
            raise ValueError(
                f"codebook_size={codebook_size} lists {len(sizes)} sizes: expected num_codebooks={num_codebooks} of "
                "them, or no num_codebooks"
            )
        if max(sizes) * len(sizes) > LARGEST_HISTOGRAM:
            raise ValueError(
                f"codebook_size={codebook_size}, num_codebooks={len(sizes)}: a histogram of more than "
                f"{LARGEST_HISTOGRAM} codes does not fit the memory; count the levels of each dimension instead"
            )
        self.books = tuple(range(len(sizes)) if books is None else books)
        if len(self.books) != len(sizes):
            raise ValueError(f"books={books}: expected one number for each of {len(sizes)} levels, or None")
        self.codebook_sizes = sizes
        self.num_codebooks = len(sizes)
        self.register_unsaved("counts", partial(torch.zeros, len(sizes), max(sizes), dtype=torch.int64))

    @torch.no_grad()
    def update(self, indices: Tensor) -> None:
        """Count the codes of a batch; memory O(L K), whatever the batch.

        Args:
            indices: integers of any shape, with a last axis of L levels when `num_codebooks` > 1; -1 is not counted.

        Raises:
            ValueError: no integers, a last axis that is not L, or an index outside -1 ... codebook_size - 1 of its
                level.
        """
        if self.num_codebooks > 1 and (indices.ndim == 0 or indices.shape[-1] != self.num_codebooks):
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}: expected a last axis of "
                f"num_codebooks={self.num_codebooks} levels"
            )
        check_indices(indices, self.codebook_sizes, level_axis=self.num_codebooks > 1)
        self.count(indices)

    @torch.no_grad()
    def count(self, indices: Tensor) -> None:
        """`update` without its checks, for indices that a quantizer of these sizes has just made: no read on the host.

        Args:
            indices: as for `update`; others than those of the codebooks are counted wrongly, or raise.
        """
        # One cell in front of each level's codes takes the -1.
        width = self.counts.shape[1] + 1
        cells = indices.detach().to(self.counts.device, torch.int64).reshape(-1, self.num_codebooks) + 1
        cells += width * torch.arange(self.num_codebooks, device=cells.device)
        histogram = self.counts.new_zeros(width * self.num_codebooks)
        histogram.index_add_(0, cells.flatten(), torch.ones_like(cells).flatten())  # `bincount` waits for its largest
        self.counts += histogram.view(self.num_codebooks, width)[:, 1:]

    def compute(self) -> dict[str, float | list[float]]:
        """Describe the histogram of all ranks. Every rank must call it, also one that saw nothing.

        Returns:
            The figures below. With several levels each is the mean over the codebooks (`dead` and `tokens`: the sum),
            and `<name>_per_level` lists those of the levels, coarse first. A codebook that several levels share counts
            once, with what all of them chose. A level without a token has usage 0, perplexity 0 and `dead` K.

            usage: share of the codes used at least once, in [0, 1].
            perplexity: 2 ** entropy, in [1, K].
            entropy: in bits, at most log2 K.
            normalized_entropy: entropy / log2 K, in [0, 1]; 1 for K = 1.
            gini: 0 if all codes are used equally, towards 1 if one code takes all.
            dead: number of codes not used once since the last `reset` (`health` of a quantizer has the `underused`
                ones of its running usage).
            top_code: share of the tokens that went to the most used code.
            top_percent: share of the tokens that went to the most used 1 % of the codes (at least one code).
            tokens: how many tokens were counted.
        """
        counts = self.total_counts().cpu()
        levels = [_describe(level[:size]) for level, size in zip(counts, self.codebook_sizes, strict=True)]
        if self.num_codebooks == 1:
            return dict(levels[0])
        books = [_describe(book) for book in self.by_book(counts, torch.sum)]
        report: dict[str, float | list[float]] = {}
        for name in FIGURES:
            total = sum(book[name] for book in books)
            report[name] = total if name in ("dead", "tokens") else total / len(books)
            report[f"{name}_per_level"] = [level[name] for level in levels]
        return report

    def by_book(self, cells: Tensor, join: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
        """A tensor for each codebook, as long as it is.

        Args:
            cells: (L, K) numbers of each level's codes, such as `total_counts()`.
            join: of the levels that share a codebook, over their axis: `torch.sum`, `torch.amax`.
        """
        levels: dict[int, list[int]] = {}
        for level, book in enumerate(self.books):
            levels.setdefault(book, []).append(level)
        sizes = [max(self.codebook_sizes[level] for level in own) for own in levels.values()]
        return [join(cells[own], 0)[:size] for own, size in zip(levels.values(), sizes, strict=True)]

    def total_counts(self) -> Tensor:
        """(L, K) int64 counts of all ranks; K is the largest, and what lies beyond a level's own size is 0. Every rank
        must call it.
        """
        return distributed.all_reduce_sum(self.counts.clone())

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.counts.zero_()

    def extra_repr(self) -> str:
        """The sizes."""
        return f"codebook_sizes={self.codebook_sizes}"


def _describe(counts: Tensor) -> dict[str, float]:
    """The figures of one level from its (K,) counts."""
    size, tokens = len(counts), int(counts.sum())
    used = int((counts > 0).sum())
    if tokens == 0:
        return dict.fromkeys(FIGURES, 0.0) | {"dead": float(size)}
    ascending = counts.double().sort().values / tokens
    entropy = float(-torch.special.xlogy(ascending, ascending).sum() / math.log(2)) + 0.0
    # Gini coefficient of sorted shares p_1 <= ... <= p_K: sum_i (2 i - K - 1) p_i / K.
    ranks = torch.arange(1, size + 1, dtype=torch.float64)
    return {
        "usage": used / size,
        "perplexity": 2**entropy,
        "entropy": entropy,
        "normalized_entropy": entropy / math.log2(size) if size > 1 else 1.0,
        "gini": float(((2 * ranks - size - 1) * ascending).sum() / size),
        "dead": float(size - used),
        "top_code": float(ascending[-1]),
        "top_percent": float(ascending[-max(1, math.ceil(size / 100)) :].sum()),
        "tokens": float(tokens),
    }
