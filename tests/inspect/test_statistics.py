"""Statistics of codes against counting by hand, in one batch or in many."""

import math

import torch
from torch import Tensor

from tests.refusals import refused
from vqkit.inspect import CodeStatistics, sample_occurrences

SIZE, LEVELS, TOKENS = 7, 3, 200


def tokens(seed: int = 0) -> tuple[Tensor, Tensor]:
    """(T, n) codes, some twice in a token and some left out; (T, 2) what holds."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-1, SIZE, (TOKENS, LEVELS), generator=generator)
    holds = torch.stack([(codes == 2).any(1), torch.rand(TOKENS, generator=generator) < 0.3], dim=1)
    return codes, holds


def counted(codes: Tensor, holds: Tensor, mask: Tensor | None = None) -> CodeStatistics:
    statistics = CodeStatistics(SIZE, levels=LEVELS, predicates=["two", "chance"])
    statistics.update(codes, holds, mask)
    return statistics


def test_numbers_are_those_of_tokens() -> None:
    codes, holds = tokens()
    sets = [set(row.tolist()) - {-1} for row in codes]
    statistics = counted(codes, holds)
    assert statistics.tokens == TOKENS
    for code in range(SIZE):
        having = [code in chosen for chosen in sets]
        assert int(statistics.counts[code]) == sum(having)
        for other, count in enumerate(statistics.together(code).tolist()):
            assert count == sum(code in chosen and other in chosen for chosen in sets)
        for number, name in enumerate(statistics.predicates):
            both = sum(has and true for has, true in zip(having, holds[:, number].tolist(), strict=True))
            found = statistics.of(code, name)
            assert found.precision == both / sum(having) and found.recall == both / int(holds[:, number].sum())
    assert statistics.of(2, "two").f1 == 1 and statistics.best("two").code == 2


def test_batches_and_masks_change_nothing() -> None:
    codes, holds = tokens()
    whole, parts = counted(codes, holds), CodeStatistics(SIZE, levels=LEVELS, predicates=["two", "chance"])
    for some in torch.arange(TOKENS).split(37):
        padded = torch.cat([codes[some], torch.zeros(5, LEVELS, dtype=torch.int64)])
        true = torch.cat([holds[some], torch.ones(5, 2, dtype=torch.bool)])
        parts.update(padded, true, torch.arange(len(padded)) < len(some))
    assert parts.tokens == whole.tokens
    for name in ("counts", "holding", "joint"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))
    assert all(torch.equal(parts.together(code), whole.together(code)) for code in range(SIZE))


def test_a_batch_that_a_code_fills_counts_more_than_one() -> None:
    """Published code adds 1 for a batch."""
    statistics = CodeStatistics(4)
    statistics.update(torch.tensor([[1, 1, 1], [2, 1, -1]]))
    assert statistics.counts.tolist() == [0, 4, 1, 0] and statistics.most_used(5) == [1, 2]
    assert statistics.tokens == 6 and statistics.together(1).tolist() == [0, 4, 0, 0]


def test_a_code_of_too_few_tokens_is_not_best() -> None:
    statistics = CodeStatistics(3, predicates=["holds"])
    codes = torch.tensor([0] + [1] * 200)
    statistics.update(codes, (torch.arange(201) < 150).unsqueeze(-1))
    assert statistics.of(0, "holds").precision == 1
    assert statistics.best("holds").code == 1 and statistics.best("holds", min_recall=0).code == 0
    assert statistics.best("holds", min_recall=1.1) is None and math.isnan(statistics.of(2, "holds").precision)


test_what_cannot_be_is_refused = refused(
    (lambda: CodeStatistics(0), "expected at least 1"),
    (lambda: CodeStatistics(3, predicates=["a", "a"]), "names that differ"),
    (lambda: CodeStatistics(3).update(torch.tensor([3])), "indices lie in"),
    (lambda: CodeStatistics(3).update(torch.tensor([1]), mask=torch.ones(2, dtype=torch.bool)), "mask has shape"),
    (lambda: CodeStatistics(3, levels=2).update(torch.zeros(4, 1, dtype=torch.int64)), "axis of levels=2"),
    (lambda: CodeStatistics(3, predicates=["a"]).update(torch.tensor([1])), "holds=None"),
    (lambda: CodeStatistics(3, predicates=["a"]).update(torch.tensor([1]), torch.ones(1, 1)), "holds has shape"),
    (lambda: CodeStatistics(3).quality("a"), "predicate='a': expected one of none"),
    (lambda: CodeStatistics(3).together(3), "code=3: expected 0 to 2"),
    (lambda: CodeStatistics(3, predicates=["a"]).of(-1, "a"), "code=-1"),
    (lambda: sample_occurrences([torch.zeros(2)], 0, 0), "most=0"),
)


def test_places_are_those_of_the_code_and_each_as_likely_as_another() -> None:
    grids = [torch.randint(0, 3, (4, 5), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    all_places = [(n, tuple(place.tolist())) for n, grid in enumerate(grids) for place in (grid == 1).nonzero()]
    assert sample_occurrences(grids, 1, 100) == all_places
    assert sample_occurrences(grids, 7, 4) == []
    times, draws, some = dict.fromkeys(all_places, 0), 2000, 3
    for seed in range(draws):
        found = sample_occurrences(grids, 1, some, seed=seed)
        assert len(found) == len(set(found)) == some and found == sorted(found)
        for place in found:
            times[place] += 1
    share = some / len(all_places)
    # Binomial; five standard deviations, of some twenty places.
    assert all(abs(count - draws * share) < 5 * math.sqrt(draws * share * (1 - share)) for count in times.values())
