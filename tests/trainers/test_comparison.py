"""The baselines beside which a tokenizer is judged: they must be as good as they can be, or the comparison flatters."""

import io
import json

import pytest
import torch
from PIL import Image

from tests.trainers.tiny import make_tokenizer
from trainers.image.baselines import OPTIONS, PatchKMeans, draw_patches, image_files
from trainers.image.comparison import compare, draw, load_photographs, table
from vqkit.bitstream.codec import TokenCodec
from vqkit.bitstream.container import Picture


def photograph(seed: int, height: int = 64, width: int = 80) -> torch.Tensor:
    """Smooth noise with an edge, on the uint8 grid."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=generator) * 255
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    image[:, :, width // 2 :] = 255 - image[:, :, width // 2 :]
    return image.clamp(0, 255).round()


def test_patches_come_from_everywhere_and_are_patches_of_the_images() -> None:
    numbers = torch.arange(3 * 20 * 30, dtype=torch.float32).reshape(3, 20, 30)
    patches = draw_patches([numbers], 500, 4, torch.Generator().manual_seed(0))
    assert patches.shape == (500, 48)
    corners = patches[:, 0].long()
    rows, columns = corners // 30, corners % 30
    assert {int(rows.min()), int(rows.max())} == {0, 16} and {int(columns.min()), int(columns.max())} == {0, 26}
    for patch, row, column in zip(patches[:20], rows, columns, strict=False):
        assert torch.equal(patch.reshape(3, 4, 4), numbers[:, row : row + 4, column : column + 4])


def test_images_made_of_k_patches_are_coded_without_error() -> None:
    alphabet = torch.randint(0, 256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(1)).float()
    chosen = torch.randint(0, 6, (8, 8), generator=torch.Generator().manual_seed(2))
    image = alphabet[chosen].permute(2, 0, 3, 1, 4).reshape(3, 32, 32)
    aligned = [alphabet[k] for k in range(6)]  # one patch each: every drawn patch is aligned
    baseline = PatchKMeans(aligned, 6, patch_size=4, num_patches=600)
    assert torch.equal(baseline.decode(baseline.encode(image)), image)


def test_more_codes_and_more_rounds_do_not_make_it_worse() -> None:
    images = [photograph(seed) for seed in range(3)]

    def error(codes: int, rounds: int) -> float:
        baseline = PatchKMeans(images, codes, patch_size=4, num_patches=4000, iterations=rounds)
        return sum(float((baseline.decode(baseline.encode(image)) - image).square().mean()) for image in images)

    assert error(64, 20) < error(16, 20) < error(4, 20)
    assert error(16, 20) < error(16, 0)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "AVIF"])
def test_the_quality_is_the_one_nearest_to_the_rate(file_format: str) -> None:
    images = [photograph(seed, 128, 160) for seed in range(2)]
    decoded, rate, quality = image_files(images, 1.2, file_format)

    def measured(setting: int) -> float:
        rates = []
        for image in images:
            buffer = io.BytesIO()
            picture = Image.fromarray(image.permute(1, 2, 0).byte().numpy())
            picture.save(buffer, format=file_format, quality=setting, **OPTIONS[file_format])
            rates.append(8 * len(buffer.getvalue()) / (128 * 160))
        return sum(rates) / 2

    assert rate == measured(quality)
    assert all(abs(rate - 1.2) <= abs(measured(near) - 1.2) for near in (quality - 1, quality + 1))
    assert [image.shape for image in decoded] == [image.shape for image in images]


@pytest.mark.slow
def test_a_whole_comparison(tmp_path) -> None:
    tokenizer = make_tokenizer().eval()
    originals = [photograph(seed) for seed in range(4)]
    comparison = compare(tokenizer, originals, [photograph(9)], kmeans_patches=800)
    formats = {"jpeg": "bpp", "jpeg_coded": "coded_bpp", "webp": "bpp", "webp_coded": "coded_bpp"}
    assert {"patch_kmeans", "avif", "avif_coded", *formats} == set(comparison.baselines)
    for name, wanted in formats.items():
        decoded, rate, _ = image_files(originals, comparison.figures[wanted], name.partition("_")[0].upper())
        assert comparison.baselines[name]["bpp"] == rate
        assert all(map(torch.equal, comparison.reconstructions[name], decoded))
    files = [
        TokenCodec.of(tokenizer).pack(tokenizer.encode(image[None] / 127.5 - 1), extent=Picture(64, 80))
        for image in originals
    ]
    assert comparison.figures["coded_bpp"] == 8 * sum(len(file.content) for file in files) / (4 * 64 * 80)
    assert comparison.baselines["patch_kmeans"]["coded_bpp"] > 0
    assert comparison.baselines["patch_kmeans"]["bpp"] == comparison.figures["bpp"] == 4 / 16
    assert int(comparison.counts.sum()) == 4 * (64 // 4) * (80 // 4)
    json.dumps({"figures": comparison.figures, "baselines": comparison.baselines})
    draw(comparison, tokenizer, tmp_path)
    for name in ("reconstructions.png", "codebook.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300
    lines = table(comparison.figures, comparison.baselines).splitlines()
    assert len(lines) == 9 and f"{comparison.figures['psnr']:.2f} dB" in lines[1]


def test_photographs_are_cropped_to_a_multiple_and_an_empty_folder_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="holds no photographs"):
        load_photographs(tmp_path, 4)
    (tmp_path / "notes.txt").write_text("not a photograph")
    Image.new("RGB", (30, 21), (10, 20, 30)).save(tmp_path / "one.png")
    (image,) = load_photographs(tmp_path, 4)
    assert image.shape == (3, 20, 28) and image[:, 0, 0].tolist() == [10, 20, 30]
