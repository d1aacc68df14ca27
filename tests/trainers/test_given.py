"""Runs on the tokenizer of other weights, whatever it is made of: converted ones, a run's, those of a name."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Callback
from safetensors.torch import load_file

from tests.conversion import test_titok
from tests.conversion.hub import MAIN, Hub
from tests.conversion.test_families import KINDS, pictures, saved
from tests.trainers.tiny import LIGHTNING_REMARKS, Images, make_image_task, make_trainer, state_of
from trainers.core import Adversary, GivenTokenizer, UnclippedHinge
from trainers.core.checkpoints import read_checkpoint
from trainers.core.optimization import steps_of_codec
from trainers.image import L2, PatchGAN
from trainers.run.bases import read_config
from trainers.run.cli import main
from trainers.run.given import as_arguments
from vqkit import Tokenizer, convert
from vqkit.saving.config import to_config

pytestmark = LIGHTNING_REMARKS

PHOTOGRAPHS = Path(__file__).parents[2] / "assets/images/train"

DECODER = "configs/image/decoder_finetune.yaml"
WARMUP = "configs/image/discriminator_warmup.yaml"
SMALL = dict.fromkeys(
    (
        "model.tokenizer.encoder.channels",
        "model.tokenizer.decoder.channels",
        "model.tokenizer.quantizer.codebook_size",
        "model.initialization_samples",
    )
)
"""Arguments of the quickstart, which `cli` gives; the tokenizer is another one here."""
OPTIONS = SMALL | {
    "data.num_workers": 0,
    "model.objectives": '[{"class_path": "trainers.image.L1"}]',  # LPIPS takes longer than all the rest
    "model.learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    file, family = saved("taming with attention in the middle alone", folder)
    convert(file, folder / "tokenizer", family=family, license="cc-by-nc-4.0", accept_license="cc-by-nc-4.0")
    return folder / "tokenizer"


def differing(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> set[str]:
    """The parts in which two states differ."""
    assert one.keys() == two.keys()
    return {name.partition(".")[0] for name in one if not torch.equal(one[name], two[name])}


def changed(*folders: Path) -> set[str]:
    """The parts in which two tokenizers differ."""
    return differing(*(Tokenizer.from_pretrained(folder).state_dict() for folder in folders))


def test_the_decoder_of_a_converted_tokenizer_is_trained(cli, converted, tmp_path) -> None:
    """By its configuration, which does not say what the tokenizer is; what the run records does."""
    start = OPTIONS | {"config": DECODER, "init_from": converted}
    output = cli.done("fit", **start)
    assert f"starting from all parts of {converted}/model.safetensors, SHA-256" in output
    assert "; frozen: encoder, quantizer" in output and "initializing" not in output
    assert changed(converted, tmp_path / "run/tokenizer") == {"decoder"}
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"]["init_args"]["tokenizer"]
    assert recorded["class_path"] == "vqkit.Tokenizer" and "GivenTokenizer" not in str(recorded)
    provenance = Tokenizer.from_pretrained(converted).provenance
    assert provenance["license"] == "cc-by-nc-4.0"
    assert Tokenizer.from_pretrained(tmp_path / "run/tokenizer").provenance == provenance
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["provenance"] == provenance


def test_another_quantizer_says_what_to_take_and_what_to_let_learn(cli, converted) -> None:
    start = OPTIONS | {"config": DECODER, "init_from": converted, "quantizer": "simvq"}
    code, _, errors = cli("fit", **start)
    wanted = 'by --init_parts "[encoder,decoder]" --model.freeze "[encoder]", so that the new quantizer learns'
    assert code == 2 and wanted in errors


@pytest.mark.slow
def test_another_quantizer_learns_what_these_options_let_it(cli, converted, tmp_path) -> None:
    start = OPTIONS | {"config": DECODER, "init_from": converted, "quantizer": "simvq"}
    start |= {"init_parts": "[encoder,decoder]"}
    code, _, errors = cli("fit", **start)
    assert code == 2 and "its codes are random and would stay so; let it learn by" in errors
    assert '--model.freeze "[encoder]", or take it too' in errors
    output = cli.done("fit", **start | {"model.freeze": "[encoder]"})
    assert "initializing the quantizer" in output
    tokenizer = Tokenizer.from_pretrained(tmp_path / "run/tokenizer")
    before = Tokenizer.from_pretrained(converted)
    for name, stays in (("encoder", True), ("decoder", False)):
        pairs = zip(getattr(tokenizer, name).parameters(), getattr(before, name).parameters(), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs) == stays


@pytest.mark.slow
def test_a_run_of_a_converted_tokenizer_goes_on_is_measured_and_exported(cli, converted, tmp_path) -> None:
    start = OPTIONS | {"config": DECODER, "init_from": converted, "data.root": PHOTOGRAPHS}
    cli.done("fit", **start)
    own = {
        "config": tmp_path / "run/config.yaml",
        "init_from": None,
        "data.root": PHOTOGRAPHS,
        **dict.fromkeys(OPTIONS),
    }
    for config in (start | {"init_from": None}, own):  # the same configuration, or the recorded one
        cli.done("test", **config)
    output = cli.done("fit", **start | {"init_from": None, "ckpt_path": "last", "trainer.max_steps": 4})
    assert "  model" not in output
    provenance = Tokenizer.from_pretrained(converted).provenance
    main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "exported")])
    assert Tokenizer.from_pretrained(tmp_path / "exported").provenance == provenance
    cli.done("test", **start | {"init_from": None, "name": "judged", "ckpt_path": converted})
    assert json.loads((tmp_path / "judged/metrics.json").read_text())["protocol"]["checkpoint"].startswith(
        str(converted)
    )


@pytest.mark.slow
def test_without_weights_the_words_say_what_to_give(cli, converted, tmp_path) -> None:
    options = OPTIONS | {"config": DECODER}
    for more, words in (
        ({}, "error: model.tokenizer is that of --init_from, which is not given: name a converted tokenizer"),
        ({"init_from": tmp_path / "none"}, "expected the folder of a run"),
        ({"init_from": "FoundationVision/LlamaGen"}, "has several files of weights: give one of FoundationVision/"),
        ({"init_from": tmp_path / "hostile"}, "class_path='os.system' is refused"),
        ({"init_from": tmp_path / "last.ckpt"}, "is no checkpoint, or ends too early"),
    ):
        (tmp_path / "last.ckpt").write_bytes(b"")
        (tmp_path / "hostile").mkdir(exist_ok=True)
        config = json.loads((converted / "config.json").read_text())
        config["init_args"]["encoder"]["class_path"] = "os.system"
        (tmp_path / "hostile/config.json").write_text(json.dumps(config))
        (tmp_path / "hostile/model.safetensors").write_bytes((converted / "model.safetensors").read_bytes())
        code, _, errors = cli("fit", **options, **more)
        assert code == 2 and words in errors, errors
    with pytest.raises(ValueError, match=r"in Python take that itself: Tokenizer\.from_pretrained"):
        GivenTokenizer()


def test_a_class_of_others_is_not_looked_up() -> None:
    with pytest.raises(ValueError, match=r"'antigravity\.X' is refused.* write the tokenizer into the configuration"):
        as_arguments({"class_path": "vqkit.Tokenizer", "init_args": {"encoder": {"class_path": "antigravity.X"}}})
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("arguments", [{"init_args": [1]}, {"init_args": None}, {"args": 7}])
def test_damaged_arguments_are_refused(arguments) -> None:
    with pytest.raises(ValueError, match=r"vqkit\.FSQ has args=.* and init_args=.*: expected a list and a mapping"):
        as_arguments({"class_path": "vqkit.FSQ", **arguments})


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, *(f"titok {kind}" for kind in test_titok.KINDS)])
def test_every_family_is_written_into_a_configuration(kind, tmp_path, cli) -> None:
    if kind in KINDS:
        file, family = saved(kind, tmp_path)
        convert(file, tmp_path / "tokenizer", family=family, license="mit")
    else:
        test_titok.converted(kind.removeprefix("titok "), tmp_path).save_pretrained(tmp_path / "tokenizer")
    cli.done("fit", **OPTIONS | {"config": DECODER, "init_from": tmp_path / "tokenizer", "trainer.max_steps": 1})
    assert changed(tmp_path / "tokenizer", tmp_path / "run/tokenizer") == {"decoder"}
    before, after = (Tokenizer.from_pretrained(tmp_path / name) for name in ("tokenizer", "run/tokenizer"))
    assert torch.equal(before.encode(pictures()), after.encode(pictures()))
    assert as_arguments(to_config(before.decoder)) == as_arguments(to_config(after.decoder))


@pytest.mark.slow
def test_a_name_on_the_hub_is_where_a_run_starts(cli, tmp_path, monkeypatch) -> None:
    file, _ = saved("llamagen", tmp_path)
    repository, content = "FoundationVision/LlamaGen", {"vq_ds16_c2i.pt": file.with_suffix(".pt")}
    torch.save(load_file(file), content["vq_ds16_c2i.pt"])
    hub = Hub(tmp_path / "cache", {repository: {name: path.read_bytes() for name, path in content.items()}})
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    name = f"{repository}/vq_ds16_c2i.pt"
    output = cli.done("fit", **OPTIONS | {"config": DECODER, "init_from": name})
    assert f"starting from all parts of {hub.home(repository)}" in output
    provenance = Tokenizer.from_pretrained(tmp_path / "run/tokenizer").provenance
    assert (provenance["published"], provenance["revision"], provenance["license"]) == (name, MAIN, "mit")
    cli.done("test", **OPTIONS | {"config": DECODER, "name": "judged", "ckpt_path": name})


# ---------------------------------------------------------------------- a head start of the discriminators


def test_discriminators_learn_alone_and_then_all() -> None:
    """The rest to the last bit, with averages of codes, restarts, weight decay and moments: from step 1 to 3."""
    adversary = Adversary(
        [PatchGAN(num_layers=1, channels=4)],
        loss=UnclippedHinge(),
        weight=0.5,
        feature_matching=0.0,
        start_step=1,
        head_start_steps=2,
        ramp_steps=1,
    )
    assert [adversary.weights(step)["adversarial"] for step in range(6)] == [0, 0, 0, 0.25, 0.5, 0.5]
    task = make_image_task(objectives=[L2()], adversary=adversary, learning_rate=1e-2, weight_decay=0.1, warmup_steps=0)
    before, look = [], Callback()
    look.on_train_batch_start = lambda *_: before.append(state_of(task))
    trainer = make_trainer(max_steps=6, callbacks=[look])
    trainer.fit(task, datamodule=Images(4))
    assert differing(before[0], before[1]) == {"tokenizer"} and differing(before[1], before[3]) == {"adversary"}
    assert differing(before[3], before[4]) == differing(before[4], before[5]) == {"adversary", "tokenizer"}
    optimizer = trainer.optimizers[0]
    steps = {
        group["name"]: {int(optimizer.state[parameter]["step"]) for parameter in group["params"]}
        for group in optimizer.param_groups
    }
    assert steps.pop("discriminators") == {5} and set().union(*steps.values()) == {4}


def test_a_head_start_does_not_use_up_the_warm_up() -> None:
    """Step 1 and 2 are the discriminators' own: the rest warms up over 0, 3, 4 and falls from 5 to the last step."""
    adversary = Adversary([PatchGAN(num_layers=1, channels=4)], start_step=1, head_start_steps=2)
    task = make_image_task(
        objectives=[L2()], adversary=adversary, learning_rate=0.5, warmup_steps=3, final_learning_rate_ratio=0.0
    )
    trainer = make_trainer(max_steps=9)
    trainer.fit(task, datamodule=Images(4))
    optimizer, factors = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler.lr_lambdas
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        rates = [factor(step) for step in range(10)]
        if group["name"] == "discriminators":
            assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1]) and rates[6] == pytest.approx(0.5)
        else:
            assert rates[:6] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3, 1, 1]) and rates[7] == pytest.approx(0.5)
        assert rates[9] == pytest.approx(0) and group["lr"] == pytest.approx(0)


def test_the_warm_up_of_the_recipe_lies_behind_its_head_start() -> None:
    task = read_config(Path(__file__).parents[2] / WARMUP)["model"]["init_args"]
    head_start = task["adversary"]["init_args"]["head_start_steps"]
    adversary = Adversary([PatchGAN(num_layers=1, channels=4)], head_start_steps=head_start)
    assert [steps_of_codec(adversary, step) for step in (0, head_start, head_start + task["warmup_steps"])] == [
        0,
        0,
        task["warmup_steps"],
    ]


@pytest.mark.slow
def test_the_recipe_warms_a_discriminator_up(cli, converted, tmp_path) -> None:
    adversary, patchgan = "model.adversary", {"num_layers": 1, "channels": 4}
    small = {
        "config": WARMUP,
        "init_from": converted,
        "data.root": PHOTOGRAPHS,
        "data.resolution": 32,
        f"{adversary}.discriminators": json.dumps([{"class_path": "trainers.image.PatchGAN", "init_args": patchgan}]),
        f"{adversary}.head_start_steps": 2,
        f"{adversary}.ramp_steps": 1,
    }
    output = cli.done("fit", **OPTIONS | small | {"trainer.max_steps": 2})
    assert "; discriminators learn alone for 2 steps\n" in output
    assert not changed(converted, tmp_path / "run/tokenizer")
    cli.done("fit", **OPTIONS | small | {"trainer.max_steps": 4, "ckpt_path": "last", "init_from": None})
    assert changed(converted, tmp_path / "run/tokenizer") == {"encoder", "quantizer", "decoder"}
