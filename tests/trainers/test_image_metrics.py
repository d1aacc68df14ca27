"""Image metrics against definitions written down a second time, and their protocol."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure, StructuralSimilarityIndexMeasure

from tests.trainers.tiny import LIGHTNING_REMARKS, Images, make_image_task, make_tokenizer, make_trainer
from trainers.image.metrics import ImageMetrics, protocol, psnr, to_uint8_grid
from vqkit import MultiScaleQuantizer, Quantizer
from vqkit.saving.files import write_json

pytestmark = LIGHTNING_REMARKS


def pictures(count, size, *, noise, seed=0):
    """Originals on the uint8 grid in [-1, 1], and copies with noise of the given strength (which leaves the range)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    original = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    original = (original * 255).round() / 255 * 2 - 1
    return original, original + noise * torch.randn(original.shape, generator=generator)


def test_psnr_is_per_image_clipped_and_on_the_grid():
    original, copy = pictures(4, 32, noise=0.4)
    expected = []
    for x, y in zip(original.numpy(), copy.numpy(), strict=True):
        x, y = (np.round((np.clip(image, -1, 1) + 1) / 2 * 255).astype(np.uint8).astype(float) for image in (x, y))
        expected.append(10 * np.log10(255**2 / np.mean((x - y) ** 2)))
    assert psnr(to_uint8_grid(original), to_uint8_grid(copy)).tolist() == pytest.approx(expected, abs=1e-4)


def test_values_out_of_range_are_clipped_not_wrapped():
    assert to_uint8_grid(torch.tensor([-1.01, -1.0, 0.0, 1.0, 1.02])).tolist() == [0, 0, 128, 255, 255]


def test_psnr_is_averaged_over_images_not_over_errors():
    """One good and one bad image: the mean of two PSNR, not the PSNR of the mean error; equal images count 100 dB."""
    original, _ = pictures(3, 32, noise=0)
    copy = original.clone()
    copy[0] += 2 / 255
    copy[1] -= 0.5
    metrics = ImageMetrics(8)
    metrics.update(original[:1], copy[:1], torch.zeros(1, 2, 2, dtype=torch.int64))
    metrics.update(original[1:], copy[1:], torch.zeros(2, 2, 2, dtype=torch.int64))
    each = psnr(to_uint8_grid(original), to_uint8_grid(copy))
    assert each[2] == 100
    assert metrics.compute()["psnr"] == pytest.approx(float(each.mean()), rel=1e-6)


def test_ssim_and_ms_ssim_are_those_of_torchmetrics():
    original, copy = pictures(3, 176, noise=0.2)
    metrics = ImageMetrics(8)
    for part in (slice(0, 2), slice(2, 3)):  # batches of unequal size
        metrics.update(original[part], copy[part], torch.zeros(len(original[part]), 2, 2, dtype=torch.int64))
    figures = metrics.compute()
    pair = to_uint8_grid(copy), to_uint8_grid(original)
    assert figures["ssim"] == pytest.approx(float(StructuralSimilarityIndexMeasure(data_range=255.0)(*pair)), abs=1e-5)
    expected = MultiScaleStructuralSimilarityIndexMeasure(data_range=255.0)(*pair)
    assert figures["ms_ssim"] == pytest.approx(float(expected), abs=1e-5)
    assert figures["ssim"] < 0.9


def test_small_images_give_words_instead_of_ms_ssim():
    metrics = ImageMetrics(8)
    for size in (176, 160):
        original, copy = pictures(1, size, noise=0.1)
        metrics.update(original, copy, torch.zeros(1, 2, 2, dtype=torch.int64))
    figures = metrics.compute()
    assert "ms_ssim" not in figures
    assert "at least 161 pixels" in protocol(figures)["ms_ssim"]


def test_rate():
    original, copy = pictures(2, 16, noise=0.1)
    metrics = ImageMetrics(1024)
    metrics.update(original, copy, torch.arange(32).reshape(2, 4, 4))
    figures = metrics.compute()
    assert figures["bpp"] == pytest.approx(10 / 16)
    assert figures["tokens_per_image"] == 16
    assert figures["entropy_bpp"] == pytest.approx(math.log2(32) / 16)
    assert figures["codebook_usage"] == 32 / 1024


def test_rate_of_scales_of_other_sizes():
    """One token of 1 bit, 4 of 2 and 16 of 4: as the task tells the metrics of a multi-scale quantizer."""
    stage = partial(Quantizer, "vq", dim=4, codebook_size=16)
    quantizer = MultiScaleQuantizer(stage, [1, 2, 4], level_sizes=[2, 4, 16], channel_dim=1)
    original, copy = pictures(2, 16, noise=0.1)
    metrics = ImageMetrics(quantizer.level_sizes)
    metrics.update(original, copy, quantizer.by_level(quantizer.encode(torch.randn(2, 4, 4, 4))))
    figures = metrics.compute()
    assert figures["bpp"] == pytest.approx((1 * 1 + 4 * 2 + 16 * 4) / 256)
    assert figures["tokens_per_image"] == 21


def test_rate_of_levels_of_other_sizes():
    """A masked token costs nothing, and each level its own bits."""
    original, copy = pictures(2, 16, noise=0.1)
    indices = torch.stack([torch.arange(32).reshape(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)], dim=-1)
    indices[0, 0, 0, 1] = -1
    metrics = ImageMetrics((64, 8))
    metrics.update(original, copy, indices)
    figures = metrics.compute()
    assert figures["bpp"] == pytest.approx((32 * 6 + 31 * 3) / 512)
    assert figures["tokens_per_image"] == 31.5
    assert metrics.per_level()["usage_per_level"] == [0.5, 1 / 8]


def test_scales_that_share_a_codebook_are_one_in_the_test_report(tmp_path):
    task, data = make_image_task(), Images(8)
    size = task.tokenizer.encode(data.images).shape[-1]
    quantizer = MultiScaleQuantizer(
        partial(Quantizer, "vq", dim=8, codebook_size=64), [1, 2, size], num_phis=0, losses=[], channel_dim=1
    )
    task = make_image_task(make_tokenizer(quantizer))
    make_trainer(default_root_dir=tmp_path).test(task, data, verbose=False)
    record = json.loads((tmp_path / "metrics.json").read_text())
    used = len(task.tokenizer.encode(data.images).unique())
    assert record["dead_codes"] == 64 - used and record["codebook_usage"] == used / 64
    assert len(record["dead_per_level"]) == 3 and "any of its scales" in record["protocol"]["codebook_usage"]


def test_protocol_names_what_makes_figures_comparable():
    original, copy = pictures(2, 32, noise=0.1)
    metrics = ImageMetrics(8)
    metrics.update(original, copy, torch.zeros(2, 2, 2, dtype=torch.int64))
    record = protocol(metrics.compute(), split="validation", preprocessing="centre square")
    assert record["images"] == 2
    assert record["split"] == "validation"
    assert {"range", "psnr", "ssim", "bpp", "codebook_usage", "versions"} <= record.keys()
    assert record["versions"]["torch"].startswith(torch.__version__.partition("+")[0])


def test_a_record_is_replaced_whole(tmp_path):
    path = tmp_path / "run" / "metrics.json"
    write_json(path, {"psnr": 1.0})
    with pytest.raises(TypeError):
        write_json(path, {"psnr": object()})
    assert json.loads(path.read_text()) == {"psnr": 1.0}
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"]
