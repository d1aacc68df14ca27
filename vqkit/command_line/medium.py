"""What a tokenizer takes and gives as files: the interface of pictures and sound."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

from vqkit.backbones.latent_tokens import LatentTokenDecoder
from vqkit.bitstream.container import Extent
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.prefix import PrefixQuantizer
from vqkit.quantizers.rows import RowQuantizer
from vqkit.tokenizers.tokenizer import Tokenizer

Loaded = TypeVar("Loaded")

NOT_NUMBERS = "its indices are decoded to values that are not numbers: look at the weights of the tokenizer"


@dataclass(frozen=True, eq=False)
class Coded:
    """A file as indices.

    Attributes:
        indices: (1, ...) int64, as `Tokenizer.decode` takes them.
        extent: of the original.
    """

    indices: Tensor
    extent: Extent


class Medium(ABC, Generic[Loaded]):
    """Files of a kind, for a tokenizer.

    Args:
        tokenizer: in eval mode, on its device.
        batch_size: files that are encoded or decoded together, at most.

    Class attributes:
        ending: of decoded files, where the command names none.
        unit: of rates.
    """

    ending: ClassVar[str]
    unit: ClassVar[str]

    def __init__(self, tokenizer: Tokenizer, *, batch_size: int) -> None:
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.device = tokenizer.quantizer.latent_spread.device

    @property
    @abstractmethod
    def suffixes(self) -> Collection[str]:
        """Of the files that are encoded, in lower case with their dot."""

    @abstractmethod
    def load(self, path: Path) -> Loaded:
        """What is encoded of a file; ValueError with the reason if it cannot be used."""

    @abstractmethod
    def alike(self, loaded: Loaded) -> Hashable:
        """Equal for what can be in one batch."""

    @abstractmethod
    def encode(self, batch: Sequence[Loaded]) -> list[Coded]:
        """The indices of files that are alike."""

    @abstractmethod
    def check_writable(self, target: Path) -> None:
        """Refuse a decoded file of which the ending stands for no format."""

    @abstractmethod
    def write(self, batch: Sequence[Coded], targets: Sequence[Path]) -> Iterator[Path]:
        """Decode indices of one shape, and write each file whole; gives its target back.

        Raises:
            ValueError: the indices stand for another size than the file says, or for another medium, or for values that
                are not numbers.
        """


def first_levels(quantizer: BaseQuantizer, indices: Tensor, count: int | None) -> Tensor:
    """The first levels of indices, as `decode` takes them; None keeps all.

    Raises:
        ValueError: there are no levels, or not so many.
    """
    if count is None:
        return indices
    most = quantizer.num_codebooks if quantizer.level_axis else 0
    if isinstance(quantizer, RowQuantizer):
        most = len(quantizer.cells)
    if not 1 <= count <= most:
        raise ValueError(
            f"--levels {count}: expected 1 to {most}"
            if most
            else f"--levels {count}: this tokenizer has one codebook and no levels"
        )
    return quantizer.prefix(indices, count) if isinstance(quantizer, RowQuantizer) else indices[..., :count]


def check_prefixes(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer of which no prefix of the tokens decodes.

    Raises:
        ValueError: its tokens are places of a picture or times of a recording.
    """
    if not isinstance(tokenizer.quantizer, PrefixQuantizer) and not isinstance(tokenizer.decoder, LatentTokenDecoder):
        raise ValueError(
            "--tokens: expected a tokenizer of latent tokens such as TiTok, of which the first ones decode; the "
            "tokens of this one are places or times, each of which is needed"
        )


def first_tokens(tokenizer: Tokenizer, indices: Tensor, count: int | None) -> Tensor:
    """The first tokens of a sample, as its decoder takes them; None keeps all.

    Behind them is nothing, or -1 where the tokenizer was trained so (`PrefixQuantizer`).

    Args:
        tokenizer: one that `check_prefixes` lets pass.
        indices: (1, ...), as `encode` returns them.
        count: of tokens.

    Raises:
        ValueError: there are not so many.
    """
    if count is None:
        return indices
    quantizer = tokenizer.quantizer
    tokens = indices[..., 0] if quantizer.level_axis else indices
    if count > tokens.numel():
        raise ValueError(f"--tokens {count}: expected 1 to {tokens.numel()}, the tokens of one sample")
    return quantizer.prefix(indices, count) if isinstance(quantizer, PrefixQuantizer) else indices[:, :count]
