"""Image metrics against definitions written down a second time, and their protocol."""

import json
import math

import numpy as np
import pytest
import torch
from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure, StructuralSimilarityIndexMeasure

from trainers.image.metrics import ImageMetrics, protocol, psnr, to_uint8_grid
from vqkit.saving.files import write_json


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


def test_rate_of_levels():
    original, copy = pictures(2, 16, noise=0.1)
    indices = torch.stack([torch.arange(32).reshape(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)], dim=-1)
    metrics = ImageMetrics((64, 64))
    metrics.update(original, copy, indices)
    figures = metrics.compute()
    assert figures["bpp"] == pytest.approx(2 * 6 / 16)
    assert figures["tokens_per_image"] == 32
    assert figures["entropy_bpp"] == pytest.approx(5 / 16)
    assert metrics.per_level()["usage_per_level"] == [0.5, 1 / 64]


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


def measure_on_rank(rank):
    original, copy = pictures(3, 16, noise=0.2)
    metrics = ImageMetrics(64)
    for image in ([0, 1], [2])[rank]:
        metrics.update(original[image : image + 1], copy[image : image + 1], torch.full((1, 4, 4), image))
    return metrics.compute()


def test_ranks_give_the_figures_of_one_process(rank_pair):
    original, copy = pictures(3, 16, noise=0.2)
    metrics = ImageMetrics(64)
    metrics.update(original, copy, torch.arange(3)[:, None, None].expand(3, 4, 4))
    for figures in rank_pair(measure_on_rank):
        assert figures == pytest.approx(metrics.compute(), rel=1e-6)


def test_half_precision_is_measured_in_float32():
    original, copy = pictures(2, 32, noise=0.2)
    copy = copy.bfloat16()
    indices = torch.zeros(2, 2, 2, dtype=torch.int64)
    metrics, reference = ImageMetrics(8), ImageMetrics(8)
    with torch.autocast("cpu", torch.bfloat16):
        metrics.update(original, copy, indices)
    reference.update(original, copy.float(), indices)
    assert metrics.compute() == reference.compute()


def test_nothing_to_measure_is_said():
    with pytest.raises(ValueError, match="no images were measured"):
        ImageMetrics(8).compute()


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\): expected \(1, 3, 32, 32\)"):
        ImageMetrics(8).update(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 16, 16), torch.zeros(1, 2, 2).long())


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


def test_more_codes_than_can_be_counted_still_have_a_rate():
    metrics = ImageMetrics((2**36, 2**34))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    indices = torch.randint(2**34, (2, 8, 8, 2))
    indices[0, 0, 0, 1] = -1
    metrics.update(images, images, indices)
    figures = metrics.compute()
    assert figures["bpp"] == pytest.approx((128 * 36 + 127 * 34) / (2 * 32 * 32))
    assert figures["tokens_per_image"] == 255 / 2 and "perplexity" not in figures and metrics.per_level() == {}
