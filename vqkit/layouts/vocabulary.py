"""The numbers that a language model knows codes and special tokens by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

SPECIAL = ("pad", "bos", "eos")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens: index k of level l is token `offsets[l] + k`; special tokens have numbers of their own.

    Args:
        codebook_sizes: K of each level, at least 1.
        offsets: the token of index 0 of each level. Levels may share tokens where the place in the sequence tells the
            level, as it does in every layout.
        special: numbers of special tokens by name; "pad" fills the places where a layout has no code.

    Raises:
        ValueError: sizes and offsets differ in number, a number is out of range or beyond int64, or a special token is
            the token of a code or of another special one.
    """

    codebook_sizes: Sequence[int]
    offsets: Sequence[int]
    special: Mapping[str, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "codebook_sizes", tuple(self.codebook_sizes))
        object.__setattr__(self, "offsets", tuple(self.offsets))
        object.__setattr__(self, "special", dict(self.special))
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise ValueError(f"codebook_sizes is {self.codebook_sizes}: expected K of each level, at least 1")
        if len(self.offsets) != len(self.codebook_sizes) or min(self.offsets) < 0:
            raise ValueError(
                f"offsets is {self.offsets}: expected one number for each of {len(self.codebook_sizes)} codebook_sizes,"
                " at least 0"
            )
        if self.size - 1 > torch.iinfo(torch.int64).max:
            raise ValueError(
                f"the largest token is {self.size - 1}: expected one of int64; give by_level the levels, or the parts "
                "of a wide code as levels of their own"
            )
        for name, token in self.special.items():
            if token < 0:
                raise ValueError(f"special token {name!r} is {token}: expected at least 0")
            for level, (first, end) in enumerate(zip(self.offsets, self.ends, strict=True)):
                if first <= token < end:
                    raise ValueError(
                        f"special token {name!r} is {token}: the codes of level {level} are {first} ... {end - 1}; "
                        "give it a number outside of every level"
                    )
            if name != self.name_of(token):
                raise ValueError(f"special tokens {self.name_of(token)!r} and {name!r} are both {token}")

    @classmethod
    def flat(cls, codebook_sizes: Sequence[int], *, special: Sequence[str] = SPECIAL, first: int = 0) -> "Vocabulary":
        """One vocabulary for all levels: each has its own tokens, coarse first, and special tokens follow.

        Args:
            codebook_sizes: K of each level.
            special: names of special tokens.
            first: the first token, such as the size of the vocabulary of a text model that is extended.
        """
        offsets = [first + sum(codebook_sizes[:level]) for level in range(len(codebook_sizes))]
        return cls(codebook_sizes, offsets, _numbered(special, first + sum(codebook_sizes)))

    @classmethod
    def by_level(cls, codebook_sizes: Sequence[int], *, special: Sequence[str] = SPECIAL) -> "Vocabulary":
        """Tokens that are the indices, for a model with an embedding and a head for each level; special tokens follow
        the largest K, so that they are special at every level.

        Args:
            codebook_sizes: K of each level.
            special: names of special tokens.
        """
        return cls(codebook_sizes, [0] * len(codebook_sizes), _numbered(special, max(codebook_sizes, default=0)))

    @property
    def size(self) -> int:
        """One more than the largest token: rows of an embedding."""
        return max([*self.ends, *(token + 1 for token in self.special.values())])

    @property
    def ends(self) -> list[int]:
        """One more than the last token of each level."""
        return [first + size for first, size in zip(self.offsets, self.codebook_sizes, strict=True)]

    def name_of(self, token: int) -> str | None:
        """The special token of a number, None where it has none."""
        return next((name for name, number in self.special.items() if number == token), None)


def _numbered(names: Sequence[str], first: int) -> dict[str, int]:
    if len(set(names)) < len(names):
        raise ValueError(f"special is {tuple(names)}: expected every name once")
    return {name: first + number for number, name in enumerate(names)}
