"""Continuous autoencoders in the trainers, and runs that make their latents discrete."""

import inspect
import json
import math

import pytest
import torch
import yaml

from tests.trainers.conftest import ROOT, examples_of
from tests.trainers.tiny import (
    BACKBONE,
    LIGHTNING_REMARKS,
    Images,
    assert_equal,
    assert_two_ranks_are_one,
    fit_on_rank,
    make_image_task,
    make_trainer,
    saving,
)
from trainers.core.checkpoints import read_checkpoint
from trainers.image.metrics import ImageMetrics
from trainers.run.bases import read_config
from trainers.run.cli import main
from vqkit import GaussianBottleneck, QuantizerOutput, Tokenizer
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.backbones.gaussian import GaussianEncoder
from vqkit.saving.config import resolve_class

pytestmark = [*LIGHTNING_REMARKS, pytest.mark.filterwarnings("ignore:Found .* in eval mode")]

GUIDE = [yaml.safe_load(block) for block in examples_of("image_vae")]
TINY = {
    "model.tokenizer.encoder.channels": None,
    "model.tokenizer.quantizer.codebook_size": None,
    "model.tokenizer.encoder.encoder.channels": 32,
    "codebook_report.every_n_steps": 1,
    "data.validation_root": "null",
}


def make_task(**arguments):
    torch.manual_seed(0)
    encoder = GaussianEncoder(ConvEncoder2d(**BACKBONE | {"dim": 16}))
    bottleneck = GaussianBottleneck(8, kl_weight=1e-3, channel_dim=1)
    tokenizer = Tokenizer(encoder, bottleneck, ConvDecoder2d(**BACKBONE))
    return make_image_task(tokenizer, warmup_steps=0, final_learning_rate_ratio=1.0, **arguments)


def parts_of(config):
    """Class and arguments of every part of a configuration."""
    if isinstance(config, dict):
        if "class_path" in config:
            yield resolve_class(config["class_path"]), config.get("init_args", {})
        for value in config.values():
            yield from parts_of(value)


@pytest.mark.parametrize("config", GUIDE, ids=lambda config: config.get("base", "whole"))
def test_the_guide_names_parts_and_arguments_that_there_are(config) -> None:
    parts = list(parts_of(config))
    assert parts
    for part, arguments in parts:
        inspect.signature(part).bind(**arguments)


@pytest.mark.slow
def test_a_vae_is_trained_and_measured_and_its_latents_become_discrete(cli, tmp_path) -> None:
    out = cli.done("fit", config="configs/image/vae.yaml", name="vae", **TINY)
    assert "16 continuous channels" in out and "initializing the quantizer" not in out
    cli.done("test", config="configs/image/vae.yaml", name="vae", ckpt_path="last", **TINY)
    record = json.loads((tmp_path / "vae/metrics.json").read_text())
    assert record["kl_bpp"] == pytest.approx(record["kl"] / math.log(2) / 8**2, rel=1e-12) and record["psnr"] > 0
    assert not {"bpp", "codebook_usage", "tokens_per_image"} & (record.keys() | record["protocol"].keys())
    code, out, err = cli("predict", config="configs/image/vae.yaml", name="vae", ckpt_path="last", **TINY)
    assert code == 2 and "error: predict needs codes, and GaussianBottleneck has none" in err

    own = read_config(ROOT / "configs/image/vae.yaml")["model"]["init_args"]["tokenizer"]["init_args"]
    first = GUIDE[0]["model"]["init_args"]["tokenizer"]["init_args"]
    assert all(part["class_path"] == own[name]["class_path"] for name, part in first.items())
    discrete = GUIDE[1] | {"base": str(ROOT / "configs/image/vae.yaml"), "init_from": str(tmp_path / "vae")}
    (tmp_path / "codes.yaml").write_text(yaml.safe_dump(discrete))
    size = {"model.tokenizer.quantizer.codebook_size": 32}
    options = {**TINY, **size, "config": tmp_path / "codes.yaml", "name": "codes"}
    code, _, err = cli("fit", **options, init_parts="null")
    assert code == 2 and "tokenizer.quantizer.class_path is 'vqkit.GaussianBottleneck', not 'vqkit.Quantizer'" in err
    assert 'or take the parts that fit by --init_parts "[encoder,decoder]"' in err
    out = cli.done("fit", **options)
    assert "initializing the quantizer" in out and "frozen: encoder" in out
    saved, taken = (
        read_checkpoint(tmp_path / name / "checkpoints/last.ckpt")["state_dict"] for name in ("vae", "codes")
    )
    parts = {name: [key for key in saved if key.startswith(f"tokenizer.{name}.")] for name in ("encoder", "decoder")}
    assert all(torch.equal(saved[key], taken[key]) for key in parts["encoder"]) and parts["encoder"]
    assert not all(torch.equal(saved[key], taken[key]) for key in parts["decoder"])
    cli.done("test", **options, ckpt_path="last")
    main(["table", str(tmp_path / "vae"), str(tmp_path / "codes"), "--figures", "psnr", "kl", "bpp"])


def test_a_resumed_vae_is_one_that_was_not_stopped(tmp_path) -> None:
    whole, second = make_task(), make_task()
    make_trainer(max_steps=4, callbacks=[saving(tmp_path / "half.ckpt", at=2)]).fit(whole, datamodule=Images(8))
    make_trainer(max_steps=4).fit(second, datamodule=Images(8), ckpt_path=tmp_path / "half.ckpt")
    assert whole.tokenizer.quantizer.draws == second.tokenizer.quantizer.draws == 4
    assert_equal(second.tokenizer.state_dict(), whole.tokenizer.state_dict())


def train_on_rank(rank, world):
    return fit_on_rank(rank, world, make_task(), Images(8), limit_val_batches=0)


@pytest.mark.slow
def test_two_ranks_train_as_one_process(rank_pair) -> None:
    assert_two_ranks_are_one(train_on_rank, rank_pair, rtol=1e-9, atol=1e-9)


def test_deterministic_pretraining_leaves_the_divergence_out() -> None:
    task = make_task(pretraining_steps=2)
    make_trainer(max_steps=3).fit(task, datamodule=Images(8))
    assert task.tokenizer.quantizer.draws == 1


def test_the_divergence_of_a_set_is_the_mean_over_its_vectors() -> None:
    metrics = ImageMetrics(())
    for side, kl in ((16, 2.0), (32, 5.0)):
        images, indices = torch.zeros(1, 3, side, side), torch.empty(1, side // 8, side // 8, 0, dtype=torch.int64)
        output = QuantizerOutput(images, indices, torch.tensor(0.0), {"kl": torch.tensor(kl)}, torch.tensor(0))
        metrics.update(images, images, indices)
        metrics.add_divergence(output)
    figures = metrics.compute()
    assert figures["kl"] == (4 * 2 + 16 * 5) / 20
    assert figures["kl_bpp"] == pytest.approx((4 * 2 + 16 * 5) / math.log(2) / (16**2 + 32**2), rel=1e-12)
