"""Every coder gives back what it was given, in as many bits as its arithmetic promises."""

import math

import pytest
import torch
from torch import Tensor

from vqkit.bitstream import CODERS, Coder, Context
from vqkit.bitstream.coders import Counts, FixedWidth, Lzma, MixedRadix
from vqkit.bitstream.mixing import ContextMixing
from vqkit.bitstream.varints import read_varint, write_varint

SIZES = [2, 3, 255, 256, 257, 1000, 16384, 2**18, 2**20]
SHAPES = [(1,), (1000,), (5, 9), (3, 4, 6), (1, 1, 1)]


def draws(kind: str, size: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    share = torch.rand(shape, generator=generator, dtype=torch.float64)
    return {
        "uniform": (share * size).long(),
        "skewed": (share**8 * size).long(),
        "equal": torch.full(shape, size - 1),
    }[kind]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("coder", CODERS.values(), ids=list(CODERS))
def test_round_trip(coder: Coder, size: int) -> None:
    for shape in SHAPES:
        for kind in ("uniform", "skewed", "equal"):
            values, context = draws(kind, size, shape), Context(size, whole=shape)
            written = coder.encode(values, context)
            if written is not None:
                assert torch.equal(coder.decode(written, shape, context), values), (shape, kind)


@pytest.mark.parametrize("size", SIZES)
def test_bits_of_the_static_coders(size: int) -> None:
    values = draws("skewed", size, (3000,))
    fixed, radix, counts = (
        8 * len(coder.encode(values, Context(size))) for coder in (FixedWidth(), MixedRadix(), Counts())
    )
    assert fixed == math.ceil(len(values) * math.ceil(math.log2(size)) / 8) * 8
    assert radix <= len(values) * math.log2(size) + 64
    share = values.unique(return_counts=True)[1].double() / len(values)
    entropy = -float((share * share.log2()).sum()) * len(values)
    # The table: of each code that occurs a gap and a count, each 2 floor(log2(x)) + 1 bits in the code of order 0.
    codes, occurrences = values.unique(return_counts=True)
    gaps = torch.diff(codes, prepend=torch.tensor([-1]))
    table = float((2 * gaps.double().log2().floor() + 1).sum() + (2 * occurrences.double().log2().floor() + 1).sum())
    assert counts <= entropy + 64 + 0.002 * len(values) + table + 8 * 8  # two orders, two lengths, and a byte's filling


def test_numbers_of_coders_are_for_good() -> None:
    """They stand in files."""
    assert [coder.number for coder in (FixedWidth, MixedRadix, Lzma, Counts, ContextMixing)] == [0, 1, 2, 3, 4]
    assert len({coder.number for coder in CODERS.values()}) == len(CODERS)


@pytest.mark.parametrize("coder", CODERS.values(), ids=list(CODERS))
def test_other_bytes_are_refused_or_indices(coder: Coder) -> None:
    """Checksums find damage; who wrote them anew for bytes of their own gets indices in range, or an error."""
    values, context = draws("skewed", 1000, (40,)), Context(1000, whole=(40,))
    written = coder.encode(values, context)
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for length in (0, 1, 5, len(written) - 1, len(written), len(written) + 1, 300):
        for _ in range(20):
            other = bytes(torch.randint(256, (length,), generator=generator).tolist())
            try:
                found = coder.decode(other, (40,), context)
            except ValueError:
                refused += 1
                continue
            assert found.shape == (40,)
            assert found.dtype == torch.int64
    assert refused > 20 or coder.reads_context


@pytest.mark.parametrize("number", [0, 127, 128, 16383, 16384, 2**63 - 1])
def test_varints(number: int) -> None:
    written = write_varint(number)
    assert len(written) == max(1, math.ceil(number.bit_length() / 7))
    assert read_varint(b"x" + written + b"y", 1) == (number, 1 + len(written))


@pytest.mark.parametrize("written", [b"", b"\x80", b"\x80\x00", b"\xff" * 10])
def test_damaged_varints(written: bytes) -> None:
    with pytest.raises(ValueError, match="cut off or damaged"):
        read_varint(written, 0)
