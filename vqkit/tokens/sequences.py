"""Samples of one length, of token shards whose samples have any."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vqkit.tokens.reader import TokenShards
from vqkit.tokens.stream import shuffled

if TYPE_CHECKING:
    from vqkit.layouts import Layout, Vocabulary


class TokenWindows(Dataset[dict[str, Any]]):
    """Windows of one size over sequences or grids, such as crops of recordings or of pictures in their own sizes.

    A sample is that of the shards, with the `"indices"` of the window alone and its `"start"`, (axes,) int64, without
    an `"extent"`. Windows of a sample start at 0, `stride`, and so on; the last one ends where the sample ends, so that
    every index is in a window. Where a sample is smaller than the window, the window is the whole axis: `pad_tokens`
    joins them.

        >>> windows = TokenWindows(shards, (256,))  # of recordings; (16, 16) of pictures
        >>> loader = torch.utils.data.DataLoader(windows, batch_size=16, shuffle=True, collate_fn=pad_tokens)

    Args:
        shards: the data set.
        size: of a window on the first axes of a sample, in indices, each at least 1.
        stride: from a window to the next, as many numbers of 1 to `size`; None is `size`.

    Raises:
        ValueError: sizes or strides are out of range, or more than the axes of a sample.
    """

    def __init__(self, shards: TokenShards, size: Sequence[int], *, stride: Sequence[int] | None = None) -> None:
        self.shards, self.size = shards, tuple(size)
        strides = self.size if stride is None else tuple(stride)
        axes = len(shards.shape) - (shards.num_codebooks > 1)
        if not 1 <= len(self.size) <= axes or min(self.size) < 1:
            raise ValueError(f"size={size}: expected one to {axes} numbers of at least 1, for shape={shards.shape}")
        if len(strides) != len(self.size) or not all(1 <= s <= w for s, w in zip(strides, self.size, strict=True)):
            raise ValueError(f"stride={stride}: expected one number for each of size={size}, 1 up to it")
        self._counts: list[tuple[int, ...]] = []
        for index in range(len(shards)):
            sizes = zip(shards.sample_shape(index), self.size, strides, strict=False)
            self._counts.append(tuple(1 + -(-max(length - window, 0) // step) for length, window, step in sizes))
        self._strides = strides
        self._ends = list(accumulate(torch.tensor(self._counts).reshape(-1, len(strides)).prod(1).tolist()))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index={index}: expected 0 ... {len(self) - 1}")
        number = bisect_right(self._ends, index)
        within = index - (self._ends[number - 1] if number else 0)
        sample = self.shards[number]
        start = []
        for axis in range(len(self.size) - 1, -1, -1):
            within, place = divmod(within, self._counts[number][axis])
            last = max(sample["indices"].shape[axis] - self.size[axis], 0)
            start.append(min(place * self._strides[axis], last))
        start.reverse()
        window = tuple(slice(first, first + size) for first, size in zip(start, self.size, strict=True))
        sample.pop("extent", None)
        return sample | {"indices": sample["indices"][window], "start": torch.tensor(start)}


class PackedTokens(Dataset[dict[str, Any]]):
    """Samples as the sequences of a language model, one after another, cut into sequences of one length.

    A sample here is a dict: `"tokens"` (length, *slots) int64; `"documents"` (length,) int64, which tells the samples
    of a sequence apart, 0, 1 and so on, so that attention can stay inside of each (`documents[:, None] == documents`);
    `"steps"` (length,) int64, the step in the layout of the sample; and where there are classes `"labels"` (length,)
    int64. The last sequence is filled with "pad", where the others are -1.

        >>> layout = lambda shape: layouts.flat(*shape).framed(["bos"], ["eos"])  # (frames, levels)
        >>> packed = PackedTokens(shards, layout, vocabulary, length=2048)

    Args:
        shards: the data set.
        layout: gives the `Layout` of a sample of some shape; those of all samples have the same slots.
        vocabulary: tokens of codes and special tokens; "pad" fills the last sequence.
        length: steps of a sequence, at least 1.
        seed: of the order in which samples follow one another, at least 0; None keeps that of the data set.

    Raises:
        ValueError: `length` is below 1, there are no samples, slots differ, or the vocabulary has no "pad". Reading
            raises it for samples with -1, which no layout has a place for.
    """

    def __init__(
        self,
        shards: TokenShards,
        layout: Callable[[tuple[int, ...]], "Layout"],
        vocabulary: "Vocabulary",
        *,
        length: int,
        seed: int | None = 0,
    ) -> None:
        if length < 1:
            raise ValueError(f"length={length}: expected at least 1")
        if "pad" not in vocabulary.special:
            raise ValueError(f'vocabulary has the special tokens {list(vocabulary.special)}: expected "pad" among them')
        self.shards, self.vocabulary, self.length = shards, vocabulary, length
        self._order = shuffled(len(shards), seed=seed, epoch=0).tolist()
        shapes = [shards.sample_shape(index) for index in self._order]
        self._layouts = {shape: layout(shape) for shape in dict.fromkeys(shapes)}
        slots = {layout.table.shape[1:] for layout in self._layouts.values()}
        if len(slots) != 1:
            raise ValueError(f"layout gives slots {sorted(slots)}: expected samples, and the same slots for all")
        self._ends = list(accumulate(len(self._layouts[shape].table) for shape in shapes))

    def __len__(self) -> int:
        return -(-self._ends[-1] // self.length)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index={index}: expected 0 ... {len(self) - 1}")
        first = index * self.length
        number = bisect_right(self._ends, first)
        parts: list[dict[str, Tensor]] = []
        while number < len(self._ends) and (number == 0 or self._ends[number - 1] < first + self.length):
            parts.append(self._part(number, first, len(parts)))
            number += 1
        sequence = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        missing = self.length - len(sequence["tokens"])
        if missing:
            for key, tensor in sequence.items():
                value = self.vocabulary.special["pad"] if key == "tokens" else -1
                sequence[key] = torch.cat([tensor, tensor.new_full((missing, *tensor.shape[1:]), value)])
        return sequence

    def _part(self, number: int, first: int, document: int) -> dict[str, Tensor]:
        """What a sample, the `number`-th in order, has of the sequence that begins at `first`."""
        sample = self.shards[self._order[number]]
        try:
            tokens = self._layouts[tuple(sample["indices"].shape)].pack(sample["indices"][None], self.vocabulary)[0]
        except ValueError as error:
            raise ValueError(f"{sample['name']!r} cannot be packed: {error}") from error
        begin = self._ends[number] - len(tokens)
        steps = torch.arange(max(first - begin, 0), min(first + self.length - begin, len(tokens)))
        part = {"tokens": tokens[steps], "documents": torch.full_like(steps, document), "steps": steps}
        return part | ({"labels": torch.full_like(steps, sample["label"])} if "label" in sample else {})
