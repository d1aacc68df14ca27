"""Training of models of 16 and of 64 bits: `--trainer.precision bf16-true`, `16-true` and `64-true`."""

import pytest
import torch

from tests.trainers.tiny import (
    LIGHTNING_REMARKS,
    Images,
    Sounds,
    make_adversary,
    make_audio_task,
    make_image_task,
    make_trainer,
)
from trainers.callbacks import WeightEMA
from trainers.core import LossBalancer

pytestmark = [*LIGHTNING_REMARKS, pytest.mark.slow]

DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}


def build(modality: str):
    if modality == "image":
        return make_image_task(), Images(8)
    adversary = make_adversary(start_step=4, learning_rate=1e-3)
    return make_audio_task(adversary=adversary, balancer=LossBalancer()), Sounds(8)


@pytest.mark.parametrize("modality", ["image", "audio"])
@pytest.mark.parametrize("precision", DTYPES)
def test_a_model_of_any_precision_trains(modality: str, precision: str, tmp_path) -> None:
    task, data = build(modality)
    average = WeightEMA(0.9)
    trainer = make_trainer(
        max_steps=60, precision=precision, callbacks=[average], default_root_dir=tmp_path, gradient_clip_val=1.0
    )
    losses = []
    step = task.training_step

    def noted(batch, batch_idx):
        result = step(batch, batch_idx)
        losses.append(
            sum(objective.weight * float(result["terms"][objective.name].detach()) for objective in task.terms)
        )
        return result

    task.training_step = noted
    trainer.fit(task, data)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert all(torch.isfinite(torch.tensor(value)) for value in figures.values()), figures
    tokenizer = task.tokenizer
    assert next(tokenizer.encoder.parameters()).dtype == DTYPES[precision]
    kept = torch.float64 if precision == "64-true" else torch.float32
    others = [tokenizer.quantizer, *task.terms, *([task.adversary] if task.adversary else [])]
    states = [value for part in others for value in part.state_dict().values() if value.is_floating_point()]
    assert {value.dtype for value in states} == {kept}
    averages = list(average._average_model.module.parameters())
    assert {value.dtype for value in averages} <= {torch.float32, kept}
    if precision != "64-true":  # validation, which puts the average into the model, gave it back unrounded
        assert not all(torch.equal(value, value.to(DTYPES[precision]).to(value.dtype)) for value in averages)
    assert all(value.isfinite().all() for value in task.state_dict().values() if isinstance(value, torch.Tensor))

    before = {**trainer.validate(task, data, verbose=False)[0], **trainer.test(task, data, verbose=False)[0]}
    folder = tmp_path / "tokenizer"
    tokenizer.save_pretrained(folder)
    loaded = type(tokenizer).from_pretrained(folder)
    x = next(iter(data.train_dataloader()))
    x = x["image" if modality == "image" else "audio"]
    assert torch.equal(loaded.encode(x), tokenizer.eval().encode(x))
    assert loaded.decode(loaded.encode(x)).dtype == DTYPES[precision]
    task.tokenizer = loaded
    after = {**trainer.validate(task, data, verbose=False)[0], **trainer.test(task, data, verbose=False)[0]}
    assert before == after
