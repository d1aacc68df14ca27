"""Semantic IDs: collisions counted, suffixes, last levels without collisions, and items that come later."""

import pytest
import torch
from torch import Tensor

from vqkit import FSQ, Quantizer, ResidualQuantizer
from vqkit.tokens.semantic_ids import Suffixes, collisions, unique_last_level


def quantizer(levels: int = 2, size: int = 4) -> ResidualQuantizer:
    made = ResidualQuantizer(lambda: Quantizer("ema", dim=3, codebook_size=size), levels)
    made.initialize([torch.randn(400, 3)])
    return made.eval()


def test_collisions_are_counted() -> None:
    found = collisions(torch.tensor([[0, 1], [0, 1], [0, 2], [3, 1], [0, 1]]))
    assert (found.items, found.tuples, found.colliding, found.largest_group) == (5, 3, 3, 3)
    assert found.unique == 2 / 5 and found.prefixes == (2, 3)
    with pytest.raises(ValueError, match="no rows"):
        collisions(torch.zeros(0, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        collisions(torch.zeros(3, dtype=torch.int64))


def test_suffixes_make_tuples_unique_however_they_come() -> None:
    ids = torch.randint(3, (200, 2))
    whole, parts = Suffixes(), Suffixes()
    given = whole.add(ids)
    assert torch.cat([parts.add(chunk) for chunk in ids.split(37)]).equal(given)
    everything = torch.cat([ids, given[:, None]], dim=1)
    assert len(everything.unique(dim=0)) == 200
    assert given.max() + 1 == collisions(ids).largest_group
    for row in ids.unique(dim=0):
        assert given[(ids == row).all(1)].tolist() == list(range(int((ids == row).all(1).sum())))


def test_suffixes_go_on_from_a_table() -> None:
    ids = torch.randint(3, (100, 2))
    first = Suffixes()
    given = first.add(ids[:60])
    again = Suffixes.of(ids[:60], given)
    assert again.add(ids[60:]).equal(first.add(ids[60:]))
    with pytest.raises(ValueError, match="1 levels, the ones before had 2"):
        again.add(ids[:, :1])


def residual_cost(made: ResidualQuantizer, latents: Tensor, ids: Tensor) -> Tensor:
    return (made.decode(ids) - latents).square().sum(1)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_no_two_items_share_an_id(levels: int) -> None:
    made, latents = quantizer(levels, size=16), torch.randn(14, 3)
    latents = torch.cat([latents, latents[:1] + 0.001])
    ids, plain = unique_last_level(made, latents), made.encode(latents)
    assert collisions(plain).colliding and collisions(ids).unique == 1
    assert ids[:, :-1].equal(plain[:, :-1])
    assert (residual_cost(made, latents, ids) >= residual_cost(made, latents, plain) - 1e-6).all()
    alone = (plain[:, None, :-1] == plain[None, :, :-1]).all(-1).sum(1) == 1
    assert ids[alone].equal(plain[alone])


def test_items_that_come_later_leave_the_others_alone() -> None:
    made, latents = quantizer(size=8), torch.randn(12, 3)
    before = unique_last_level(made, latents[:6])
    later = unique_last_level(made, latents[6:], taken=before)
    assert collisions(torch.cat([before, later])).unique == 1
    assert later[:, :-1].equal(made.encode(latents[6:])[:, :-1])
    again = unique_last_level(made, latents[:1], taken=before)  # the same vector is another item
    assert not (again == before).all(1).any()


def test_a_prefix_with_more_items_than_codes() -> None:
    made = quantizer(size=4)
    with pytest.raises(ValueError, match=r"5 items have the prefix \[\d\], and the last of 2 levels has 4 codes"):
        unique_last_level(made, torch.ones(5, 3) + 1e-3 * torch.randn(5, 3))
    grid = ResidualQuantizer([lambda: Quantizer("ema", dim=2, codebook_size=4), lambda: FSQ([3, 3])])
    with pytest.raises(ValueError, match="the last stage is a FSQ"):
        unique_last_level(grid, torch.ones(5, 2))
