"""Two ranks equal one process that holds the joined batch, for every quantizer (property P8).

`broadcast_buffers=False` throughout: rank 0's buffers, copied over the other's before each forward, would hide a
divergence.
"""

import secrets
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.contract.cases import ALL, CASES, Case, every_case, name_of
from vqkit import (
    LFQ,
    BaseQuantizer,
    CodebookLoss,
    DistributionMatching,
    EMACodebook,
    Entropy,
    GroupedQuantizer,
    MeanOverChoices,
    MeanOverCodebooks,
    MeanOverMembers,
    MultiRateQuantizer,
    MultiScaleQuantizer,
    Quantizer,
    RandomRestart,
    ResidualQuantizer,
    SumOverMembers,
    distributed,
)

STEPS = 12


def batches(case: Case, dtype: torch.dtype, *, empty: str) -> list[tuple[Tensor, Tensor]]:
    """Joined batches of 8 samples with masks; `empty` blanks rank 1's half of some of them."""
    made = []
    for seed in range(STEPS):
        x = case.example(8, seed=100 + seed).to(dtype)
        mask = torch.ones(case.positions(x), dtype=torch.bool)
        if empty == "masked" and seed % 3 == 1:
            mask[4:] = False
        made.append((x, mask))
    return made


def train(
    quantizer: torch.nn.Module, data: list[tuple[Tensor, Tensor]], share: slice, *, learning_rate: float
) -> dict[str, Tensor]:
    """Plain SGD on a task loss and the quantizer's own; the mean over ranks is taken by DDP."""
    parameters = [value for value in quantizer.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=learning_rate) if parameters else None
    for x, mask in data:
        output = quantizer(x[share], mask[share])
        if optimizer:
            optimizer.zero_grad()
            (output.quantized.square().mean() + output.loss).backward()
            optimizer.step()
    return quantizer.state_dict()


def on_rank(rank: int, name: str, empty: str, dtype: torch.dtype) -> dict[str, Tensor]:
    case = ALL[name]
    warnings.simplefilter("error")
    quantizer = started(case, dtype, slice(32 * rank, 32 * rank + 32))
    model = quantizer
    if any(value.requires_grad for value in quantizer.parameters()):
        model = DistributedDataParallel(quantizer, broadcast_buffers=False, find_unused_parameters=False)
    train(model, batches(case, dtype, empty=empty), slice(4 * rank, 4 * rank + 4), learning_rate=case.learning_rate)
    quantizer.step()
    return quantizer.state_dict()


def started(case: Case, dtype: torch.dtype, share: slice) -> BaseQuantizer:
    """Initialized in `dtype`, with a share of 64 samples."""
    torch.manual_seed(0)
    quantizer = case.build().to(dtype)
    samples = case.example(64, seed=1).to(dtype).movedim(1 if case.spatial else -1, quantizer.channel_dim)
    quantizer.initialize([samples[share]])
    return quantizer


@every_case
@pytest.mark.parametrize("empty", ["never", "masked"])
def test_ranks_agree_bit_for_bit(case: Case, empty: str, rank_pair) -> None:
    first, second = rank_pair(on_rank, name_of(case), empty, torch.float32)
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@every_case
def test_two_ranks_equal_one_process(case: Case, rank_pair) -> None:
    """In float64 from the start: some methods magnify what float32 rounds a hundred thousand times in a dozen steps."""
    if case.ranked_losses:
        pytest.skip("a term ranks the batch of each rank, as it declares")
    alone = started(case, torch.float64, slice(64))
    train(alone, batches(case, torch.float64, empty="never"), slice(0, 8), learning_rate=case.learning_rate)
    alone.step()
    together = rank_pair(on_rank, name_of(case), "never", torch.float64)[0]
    for key, value in alone.state_dict().items():
        assert torch.allclose(value.double(), together[key].double(), rtol=1e-7, atol=1e-7), key


def restart_on_rank(rank: int, share: bool) -> tuple[dict[str, Tensor], bool]:
    torch.manual_seed(0)
    quantizer = Quantizer("ema", dim=4, codebook_size=64, maintenance=[RandomRestart(0.5, every=1)])
    before = quantizer.codebook.vectors.clone()
    for seed in range(20):
        x = torch.randn(40, 4, generator=torch.Generator().manual_seed(seed))
        if share:
            part = [slice(0, 30), slice(30, 40)][rank] if seed % 2 else [slice(0, 40), slice(0, 0)][rank]
            x = x[part]
        quantizer(x)
    quantizer.step()
    return quantizer.state_dict(), not torch.equal(before, quantizer.codebook.vectors)


def test_restarts_draw_the_same_vectors_as_one_process_also_from_ragged_and_empty_batches(rank_pair) -> None:
    alone, moved = restart_on_rank(0, False)
    (first, _), (second, _) = rank_pair(restart_on_rank, True)
    assert moved
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        assert torch.allclose(value.double(), first[key].double(), rtol=1e-4, atol=1e-5), key


def built_before_the_group(rank: int) -> tuple[bool, Tensor]:
    """Leave the group, build, join another: the order in which Lightning does it."""
    import tempfile
    from pathlib import Path

    store = Path(tempfile.gettempdir()) / f"vqkit-second-group-{torch.distributed.get_world_size()}-{_shared_number()}"
    torch.distributed.destroy_process_group()
    quantizer = Quantizer("ema", dim=4, codebook_size=8)
    alone = distributed.world_size() == 1
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for seed in range(5):
        quantizer(torch.randn(30, 4, generator=torch.Generator().manual_seed(10 * rank + seed)))
    quantizer.step()
    return alone, quantizer.codebook.vectors


def _shared_number() -> int:
    """A number that no other run has: torch's generators are seeded, and a store that a killed run left would hang."""
    number = torch.tensor([secrets.randbits(60) if torch.distributed.get_rank() == 0 else 0])
    torch.distributed.broadcast(number, 0)
    return int(number)


def test_a_quantizer_built_before_the_process_group_is_synchronised_all_the_same(rank_pair) -> None:
    (alone, first), (_, second) = rank_pair(built_before_the_group)
    assert alone
    assert torch.equal(first, second)


def accumulate(rank: int, splits: int) -> dict[str, Tensor]:
    quantizer = Quantizer(
        "ema", dim=4, codebook_size=8, codebook=EMACodebook, auto_step=False, maintenance=[RandomRestart(0.2, every=1)]
    )
    for seed in range(6):
        batch = torch.randn(64, 4, generator=torch.Generator().manual_seed(seed))
        for part in batch.chunk(2)[rank].chunk(splits):
            quantizer(part)
        quantizer.step()
    return quantizer.state_dict()


def test_accumulation_on_two_ranks_is_the_same_on_both(rank_pair) -> None:
    first, second = rank_pair(accumulate, 4)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def initialize_with_an_empty_rank(rank: int, name: str) -> dict[str, Tensor]:
    quantizer = CASES[name].build()
    x = CASES[name].example(16)
    quantizer.initialize([x if rank == 0 else torch.full_like(x, float("nan"))])
    return {key: value for key, value in quantizer.state_dict().items() if "codebook" in key}


@pytest.mark.parametrize("name", ["vq", "simvq", "residual"])
def test_a_rank_without_a_finite_vector_is_initialized_like_the_others(name: str, rank_pair) -> None:
    first, second = rank_pair(initialize_with_an_empty_rank, name)
    assert len(first) > 1 and [key for key in first if not torch.equal(first[key], second[key])] == []


ema = partial(Quantizer, "ema", dim=4, codebook_size=8, maintenance=[])
with_sums = partial(
    Quantizer, "vq", dim=4, codebook_size=8, losses=[CodebookLoss(), Entropy(), DistributionMatching()], maintenance=[]
)
residual, grouped = partial(ResidualQuantizer, estimator=None), GroupedQuantizer


def collectives_on_rank(rank: int, build: Callable[[], BaseQuantizer]) -> list[Counter[str]]:
    """Those of a training forward and of its backward, by name."""
    quantizer, counts = build(), []
    names = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce_scatter", "all_to_all")
    x = torch.randn(3, 5, quantizer.dim, requires_grad=True)
    quantizer(x).loss.backward()

    def count(call: Callable[[], Tensor]) -> Tensor:
        calls: Counter[str] = Counter()
        with pytest.MonkeyPatch.context() as patched:
            for name in names:
                original = getattr(torch.distributed, name)
                patched.setattr(
                    torch.distributed, name, lambda *a, n=name, f=original, **k: (calls.update([n]), f(*a, **k))[1]
                )
            result = call()
        counts.append(calls)
        return result

    count(count(lambda: quantizer(x).loss).backward)
    return counts


@pytest.mark.parametrize(
    ("build", "forward", "backward"),
    [
        (ema, 1, 0),
        (partial(residual, ema, 2), 1, 0),
        (partial(residual, ema, 8), 1, 0),
        (partial(grouped, ema, 4), 1, 0),
        (partial(residual, partial(grouped, partial(residual, ema, 2), 2), 3), 1, 0),
        (with_sums, 2, 1),
        (partial(residual, with_sums, 8), 2, 1),
        (partial(residual, with_sums, 8, dropout=1.0, reduction=MeanOverChoices()), 2, 1),
        (partial(grouped, [ema, partial(residual, with_sums, 2), partial(LFQ, 4)]), 2, 1),
        (partial(grouped, partial(LFQ, 4), 8), 1, 1),
    ],
    ids=["ema", "2 stages", "8 stages", "groups", "nested", "entropy", "8 entropies", "dropout", "mixed", "bits"],
)
def test_all_members_are_summed_over_ranks_at_once(build, forward: int, backward: int, rank_pair) -> None:
    """One collective for statistics, and one for the losses of sums, which has a backward."""
    for counts in rank_pair(collectives_on_rank, build):
        assert counts == [Counter(all_reduce=forward), Counter(all_reduce=backward)]


class OneCodebook(ResidualQuantizer):
    """Two stages that choose from one codebook."""

    def __init__(self) -> None:
        super().__init__(partial(ema, maintenance=[RandomRestart(0.9, every=1)]), 2)
        self.stages[1] = self.stages[0]


def choose_twice(rank: int, share: bool) -> dict[str, Tensor]:
    quantizer = OneCodebook().double()
    for seed in range(5):
        x = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        output = quantizer(x[rank : rank + 1] if share else x)
        assert torch.allclose(output.quantized, quantizer.decode(output.indices), rtol=1e-12), "codes moved in between"
        assert quantizer.stages[0].codebook.steps == seed
        if not share:
            counts = output.indices.flatten().bincount(minlength=8)
            assert torch.equal(quantizer.stages[0].codebook.pending_counts, counts.double())
    assert quantizer.stages[0].codebook.rewritten.any()
    return quantizer.state_dict()


def test_a_codebook_of_several_members_counts_a_forward_once(rank_pair) -> None:
    alone = choose_twice(0, False)
    for state in rank_pair(choose_twice, True):
        for key, value in alone.items():
            assert torch.allclose(value.double(), state[key].double(), rtol=1e-12), key


def losses_of_dropout(
    rank: int, build: Callable[..., BaseQuantizer], size: int
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Loss, gradients to the codes and to the vectors, and what was used, of `size` samples from those of the rank."""
    torch.manual_seed(0)  # of phi
    quantizer = build(dropout=1.0).double()
    x = torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x[size * rank : size * (rank + 1)].requires_grad_()
    output = quantizer(x)
    output.loss.backward()
    return output.loss.detach(), [codes.grad for codes in quantizer.parameters()], x.grad, output.indices >= 0


vq = partial(Quantizer, "vq", dim=4, codebook_size=8)
inner = partial(ResidualQuantizer, vq, 2, dropout=1.0, reduction=MeanOverChoices(), seed=2)


@pytest.mark.parametrize(
    "build",
    [
        *(partial(ResidualQuantizer, vq, 4, reduction=kind()) for kind in (MeanOverMembers, SumOverMembers)),
        partial(ResidualQuantizer, vq, 4, reduction=MeanOverChoices()),
        partial(ResidualQuantizer, [vq, inner, vq, inner], reduction=MeanOverCodebooks()),
        partial(ResidualQuantizer, [vq, inner, vq], reduction=MeanOverChoices()),
        partial(MultiScaleQuantizer, inner, [1, 2, 5], axes=1, losses=[], num_phis=0, estimator=None),
        partial(MultiScaleQuantizer, vq, [1, 2, 5], axes=1),
        partial(MultiRateQuantizer, inner, [5, 1]),
    ],
    ids=["mean", "sum", "choices", "choices inside", "choices twice", "choices of scales", "scales", "rates"],
)
def test_losses_of_dropout_are_those_of_the_joined_batch(build: Callable[..., BaseQuantizer], rank_pair) -> None:
    """Whatever each rank draws; data parallelism takes the mean over ranks."""
    loss, codes, vectors, used = losses_of_dropout(0, build, 8)
    first, second = rank_pair(losses_of_dropout, build, 4)
    assert torch.equal(torch.cat([first[3], second[3]]), used) and first[3].sum() != second[3].sum()
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-14)
    close((first[0] + second[0]) / 2, loss)
    close(torch.cat([first[2], second[2]]) / 2, vectors)
    for ours, theirs, joined in zip(first[1], second[1], codes, strict=True):
        close((ours + theirs) / 2, joined)
