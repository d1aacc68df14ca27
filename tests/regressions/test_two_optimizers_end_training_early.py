"""With a second optimizer for discriminators every batch counts as two steps: training, schedules and what is started
at a step end or begin at half of what was asked for.

Seen in: pytorch-lightning#17801, pytorch-lightning#17958, SEED-Voken.
Avoided since 0.1.0: codec and discriminators are two groups of one optimizer, and one backward serves both.
"""

import pytest
import torch

from tests.trainers.tiny import LIGHTNING_REMARKS, Sounds, make_adversary, make_audio_task, make_trainer
from trainers.audio import AudioTokenizerTask

pytestmark = LIGHTNING_REMARKS


class TwoOptimizers(AudioTokenizerTask):
    """Steps discriminators and codec one after the other."""

    automatic_optimization = False

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(part.parameters()) for part in (self.adversary, self.tokenizer)]

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        step = super().training_step(batch, batch_idx)
        self.manual_backward(step["loss"])
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()
        return step


def check(task: AudioTokenizerTask, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    keep = task.reconstruction_loss
    monkeypatch.setattr(task, "reconstruction_loss", lambda *waves: (batches.append(1), keep(*waves))[1])
    make_trainer(max_steps=4).fit(task, datamodule=Sounds(4))
    assert len(batches) == 4


def test_the_trainer_does_not_have_the_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    check(make_audio_task(adversary=make_adversary()), monkeypatch)


def test_the_check_catches_the_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = make_audio_task(adversary=make_adversary())
    task = TwoOptimizers(
        sound.tokenizer, objectives=list(sound.objectives), adversary=sound.adversary, initialization_samples=256
    )
    with pytest.raises(AssertionError):
        check(task, monkeypatch)
