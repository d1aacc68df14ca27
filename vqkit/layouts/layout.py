"""The table of a layout, and what follows from it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit.layouts.vocabulary import Vocabulary
from vqkit.runtime import check_plain


class Layout:
    """Where each index of a sample stands in the sequence of a language model.

    An index of a sample is a cell, numbered in the order of the flattened indices. It belongs to a level, which is its
    codebook, and to a position: cells of one position are decoded together. The table says which cell stands at which
    step and slot; slots are the tokens that a model reads or predicts in one step.

    Tokens have the shape of the table, with a batch in front: (B, steps), or (B, steps, slots). Packing and unpacking
    keep dtype and device, and wait for the device to check every value.

    Args:
        table: (steps,) or (steps, slots) integers: the number of a cell, every one once; -1 where no code stands
            ("pad"), and -1 - i for special token i.
        levels: (*shape) integers, the level of each cell. Its shape is that of the indices of one sample.
        positions: (*shape) integers, the position of each cell.
        special: names of special tokens, "pad" first.

    Raises:
        ValueError: a cell has no place, or several; a number is out of range; a shape or dtype is wrong.

    Attributes:
        table: (steps,) or (steps, slots) int64, on the CPU, as are the others; `table >= 0` says where codes are.
        levels: (*shape) int64.
        positions: (*shape) int64.
        steps: (*shape) int64, the step of each cell.
        num_levels: one more than the largest level, 0 without cells.
        special: the names.
    """

    def __init__(self, table: Tensor, levels: Tensor, positions: Tensor, *, special: Sequence[str] = ("pad",)) -> None:
        for name, tensor in (("table", table), ("levels", levels), ("positions", positions)):
            check_integers(name, tensor)
        if table.ndim not in (1, 2) or not levels.ndim or positions.shape != levels.shape:
            raise ValueError(
                f"table, levels and positions are {tuple(table.shape)}, {tuple(levels.shape)} and "
                f"{tuple(positions.shape)}: expected (steps,) or (steps, slots), and twice the shape of one sample"
            )
        if not special or special[0] != "pad" or len(set(special)) < len(special):
            raise ValueError(f"special is {tuple(special)}: expected different names, 'pad' first")
        self.table, self.levels, self.positions = (
            tensor.to("cpu", torch.int64, copy=True).contiguous() for tensor in (table, levels, positions)
        )
        self.special = tuple(special)
        for name, tensor in (("levels", self.levels), ("positions", self.positions)):
            if tensor.numel() and tensor.min() < 0:
                raise ValueError(f"{name} holds {int(tensor.min())}: expected numbers of at least 0")
        self.num_levels = int(self.levels.max()) + 1 if self.levels.numel() else 0
        self._place = self._places()
        self._used = [self.special[-1 - number] for number in self.table[self.table < 0].unique().tolist()]
        slots = self.table.shape[1] if self.table.ndim == 2 else 1
        self.steps = (self._place // max(slots, 1)).view(self.shape)
        self._copies: dict[torch.device, _Indices] = {}

    @property
    def shape(self) -> torch.Size:
        """The shape of the indices of one sample."""
        return self.levels.shape

    @property
    def table_levels(self) -> Tensor:
        """Level of each place, in the shape of the table; -1 where no code stands."""
        return self._spread(self.levels.flatten()[None], [-1] * len(self.special))[0]

    @property
    def table_positions(self) -> Tensor:
        """Position of each place, in the shape of the table; -1 where no code stands."""
        return self._spread(self.positions.flatten()[None], [-1] * len(self.special))[0]

    def __repr__(self) -> str:
        return f"Layout(shape={tuple(self.shape)}, table={tuple(self.table.shape)}, special={self.special})"

    # ------------------------------------------------------------------ there and back

    def pack(self, indices: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Tokens of indices.

        Args:
            indices: (B, *shape) integers, each of 0 ... K - 1 of its level. Samples of different lengths have layouts
                of their own; pad their tokens.
            vocabulary: the tokens of codes, and of the special tokens that the table has.

        Returns:
            (B, steps) or (B, steps, slots), of the dtype and on the device of `indices`.

        Raises:
            ValueError: a shape or dtype is wrong; an index is out of range, which is named with its place; a token does
                not fit the dtype.
        """
        self._check_shape("indices", indices, self.shape)
        first, size, special = self._tokens_of_cells(vocabulary, indices.device)
        largest = max([0, *(end - 1 for end in vocabulary.ends[: self.num_levels]), *special])
        if largest > torch.iinfo(indices.dtype).max:
            raise ValueError(f"indices has dtype {indices.dtype}: tokens go up to {largest}; use indices.long()")
        cells = indices.flatten(1).long()
        wrong = (cells < 0) | (cells >= size)
        if wrong.any():
            sample, cell = _first(wrong)
            raise ValueError(
                f"indices holds {int(cells[sample, cell])} {self._described(sample, cell)}: expected 0 ... "
                f"{int(size[cell]) - 1}; pack samples without what is left out (-1), and pad their tokens"
            )
        return self._spread(cells + first, special).to(indices.dtype)

    def unpack(self, tokens: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Indices of tokens. Whatever stands where the table has no code is not looked at.

        Args:
            tokens: (B, steps) or (B, steps, slots) integers.
            vocabulary: that of `pack`.

        Returns:
            (B, *shape), of the dtype and on the device of `tokens`.

        Raises:
            ValueError: a shape or dtype is wrong; a special token, or that of another level, stands where a code has to
                be, which is named with its place.
        """
        self._check_shape("tokens", tokens, self.table.shape)
        first, size, _ = self._tokens_of_cells(vocabulary, tokens.device)
        found = tokens.flatten(1).long()[:, self._on(tokens.device).place]
        self._check_tokens(found, torch.arange(len(first)), first, size, vocabulary)
        return (found - first).view(len(tokens), *self.shape).to(tokens.dtype)

    def unpack_logits(self, logits: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Logits of the codes of each cell, such as for a loss against indices.

        Args:
            logits: (B, n, V) or (B, n, slots, V) floating point, for the tokens of the first n steps: what a model that
                predicts the next token returns at the step before. V may be more than the vocabulary.
            vocabulary: that of `pack`.

        Returns:
            (B, *shape, K) for the largest K of the levels: -inf beyond the K of a smaller level, and NaN for cells
            whose step is none of the n.

        Raises:
            ValueError: a shape or dtype is wrong.
        """
        check_plain("logits", logits)
        rest = self.table.shape[1:]
        first, size, _ = self._tokens_of_cells(vocabulary, logits.device)
        needed = int((first + size).max()) if len(first) else 0
        if not logits.is_floating_point() or logits.ndim != 3 + len(rest) or logits.shape[2:-1] != rest:
            raise ValueError(
                f"logits has shape {tuple(logits.shape)} and dtype {logits.dtype}: expected floating point "
                f"(B, n{''.join(f', {number}' for number in rest)}, V)"
            )
        if logits.shape[1] > len(self.table) or logits.shape[-1] < needed:
            raise ValueError(
                f"logits has {logits.shape[1]} steps and {logits.shape[-1]} tokens: expected at most "
                f"{len(self.table)}, those of the layout, and at least {needed}, those of all codes"
            )
        flat = logits.flatten(1, -2)
        place = self._on(logits.device).place.clamp(max=flat.shape[1])
        rows = F.pad(flat, (0, 0, 0, 1), value=float("nan"))[:, place]
        number = torch.arange(int(size.max()) if len(size) else 0, device=logits.device)
        tokens = (first[:, None] + number).clamp(max=max(logits.shape[-1] - 1, 0))
        beyond = (number >= size[:, None]) & (place < flat.shape[1])[:, None]
        found = rows.gather(-1, tokens.expand(len(rows), -1, -1)).masked_fill(beyond, -torch.inf)
        return found.view(len(logits), *self.shape, len(number))

    def stream(self, steps: Iterable[Tensor], vocabulary: Vocabulary) -> Iterator[tuple[int, Tensor]]:
        """Positions as they become complete, while a model generates.

        Args:
            steps: the tokens of each step in turn, (B,) or (B, slots), those before the first code too. No more are
                taken than there are steps.
            vocabulary: that of `pack`.

        Yields:
            A position, and the indices (B, cells of the position) in the order of those of a sample: (B, levels) of a
            frame. It comes with the step that has the last of them.

        Raises:
            ValueError: as `unpack` does, at the step.
        """
        positions, inverse, counts = self.positions.flatten().unique(return_inverse=True, return_counts=True)
        members = inverse.argsort(stable=True).split(counts.tolist())
        last = torch.zeros_like(positions).scatter_reduce_(0, inverse, self.steps.flatten(), "amax")
        complete: dict[int, list[tuple[int, Tensor]]] = {}
        for position, step, cells in zip(positions.tolist(), last.tolist(), members, strict=True):
            complete.setdefault(step, []).append((position, cells))
        first, size, _ = self._tokens_of_cells(vocabulary, torch.device("cpu"))
        codes: Tensor | None = None
        for step, tokens in zip(range(len(self.table)), steps, strict=False):
            self._check_shape(f"tokens of step {step}", tokens, self.table.shape[1:])
            if codes is None:
                first, size = first.to(tokens.device), size.to(tokens.device)
                codes = torch.zeros(len(tokens), len(inverse), dtype=torch.int64, device=tokens.device)
            if len(tokens) != len(codes):
                raise ValueError(f"tokens of step {step} are {len(tokens)} samples: expected {len(codes)}, as before")
            row = self.table[step].view(-1)
            cells = row[row >= 0].to(tokens.device)
            found = tokens.reshape(len(tokens), -1).long()[:, torch.nonzero(row >= 0).squeeze(1).to(tokens.device)]
            self._check_tokens(found, cells, first[cells], size[cells], vocabulary)
            codes[:, cells] = found - first[cells]
            for position, whole in complete.get(step, ()):
                yield position, codes[:, whole.to(tokens.device)].to(tokens.dtype)

    # ------------------------------------------------------------------ masks

    def token_ranges(self, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
        """Which tokens may stand at each place, such as for sampling: the first, and one more than the last.

        Args:
            vocabulary: that of `pack`.

        Returns:
            Twice int64 in the shape of the table. A place of a special token has that one alone.
        """
        first, size, special = self._tokens_of_cells(vocabulary, torch.device("cpu"))
        ends = [token + 1 for token in special]
        return self._spread(first[None], special)[0], self._spread((first + size)[None], ends)[0]

    def block_causal_mask(self) -> Tensor:
        """(cells, cells) bool: whether a cell (row) may attend to another one (column), which comes in the same step or
        an earlier one. Cells are in the order of the indices of a sample, as a model over scales reads them.

        Source: VAR, Tian et al. 2024 (https://arxiv.org/abs/2404.02905), sec. 3.2.
        """
        steps = self.steps.flatten()
        return steps[:, None] >= steps

    # ------------------------------------------------------------------ other tables of the same cells

    def flattened(self) -> "Layout":
        """One token in a step: the table read step by step and slot by slot, without special tokens and holes."""
        return Layout(self.table[self.table >= 0], self.levels, self.positions)

    def framed(self, before: Sequence[str] = (), after: Sequence[str] = ()) -> "Layout":
        """With steps of special tokens, the same in all slots: `framed(["bos"], ["eos"])`.

        Args:
            before: names of special tokens that come first, in their order.
            after: names of special tokens that come last.
        """
        special = tuple(dict.fromkeys([*self.special, *before, *after]))
        rows = [
            torch.tensor([-1 - special.index(name) for name in names], dtype=torch.int64)
            .view(-1, *[1] * (self.table.ndim - 1))
            .expand(-1, *self.table.shape[1:])
            for names in (before, after)
        ]
        table = torch.cat([rows[0], self.table, rows[1]])
        return Layout(table, self.levels, self.positions, special=special)

    # ------------------------------------------------------------------ arithmetic of the table

    def _places(self) -> Tensor:
        """(cells,) the place of each cell in the flattened table, which has to have each of them once."""
        places, cells = self.table.flatten(), self.levels.numel()
        if len(places) and (int(places.max()) >= cells or int(places.min()) < -len(self.special)):
            raise ValueError(
                f"table holds {int(places.min())} ... {int(places.max())}: expected numbers of {cells} cells, or "
                f"-1 ... {-len(self.special)} for {self.special}"
            )
        taken = torch.nonzero(places >= 0).squeeze(1)
        times = places[taken].bincount(minlength=cells)
        if (times != 1).any():
            cell = int((times != 1).nonzero()[0])
            raise ValueError(
                f"table has cell {cell} (level {int(self.levels.flatten()[cell])}, position "
                f"{int(self.positions.flatten()[cell])}) {int(times[cell])} times: expected every cell once"
            )
        return taken[places[taken].argsort()]

    def _on(self, device: torch.device) -> "_Indices":
        """The index tensors, made once for each device."""
        if device not in self._copies:
            flat, count = self.table.flatten(), self._place.numel() + len(self.special)
            source = torch.where(flat < 0, flat + count, flat)
            self._copies[device] = _Indices(
                *(tensor.to(device) for tensor in (source, self._place, self.levels.flatten()))
            )
        return self._copies[device]

    def _spread(self, cells: Tensor, special: Sequence[int]) -> Tensor:
        """Values of cells (B, cells), and of special tokens, in the places of the table: (B, *table.shape)."""
        last = cells.new_tensor(special[::-1]).expand(len(cells), -1)
        source = self._on(cells.device).source
        return torch.cat([cells, last], dim=1)[:, source].view(len(cells), *self.table.shape)

    def _tokens_of_cells(self, vocabulary: Vocabulary, device: torch.device) -> tuple[Tensor, Tensor, list[int]]:
        """The first token and the number of codes of each cell, (cells,) int64, and the token of each special name."""
        levels = self._on(device).levels
        if len(vocabulary.codebook_sizes) < self.num_levels:
            raise ValueError(
                f"vocabulary has {len(vocabulary.codebook_sizes)} codebook_sizes: expected {self.num_levels}, one for "
                "each level of the layout"
            )
        missing = [name for name in self._used if name not in vocabulary.special]
        if missing:
            raise ValueError(
                f"vocabulary has the special tokens {tuple(vocabulary.special)}: the layout has {missing}, too; "
                "give their names as special"
            )
        first, size = (
            torch.tensor(numbers, device=device)[levels] for numbers in (vocabulary.offsets, vocabulary.codebook_sizes)
        )
        return first, size, [vocabulary.special[name] if name in self._used else 0 for name in self.special]

    def _check_tokens(self, tokens: Tensor, cells: Tensor, first: Tensor, size: Tensor, vocabulary: Vocabulary) -> None:
        """Refuse tokens (B, n) of some cells (n,) that are no codes of their levels."""
        wrong = (tokens < first) | (tokens >= first + size)
        if wrong.any():
            sample, number = _first(wrong)
            token, low = int(tokens[sample, number]), int(first[number])
            name = vocabulary.name_of(token)
            raise ValueError(
                f"tokens holds {token}{f', the special token {name!r},' if name else ''} "
                f"{self._described(sample, int(cells[number]))}: expected {low} ... {low + int(size[number]) - 1}; "
                "sample within token_ranges, and unpack by a layout of the length that was generated"
            )

    def _described(self, sample: int, cell: int) -> str:
        slot = f", slot {int(self._place[cell]) % self.table.shape[1]}" if self.table.ndim == 2 else ""
        level, position, step = (int(values.flatten()[cell]) for values in (self.levels, self.positions, self.steps))
        return f"in sample {sample} of the batch at step {step}{slot} (level {level}, position {position})"

    def _check_shape(self, name: str, tensor: Tensor, shape: torch.Size) -> None:
        check_integers(name, tensor)
        if tensor.shape[1:] != shape or not tensor.ndim:
            expected = ", ".join(["B", *map(str, shape)])
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected ({expected}), as the layout is made")


class _Indices(NamedTuple):
    """What packing and unpacking index with, on one device."""

    source: Tensor
    place: Tensor
    levels: Tensor


def check_integers(name: str, tensor: Tensor) -> None:
    """Refuse what is no plain tensor of integers."""
    check_plain(name, tensor)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name} has dtype {tensor.dtype}: expected integers")


def _first(wrong: Tensor) -> tuple[int, int]:
    """Row and column of the first True of (B, n)."""
    sample, number = wrong.nonzero()[0].tolist()
    return sample, number
