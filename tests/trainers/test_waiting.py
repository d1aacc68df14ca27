"""A training step never waits for the device: between the steps that log, nothing is read on the host."""

from functools import partial

import pytest
from lightning import Callback
from torch import Tensor
from torch.optim import AdamW

from tests.trainers.tiny import (
    LIGHTNING_REMARKS,
    Images,
    Sounds,
    make_adversary,
    make_audio_task,
    make_codec,
    make_image_adversary,
    make_image_task,
    make_tokenizer,
    make_trainer,
)
from tests.waiting import Waits
from trainers.callbacks import CodebookReport, StepProgress, WeightEMA
from trainers.core import AdaptiveWeight, LossBalancer
from vqkit import Quantizer, ResidualQuantizer, runtime

pytestmark = LIGHTNING_REMARKS

STEPS = 4


class WatchedSteps(Callback, Waits):
    """Records what waits from the start of each batch to its end. The last callback, to see what others do at the end.

    `tolist` and its like, which are no operations on a CPU, are replaced by the fixture.
    """

    def __init__(self):
        super().__init__()
        self.watching, self.batches = False, 0

    def on_train_batch_start(self, *_):
        self.watching, self.batches = True, self.batches + 1
        self.__enter__()

    def on_train_batch_end(self, *_):
        self.__exit__(None, None, None)
        self.watching = False


@pytest.fixture
def watched(monkeypatch):
    """Watched steps. Nowhere are values read at no cost, as on a GPU."""
    watch = WatchedSteps()

    def recorded(name):
        method = getattr(Tensor, name)

        def call(*args, **options):
            if watch.watching and (name != "to" or "cpu" in (*args[1:], options.get("device"))):
                watch.seen.append(name)
            return method(*args, **options)

        return call

    for name in ("tolist", "numpy", "cpu", "to"):
        monkeypatch.setattr(Tensor, name, recorded(name))
    monkeypatch.setattr(runtime, "READ_WITHOUT_WAITING", ())
    # The optimizer that is not fused reads its count of steps, which lies on the host.
    monkeypatch.setattr("trainers.core.optimized.AdamW", partial(AdamW, fused=True))
    return watch


def quantizer(method):
    return Quantizer(method, dim=8, codebook_size=16, channel_dim=1)


def residual():
    return ResidualQuantizer(partial(Quantizer, "ema", dim=8, codebook_size=16), 3, dropout=0.5, channel_dim=1)


TASKS = {
    "images": lambda: (make_image_task(), Images(4)),
    "images, residual": lambda: (make_image_task(make_tokenizer(residual())), Images(4)),
    "images, vq": lambda: (make_image_task(make_tokenizer(quantizer("vq"))), Images(4)),
    "images against discriminators": lambda: (
        make_image_task(adversary=make_image_adversary(), balancer=AdaptiveWeight()),
        Images(4),
    ),
    "sound against discriminators": lambda: (make_audio_task(adversary=make_adversary()), Sounds(4)),
    "sound, balanced": lambda: (
        make_audio_task(make_codec(residual()), adversary=make_adversary(), balancer=LossBalancer()),
        Sounds(4),
    ),
}


def fit(build, watch, **arguments):
    task, data = build()
    callbacks = [CodebookReport(every_n_steps=100), StepProgress(), WeightEMA(0.9), watch]
    options = {"max_steps": STEPS, "log_every_n_steps": 100, "enable_progress_bar": True, "gradient_clip_val": 1.0}
    make_trainer(callbacks=callbacks, limit_val_batches=0, **(options | arguments)).fit(task, datamodule=data)
    assert watch.batches == STEPS
    return watch.seen


@pytest.mark.parametrize("build", TASKS.values(), ids=TASKS)
def test_no_step_waits_for_the_device(build, watched):
    assert fit(build, watched) == []


def test_the_watch_sees_steps_that_log(watched):
    """The check of the check: the progress bar reads its numbers at those."""
    assert "_local_scalar_dense" in fit(TASKS["images"], watched, log_every_n_steps=1)
