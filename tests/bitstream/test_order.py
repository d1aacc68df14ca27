"""Codes in an order in which neighbours are alike."""

import hashlib

import pytest
import torch

from vqkit.bitstream.order import code_order


def test_groups_of_like_codes_have_ranks_of_one_prefix() -> None:
    """Sixteen clusters, far apart, of eight codes each: the highest four of seven bits of a rank name the cluster."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[x, y] for x in (0.0, 10, 30, 40) for y in (0.0, 3, 9, 12)]).repeat_interleave(8, 0)
    shuffle = torch.randperm(128, generator=generator)
    codes = torch.cat([corners, torch.zeros(128, 3)], 1) + 0.1 * torch.randn(128, 5, generator=generator)
    cluster = torch.arange(128) // 8
    prefix = code_order(codes[shuffle]) >> 3
    for number in range(16):
        assert len(prefix[cluster[shuffle] == number].unique()) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 257])
@pytest.mark.parametrize("dim", [1, 3, 40])
def test_ranks_are_a_permutation_that_dtype_and_scale_leave(count: int, dim: int) -> None:
    codes = torch.randn(count, dim, generator=torch.Generator().manual_seed(count))
    order = code_order(codes)
    assert torch.equal(order.sort()[0], torch.arange(count))
    assert torch.equal(code_order(codes.double()), order)
    assert torch.equal(code_order(codes * 2.0**-30), order)


def test_one_axis_is_sorted() -> None:
    codes = torch.randn(100, 1, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    along = codes[code_order(codes).argsort()].flatten()
    direction = (along[-1] - along[0]).sign()
    halves = along.chunk(2)
    assert (direction * halves[0]).max() <= (direction * halves[1]).min()


def test_codes_that_say_nothing_keep_their_order() -> None:
    for codes in (torch.zeros(9, 4), torch.full((9, 4), float("nan"))):
        assert torch.equal(code_order(codes), torch.arange(9))


def test_order_is_for_good() -> None:
    """Files are written in it. The codes are integers of a congruential generator."""
    number, values = 1, []
    for _ in range(3000):
        number = (number * 1103515245 + 12345) % 2**31
        values.append((number >> 8) % 2001 - 1000)
    ranks = code_order(torch.tensor(values, dtype=torch.float32).reshape(300, 10))
    assert hashlib.sha256(" ".join(map(str, ranks.tolist())).encode()).hexdigest()[:16] == "2b4136fe9de996cd"
