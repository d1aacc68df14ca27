"""Stages: parts that stay as they are while the others train."""

import copy

import pytest
import torch
from torch import nn

from tests.refusals import refused
from tests.trainers.tiny import (
    BACKBONE,
    LIGHTNING_REMARKS,
    Images,
    Sounds,
    assert_equal,
    assert_two_ranks_are_one,
    fit_on_rank,
    make_audio_task,
    make_codec,
    make_image_adversary,
    make_image_task,
    make_tokenizer,
    make_trainer,
)
from trainers.callbacks import WeightEMA
from trainers.core import Adversary
from trainers.image import L1, LearnedVariance, PatchGAN
from trainers.run.changes import changes
from trainers.run.origin import Origin
from vqkit import FSQ, GroupedQuantizer, Quantizer, RandomRestart, ResidualQuantizer, Tokenizer
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d

pytestmark = [*LIGHTNING_REMARKS, pytest.mark.filterwarnings("ignore:Found .* in eval mode")]


def restarted(**arguments):
    return Quantizer("ema", dim=8, codebook_size=16, maintenance=[RandomRestart(0.9, every=1)], **arguments)


QUANTIZERS = {
    "vq": lambda: Quantizer("vq", dim=8, codebook_size=16, channel_dim=1),
    "ema": lambda: restarted(channel_dim=1),
    "residual": lambda: ResidualQuantizer(restarted, 2, dropout=0.5, channel_dim=1),
    "fsq": lambda: FSQ([5, 5], dim=8, channel_dim=1),
}


def normed(quantizer):
    """An image tokenizer with everything in it that moves without a gradient: running norms, dropout, statistics."""
    torch.manual_seed(0)
    encoder = nn.Sequential(ConvEncoder2d(**BACKBONE, dropout=0.5), nn.BatchNorm2d(8), nn.Dropout(0.5))
    return Tokenizer(encoder, quantizer, ConvDecoder2d(**BACKBONE))


def everything_in(module):
    """Parameters, buffers that are not saved too, and counters."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers()), **module.state_dict()}
    return {
        name: value.detach().clone() if isinstance(value, torch.Tensor) else value for name, value in tensors.items()
    }


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_frozen_parts_stay_to_the_last_bit(quantizer):
    tokenizer = normed(QUANTIZERS[quantizer]())
    task = make_image_task(tokenizer, freeze=["encoder", "quantizer"], weight_decay=0.1, learning_rate=1e-2)
    before = {name: everything_in(part) for name, part in tokenizer.named_children()}
    average = WeightEMA(0.5)
    trainer = make_trainer(max_steps=3, callbacks=[average])
    trainer.fit(task, datamodule=Images(4))
    for model in (tokenizer, average._average_model.module):
        for name in ("encoder", "quantizer"):
            assert_equal(everything_in(getattr(model, name)), before[name])
        assert all(not torch.equal(value, before["decoder"][name]) for name, value in model.decoder.named_parameters())
    trained = {id(parameter) for group in trainer.optimizers[0].param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in tokenizer.decoder.parameters()}
    logged = {name: float(value) for name, value in trainer.logged_metrics.items() if name.startswith("gradient_norm")}
    assert logged.keys() == {"gradient_norm/decoder", "gradient_norm/total"}
    assert logged["gradient_norm/total"] == logged["gradient_norm/decoder"] > 0
    task.train()
    first, second = (tokenizer(Images(4).images) for _ in range(2))
    assert torch.equal(first.quantizer.indices, second.quantizer.indices)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_an_encoder_trains_before_a_frozen_quantizer_and_decoder(quantizer):
    tokenizer = make_tokenizer(QUANTIZERS[quantizer]())
    before = {name: everything_in(part) for name, part in tokenizer.named_children()}
    task = make_image_task(tokenizer, freeze=["quantizer", "decoder"], learning_rate=1e-2)
    make_trainer(max_steps=2).fit(task, datamodule=Images(4))
    for name in ("quantizer", "decoder"):
        assert_equal(everything_in(getattr(tokenizer, name)), before[name])
    weights = dict(tokenizer.encoder.named_parameters())
    assert any(not torch.equal(weight, before["encoder"][name]) for name, weight in weights.items())


def composite(kind):
    parts = [
        lambda dim=size: Quantizer("ema", dim=dim, codebook_size=16) for size in ((8, 8), (4, 4))[kind == "groups"]
    ]
    return (GroupedQuantizer if kind == "groups" else ResidualQuantizer)(parts, channel_dim=1)


@pytest.mark.parametrize("kind", ["stages", "groups"])
def test_one_stage_or_block_is_frozen_by_its_longer_name(kind):
    tokenizer = make_tokenizer(composite(kind))
    names = [f"quantizer.{kind}.0", "decoder.layers.1"]
    before = {name: everything_in(tokenizer.get_submodule(name)) for name in (*names, f"quantizer.{kind}.1", "decoder")}
    make_trainer(max_steps=2).fit(make_image_task(tokenizer, freeze=names), datamodule=Images(4))
    for name in names:
        assert_equal(everything_in(tokenizer.get_submodule(name)), before[name])
    assert tokenizer.get_submodule(f"quantizer.{kind}.1").codebook.steps == 2
    assert any(
        not torch.equal(weight, before["decoder"][name]) for name, weight in tokenizer.decoder.named_parameters()
    )


def test_a_codec_starts_from_another(tmp_path):
    source = make_codec()
    torch.nn.init.constant_(next(source.decoder.parameters()), 0.5)
    source.save_pretrained(tmp_path / "codec")
    tokenizer = make_codec()
    Origin.of(str(tmp_path / "codec")).load(make_audio_task(tokenizer))
    assert_equal(everything_in(tokenizer), everything_in(source))


def adversarial(**arguments):
    """A task with discriminators and a trained variance."""
    torch.manual_seed(2)
    return make_image_task(adversary=make_image_adversary(), objectives=[LearnedVariance([L1()])], **arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of such a task, and its content."""
    task, path = adversarial(learning_rate=1e-2), tmp_path_factory.mktemp("run") / "last.ckpt"
    trainer = make_trainer(max_steps=2)
    trainer.fit(task, datamodule=Images(4))
    trainer.save_checkpoint(path)
    return path, copy.deepcopy(task.state_dict())


BESIDE = {"discriminators": "adversary.discriminators.", "objectives": "objectives."}


@pytest.mark.parametrize("named", [[], ["discriminators"], ["decoder", "objectives", "discriminators"]])
def test_discriminators_come_along_where_they_are_named(named, trained):
    path, source = trained
    task = adversarial()
    before = copy.deepcopy(task.state_dict())
    Origin.of(str(path), parts=named or None).load(task)
    taken = tuple(BESIDE.get(name, f"tokenizer.{name}.") for name in named) or ("tokenizer.",)
    assert any(name.startswith(taken) and not torch.equal(before[name], source[name]) for name in before)
    assert_equal(
        task.state_dict(), {name: source[name] if name.startswith(taken) else value for name, value in before.items()}
    )
    if named:  # a quantizer that does not come along is initialized, and trains with them
        make_trainer(max_steps=1).fit(task, datamodule=Images(4))


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (make_image_task, "discriminators", r"this configuration has no discriminators; leave them out"),
        (make_image_task, "objectives", r"this configuration has no objectives; leave them out"),
        (
            lambda: make_image_task(adversary=Adversary([PatchGAN(num_layers=1, channels=8)])),
            "discriminators",
            r"does not fit .*discriminators\.0\..* is \(4, 3, 4, 4\) there and \(8, 3, 4, 4\) here",
        ),
    ],
)
def test_discriminators_that_cannot_come_along_are_refused(make, name, message, trained, tmp_path):
    with pytest.raises(ValueError, match=message):
        Origin.of(str(trained[0]), parts=[name]).load(make())
    make_tokenizer().save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=rf"init_parts=\['{name}'\]: .*model.safetensors has no {name}"):
        Origin.of(str(tmp_path / "saved"), parts=[name]).load(adversarial())


def test_a_codec_freezes_too():
    tokenizer = make_codec()
    before = {name: everything_in(part) for name, part in tokenizer.named_children()}
    make_trainer(max_steps=2).fit(make_audio_task(tokenizer, freeze=["encoder", "quantizer"]), datamodule=Sounds(4))
    for name in ("encoder", "quantizer"):
        assert_equal(everything_in(getattr(tokenizer, name)), before[name])


test_what_cannot_be_frozen_is_refused = refused(
    ({"freeze": ["encodr"]}, r"freeze=\['encodr'\]: tokenizer has no part 'encodr'; .* encoder, quantizer, decoder"),
    ({"freeze": ["quantizer.codebok"]}, r"tokenizer\.quantizer has no part 'codebok'; its parts are .*codebook"),
    ({"freeze": ["encoder", "decoder"]}, r"leaves no parameters to train of encoder \d.* decoder \d"),
    (
        {"freeze": ["quantizer.codebook"]},
        r"quantizer\.codebook moves with quantizer; freeze quantizer, the whole of it",
    ),
    ({"freeze": ["quantizer"], "pretraining_steps": 3}, "pretraining_steps=3: .* freeze keeps it as it is"),
    by=lambda arguments: make_image_task(**arguments),
)


def freeze_on_rank(rank):
    tokenizer = normed(restarted(channel_dim=1))
    before = {name: everything_in(part) for name, part in tokenizer.named_children()}
    task = make_image_task(tokenizer, freeze=["encoder", "quantizer"])
    fit_on_rank(rank, 2, task, Images(8), precision="32-true", callbacks=[WeightEMA(0.5)])
    return before, {name: everything_in(part) for name, part in tokenizer.named_children()}


@pytest.mark.slow
def test_two_ranks_leave_frozen_parts_as_they_are(rank_pair):
    (before, first), (_, second) = rank_pair(freeze_on_rank)
    assert_equal(first["decoder"], second["decoder"])
    assert any(not torch.equal(value, before["decoder"][name]) for name, value in first["decoder"].items())
    for name in ("encoder", "quantizer"):
        assert_equal(first[name], before[name])
        assert_equal(second[name], before[name])


@pytest.mark.parametrize("recorded", [{}, {"freeze": []}, {"freeze": ["decoder"]}])
def test_a_resumed_run_freezes_what_it_froze(recorded):
    """Runs of earlier versions recorded nothing, and froze nothing."""

    def resumed(freeze):
        old, new = ({"model": {"init_args": {"seed": 0, **arguments}}} for arguments in (recorded, {"freeze": freeze}))
        return changes(old, new, initialized=True)

    assert all("not recorded -> []" in change for change in resumed(recorded.get("freeze", [])))
    with pytest.raises(ValueError, match="encoder: settled when training began"):
        resumed(["encoder"])


def train_before_a_frozen_quantizer(rank, world):
    """Encoder and decoder."""
    quantizer = Quantizer("ibq", dim=8, codebook_size=16, channel_dim=1)  # whose entropy is that of the joined batch
    task = make_image_task(make_tokenizer(quantizer), freeze=["quantizer"], learning_rate=1e-2, warmup_steps=0)
    return fit_on_rank(rank, world, task, Images(8), limit_val_batches=0)


@pytest.mark.slow
def test_two_ranks_train_before_a_frozen_quantizer_as_one_process(rank_pair):
    assert_two_ranks_are_one(train_before_a_frozen_quantizer, rank_pair, rtol=1e-9, atol=1e-9)
