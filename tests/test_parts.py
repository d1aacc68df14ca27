"""What holds for every part: abstract bases, copies, demands of one's own, and what a search says about its choice."""

import copy
import inspect
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import vqkit
from vqkit import (
    Anchor,
    Codebook,
    Commitment,
    Estimator,
    GroupLoss,
    GumbelSearch,
    IncompatibleParts,
    Loss,
    Maintenance,
    Quantizer,
    ResidualQuantizer,
    Search,
    StraightThrough,
)
from vqkit.saving.config import to_config

SIZES = {"dim": 4, "codebook_size": 8}
BASES = (Estimator, Loss, Maintenance, Anchor, GroupLoss)
BUILT = [
    value()
    for value in vars(vqkit).values()
    if inspect.isclass(value) and issubclass(value, (*BASES, Search)) and not inspect.isabstract(value)
]


@pytest.mark.parametrize("base", BASES)
def test_an_abstract_part_cannot_be_built(base: type) -> None:
    with pytest.raises(TypeError, match="abstract"):
        base()


@pytest.mark.parametrize("part", BUILT, ids=lambda part: type(part).__name__)
def test_copies_of_a_part_are_built_alike(part: object) -> None:
    for other in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert type(other) is type(part) and to_config(other) == to_config(part)


class Farthest(Search):
    """Takes the farthest code."""

    def forward(self, z: Tensor, codes: Tensor, noise: object = None) -> Tensor:
        return torch.cdist(z, codes).argmax(1)


class StillFarthest(Farthest):
    """The choice that it inherits."""


class Nearest(Search):
    """The nearest code, by other means, and says so."""

    finds_nearest = True

    def forward(self, z: Tensor, codes: Tensor, noise: object = None) -> Tensor:
        return torch.cdist(z, codes).argmin(1)


class Renamed(Search):
    """The choice of `Search`."""


def test_a_choice_of_ones_own_is_not_taken_for_the_nearest_code() -> None:
    metrics = {
        type(search).__name__: Quantizer("vq", **SIZES, search=search).nearest_metric
        for search in (Search("cosine"), Renamed(), Nearest(), Farthest(), StillFarthest())
    }
    assert metrics == {
        "Search": "cosine",
        "Renamed": "euclidean",
        "Nearest": "euclidean",
        "Farthest": None,
        "StillFarthest": None,
    }
    assert Quantizer("gumbel", **SIZES).nearest_metric == "dot" and GumbelSearch.finds_nearest


@pytest.mark.parametrize("method", ["vq", "gumbel"])
def test_one_search_of_all_stages_gives_the_indices_of_one_after_the_other(method: str) -> None:
    chain = ResidualQuantizer([lambda: Quantizer(method, **SIZES)] * 2, estimator=None).eval()
    x = torch.randn(50, 4)
    assert "all stages in one call" in repr(chain)
    assert torch.equal(chain.encode(x), chain(x).indices)


class ForFewCodes(StraightThrough):
    """An estimator from outside, with a demand that no class attribute has."""

    def conflicts(self, codebook: Codebook) -> Iterator[str]:
        if codebook.codebook_size > 4:
            yield f"ForFewCodes takes 4 codes at most, not {codebook.codebook_size}: lower codebook_size"


class ForPlainCodes(Commitment):
    """A loss from outside, with a demand that no class attribute has."""

    def conflicts(self, codebook: Codebook | None, estimator: Estimator | None) -> Iterator[str]:
        if codebook is None or estimator is None or estimator.trains_codebook:
            yield "ForPlainCodes takes a codebook whose estimator does not train it"


def test_a_part_from_outside_states_its_own_demands() -> None:
    refused = {
        "ForFewCodes": (
            lambda: Quantizer("ema", **SIZES, estimator=ForFewCodes()),
            lambda: ResidualQuantizer(lambda: Quantizer("ema", **SIZES), 2, estimator=ForFewCodes()),
        ),
        "ForPlainCodes": (
            lambda: Quantizer("nsvq", **SIZES, losses=[ForPlainCodes()]),
            lambda: vqkit.LFQ(4, losses=[ForPlainCodes()]),
        ),
    }
    for name, builders in refused.items():
        for build in builders:
            with pytest.raises(IncompatibleParts, match=name):
                build()
    assert Quantizer("ema", dim=4, codebook_size=4, estimator=ForFewCodes(), losses=[ForPlainCodes()])
