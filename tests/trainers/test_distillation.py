"""What a network of speech hears, taught to the first level, kept by reconstructions, and judged."""

from functools import partial

import pytest
import torch
from torch import nn

from tests.few import few
from tests.trainers.teachers import save_wavlm, save_whisper
from tests.trainers.tiny import LIGHTNING_REMARKS, Sounds, make_audio_task, make_codec, make_trainer
from trainers.audio import (
    ChannelCosine,
    FeatureDiscriminator,
    FeatureDistillation,
    FeatureL2,
    FeatureReconstruction,
    FrameCosine,
    SpeechTeacher,
    WaveformL1,
)
from trainers.core import Adversary
from vqkit import FeatureSplitQuantizer, GroupedQuantizer, Quantizer, ResidualQuantizer, SplitQuantizer

pytestmark = [*LIGHTNING_REMARKS, pytest.mark.filterwarnings("ignore:Found .* in eval mode")]

code = partial(Quantizer, "ema", dim=8, codebook_size=16)
chain = partial(ResidualQuantizer, code, 2)
CODEC_RATE = 1000.0  # frames a second of make_codec


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    there = tmp_path_factory.mktemp("teachers")
    return {"wavlm": str(save_wavlm(there / "wavlm")), "whisper": str(save_whisper(there / "whisper"))}


@pytest.fixture(scope="module")
def teacher(folders):
    return SpeechTeacher(folders["wavlm"], layers=[1, 3])


def make_distillation(teacher, **arguments):
    torch.manual_seed(0)
    options = {"channels": (0, 8), "sample_rate": 16000, "frame_rate": CODEC_RATE}
    return FeatureDistillation(teacher, **options | arguments)


# ------------------------------------------------------------------ the distances


def test_distances_are_those_of_the_papers() -> None:
    ours, theirs = (torch.randn(2, 3, 5, dtype=torch.float64) for _ in range(2))

    def cosine(u, v):
        return float(u @ v / (u.norm() * v.norm()))

    frames = [cosine(ours[b, :, t], theirs[b, :, t]) for b in range(2) for t in range(5)]
    channels = torch.tensor([cosine(ours[b, d], theirs[b, d]) for b in range(2) for d in range(3)]).double()
    expected = {
        FrameCosine: 1 - sum(frames) / 10,
        ChannelCosine: float(torch.log1p((-channels).exp()).mean()),
        FeatureL2: float((ours - theirs).square().mean()),
    }
    for distance, value in expected.items():
        assert float(distance()(ours, theirs)) == pytest.approx(value, rel=1e-6)


# ------------------------------------------------------------------ of quantized vectors


@pytest.mark.parametrize("along", [FrameCosine(), ChannelCosine(), FeatureL2()])
def test_it_compares_the_head_with_the_mean_of_the_layers(folders, along) -> None:
    teacher = SpeechTeacher(folders["wavlm"], layers=[1, 3])
    objective = make_distillation(teacher, frame_rate=400.0, along=along).double()
    waves, quantized = Sounds(1).sounds[:3].double(), torch.randn(3, 8, 8, dtype=torch.float64)
    states = teacher.held(waves.mean(1))
    wanted = ((states[1] + states[3]) / 2).mT.unflatten(-1, (8, 2)).mean(-1)  # 800 frames a second to 400
    predicted = torch.einsum("fd,bdt->bft", objective.head.weight.squeeze(-1), quantized)
    predicted = predicted + objective.head.bias[:, None]
    torch.testing.assert_close(objective(waves, quantized), along(predicted, wanted), rtol=0, atol=1e-12)


def test_frames_behind_the_sound_are_left_out(teacher) -> None:
    objective = make_distillation(teacher)
    waves, quantized = Sounds(1).sounds[:2, :, :310], torch.randn(2, 8, 24)
    changed = quantized.clone()
    changed[..., 20:] += 1
    assert objective(waves, quantized) == objective(waves, changed)


def test_features_are_told_apart_in_float32_under_autocast(teacher) -> None:
    objective = make_distillation(teacher)
    waves, quantized = Sounds(1).sounds[:3], torch.randn(3, 8, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, predicted = objective(waves, quantized), objective.predict(quantized).double()
    expected = FrameCosine()(predicted, objective.features(waves, 20).double())
    torch.testing.assert_close(loss.double(), expected, rtol=0, atol=32 * 2**-24)


QUANTIZERS = {
    "SpeechTokenizer": (partial(ResidualQuantizer, code, 3, channel_dim=1), ChannelCosine(), (0, 8)),
    "Mimi": (partial(SplitQuantizer, [code, chain], dim=8, channel_dim=1), FrameCosine(), (0, 8)),
    "DualCodec": (
        partial(
            FeatureSplitQuantizer,
            [partial(code, dim=4), partial(ResidualQuantizer, partial(code, dim=4), 2)],
            channel_dim=1,
        ),
        FeatureL2(),
        (0, 4),
    ),
}


@pytest.mark.parametrize("case", few(QUANTIZERS, "Mimi"))
def test_it_is_trained_with_the_tokenizer_and_weighs_in_the_total(teacher, case, tmp_path) -> None:
    quantizer, along, channels = case
    objective = make_distillation(teacher, along=along, channels=channels, weight=0.5)
    task = make_audio_task(make_codec(quantizer()), objectives=[WaveformL1(), objective], warmup_steps=0)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    assert sum("objectives" in name for name in before) == 2  # weight and bias of the head
    trainer = make_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(task, datamodule=Sounds(4))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    commitment = sum(
        0.25 * value if name == "train/quantizer/commitment" else value
        for name, value in logged.items()
        if name.startswith("train/quantizer/")
    )
    total = logged["train/waveform_l1"] + 0.5 * logged["train/distillation"] + commitment
    assert logged["train/loss"] == pytest.approx(total, rel=1e-5)
    assert logged["gradient_norm/objectives"] > 0
    assert not torch.equal(before["objectives.1.head.weight"], task.state_dict()["objectives.1.head.weight"])
    trainer.save_checkpoint(tmp_path / "step.ckpt")
    saved = torch.load(tmp_path / "step.ckpt", weights_only=False)["state_dict"]
    assert saved.keys() == before.keys()


def test_only_the_first_level_is_taught(teacher) -> None:
    """The other branch's maps get no gradient of it."""
    task = make_audio_task(
        make_codec(SplitQuantizer([code, chain], dim=8, channel_dim=1)),
        objectives=[WaveformL1(), make_distillation(teacher)],
    )
    task.trainer = make_trainer()
    task.log_dict = lambda figures: None
    output = task.training_step({"audio": Sounds(1).sounds[:2]}, 0)
    quantizer = task.tokenizer.quantizer
    parameters = [next(task.tokenizer.encoder.parameters()), quantizer.project_in[0].weight]
    others = [
        quantizer.project_in[1].weight,
        quantizer.project_out[1].weight,
        next(task.tokenizer.decoder.parameters()),
    ]
    found = torch.autograd.grad(output["terms"]["distillation"], [*parameters, *others], allow_unused=True)
    assert all(gradient.any() for gradient in found[:2])
    assert all(gradient is None or not gradient.any() for gradient in found[2:])


def test_what_does_not_fit_is_refused(teacher, folders) -> None:
    with pytest.raises(ValueError, match=r"channels=\(8, 8\): expected the first one, and the one behind the last"):
        make_distillation(teacher, channels=(8, 8))
    with pytest.raises(ValueError, match="frame_rate=0 of the objective 'distillation': expected a positive number"):
        make_distillation(teacher, frame_rate=0)
    with pytest.raises(ValueError, match=r"\(2, 7, 20\): expected \(B, D, frames\) with channels 0 to 7"):
        make_distillation(teacher)(torch.zeros(2, 1, 320), torch.zeros(2, 7, 20))
    with pytest.raises(ValueError, match=r"10 frames of 0.02 s: expected 20 by frame_rate=1000\.0"):
        make_distillation(teacher)(torch.zeros(2, 1, 320), torch.zeros(2, 8, 10))
    with pytest.raises(ValueError, match=r"the head of 'distillation' gives \(2, 3, 20\): expected \(2, 8, 20\)"):
        make_distillation(teacher, head=nn.Conv1d(8, 3, 1))(torch.zeros(2, 1, 320), torch.zeros(2, 8, 20))
    grouped = GroupedQuantizer(partial(code, dim=4), 2, channel_dim=1)
    with pytest.raises(ValueError, match="levels=1 of GroupedQuantizer with 2 levels: expected 2"):
        make_audio_task(make_codec(grouped), objectives=[WaveformL1(), make_distillation(teacher)])
    task = make_audio_task(make_codec(), objectives=[WaveformL1(), make_distillation(teacher, frame_rate=50.0)])
    with pytest.raises(ValueError, match=r"'distillation' has frame_rate=50\.0, but the tokenizer has 1000.0"):
        make_trainer(max_steps=1).fit(task, datamodule=Sounds(4))


# ------------------------------------------------------------------ of reconstructions


def test_reconstructions_are_compared_in_every_layer(teacher) -> None:
    objective = FeatureReconstruction(teacher, sample_rate=16000, distance=FeatureL2())
    waves = Sounds(1).sounds[:2]
    other = (0.5 * waves.flip(0)).requires_grad_()
    pairs = zip(teacher(waves, 16000), teacher(other, 16000), strict=True)
    expected = sum((one - two).square().mean() for one, two in pairs) / 2
    loss = objective(waves, other)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    assert other.grad.any()
    assert objective(waves, waves) == 0
    assert not list(objective.parameters()) and not objective.state_dict()


# ------------------------------------------------------------------ a discriminator


@pytest.mark.parametrize("kind", ["wavlm", "whisper"])
def test_it_judges_all_hidden_states_by_convolutions(folders, kind) -> None:
    torch.manual_seed(0)
    teacher = SpeechTeacher(folders[kind])
    judge = FeatureDiscriminator(teacher, sample_rate=16000, channels=2)
    waves = Sounds(1).sounds[:3].repeat(1, 1, 3)
    (output,) = judge(waves)
    heard = torch.cat(teacher.held(waves.mean(1)), dim=-1).mT
    x = judge.enter(heard)
    for number, layer in enumerate(judge.layers):
        x = nn.functional.leaky_relu(layer(x), 0.1)
        torch.testing.assert_close(output.features[number], x)
    torch.testing.assert_close(output.logits, judge.to_logits(x).squeeze(1))
    assert [feature.shape[1] for feature in output.features] == [4, 8, 8]
    shapes = [tuple(layer.weight.shape) for layer in (judge.enter, *judge.layers, judge.to_logits)]
    assert shapes == [(2, 32, 1), (4, 2, 5), (8, 4, 5), (8, 8, 5), (1, 8, 3)]


def test_it_plays_against_a_codec(teacher) -> None:
    judge = FeatureDiscriminator(teacher, sample_rate=16000, channels=2)
    task = make_audio_task(adversary=Adversary([judge]))
    before = [parameter.clone() for parameter in judge.parameters()]
    heard = [parameter.clone() for parameter in teacher.held.parameters()]
    trainer = make_trainer(max_steps=2, limit_val_batches=0)
    trainer.fit(task, datamodule=Sounds(4))
    assert trainer.callback_metrics["train/adversarial"] > 0
    assert all(not torch.equal(one, other) for one, other in zip(before, judge.parameters(), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(heard, teacher.held.parameters(), strict=True))
    assert not any("held" in name or "teacher" in name for name in task.state_dict())


def test_no_channels_are_refused(teacher) -> None:
    with pytest.raises(ValueError, match="channels=0: expected at least 1"):
        FeatureDiscriminator(teacher, sample_rate=16000, channels=0)
