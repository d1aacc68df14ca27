import itertools

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.few import few
from tests.trainers.tiny import make_trainer
from trainers.data.order import sample_generator, shuffled
from trainers.data.sampler import EvaluationLoader, TrainingLoader, evaluation_batches
from vqkit import distributed


class Keys(Dataset):
    """Samples that are their own key, beside a number drawn for that key."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, key) -> Tensor:
        epoch, sample = key if isinstance(key, tuple) else (0, key)
        return torch.tensor([epoch, sample, sample_generator(0, epoch, sample).random()], dtype=torch.float64)


def loader(samples: int = 23, batch_size: int = 4, **options) -> TrainingLoader:
    return TrainingLoader(Keys(samples), batch_size=batch_size, seed=5, **options)


def take(stream: TrainingLoader, batches: int) -> list[Tensor]:
    endless = itertools.chain.from_iterable(iter(stream) for _ in itertools.count())
    return list(itertools.islice(endless, batches))


def on_rank(monkeypatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)


def test_a_pass_sees_every_sample_at_most_once_and_drops_only_the_remainder():
    keys = torch.cat(take(loader(), 10))
    for epoch in (0, 1):
        seen = keys[keys[:, 0] == epoch][:, 1].tolist()
        assert len(seen) == len(set(seen)) == 20
    assert not torch.equal(keys[:20, 1], keys[20:, 1])


def test_seeds_and_passes_have_orders_of_their_own():
    orders = {tuple(shuffled(50, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert all(sorted(order) == list(range(50)) for order in orders)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [3, 5, 8])
def test_continued_stream_equals_the_uninterrupted_one(workers, stop):
    whole = take(loader(), 12)
    first = loader(num_workers=workers)
    assert torch.equal(torch.stack(take(first, stop)), torch.stack(whole[:stop]))
    second = loader(num_workers=workers)
    second.load_state_dict(first.state_dict())
    assert torch.equal(torch.stack(take(second, 12 - stop)), torch.stack(whole[stop:]))


def test_one_iteration_is_one_pass_long_wherever_it_starts():
    stream = loader()
    take(stream, 2)
    assert len(list(stream)) == len(stream) == 5
    assert (stream.epoch, stream.batch) == (1, 2)


def test_ranks_join_to_the_batches_of_one_process(monkeypatch):
    whole = take(loader(batch_size=4), 7)
    parts = []
    for rank in (0, 1):
        on_rank(monkeypatch, rank, 2)
        parts.append(take(loader(batch_size=2), 7))
    for joined, left, right in zip(whole, *parts, strict=True):
        assert torch.equal(joined, torch.cat([left, right]))


def test_place_survives_a_change_of_batch_size_and_ranks(monkeypatch):
    first = loader(40, batch_size=8)
    take(first, 3)
    place = first.state_dict()
    on_rank(monkeypatch, 0, 2)
    second = loader(40, batch_size=2)
    second.load_state_dict(place)
    assert (second.epoch, second.batch) == (0, 6)
    with pytest.warns(UserWarning, match="after 24 samples of a pass, which batches of 10 .* next 6 are left out"):
        loader(40, batch_size=5).load_state_dict(place)


def test_other_data_is_announced_on_resume():
    first = loader(23)
    take(first, 1)
    with pytest.warns(UserWarning, match="samples=23 of training data, this run has 24"):
        loader(24).load_state_dict(first.state_dict())


def test_too_few_samples_are_an_error_not_an_empty_epoch():
    with pytest.raises(ValueError, match=r"3 samples do not fill one batch of batch_size=4"):
        next(iter(loader(3)))


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_random_state_alone(workers):
    before = torch.get_rng_state()
    take(loader(num_workers=workers), 2)
    list(EvaluationLoader(Keys(5), batch_size=2, num_workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_evaluation_sees_every_sample_once_in_equally_many_batches(world_size):
    for samples, batch_size in itertools.product(range(40), (1, 2, 3, 16)):
        parts = [
            evaluation_batches(samples, batch_size=batch_size, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        batches = [batch for part in parts for batch in part]
        assert sorted(index for batch in batches for index in batch) == list(range(samples))
        assert all(batches)
        assert max(map(len, batches), default=0) <= max(2 if world_size > 1 else 1, batch_size)
        if samples >= world_size:
            assert len({len(part) for part in parts}) == 1


def test_evaluation_keeps_the_order_in_one_process():
    evaluation = EvaluationLoader(Keys(10), batch_size=4)
    assert torch.cat(list(evaluation))[:, 1].tolist() == list(range(10))
    assert len(evaluation) == 3


def batches_on_rank(rank: int) -> tuple[int, list[int], list[int]]:
    evaluation = EvaluationLoader(Keys(5), batch_size=4)
    training = loader(12, batch_size=3)
    seen = torch.cat(list(training))[:, 1].int().tolist()
    return len(training), seen, torch.cat(list(evaluation))[:, 1].int().tolist()


def test_two_processes_divide_the_samples(rank_pair):
    (length, *first), (other_length, *second) = rank_pair(batches_on_rank)
    assert length == other_length == 2
    assert sorted(first[0] + second[0]) == list(range(12))
    assert sorted(first[1] + second[1]) == list(range(5))


# ---- under Lightning


class Data(lightning.LightningDataModule):
    def __init__(self, workers: int) -> None:
        super().__init__()
        self.workers = workers

    def setup(self, stage: str) -> None:
        self.training = loader(num_workers=self.workers)

    def train_dataloader(self) -> TrainingLoader:
        return self.training

    def val_dataloader(self) -> EvaluationLoader:
        return EvaluationLoader(Keys(3), batch_size=2)

    def state_dict(self) -> dict[str, int]:
        return self.training.state_dict()

    def load_state_dict(self, state_dict) -> None:
        self.training.load_state_dict(state_dict)


class Task(lightning.LightningModule):
    def __init__(self, dies_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.seen: list[Tensor] = []
        self.dies_at = dies_at

    def training_step(self, batch: Tensor) -> Tensor:
        if len(self.seen) == self.dies_at:
            raise RuntimeError("killed")
        self.seen.append(batch)
        return self.layer(batch.float()).square().mean()

    def validation_step(self, batch: Tensor) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def fit(directory, *, workers=0, dies_at=-1, resume=None, checkpoint=None, **limits) -> Task:
    task = Task(dies_at)
    saves = ModelCheckpoint(directory, save_last=True, **(checkpoint or {"every_n_train_steps": 1}))
    trainer = make_trainer(callbacks=[saves], enable_checkpointing=True, **limits)
    if dies_at >= 0:
        with pytest.raises(RuntimeError, match="killed"):
            trainer.fit(task, datamodule=Data(workers))
    else:
        trainer.fit(task, datamodule=Data(workers), ckpt_path=resume)
    return task


CASES = {
    # name: (batches before death, batches before the last checkpoint, options)
    "middle of an epoch": (8, 8, {"max_steps": 13}),
    "workers": (8, 8, {"max_steps": 13, "workers": 2}),
    "batches after the checkpoint are repeated": (
        8,
        6,
        {"max_steps": 13, "checkpoint": {"every_n_train_steps": 3}},
    ),
    "accumulation": (8, 7, {"max_steps": 7, "accumulate_grad_batches": 2}),
    "accumulation with workers": (
        7,
        5,
        {"max_steps": 7, "accumulate_grad_batches": 2, "workers": 2, "checkpoint": {"every_n_train_steps": 3}},
    ),
    "last batch of an epoch": (5, 5, {"max_steps": 13}),
    "first batch": (1, 1, {"max_steps": 4}),
    "epochs instead of steps": (7, 7, {"max_epochs": 3}),
    "epochs, checkpoint at their end": (7, 5, {"max_epochs": 3, "checkpoint": {"save_on_train_epoch_end": True}}),
    "epochs, checkpoint after their validation": (7, 5, {"max_epochs": 3, "checkpoint": {"save_top_k": 1}}),
    "short epochs": (7, 7, {"max_steps": 13, "limit_train_batches": 3}),
    "short epochs by number": (5, 5, {"max_epochs": 4, "limit_train_batches": 3}),
    "validation inside the epoch": (8, 8, {"max_steps": 13, "val_check_interval": 2}),
}


@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory.*exists:UserWarning", "ignore:.*treespec, LeafSpec.*:FutureWarning"
)
@pytest.mark.parametrize(
    "case", few([*CASES], "first batch", "epochs instead of steps", "short epochs", "validation inside the epoch")
)
def test_killed_and_resumed_fit_equals_the_uninterrupted_one(case, tmp_path):
    dies_at, kept, options = CASES[case]
    whole = fit(tmp_path / "whole", **options)
    killed = fit(tmp_path / "killed", dies_at=dies_at, **options)
    resumed = fit(tmp_path / "killed", resume=tmp_path / "killed" / "last.ckpt", **options)
    assert torch.equal(torch.stack(killed.seen), torch.stack(whole.seen[:dies_at]))
    assert torch.equal(torch.stack(resumed.seen), torch.stack(whole.seen[kept:]))
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
