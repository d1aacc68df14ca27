"""What codes stand for: how many tokens have each, with which others, and how well it tells what is known of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vqkit.indices import check_indices


@dataclass(frozen=True)
class CodeQuality:
    """How well a code tells the tokens for which something holds.

    Attributes:
        code: its number.
        precision: of the tokens that have the code, the share for which it holds; NaN where none has it.
        recall: of the tokens for which it holds, the share that has the code; NaN where it holds for none.
    """

    code: int
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """The harmonic mean of the two; 0 where both are."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


class CodeStatistics:
    """Counts tokens over any number of batches, for one codebook.

    A token that has a code several times has it once here, so that every number is one of tokens: shares, precision and
    recall are those of sets, whatever the batches. Numbers are those of this process. They stand on the device of the
    indices; memory is O(K P), and O(pairs that occur) for `together`.

    Args:
        codebook_size: K.
        levels: n, if the last axis of the indices holds n codes of a token, as with `TopKQuantizer`; None for one code
            for each token.
        predicates: names of what may hold for a token, such as phones; P of them.

    Raises:
        ValueError: a size is not positive, or two predicates have one name.

    Source: precision and recall of codes as in Tamkin, Taufeeque, Goodman 2023 (Codebook Features, arXiv:2310.17230).
    Differs: the released code counts a code once for each batch in which it appears.
    """

    def __init__(self, codebook_size: int, *, levels: int | None = None, predicates: Sequence[str] = ()) -> None:
        if codebook_size < 1 or (levels is not None and levels < 1):
            raise ValueError(f"codebook_size={codebook_size}, levels={levels}: expected at least 1")
        if len(set(predicates)) < len(predicates):
            raise ValueError(f"predicates={list(predicates)}: expected names that differ")
        self.codebook_size = codebook_size
        self.levels = levels
        self.predicates = tuple(predicates)
        self.tokens = 0
        self.counts = torch.zeros(codebook_size, dtype=torch.int64)
        self.holding = torch.zeros(len(predicates), dtype=torch.int64)
        self.joint = torch.zeros(codebook_size, len(predicates), dtype=torch.int64)
        self._pairs = torch.zeros(0, dtype=torch.int64)
        self._pair_counts = torch.zeros(0, dtype=torch.int64)

    @torch.no_grad()
    def update(self, indices: Tensor, holds: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Count the tokens of a batch.

        Args:
            indices: integers (*S) or (*S, levels); -1 is no code.
            holds: (*S, P) bool, which predicates hold for which tokens; None only where there are none.
            mask: (*S) bool, True where a token counts; None for all. A padded token counts unless it is masked.

        Raises:
            ValueError: a shape or dtype is wrong, or an index is none of the codebook.
        """
        check_indices(indices, (self.codebook_size,) * (self.levels or 1), level_axis=self.levels is not None)
        if self.levels is not None and indices.shape[-1] != self.levels:
            raise ValueError(f"indices has shape {tuple(indices.shape)}: expected a last axis of levels={self.levels}")
        shape = indices.shape if self.levels is None else indices.shape[:-1]
        rows = indices.reshape(-1, self.levels or 1).to(torch.int64)
        marks = self._checked("mask", mask, shape)
        count = len(self.predicates)
        if holds is None and count:
            raise ValueError(f"holds=None: expected {(*shape, count)}, what holds of {', '.join(self.predicates)}")
        truths = self._checked("holds", holds, (*shape, count))
        self._to(rows.device)
        known = None if truths is None else truths.reshape(-1, count).to(rows.device)
        if marks is not None:
            kept = marks.reshape(-1).to(rows.device)
            rows, known = rows[kept], None if known is None else known[kept]
        rows = rows.sort(dim=-1).values
        again = torch.zeros_like(rows, dtype=torch.bool)
        again[:, 1:] = rows[:, 1:] == rows[:, :-1]
        rows = rows.masked_fill(again, -1)
        self.tokens += len(rows)
        self._count(rows, known)

    def _count(self, rows: Tensor, known: Tensor | None) -> None:
        """Count rows (N, n) of different codes, and what holds (N, P)."""
        there = rows >= 0
        self.counts += rows[there].bincount(minlength=self.codebook_size)
        if known is not None:
            self.holding += known.sum(0)
            token = there.nonzero()[:, 0]
            self.joint.index_add_(0, rows[there], known[token].to(torch.int64))
        columns = rows.shape[1]
        first, second = torch.triu_indices(columns, columns, 1, device=rows.device)
        low, high = rows[:, first], rows[:, second]
        both = (low >= 0) & (high >= 0)
        low, high = torch.minimum(low[both], high[both]), torch.maximum(low[both], high[both])
        fresh, times = (low * self.codebook_size + high).unique(return_counts=True)
        self._pairs, place = torch.cat([self._pairs, fresh]).unique(return_inverse=True)
        added = torch.cat([self._pair_counts, times])
        self._pair_counts = torch.zeros_like(self._pairs).index_add_(0, place, added)

    def together(self, code: int) -> Tensor:
        """(K,) int64 how many tokens have each code and `code` too; at `code` itself, how many have it.

        Raises:
            ValueError: there is no such code.
        """
        if not 0 <= code < self.codebook_size:
            raise ValueError(f"code={code}: expected 0 to {self.codebook_size - 1}")
        low, high = self._pairs // self.codebook_size, self._pairs % self.codebook_size
        found = torch.zeros_like(self.counts)
        for one, other in ((low, high), (high, low)):
            mine = one == code
            found.index_add_(0, other[mine], self._pair_counts[mine])
        found[code] = self.counts[code]
        return found

    def quality(self, predicate: str) -> tuple[Tensor, Tensor]:
        """Precision and recall of all codes, (K,) float64 each; see `CodeQuality`.

        Raises:
            ValueError: there is no such predicate.
        """
        number = self._number(predicate)
        hits = self.joint[:, number].double()
        return hits / self.counts, hits / self.holding[number]

    def of(self, code: int, predicate: str) -> CodeQuality:
        """Precision and recall of one code.

        Raises:
            ValueError: there is no such code or predicate.
        """
        if not 0 <= code < self.codebook_size:
            raise ValueError(f"code={code}: expected 0 to {self.codebook_size - 1}")
        precision, recall = self.quality(predicate)
        return CodeQuality(code, float(precision[code]), float(recall[code]))

    def best(self, predicate: str, *, min_recall: float = 0.01) -> CodeQuality | None:
        """The code of the greatest precision among those that recall enough; the lowest of several.

        A code that was chosen because it does best here looks better here than elsewhere: choose it on some tokens, and
        take its precision and recall (`of`) from others.

        Args:
            predicate: its name.
            min_recall: the published floor is 0.01, since a code that one token has may be precise by chance.

        Returns:
            None where no code recalls so much.

        Raises:
            ValueError: there is no such predicate.
        """
        precision, recall = self.quality(predicate)
        enough = (recall >= min_recall) & (self.counts > 0)
        if not bool(enough.any()):
            return None
        return self.of(int(torch.where(enough, precision, -1).argmax()), predicate)

    def most_used(self, count: int) -> list[int]:
        """The codes that most tokens have, most first, at most `count`, and of equal ones the lowest first."""
        order = self.counts.argsort(descending=True, stable=True)[:count]
        return order[self.counts[order] > 0].tolist()

    def _number(self, predicate: str) -> int:
        if predicate not in self.predicates:
            raise ValueError(f"predicate={predicate!r}: expected one of {', '.join(self.predicates) or 'none'}")
        return self.predicates.index(predicate)

    def _to(self, device: torch.device) -> None:
        for name in ("counts", "holding", "joint", "_pairs", "_pair_counts"):
            setattr(self, name, getattr(self, name).to(device))

    def _checked(self, name: str, given: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
        if given is not None and (given.dtype != torch.bool or given.shape != shape):
            raise ValueError(
                f"{name} has shape {tuple(given.shape)} and dtype {given.dtype}: expected {tuple(shape)} and torch.bool"
            )
        return given
