"""The coder that mixes contexts: its two forms, what it learns, and bytes that are for good."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from vqkit.bitstream import Context
from vqkit.bitstream.coders import Counts
from vqkit.bitstream.mixing import ContextMixing
from vqkit.bitstream.order import code_order
from vqkit.kernels import native

CODER = ContextMixing()


def integers(count: int, size: int, seed: int = 1) -> Tensor:
    """(count,) of 0 ... size - 1, small ones most often, of a congruential generator."""
    number, values = seed, []
    for _ in range(count):
        number = (number * 1103515245 + 12345) % 2**31
        first = number >> 16
        number = (number * 1103515245 + 12345) % 2**31
        values.append(first * (number >> 16) * size >> 30)
    return torch.tensor(values)


def walks(size: int, shape: tuple[int, ...]) -> Tensor:
    """Indices that change little along the last axis."""
    rows = integers(torch.Size(shape).numel(), size).reshape(shape)
    return (rows // 7).cumsum(-1) % size


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "variants", tuple)


def outcome(written: bytes, values: Tensor, context: Context) -> str:
    """What is made of some bytes: the indices, or why there are none."""
    try:
        return str(CODER.decode(written, tuple(values.shape), context).tolist())
    except ValueError as error:
        return str(error)


CASES = {
    "sequence": (walks(1000, (300,)), Context(1000, whole=(300,))),
    "picture": (walks(256, (9, 31)), Context(256, whole=(9, 31))),
    "rows": (walks(17, (4, 40)), Context(17, start=3, whole=(9, 40), coarser=((walks(5, (3, 10)), 5),))),
    "film": (walks(3, (5, 6, 7)), Context(3, whole=(5, 6, 7))),
    "more axes": (walks(50, (2, 3, 4, 5)), Context(50, whole=(2, 3, 4, 5))),
    "bits": (walks(2, (400,)), Context(2, whole=(400,))),
    "large": (walks(2**20, (90,)), Context(2**20, whole=(90,))),
    "residual": (
        walks(64, (120,)),
        Context(64, whole=(120,), coarser=tuple((walks(64, (n,)), 64) for n in (7, 30, 120))),
    ),
    "other axes": (walks(64, (40,)), Context(64, whole=(40,), coarser=((walks(8, (4, 4)), 8), (walks(8, (0,)), 8)))),
    "ordered": (
        walks(300, (8, 20)),
        Context(300, whole=(8, 20), order=code_order(integers(1200, 99).reshape(300, 4).float())),
    ),
}


@pytest.mark.skipif(not native.variants(), reason="the native kernels are not built")
@pytest.mark.parametrize("name", CASES)
def test_both_forms_write_and_read_the_same_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values, context = CASES[name]
    written = CODER.encode(values, context)
    assert torch.equal(CODER.decode(written, tuple(values.shape), context), values)
    others = b"", written[: len(written) // 2], b"\x17" + written[1:], written + b"\1\1\1\1\1"
    found = [outcome(other, values, context) for other in others]
    assert "its indices take" in found[-1]
    plain(monkeypatch)
    assert CODER.encode(values, context) == written
    assert torch.equal(CODER.decode(written, tuple(values.shape), context), values)
    assert [outcome(other, values, context) for other in others] == found


GOLDEN = "6cd96c9d5e827160"


def golden_input() -> tuple[Tensor, Context]:
    values = walks(100, (12, 30))
    return values, Context(100, whole=(12, 30), order=(torch.arange(100) * 7) % 100, coarser=((values[::3, ::3], 100),))


@pytest.mark.parametrize("form", ["compiled where it is built", "plain"])
def test_bytes_are_for_good(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the format needs another number of the coder."""
    if form == "plain":
        plain(monkeypatch)
    written = CODER.encode(*golden_input())
    assert hashlib.sha256(written).hexdigest()[:16] == GOLDEN


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_are_those_of_another_process(threads: int) -> None:
    values, context = golden_input()
    script = (
        "import hashlib, torch\n"
        "from tests.bitstream.test_mixing import CODER, golden_input\n"
        f"torch.set_num_threads({threads})\n"
        "print(CODER.encode(*golden_input()).hex())\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(threads)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == CODER.encode(values, context).hex()


@pytest.mark.parametrize("like", ["left", "above", "above right", "frame before", "coarser", "two levels"])
def test_what_it_learns_from(like: str) -> None:
    """Indices that follow from one of these cost a fifth of what their frequencies say, but for the first ones."""
    draws = integers(2000, 64)
    values, coarser = {
        "left": ((torch.arange(2000) * 13 % 64)[None].expand(2, -1), ()),
        "above": (draws[:40].expand(50, -1), ()),
        "above right": (torch.stack([draws[row : row + 40] for row in range(50)]), ()),
        "frame before": (draws[:40].reshape(1, 5, 8).expand(50, -1, -1), ()),
        "coarser": (draws * 5 % 64, (draws,)),
        "two levels": ((draws * 5 + draws.roll(9) % 4) % 64, (draws.roll(9) % 4, draws)),
    }[like]
    context = Context(64, whole=tuple(values.shape), coarser=tuple((grid, 64) for grid in coarser))
    shares = values.unique(return_counts=True)[1].double() / values.numel()
    entropy = -float((shares * shares.log2()).sum()) * values.numel()
    assert 8 * len(CODER.encode(values, context)) < {"two levels": 0.5}.get(like, 0.2) * entropy


def test_what_cannot_be_predicted_costs_little_more() -> None:
    values = torch.randint(256, (4000,), generator=torch.Generator().manual_seed(0))
    assert len(CODER.encode(values, Context(256, whole=(4000,)))) < 1.02 * 4000


def test_an_order_of_like_codes_makes_files_shorter() -> None:
    """A smooth surface, in codes whose numbers say nothing."""
    x, y = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    noise = torch.randn(40, 40, 2, generator=torch.Generator().manual_seed(0))
    points = torch.stack([(x / 6).sin() * 4, (y / 5).cos() * 4], -1) + 0.3 * noise
    codes = 3 * torch.randn(256, 2, generator=torch.Generator().manual_seed(1))
    values = torch.cdist(points.reshape(-1, 2), codes).argmin(-1).reshape(40, 40)
    without, within = (
        len(CODER.encode(values, Context(256, whole=(40, 40), order=order))) for order in (None, code_order(codes))
    )
    assert within < 0.97 * without
    assert within < len(Counts().encode(values, Context(256, whole=(40, 40))))


@pytest.mark.parametrize("form", ["compiled where it is built", "plain"])
def test_bytes_behind_the_last_index_are_refused(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "plain":
        plain(monkeypatch)
    values, context = CASES["picture"]
    written = CODER.encode(values, context)
    with pytest.raises(ValueError, match=f"has {len(written) + 9} bytes, of which its indices take"):
        CODER.decode(written + bytes(9), tuple(values.shape), context)


def test_nothing_is_a_stream_of_equal_indices() -> None:
    """Zeros follow the last byte, so that no bytes at all are indices too."""
    for shape in ((1,), (50, 60)):
        found = CODER.decode(b"", shape, Context(1024, whole=shape))
        assert found.shape == shape
        assert len(CODER.encode(found, Context(1024, whole=shape))) == 0
