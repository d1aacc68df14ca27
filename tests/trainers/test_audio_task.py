"""The training step of codecs: discriminators, balancer, pre-training, and what they must leave alone."""

import json
from functools import partial

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from tests.refusals import refused
from tests.trainers.tiny import (
    LIGHTNING_REMARKS,
    Sounds,
    Spy,
    assert_equal,
    assert_two_ranks_are_one,
    fit_on_rank,
    make_adversary,
    make_audio_task,
    make_codec,
    make_trainer,
    saving,
    state_of,
)
from trainers.audio import MultiPeriodDiscriminator, WaveformL1
from trainers.callbacks import BestCheckpoint, CodebookReport, Reconstructions, SaveTokenizer, WeightEMA
from trainers.core import Adversary, Hinge, LossBalancer
from vqkit import (
    AudioTokenizer,
    MultiRateQuantizer,
    MultiScaleQuantizer,
    Quantizer,
    ResidualQuantizer,
    TokenShards,
    TokenShardWriter,
)

pytestmark = LIGHTNING_REMARKS


def residual(method="ema", dropout=0.0):
    return ResidualQuantizer(lambda: Quantizer(method, dim=8, codebook_size=16), 2, dropout=dropout, channel_dim=1)


# ---------------------------------------------------------------------- one step


def step_of(task, monkeypatch, batch=4, *, logs=False):
    """One training step on its own: what it returns, and what it logged."""
    logged = {}
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: float(value)}))
    monkeypatch.setattr(task, "log_dict", lambda values, **_: logged.update({k: float(v) for k, v in values.items()}))
    monkeypatch.setattr(type(task), "logs_this_step", logs)
    return task.training_step({"audio": Sounds(batch).sounds[:batch]}, 0), logged


def test_what_is_summed_is_what_is_logged(monkeypatch):
    task = make_audio_task(
        make_codec(Quantizer("vq", dim=8, codebook_size=16, channel_dim=1)),
        adversary=make_adversary(weight=3.0, feature_matching=2.0, ramp_steps=1),
    )
    forwards = []
    task.tokenizer.register_forward_hook(lambda *_: forwards.append(1))
    step, logged = step_of(task, monkeypatch, logs=True)
    assert len(forwards) == 1
    weights = {
        "mel": 1.0,
        "waveform_l1": 1.0,
        "adversarial": 1.5,  # half way up the ramp
        "feature_matching": 1.0,
        "discriminator_loss": 1.0,
        "quantizer/commitment": 0.25,
        "quantizer/codebook": 1.0,
    }
    assert step["terms"].keys() == weights.keys()
    for name, term in step["terms"].items():
        assert logged[f"train/{name}"] == float(term.detach())
    expected = sum(weight * logged[f"train/{name}"] for name, weight in weights.items())
    assert logged["train/loss"] == float(step["loss"].detach()) == pytest.approx(expected, rel=1e-5)
    assert {"train/logits_real", "train/logits_fake", "train/accuracy"} <= logged.keys()
    norms = []
    for names in (("adversarial", "feature_matching"), ("mel", "waveform_l1")):
        part = sum(weights[name] * step["terms"][name] for name in names)
        norms.append(torch.autograd.grad(part, step["reconstruction"], retain_graph=True)[0].norm())
    assert logged["train/adversarial_gradient_ratio"] == pytest.approx(float(norms[0] / norms[1]), rel=1e-4)


def test_the_generator_learns_nothing_from_the_discriminators_loss(monkeypatch):
    """With weights of 0 its gradient is, to the last bit but one, that of a run without discriminators."""
    gradients = []
    for adversary in (None, make_adversary(weight=0.0, feature_matching=0.0)):
        task = make_audio_task(adversary=adversary)
        step_of(task, monkeypatch)[0]["loss"].backward()
        gradients.append([parameter.grad for parameter in task.tokenizer.parameters() if parameter.requires_grad])
    for plain, beside in zip(*gradients, strict=True):
        torch.testing.assert_close(beside, plain, rtol=1e-6, atol=1e-9)
    assert all(parameter.grad.norm() > 0 for parameter in task.adversary.parameters() if parameter.ndim > 1)


def test_a_balancer_leaves_the_quantizers_loss_outside(monkeypatch):
    tokenizer = make_codec(Quantizer("vq", dim=8, codebook_size=16, channel_dim=1))
    terms = {}
    for balancer in (None, LossBalancer()):
        task = make_audio_task(tokenizer, balancer=balancer)
        step, _ = step_of(task, monkeypatch)
        tokenizer.zero_grad()
        step["loss"].backward()
        parts = (tokenizer.quantizer, tokenizer.decoder)
        terms[balancer is None] = [[p.grad.clone() for p in part.parameters()] for part in parts]
        assert torch.isfinite(step["loss"])
    for with_balancer, without in zip(terms[False][0], terms[True][0], strict=True):
        torch.testing.assert_close(with_balancer, without)
    assert any(not torch.allclose(*pair) for pair in zip(terms[False][1], terms[True][1], strict=True))


def test_a_balanced_gradient_does_not_know_the_scale_of_a_term(monkeypatch):
    gradients = []
    for scale in (1.0, 1000.0):
        loud = WaveformL1(weight=1.0)
        loud.distance = lambda a, b, scale=scale: scale * (a - b).abs().mean()
        other = WaveformL1(weight=1.0, name="other")
        task = make_audio_task(make_codec(), objectives=[loud, other], balancer=LossBalancer())
        step_of(task, monkeypatch)[0]["loss"].backward()
        gradients.append([p.grad for p in task.tokenizer.decoder.parameters()])
    torch.testing.assert_close(*gradients)


def test_low_precision_ends_before_the_terms(monkeypatch):
    task = make_audio_task(adversary=make_adversary(), balancer=LossBalancer())
    with torch.autocast("cpu", torch.bfloat16):
        step, _ = step_of(task, monkeypatch)
    assert step["reconstruction"].dtype == torch.bfloat16
    assert all(term.dtype == torch.float32 for term in step["terms"].values())
    step["loss"].backward()
    assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)


# ---------------------------------------------------------------------- runs of a few steps


def test_statistics_are_counted_once_a_batch(monkeypatch):
    """Three runs of the discriminators, a balancer and one forward of the generator: one observation a stage."""
    observed = []
    task = make_audio_task(make_codec(residual()), adversary=make_adversary(), balancer=LossBalancer())
    for stage in task.tokenizer.quantizer.stages:
        keep = stage.codebook.observe
        monkeypatch.setattr(
            stage.codebook, "observe", lambda packed, keep=keep: (observed.append(int(packed[:16].sum())), keep(packed))
        )
    make_trainer(max_steps=3).fit(task, datamodule=Sounds(4))
    assert observed == [4 * 20] * 2 * 3
    assert [stage.codebook.steps for stage in task.tokenizer.quantizer.stages] == [3, 3]


def test_discriminators_that_wait_stay_as_they_are_and_then_learn():
    adversary = make_adversary(start_step=2)
    start, states, moments = state_of(adversary), [], []
    task = make_audio_task(adversary=adversary, weight_decay=0.1)

    def look(trainer, module, outputs):
        states.append(state_of(module.adversary))
        optimizer = trainer.optimizers[0]
        moments.append([len(optimizer.state[p]) for p in module.adversary.parameters() if p in optimizer.state])
        assert ("discriminator_loss" in outputs["terms"]) == (trainer.global_step > 2)

    make_trainer(max_steps=3, callbacks=[Spy(look)]).fit(task, datamodule=Sounds(4))
    assert_equal(states[0], start)
    assert_equal(states[1], start)
    assert any(not torch.equal(states[2][name], value) for name, value in start.items())
    assert not any(moments[1])
    assert all(moments[2])


def test_discriminators_have_their_own_group():
    task = make_audio_task(adversary=make_adversary(learning_rate=5e-4, betas=(0.5, 0.9)), betas=(0.8, 0.99))
    trainer = make_trainer(max_steps=1)
    trainer.fit(task, datamodule=Sounds(4))
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    assert {id(p) for p in groups["discriminators"]["params"]} == {id(p) for p in task.adversary.parameters()}
    assert (groups["discriminators"]["initial_lr"], groups["discriminators"]["betas"]) == (5e-4, (0.5, 0.9))
    assert (groups["weights"]["initial_lr"], groups["weights"]["betas"]) == (1e-3, (0.8, 0.99))
    every = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(every) == sorted(id(p) for p in task.parameters() if p.requires_grad)


def test_gains_of_weight_norm_have_no_weight_decay():
    task = make_audio_task()
    groups = {group["name"]: {id(p) for p in group["params"]} for group in task.parameter_groups()}
    gains = [p for name, p in task.tokenizer.named_parameters() if name.endswith("weight.original0")]
    kernels = [p for name, p in task.tokenizer.named_parameters() if name.endswith("weight.original1")]
    assert gains and {id(p) for p in gains} <= groups["biases and norms"]
    assert kernels and {id(p) for p in kernels} <= groups["weights"]


def test_gradients_are_clipped_apart():
    """A discriminator with huge gradients does not shrink the generator's step."""
    norms = {}
    task = make_audio_task(adversary=make_adversary(), objectives=[WaveformL1(weight=1e4)])
    keep = task.configure_gradient_clipping

    def clip(optimizer, *arguments, **more):
        keep(optimizer, *arguments, **more)
        for name, part in (("tokenizer", task.tokenizer), ("adversary", task.adversary)):
            gradients = [p.grad for p in part.parameters() if p.grad is not None]
            norms[name] = float(torch.nn.utils.get_total_norm(gradients))

    task.configure_gradient_clipping = clip
    trainer = make_trainer(max_steps=1, gradient_clip_val=0.01)
    trainer.fit(task, datamodule=Sounds(4))
    assert norms == {"tokenizer": pytest.approx(0.01, rel=1e-3), "adversary": pytest.approx(0.01, rel=1e-3)}
    logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
    assert logged["gradient_norm/total"] > 1 > 0.02 > norms["tokenizer"]
    assert logged["gradient_norm/discriminators"] > 0
    assert logged["train/adversarial_gradient_ratio"] > 0


def test_accumulating_equals_a_larger_batch():
    """Codes, decoder and discriminators after two steps of 4 x 2 sounds are those of two batches of 8."""
    ends = []
    for batch_size, accumulate in ((8, 1), (2, 4)):
        task = make_audio_task(adversary=make_adversary(), learning_rate=1e-4)
        make_trainer(max_steps=2, accumulate_grad_batches=accumulate).fit(task, datamodule=Sounds(batch_size))
        ends.append(state_of(task))
    for name, value in ends[0].items():
        if value.is_floating_point():
            torch.testing.assert_close(ends[1][name], value, atol=2e-5, rtol=1e-3, msg=name)


def test_segments_need_not_be_whole_frames():
    data = Sounds(4)
    data.sounds = data.sounds[..., :313]
    trainer = make_trainer(max_steps=1)
    trainer.fit(make_audio_task(), datamodule=data)
    assert trainer.global_step == 1


def two_steps(rank, world):
    """Of a codec against discriminators."""
    torch.manual_seed(0)
    task = make_audio_task(
        make_codec(residual()),
        adversary=Adversary([MultiPeriodDiscriminator(periods=[2, 3], channels=2)], start_step=1),
        balancer=LossBalancer(),
    )
    task.tokenizer.initialize = lambda *_, **__: None  # k-means takes its samples in another order
    return fit_on_rank(rank, world, task, Sounds(8))


@pytest.mark.slow
def test_two_processes_are_one_with_the_joined_batch(rank_pair):
    """Warm-up of the discriminators, their start, the balancer and statistics included.

    Not so with dropout of stages: the mean of a deep stage's commitment is over the samples of a rank that use it.
    """
    assert_two_ranks_are_one(two_steps, rank_pair, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------- pre-training


def test_pretraining_comes_before_the_codes(tmp_path):
    quantizer = Quantizer("vq", dim=8, codebook_size=16, codebook_dim=4, channel_dim=1)
    task = make_audio_task(make_codec(quantizer), pretraining_steps=2, weight_decay=0.1)
    untrained = quantizer.codebook.vectors.detach().clone()
    seen, reports = [], []

    def look(trainer, module, outputs):
        codes = None if outputs["indices"] is None else outputs["indices"].unique().tolist()
        seen.append((codes is None, quantizer.codebook.steps, quantizer.codebook.vectors.detach().clone()))

    report = CodebookReport(every_n_steps=1)
    logger = CSVLogger(tmp_path)
    logger.log_metrics = lambda metrics, step=None: reports.extend(step for name in metrics if name == "codebook/usage")
    logger.save = lambda: None
    trainer = make_trainer(max_steps=4, callbacks=[Spy(look), report], logger=logger)
    trainer.fit(task, datamodule=Sounds(4))
    assert [(none, steps) for none, steps, _ in seen] == [(True, 0), (True, 0), (False, 1), (False, 2)]
    assert torch.equal(seen[1][2], untrained)
    assert not torch.allclose(seen[2][2], untrained, atol=0.05)  # initialized from data
    assert task.quantizer_initialized_at == 2
    assert reports == [3, 4]


def test_validation_before_the_codes_is_no_candidate(tmp_path):
    logged = []
    best = BestCheckpoint(str(tmp_path), monitor="validation/si_sdr")
    task = make_audio_task(pretraining_steps=2)
    keep = task.on_validation_epoch_end
    task.on_validation_epoch_end = lambda: (
        keep(),
        logged.append([name for name in task.trainer.callback_metrics if name.endswith("/si_sdr")]),
    )
    trainer = make_trainer(max_steps=3, callbacks=[best], enable_checkpointing=True, val_check_interval=1)
    trainer.fit(task, datamodule=Sounds(4))
    unquantized = "validation_unquantized/si_sdr"
    assert logged[:2] == [[unquantized]] * 2
    assert "validation/si_sdr" in logged[2]
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 3


def test_the_average_of_codes_starts_where_they_are_initialized():
    ema = WeightEMA(decay=0.999)
    task = make_audio_task(make_codec(Quantizer("vq", dim=8, codebook_size=16, channel_dim=1)), pretraining_steps=2)
    first = []
    spy = Spy(lambda trainer, module, _: first.append(module.tokenizer.quantizer.codebook.vectors.detach().clone()))
    make_trainer(max_steps=4, callbacks=[spy, ema]).fit(task, datamodule=Sounds(4))
    # One step of the optimizer away from the average's start, and the rest of training hardly counts.
    torch.testing.assert_close(task.tokenizer.quantizer.codebook.vectors.detach(), first[2], atol=5e-3, rtol=0)


# ---------------------------------------------------------------------- resuming


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize("at", [1, 2, 3])
def test_resuming_is_exact_on_both_sides_of_the_switch(tmp_path, at):
    """Pre-training ends, and the discriminators start, at step 2; with the balancer's averages and dropout."""

    def run(*callbacks, **more):
        task = make_audio_task(
            make_codec(residual("vq", dropout=0.5)),
            adversary=make_adversary(start_step=2, ramp_steps=2, loss=Hinge()),
            balancer=LossBalancer(),
            pretraining_steps=2,
        )
        data = Sounds(4)
        data.sounds = data.sounds[:4].repeat(4, 1, 1)  # every batch the same: the place in the data is not the matter
        trainer = make_trainer(max_steps=4, max_epochs=1, callbacks=[WeightEMA(decay=0.5), *callbacks])
        trainer.fit(task, datamodule=data, **more)
        return task, trainer

    whole, trainer = run(saving(tmp_path / "some.ckpt", at=at))
    resumed, other = run(ckpt_path=tmp_path / "some.ckpt")
    assert other.global_step == 4
    assert_equal(resumed.state_dict(), whole.state_dict())
    assert_equal(*(each.optimizers[0].state_dict()["state"] for each in (other, trainer)))


# ---------------------------------------------------------------------- what a run leaves behind


def test_discriminators_are_neither_averaged_nor_saved(tmp_path):
    history = []
    task = make_audio_task(adversary=make_adversary(), balancer=LossBalancer())
    spy = Spy(lambda trainer, module, _: history.append(state_of(module)))
    spy.on_train_epoch_end = lambda trainer, module: trainer.save_checkpoint(tmp_path / "now.ckpt")
    callbacks = [spy, WeightEMA(decay=0.5), SaveTokenizer(str(tmp_path / "tokenizer"))]
    make_trainer(max_steps=3, callbacks=callbacks).fit(task, datamodule=Sounds(4))
    saved = torch.load(tmp_path / "now.ckpt", weights_only=True)["state_dict"]
    first, second, third = history
    assert saved.keys() == third.keys()
    for name, value in saved.items():
        if not name.startswith("tokenizer."):
            assert torch.equal(value, third[name]), name
            assert torch.equal(task.state_dict()[name], third[name]), name
    name = "tokenizer.decoder.layers.0.convolution.bias"
    torch.testing.assert_close(saved[name], 0.25 * first[name] + 0.25 * second[name] + 0.5 * third[name])
    tokenizer = AudioTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert not [name for name in tokenizer.state_dict() if "discriminator" in name]
    sound = Sounds(4).sounds[:1]
    assert torch.equal(tokenizer.eval().encode(sound), task.tokenizer.eval().encode(sound))


def test_figures_are_written_with_their_protocol(tmp_path):
    task = make_audio_task(make_codec(residual()))
    trainer = make_trainer(max_steps=1, default_root_dir=tmp_path)
    trainer.fit(task, datamodule=Sounds(4))
    trainer.test(task, datamodule=Sounds(4), verbose=False)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["kbps"] == pytest.approx(16000 / 16 * 8 / 1000)
    assert record["utterances"] == 3
    assert len(record["usage_per_level"]) == 2
    assert {"si_sdr", "mel_distance"} <= record.keys()
    assert record["protocol"]["split"] == "test"
    assert "stoi" not in record


SEVERAL_RATES = {
    "levels of several rates": (
        lambda: MultiRateQuantizer(
            [partial(Quantizer, "ema", dim=8, codebook_size=size) for size in (16, 8)], [4, 1], channel_dim=1
        ),
        (250 * 4 + 1000 * 3) / 1000,
    ),
    # Blocks of 5 frames of 16 samples, and one codebook for all scales, which is counted once.
    "scales": (
        lambda: MultiScaleQuantizer(partial(Quantizer, "ema", dim=8, codebook_size=16), [1, 5], axes=1, channel_dim=1),
        (200 + 1000) * 4 / 1000,
    ),
}


@pytest.mark.parametrize(("quantizer", "kbps"), SEVERAL_RATES.values(), ids=SEVERAL_RATES)
def test_codes_of_several_rates_are_trained_reported_measured_and_written(quantizer, kbps, tmp_path):
    codec = make_codec(quantizer())
    of_scales = isinstance(codec.quantizer, MultiScaleQuantizer)
    reports = CSVLogger(tmp_path, name=None, version="")
    task = make_audio_task(codec)
    trainer = make_trainer(
        max_steps=4, callbacks=[CodebookReport(every_n_steps=2)], logger=reports, default_root_dir=tmp_path
    )
    trainer.fit(task, datamodule=Sounds(4))
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"codebook/usage", "codebook/usage_level_0", "codebook/usage_level_1"} <= {*header}
    trainer.test(task, datamodule=Sounds(4), verbose=False)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["kbps"] == pytest.approx(kbps) and record["entropy_kbps"] <= record["kbps"]
    assert len(record["usage_per_level"]) == 2
    if of_scales:  # what both scales use
        assert "any of its scales" in record["protocol"]["codebook_usage"]
        assert record["codebook_usage"] >= max(record["usage_per_level"])

    sounds, lengths = Sounds(4).sounds[:3], [320, 170, 64]
    task.eval()
    written = task.predict_step({"audio": sounds, "lengths": lengths, "name": ["a", "b", "c"]}, 0)
    with TokenShardWriter(tmp_path / "tokens", codec.quantizer) as writer:
        for indices, name in zip(written["indices"], written["names"], strict=True):
            writer.add(indices, [name])
    read = TokenShards(tmp_path / "tokens")
    for number, length in enumerate(lengths):
        indices, wave = torch.as_tensor(read[number]["indices"]), sounds[number : number + 1, :, :length]
        assert len(indices) == (-(-length // 80) * 6 if of_scales else -(-length // 64) * 5)
        assert torch.equal(indices[None], codec.encode(wave))
        decoded = codec.quantizer.prefix(indices[None], 1) if of_scales else indices[None]
        assert codec.decode(decoded, length=length).shape == wave.shape


def test_an_utterance_counts_in_its_own_length():
    """Where ranks share a split unevenly, the shorter one of a batch is followed by silence."""
    sounds, seen = Sounds(4).sounds[:2], []
    task = make_audio_task()
    task.tokenizer.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    task.on_test_epoch_start()
    batch = {"audio": sounds, "lengths": [320, 170], "name": ["a", "b"]}
    task.test_step(batch, 0)
    assert [wave.shape for wave in seen] == [(1, 1, 320), (1, 1, 170)]
    assert torch.equal(seen[1][0], sounds[1, :, :170])
    assert task.metrics.compute()["seconds"] == pytest.approx(490 / 16000)
    written = task.predict_step(batch, 0)
    assert [len(indices[0]) for indices in written["indices"]] == [20, 11]


def test_sounds_and_spectrograms_can_be_looked_at(tmp_path):
    import soundfile
    from torchvision.io import read_image

    trainer = make_trainer(max_epochs=1, callbacks=[Reconstructions(examples=2)], default_root_dir=tmp_path)
    trainer.fit(make_audio_task(), datamodule=Sounds(4))
    names = {path.name for path in (tmp_path / "samples").iterdir()}
    assert names == {f"0{n}_{kind}.wav" for n in (0, 1) for kind in ("original", "reconstruction")}
    original, rate = soundfile.read(tmp_path / "samples" / "01_original.wav", dtype="float32")
    assert rate == 16000
    torch.testing.assert_close(torch.from_numpy(original), Sounds(4).sounds[1, 0, :200], atol=1e-4, rtol=0)
    assert read_image(str(tmp_path / "reconstructions.png")).shape[0] in (3, 4)


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"sample_rate": 8000},
            r"data\.sample_rate=8000, but .* sample_rate=16000: set data\.sample_rate=16000",
        ),
        ({"channels": 2}, r"data\.channels=2, but the tokenizer has channels=1: .*in_channels and out_channels"),
    ],
)
def test_other_data_than_the_tokenizers_are_refused_before_the_first_step(data, message):
    task = make_audio_task()
    task.training_step = lambda *_: pytest.fail("a step was made")
    with pytest.raises(ValueError, match=message):
        make_trainer(max_steps=1).fit(task, datamodule=Sounds(4, **data))


test_wrong_arguments_are_refused = refused(
    ({"validation_measures": ["stoy"]}, r"unknown \['stoy'\]; expected some of .*stoi"),
    ({"objectives": []}, "one of them above 0"),
    ({"objectives": [WaveformL1(weight=0.0)]}, "one of them above 0"),
    ({"objectives": [WaveformL1(), WaveformL1()]}, "reported by name: keep one of them"),
    ({"pretraining_steps": -1}, "pretraining_steps=-1: expected 0 or more"),
    by=lambda arguments: make_audio_task(**arguments),
)
# Codes that would never be initialized, and bands of another sample rate.
test_what_does_not_fit_is_refused_before_the_first_step = refused(
    ({"pretraining_steps": 50}, "pretraining_steps=50 of 4 optimizer steps"),
    (
        {"tokenizer": make_codec(sample_rate=24000)},
        "objective 'mel' has sample_rate=16000, but the tokenizer has 24000",
    ),
    by=lambda arguments: make_trainer(max_steps=4).fit(make_audio_task(**arguments), datamodule=Sounds(4)),
)


def test_a_balancer_in_float16_is_refused(monkeypatch):
    """Its gradients come without the loss scale, and those of the discriminators would underflow."""
    task, trainer = make_audio_task(balancer=LossBalancer()), make_trainer()
    monkeypatch.setattr(type(trainer), "precision", "16-mixed")
    task._trainer = trainer
    with pytest.raises(ValueError, match="use bf16-mixed or 32-true"):
        task.setup("fit")


def test_what_cannot_be_measured_is_not_what_is_compared():
    codec = make_codec(sample_rate=8000)
    task = make_audio_task(codec, validation_measures=["pesq", "si_sdr"])
    assert task.monitor == "validation/si_sdr"
    with pytest.raises(ValueError, match=r"pesq needs 16000 Hz.*set best_checkpoint\.monitor"):
        _ = make_audio_task(codec, validation_measures=["pesq", "mel_distance"]).monitor


def test_a_figure_that_every_utterance_left_out_does_not_end_training(tmp_path):
    task = make_audio_task(validation_measures=["stoi", "si_sdr"])  # 20 ms are too short for STOI
    best = BestCheckpoint(str(tmp_path))
    trainer = make_trainer(max_epochs=1, callbacks=[best], enable_checkpointing=True)
    with pytest.warns(UserWarning, match="validation/stoi has no figure"):
        trainer.fit(task, datamodule=Sounds(4))
    assert trainer.global_step == 4 and not list(tmp_path.iterdir())
