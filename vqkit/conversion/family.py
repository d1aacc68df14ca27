"""What is common to all families of published weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vqkit.conversion.source import Source
from vqkit.saving.files import named
from vqkit.saving.sizes import FLOATING, Bounded, check_finite
from vqkit.tokenizers.tokenizer import Tokenizer

SHOWN = 4
"""Most entries that a message lists."""


def joined(*parts: Tensor) -> Tensor:
    """Tensors one after another along their first axis."""
    return torch.cat(parts)


class Entry(NamedTuple):
    """An entry of a tokenizer's state, and the published ones that it is made of.

    Attributes:
        target: its name.
        sources: name -> shape that it must have.
        combine: from their tensors to the entry, but for axes of size 1.
    """

    target: str
    sources: Mapping[str, tuple[int, ...]]
    combine: Callable[..., Tensor] = joined


def named_entries(
    target: str,
    module: nn.Module,
    name: str | Sequence[str],
    parts: Mapping[str, str] = {"": ""},
    *,
    axes: int | None = None,
    combine: Callable[..., Tensor] = joined,
) -> Iterator[Entry]:
    """What each parameter of a module is taken from.

    Args:
        target: name of the module in the tokenizer's state.
        module: the module.
        name: of the published one; or of several that have equal parts of the outputs, one after another.
        parts: starts of the names of its parameters, ours and theirs, where these differ.
        axes: of published weights, which have more or fewer axes of size 1 than ours; None: as many.
        combine: see `Entry`.
    """
    names = [name] if isinstance(name, str) else name
    for ours, parameter in module.named_parameters():
        part = next(part for part in parts if ours.startswith(part))
        shape = (parameter.shape[0] // len(names), *parameter.shape[1:])
        if axes is not None and len(shape) > 1:
            shape = (*shape, *[1] * axes)[:axes]
        theirs = parts[part] + ours.removeprefix(part)
        yield Entry(f"{target}.{ours}", {f"{one}.{theirs}": shape for one in names}, combine)


class Family(ABC):
    """A key tree in which somebody's weights are published, and the tokenizer that computes the same.

    Class attributes:
        name: in words.
        telltale: name of an entry that others have not.
        unused: starts of the names of entries that a tokenizer does not need.
        license: of the weights that the authors published; None where it differs from model to model.
    """

    name: ClassVar[str]
    telltale: ClassVar[str]
    unused: ClassVar[tuple[str, ...]] = ()
    license: ClassVar[str | None] = None

    @classmethod
    def recognizes(cls, source: Source) -> bool:
        """Whether the names of the entries are those of this family.

        Raises:
            ValueError: another family has them too, and nothing in the file says which one is meant.
        """
        return cls.telltale in source

    @abstractmethod
    def build(self, source: Source) -> Tokenizer:
        """A tokenizer of the sizes that the shapes say, with weights of its own.

        Raises:
            ValueError: an entry that says a size is missing or has another number of axes, or sizes do not fit.
        """

    @abstractmethod
    def entries(self, source: Source, tokenizer: Tokenizer) -> Iterator[Entry]:
        """What each weight of the tokenizer that `build` made is taken from."""

    def weights(self, source: Source) -> Source:
        """The source with the weights that count under their plain names."""
        return source

    def left_out(self, source: Source) -> list[str]:
        """The starts of names that are in the source and not needed."""
        return [start for start in self.unused if any(name.startswith(start) for name in source.state)]

    def plan(self, source: Source) -> tuple[Source, Tokenizer, list[Entry]]:
        """The weights that count, the tokenizer on the meta device, and what each of its entries is taken from.

        No memory is taken for weights, and none of their values is read.

        Raises:
            ValueError: see `read`.
        """
        with named(source.file):
            try:
                source = self.weights(source)
                with torch.device("meta"), Bounded(source.state):
                    planned = self.build(source)
                entries = list(self.entries(source, planned))
                self._check(source, entries)
            except ValueError as error:
                raise ValueError(f"does not hold the weights of {self.name}: {error}") from error
        return source, planned, entries

    def read(self, source: Source) -> Tokenizer:
        """The tokenizer with the published weights, in float32.

        Raises:
            ValueError: entries are missing, unexpected, or of other shapes; the message names them and the family.
        """
        source, _, entries = self.plan(source)
        with named(source.file):
            tokenizer = self.build(source)
            state = tokenizer.state_dict()
            for target, sources, combine in entries:
                state[target] = combine(*(source.state[name].float() for name in sources)).reshape(state[target].shape)
            check_finite({entry.target: state[entry.target] for entry in entries})  # float64 may not fit
        tokenizer.load_state_dict(state)
        return tokenizer

    def _check(self, source: Source, entries: list[Entry]) -> None:
        wanted = {name: shape for entry in entries for name, shape in entry.sources.items()}
        faults = []
        for name in sorted(wanted.keys() | source.state.keys()):
            found = source.state.get(name)
            if found is None:
                faults.append(f"entry {name!r} is missing: expected shape {wanted[name]}")
            elif name not in wanted and not name.startswith(self.unused):
                faults.append(f"entry {name!r} of shape {tuple(found.shape)} is unexpected")
            elif name in wanted and tuple(found.shape) != wanted[name]:
                faults.append(f"entry {name!r} has shape {tuple(found.shape)}: expected {wanted[name]}")
            elif name in wanted and found.dtype not in FLOATING:
                faults.append(f"entry {name!r} holds {found.dtype}: expected floating point")
        if faults:
            more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
            raise ValueError("; ".join(faults[:SHOWN] + more))
