"""Recipes of published tokenizers: what their heads say, their sizes, and one step of each at full size."""

import re
import subprocess
import sys
from pathlib import Path

import publish
import pytest
import recipes
import sound_recipes

from tests.recipes.counts import collected

ROOT = Path(__file__).resolve().parents[2]
RECIPES = recipes.recipes()
SOUND = sound_recipes.sound_recipes()
ALL = RECIPES | SOUND
MEASURED = r"(rFID|UTMOS|MOS|PESQ|STOI|ViSQOL|MUSHRA|SI-SDR|WER) \d|not stated"
BYTES_PER_PARAMETER = 20
"""Weights, gradients, two moments and averaged weights, in float32."""
ACTIVATIONS = 6 * 2**30
"""Bytes that a step of one image of 256 pixels is allowed for before it is tried."""


@pytest.mark.parametrize("recipe", ALL.values(), ids=ALL)
def test_the_head_says_whose_it_is_what_is_published_and_what_differs(recipe) -> None:
    assert list(recipe.head) == ["", *recipes.SECTIONS] and all(recipe.head.values())
    assert re.search(r"arXiv:\d{4}\.\d{4,5}\b", recipe.head["Source"]), "a paper"
    assert re.search(MEASURED, recipe.head["Published"]), "a figure, or that there is none"
    assert recipe.config["name"] == recipe.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights", "unit"),
    [
        ("vqgan_f16_16384", {"commitment": 1.0, "codebook": 0.25}, False),
        ("vqgan_f16_1024", {"commitment": 1.0, "codebook": 0.25}, False),
        ("llamagen_vq16", {"commitment": 0.25, "codebook": 1.0}, True),
        ("fvq", {"commitment": 0.25, "codebook": 1.0}, False),
        ("cvq", {"commitment": 0.25, "codebook": 1.0}, False),
        ("vqgan_lc", {"commitment": 0.1, "codebook": 0.033}, False),
        ("ibq_16384", {"commitment": 1.0, "codebook": 0.25, "double_quantization": 1.0, "entropy": 0.05}, False),
    ],
)
def test_a_base_leaves_no_losses_behind(name, weights, unit) -> None:
    quantizer = RECIPES[name].tokenizer.quantizer
    assert {loss.name: loss.weight for loss in quantizer.losses} == weights
    assert quantizer.normalize == unit


@pytest.mark.slow
def test_every_recipe_is_counted() -> None:
    assert ALL.keys() <= collected("COUNTS").keys() and collected("STATED").keys() <= ALL.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_parts_have_the_parameters_of_the_published_model(name) -> None:
    found, stated = ALL[name].parameters(), collected("STATED").get(name)
    assert found == collected("COUNTS")[name]
    tokenizer = sum(number for part, number in found.items() if part != "discriminators")
    assert stated is None or round(tokenizer / 1e6) == stated


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sample_rate", "kbps"),
    [
        ("dac_16khz", 16000, 6.0),
        ("dac_24khz", 24000, 24.0),
        ("dac_44khz", 44100, 9 * 10 * 44.1 / 512),  # levels, bits, samples a millisecond and samples of a frame
        ("snac_24khz", 24000, 7 * 12 * 24 / 2048),  # 1 + 2 + 4 indices in 2048 samples
    ],
)
def test_codecs_have_the_published_rates(name, sample_rate, kbps) -> None:
    codec = SOUND[name].tokenizer
    assert codec.sample_rate == sample_rate and codec.kbps == pytest.approx(kbps)


@pytest.mark.slow
def test_frozen_parts_have_neither_gradients_nor_moments() -> None:
    recipe = RECIPES["titok_l32_stage2"]
    counts = recipe.parameters()
    trained, frozen = counts["decoder"], counts["encoder"] + counts["quantizer"]
    assert recipe.state_bytes() == 4 * (5 * trained + 2 * frozen + 4 * counts["discriminators"])


@pytest.mark.slow
def test_the_table_is_that_of_the_configurations() -> None:
    text = publish.RECIPES.read_text()
    assert "<!-- table recipes -->" in text and "<!-- table sound-recipes -->" in text
    assert publish.rendered(text) == text


@pytest.mark.long
@pytest.mark.parametrize("name", RECIPES)
def test_one_step_at_full_size(name, record_property) -> None:
    needed = BYTES_PER_PARAMETER * sum(RECIPES[name].parameters().values()) + ACTIVATIONS
    free = int(re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) * 1024
    if free < needed:
        pytest.skip(f"{free / 2**30:.1f} GiB are free: a step is given {needed / 2**30:.1f} GiB")
    command = [sys.executable, str(ROOT / "scripts/recipes.py"), "--step", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    peak = re.search(r"^(\d+) MiB$", done.stdout, re.MULTILINE)[1]
    record_property("peak_mib", int(peak))
    print(f"{name}: {peak} MiB at the most, a batch of one in float32")
    assert int(peak) * 2**20 > 4 * sum(RECIPES[name].parameters().values()), "the weights alone"
