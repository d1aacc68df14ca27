"""Stage 1 of TiTok: a decoder that predicts the codes of a teacher, and stage 2 behind it."""

import copy
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from tests.test_latent_tokens import PIXELS, code_head, make
from tests.trainers import test_configs
from tests.trainers.conftest import ROOT, TINY, recorded
from tests.trainers.tiny import LIGHTNING_REMARKS, Images, assert_equal, make_image_task, make_tokenizer, make_trainer
from trainers.core.task import TokenizerTask
from trainers.image import CodePrediction, CodePredictionTask, Teacher
from trainers.run.bases import read_config
from trainers.run.origin import Origin
from vqkit import FSQ, Quantizer, ResidualQuantizer, Tokenizer, TokenShards
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.backbones.maskgit import MaskGITDecoder2d, MaskGITEncoder2d

pytestmark = [*LIGHTNING_REMARKS, pytest.mark.filterwarnings("ignore:Found .* in eval mode")]


def teacher_of(folder, quantizer=None, **options) -> Tokenizer:
    """A tiny tokenizer whose codes lie among its latents, saved."""
    torch.manual_seed(1)
    quantizer = quantizer or Quantizer("vq", dim=7, codebook_size=12, channel_dim=1)
    teacher = Tokenizer(ConvEncoder2d(**PIXELS | options), quantizer, ConvDecoder2d(**PIXELS | options))
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.3)
    teacher.initialize([Images(16).images], samples=128)
    teacher.eval().save_pretrained(folder)
    return teacher


@pytest.fixture
def teacher(tmp_path):
    return teacher_of(tmp_path / "teacher")


def make_task(folder, tokenizer=None, **arguments) -> CodePredictionTask:
    options = {"initialization_samples": 64, "warmup_steps": 0, "learning_rate": 1e-2}
    return CodePredictionTask(tokenizer or make(code_head()), teacher=str(folder), **options | arguments)


def test_the_objective_is_the_cross_entropy_of_the_teachers_codes(teacher, tmp_path) -> None:
    images, objective = Images(16).images[:3].double(), CodePrediction(Teacher(str(tmp_path / "teacher")))
    codes = teacher.encode(images.float())
    assert len(codes.unique()) > 3
    logits = torch.randn(3, 12, 4, 4, dtype=torch.float64, requires_grad=True)
    loss = objective(images, logits)
    expected = (torch.logsumexp(logits, 1) - logits.gather(1, codes.unsqueeze(1)).squeeze(1)).mean()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-14)
    (gradient,) = torch.autograd.grad(loss, logits)
    one_hot = F.one_hot(codes, 12).movedim(-1, 1)
    torch.testing.assert_close(gradient, (logits.softmax(1) - one_hot) / codes.numel(), rtol=0, atol=1e-14)
    assert objective.accuracy(images, one_hot.double()) == 1
    assert objective.accuracy(images, -one_hot.double()) == 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 11, 4, 4), r"logits have shape \(2, 11, 4, 4\): expected \(2, 12, 4, 4\)"),
        ((2, 12, 4, 2), r"logits have shape \(2, 12, 4, 2\): expected \(2, 12, 4, 4\)"),
        ((1, 12, 4, 4), r"reference has shape \(2, 3, 16, 16\) and logits \(1, 12, 4, 4\)"),
        ((2, 12), r"logits \(2, 12\): expected images .* and logits"),
    ],
)
def test_other_logits_are_refused(shape, message, teacher, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        CodePrediction(Teacher(str(tmp_path / "teacher")))(Images(2).images[:2], torch.zeros(shape))


def test_the_teacher_is_in_no_state_optimizer_or_mode(teacher, tmp_path) -> None:
    held = Teacher(str(tmp_path / "teacher"))
    assert not list(held.parameters()) and not held.state_dict() and not list(held.children())
    held.train()
    assert not any(part.training for part in (held.tokenizer, *held.tokenizer.children()))
    assert not any(parameter.requires_grad for parameter in held.tokenizer.parameters())
    images = Images(4).images[:4]
    for other in (copy.deepcopy(held).bfloat16(), held):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(other(images), teacher.encode(images))
    assert next(held.double().tokenizer.parameters()).dtype == torch.float64
    random = torch.get_rng_state()
    Teacher(str(tmp_path / "teacher"))
    assert torch.equal(random, torch.get_rng_state())


def test_the_logits_learn_and_what_is_the_teachers_stays(teacher, tmp_path) -> None:
    task = make_task(tmp_path / "teacher")
    head, before = task.tokenizer.decoder.head, copy.deepcopy(task.tokenizer.state_dict())
    codes = torch.arange(12).reshape(-1, 1, 1)
    assert torch.equal(head.codes.weight, teacher.quantizer.decode(codes).flatten(1))
    assert_equal(head.pixels.state_dict(), teacher.decoder.state_dict())
    trainer = make_trainer(max_steps=20)
    trainer.fit(task, datamodule=Images(8))
    first, last = math.log(12), trainer.logged_metrics["train/code_prediction"]
    assert last < first - 0.2  # at the start each code is about as likely as another
    assert trainer.logged_metrics["train/code_accuracy"] > 2 / 12 and "train/psnr" not in trainer.logged_metrics
    assert "validation/psnr" in trainer.logged_metrics
    for name, value in task.tokenizer.state_dict().items():
        teachers = name.startswith(("decoder.head.codes", "decoder.head.pixels"))
        if value.is_floating_point() and not name.startswith("quantizer."):
            assert torch.equal(value, before[name]) == teachers, name
    trained = {id(parameter) for group in trainer.optimizers[0].param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in task.tokenizer.parameters() if parameter.requires_grad}
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == {f"tokenizer.{name}" for name in task.tokenizer.state_dict()}


@pytest.mark.slow
def test_a_training_step_draws_no_picture_and_its_gradients_are_those_of_the_logits(
    teacher, tmp_path, monkeypatch
) -> None:
    task = make_task(tmp_path / "teacher").train()
    monkeypatch.setattr(type(task), "pretraining", False)
    images = Images(4).images[:4]

    def drawn(*_) -> None:
        raise AssertionError("a picture was drawn")

    handle = task.tokenizer.decoder.head.pixels.register_forward_pre_hook(drawn)
    output = task.reconstruct(images)
    handle.remove()
    tokens = task.tokenizer.decoder.patch_tokens(output.quantizer.quantized)
    torch.testing.assert_close(output.reconstruction, task.tokenizer.decoder.head.logits(tokens))
    assert task.eval().reconstruct(images).reconstruction.shape == images.shape


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda folder: make_task(folder / "none"), "teacher=.*none': expected the folder of a saved tokenizer"),
        (lambda folder: make_task(folder / "teacher", make()), "head=PixelHead predicts no codes: expected"),
        (lambda folder: make_task(folder / "teacher", make_tokenizer()), "ConvDecoder2d with head=NoneType predicts"),
        (lambda folder: make_task(folder / "teacher", balancer=object()), "balancer: expected none, since no pictures"),
        (
            lambda folder: make_task(folder / "teacher", make(code_head(codebook_size=13))),
            r"teacher=.* has 12 codes of 7 channels: expected 13 of 7, .* codebook_size",
        ),
        (
            lambda folder: make_task(
                folder / "teacher", make(code_head(pixels=ConvDecoder2d(**PIXELS | {"channels": 16})))
            ),
            r"another decoder, ConvDecoder2d, than .*: 'layers.*' is \(.*8.*\) and \(.*16.*\); give pixels",
        ),
        (
            lambda folder: make_task(teacher_of(folder / "fine", patch_size=2) and folder / "fine", make(code_head())),
            "has a code for 2 x 2 pixels: expected 4, the patch_size",
        ),
        (
            lambda folder: Teacher(str(made(folder, ResidualQuantizer(stage, 2, channel_dim=1)))),
            r"has codebook_sizes=\(12, 12\): expected one code for each patch",
        ),
    ],
)
def test_teachers_and_tokenizers_that_do_not_fit_are_refused(make_it, message, teacher, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        make_it(tmp_path)


stage = partial(Quantizer, "vq", dim=7, codebook_size=12)


def made(folder, quantizer):
    teacher_of(folder / "made", quantizer)
    return folder / "made"


def test_codes_of_a_grid_without_a_table_are_a_teacher_too(tmp_path) -> None:
    folder = made(tmp_path, FSQ([3, 4], dim=7, channel_dim=1))
    task = make_task(folder)
    assert len(task.tokenizer.decoder.head.codes.weight.unique(dim=0)) == 12


def test_stage_2_starts_from_stage_1_with_encoder_and_codes_frozen(teacher, tmp_path) -> None:
    first = make_task(tmp_path / "teacher")
    make_trainer(max_steps=2).fit(first, datamodule=Images(8))
    first.tokenizer.save_pretrained(tmp_path / "stage1")
    torch.manual_seed(3)
    second = make_image_task(make(code_head()), freeze=["encoder", "quantizer"])
    Origin.of(str(tmp_path / "stage1")).load(second)
    make_trainer(max_steps=2).fit(second, datamodule=Images(8))
    state = second.tokenizer.state_dict()
    for name, value in first.tokenizer.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, state[name]) == name.startswith(("encoder.", "quantizer.")), name


def test_weights_of_another_teacher_are_refused(teacher, tmp_path, monkeypatch) -> None:
    """The head of the weights takes the place of what the new teacher gave: its logits would mean other codes."""
    make_task(tmp_path / "teacher").tokenizer.save_pretrained(tmp_path / "stage1")
    for parameter in teacher.quantizer.parameters():
        parameter.data = parameter.flip(0)
    teacher.save_pretrained(tmp_path / "other")
    task = make_task(tmp_path / "other")
    Origin.of(str(tmp_path / "stage1")).load(task)
    with pytest.raises(ValueError, match=r"teacher=.*other' has other code vectors than .* --init_parts"):
        monkeypatch.setattr(TokenizerTask, "on_train_start", lambda self: None)
        task.on_train_start()
    for dtype in (torch.float32, torch.bfloat16):
        task.objective.teacher.check_given(make_task(tmp_path / "other").tokenizer.decoder.head.codes.to(dtype))


def written(name: str, folder: Path, teacher: Path, **changes) -> Path:
    """A recipe with tiny sizes."""
    config = test_configs.shrunk(read_config(ROOT / f"configs/image/{name}.yaml"), channels=32)
    task = config["model"]["init_args"]
    task |= {"warmup_steps": 1, "initialization_samples": 32} | changes
    if "teacher" in task:
        task["teacher"] = str(teacher)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder / f"{name}.yaml"


@pytest.mark.slow
def test_both_stages_run_from_the_command_line(cli, tmp_path) -> None:
    pixels = {"dim": 256, "channels": 32, "channel_multipliers": [1, 1, 2, 2, 4], "num_res_blocks": 1}
    quantizer = Quantizer("vq", dim=256, codebook_size=16, channel_dim=1)
    Tokenizer(MaskGITEncoder2d(**pixels), quantizer, MaskGITDecoder2d(**pixels)).save_pretrained(tmp_path / "teacher")
    small = dict.fromkeys(TINY) | {"data.resolution": 32, "data.batch_size": 4, "data.num_workers": 0}
    small |= {"trainer.accelerator": "cpu", "trainer.max_steps": 2, "trainer.log_every_n_steps": 1}
    stage1 = written("titok_l32_stage1", tmp_path, tmp_path / "teacher")
    output = cli.done("fit", config=stage1, **small)
    assert "frozen: decoder.head.codes, decoder.head.pixels" in output
    objectives = [{"class_path": "trainers.image.L2"}]
    stage2 = written("titok_l32_stage2", tmp_path, tmp_path / "teacher", objectives=objectives, adversary=None)
    begun = {"config": stage2, "name": "second", "init_from": tmp_path / "run"}
    output = cli.done("fit", **small | begun)
    assert "frozen: encoder, quantizer" in output and "initializing" not in output
    for run in ("run", "second"):
        cli.done("test", **recorded(tmp_path / run))
        assert json.loads((tmp_path / run / "metrics.json").read_text())["tokens_per_image"] == 32
    cli.done("predict", **recorded(tmp_path / "second"))
    tokenizers = [Tokenizer.from_pretrained(tmp_path / run / "tokenizer") for run in ("run", "second")]
    shards = TokenShards(tmp_path / "second/tokens")
    assert shards[0]["indices"].shape == (32,)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(*(tokenizer.encode(images) for tokenizer in tokenizers))
    drawn = [tokenizer.decode(tokenizer.encode(images)) for tokenizer in tokenizers]
    assert drawn[0].shape == images.shape and not torch.equal(*drawn)
