"""Tokenizers that restore degraded pictures, and AdaCode's three stages."""

from functools import partial
from pathlib import Path

import adacode
import pytest
import torch
import torch.nn.functional as F
import yaml

from tests.trainers.conftest import run_command
from tests.trainers.pictures import draw_pictures
from tests.trainers.test_configs import CONFIGS, SMALL, SMALL_DATA, shrunk
from tests.trainers.test_stages import everything_in
from tests.trainers.tiny import LIGHTNING_REMARKS, Images, assert_equal, make_image_task, make_tokenizer, make_trainer
from trainers.image import L1, Downscaling, Holes, RestorationTask, SavedTokenizer, TaughtVectors
from trainers.run.bases import read_config
from trainers.run.origin import Origin
from vqkit import MixtureQuantizer, Quantizer, Tokenizer

pytestmark = [*LIGHTNING_REMARKS, pytest.mark.filterwarnings("ignore:Found .* in eval mode")]


def mixture() -> Tokenizer:
    book = partial(Quantizer, "ema", dim=8, codebook_size=16)
    tokenizer = make_tokenizer(MixtureQuantizer(book, 2, dim=8, channel_dim=1))
    tokenizer.initialize([Images(16).images], samples=128)
    return tokenizer


# ------------------------------------------------------------------ degradations


def test_a_small_picture_has_its_size_again() -> None:
    images = Images(4).images[:3]
    found = Downscaling(4)(images)
    assert found.shape == images.shape and found.abs().max() <= 1
    assert torch.equal(Downscaling(4)(torch.full_like(images, 1.0)), torch.ones_like(images))
    small = F.interpolate(images, (4, 4), mode="bicubic", antialias=True).clamp(-1, 1)
    large = F.interpolate(small, (16, 16), mode="bicubic").clamp(-1, 1)
    # The small one is rounded to 8 bits, half a step of 2 / 255 at most; cubic weights of both axes add up to 1.25^2.
    assert (found - large).abs().max() <= 1.25**2 / 255 + 1e-6
    assert Downscaling(49)(torch.zeros(1, 3, 49, 98)).shape == (1, 3, 49, 98)  # of which 1 / 49 is less than 1 pixel
    with pytest.raises(ValueError, match="images have 16 x 16 pixels: expected multiples of 3"):
        Downscaling(3)(images)
    with pytest.raises(ValueError, match="factor=1: expected a whole number of at least 2"):
        Downscaling(1)


def test_holes_are_filled_with_the_mean_of_the_rest() -> None:
    images, holes = Images(4).images, Holes(0.25, 3, seed=2)
    lost = holes.eval().draw(images)
    found = holes(images)
    for picture, hole, filled in zip(images, lost[:, 0], found, strict=True):
        assert torch.equal(filled[:, ~hole], picture[:, ~hole])
        expected = picture[:, ~hole].double().mean(1, keepdim=True)
        # A sum of at most 256 numbers of at most 1 in float32.
        assert (filled[:, hole] - expected).abs().max() <= 256 * 2**-24
    whole = F.avg_pool2d(lost[:, :, :15, :15].float(), 3)
    assert ((whole == 0) | (whole == 1)).all() and lost.any() and not lost.all()


def test_holes_are_drawn_anew_in_training_and_are_the_same_outside_of_it() -> None:
    images, holes = Images(4).images, Holes(0.25, 2)
    first, second = holes.draw(images), holes.draw(images)
    assert not torch.equal(first, second) and len(first.flatten(1).unique(dim=0)) == 16
    # 16 pictures of 64 squares: five standard deviations.
    assert abs(float(first.float().mean()) - 0.25) < 5 * (0.25 * 0.75 / (16 * 64)) ** 0.5
    resumed = Holes(0.25, 2)
    resumed.load_state_dict({"calls": torch.tensor(1)})
    assert torch.equal(resumed.draw(images), second)
    holes.eval()
    assert torch.equal(holes.draw(images)[3:], holes.draw(images[3:])) and int(holes.calls) == 2
    for arguments, message in (
        ((0.0,), "share=0.0: expected a probability"),
        ((0.5, 0), "side=0: expected the pixels"),
        ((0.5, 1.5), "side=1.5: expected the pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            Holes(*arguments)


# ------------------------------------------------------------------ the task


def test_degraded_pictures_are_encoded_and_compared_with_the_originals() -> None:
    tokenizer, images = mixture(), Images(4).images[:4]
    task = RestorationTask(tokenizer, degradation=Downscaling(4), objectives=[L1()])
    seen = []
    tokenizer.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    make_trainer(max_steps=1, limit_val_batches=0).fit(task, datamodule=Images(4))
    degraded = Downscaling(4)(images)
    assert torch.equal(seen[-1], degraded)
    task.eval()
    metrics = task.metrics = task.new_metrics("test")
    task._measure({"image": images})
    again = task.new_metrics("test")
    output = tokenizer(degraded)
    again.update(images, output.reconstruction, output.quantizer.indices)
    assert metrics.compute() == again.compute()


def test_the_decoder_and_its_codes_stay_while_the_rest_learns_what_they_say() -> None:
    frozen = ["quantizer.books", "quantizer.project_out", "decoder"]
    tokenizer = mixture()
    task = RestorationTask(
        tokenizer, degradation=Holes(0.3, 4), objectives=[L1()], freeze=frozen, learning_rate=1e-2, warmup_steps=0
    )
    before = {name: everything_in(tokenizer.get_submodule(name)) for name in frozen}
    weights = {name: value.clone() for name, value in tokenizer.named_parameters()}
    make_trainer(max_steps=3).fit(task, datamodule=Images(4))
    for name in frozen:
        assert_equal(everything_in(tokenizer.get_submodule(name)), before[name])
    moved = {name for name, value in tokenizer.named_parameters() if not torch.equal(value, weights[name])}
    assert moved == {
        name for name in weights if name.startswith(("encoder", "quantizer.weight", "quantizer.project_in"))
    }


def test_maps_of_single_vectors_move_with_their_quantizer() -> None:
    tokenizer = make_tokenizer(Quantizer("ema", dim=8, codebook_size=16, codebook_dim=4, channel_dim=1))
    with pytest.raises(ValueError, match=r"quantizer\.project_out moves with quantizer; freeze quantizer"):
        make_image_task(tokenizer, freeze=["quantizer.project_out"])


# ------------------------------------------------------------------ the teacher


def test_taught_vectors_are_those_of_the_original(tmp_path) -> None:
    """0.25 mse(v, t) + mse(V V^T / P, T T^T / P), with no gradient to the teacher."""
    teacher, images = mixture().eval(), Images(4).images[:3].double()
    teacher.save_pretrained(tmp_path)
    objective = TaughtVectors(str(tmp_path))
    vectors = torch.randn(3, 8, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    wanted = teacher(images.float()).quantizer.quantized.double().detach()
    grams = [torch.einsum("bchw,bdhw->bcd", one, one) / 16 for one in (vectors, wanted)]
    expected = 0.25 * (vectors - wanted).square().mean() + (grams[0] - grams[1]).square().mean()
    torch.testing.assert_close(objective(images, vectors), expected, rtol=1e-12, atol=0)
    found, own = (torch.autograd.grad(loss, vectors)[0] for loss in (objective(images, vectors), expected))
    torch.testing.assert_close(found, own, rtol=1e-9, atol=1e-12)
    assert objective(images, wanted) == 0 and not list(objective.parameters()) and not objective.state_dict()
    with pytest.raises(ValueError, match=r"quantized vectors have shape \(3, 8, 2, 2\): expected \(3, 8, 4, 4\)"):
        objective(images, vectors[..., :2, :2])
    with pytest.raises(ValueError, match="share=-1: expected a factor"):
        TaughtVectors(str(tmp_path), share=-1)
    with pytest.raises(ValueError, match="teacher='nowhere': expected the folder of a saved tokenizer, such as"):
        SavedTokenizer("nowhere")


# ------------------------------------------------------------------ the stages


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Stage 1 of each category, joined, and stage 2: two steps of each configuration at a small size."""
    folder = tmp_path_factory.mktemp("runs")
    draw_pictures(folder / "pictures", 6)
    return folder


def fit(runs: Path, name: str, config: str, **options: str) -> None:
    small = shrunk(read_config(CONFIGS[f"image/{config}"]), channels=32)
    file = runs / f"{name}.yaml"
    file.write_text(yaml.safe_dump(small).replace("runs/adacode-mixture", str(runs / "adacode-mixture")))
    settings = SMALL | SMALL_DATA["image"] | {"trainer.fast_dev_run": False, "trainer.max_steps": 2}
    settings |= {"runs": runs, "name": name, "data.root": runs / "pictures", **options}
    run_command("fit", config=file, **settings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*initialize got")
def test_three_stages_one_after_another(runs, quiet, monkeypatch) -> None:
    for number in range(3):
        fit(runs, f"book{number}", "adacode_book")
    config = shrunk(read_config(CONFIGS["image/adacode_mixture"]), channels=32)
    monkeypatch.setattr(adacode, "read_config", lambda _: config)
    stages = [adacode.of_run(runs / f"book{number}") for number in range(3)]
    adacode.joined(stages).save_pretrained(runs / "joined")
    fit(runs, "adacode-mixture", "adacode_mixture", init_from=runs / "joined")
    mixed = adacode.of_run(runs / "adacode-mixture")
    for book, stage in zip(mixed.quantizer.books, stages, strict=True):
        assert torch.equal(book.codebook(), stage.quantizer.books[0].codebook())
    for name in ("superresolution", "inpainting"):
        fit(runs, name, f"adacode_{name}", init_from=runs / "adacode-mixture")
        restored = adacode.of_run(runs / name)
        assert_equal(everything_in(restored.decoder), everything_in(mixed.decoder))
        assert Origin.of(str(runs / name)).description()["class_path"] == "vqkit.Tokenizer"
