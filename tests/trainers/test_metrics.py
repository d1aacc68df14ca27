"""What holds for the metrics of images and of recordings alike."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from trainers.audio import metrics as audio
from trainers.core.metrics import TokenizerMetrics
from trainers.image import metrics as image
from vqkit.bitstream.codec import TokenCodec
from vqkit.bitstream.container import Picture, Sound


@dataclass(frozen=True)
class Kind:
    """A kind of metrics.

    Attributes:
        make: metrics of codebooks of such sizes.
        shape: of a batch.
        tokens: shape of its indices.
        counted: the figure that counts what was measured.
        words: of the error where there was nothing.
    """

    make: Callable[..., TokenizerMetrics]
    shape: tuple[int, ...]
    tokens: tuple[int, ...]
    counted: str
    words: str

    def batch(self, count: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Originals, copies with noise, and indices."""
        generator = torch.Generator().manual_seed(seed)
        originals = torch.rand(count, *self.shape, generator=generator) - 0.5
        copies = originals + 0.2 * torch.randn(originals.shape, generator=generator)
        return originals, copies, torch.randint(64, (count, *self.tokens), generator=generator)


def audio_metrics(sizes: int | tuple[int, ...] = 64) -> audio.AudioMetrics:
    measures = ("si_sdr", "mel_distance", "stoi")
    return audio.AudioMetrics(sizes, sample_rate=16000, frame_rate=50.0, measures=measures)


def image_metrics(sizes: int | tuple[int, ...] = 64) -> image.ImageMetrics:
    return image.ImageMetrics(sizes)


IMAGES = Kind(image_metrics, (3, 32, 32), (4, 4), "images", "no images were measured")
RECORDINGS = Kind(audio_metrics, (1, 4000), (8,), "utterances", "no utterances were measured")
each = pytest.mark.parametrize("kind", [IMAGES, RECORDINGS], ids=lambda kind: kind.counted)


def measure_on_rank(rank: int, kind: Kind) -> dict[str, float]:
    metrics = kind.make()
    for seed in ([0, 1], [2])[rank]:
        add(metrics, kind.batch(1, seed))
    return metrics.compute()


def add(metrics: TokenizerMetrics, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    metrics.update(*batch)
    metrics.add_coded(TokenCodec([64], fingerprint=bytes(16)), batch[0], batch[2])


@each
def test_ranks_give_the_figures_of_one_process(kind, rank_pair):
    metrics = kind.make()
    for seed in range(3):
        add(metrics, kind.batch(1, seed))
    for figures in rank_pair(measure_on_rank, kind):
        assert figures == pytest.approx(metrics.compute(), rel=1e-6)


@each
def test_half_precision_is_measured_in_float32(kind):
    originals, copies, indices = kind.batch()
    metrics, reference = kind.make(), kind.make()
    with torch.autocast("cpu", torch.bfloat16):
        metrics.update(originals, copies.bfloat16(), indices)
    reference.update(originals, copies.bfloat16().float(), indices)
    assert metrics.compute() == reference.compute()


@each
def test_nothing_to_measure_is_said(kind):
    with pytest.raises(ValueError, match=kind.words):
        kind.make().compute()


@each
def test_shapes_must_agree(kind):
    originals, copies, indices = kind.batch()
    with pytest.raises(ValueError, match=r"reconstructions have shape .*: expected "):
        kind.make().update(originals, copies[..., 1:], indices)


@each
def test_more_codes_than_can_be_counted_still_have_a_rate(kind):
    originals, copies, indices = kind.batch()
    metrics = kind.make((2**36, 2**34))
    metrics.update(originals, copies, torch.stack([indices, 2**33 + indices], dim=-1))
    rate, per_second = ("bpp", 16 / 1024) if kind is IMAGES else ("kbps", 50 / 1000)
    assert metrics.compute()[rate] == pytest.approx((36 + 34) * per_second)
    assert "perplexity" not in metrics.compute() and metrics.per_level() == {}


@each
def test_use_of_the_codebooks_is_that_of_the_whole_set(kind):
    originals, copies, _ = kind.batch()
    metrics = kind.make((64, 8))
    first = torch.arange(2 * math.prod(kind.tokens)).reshape(2, *kind.tokens)  # each once
    metrics.update(originals, copies, torch.stack([first, torch.zeros_like(first)], dim=-1))
    figures, count = metrics.compute(), first.numel()
    assert metrics.per_level()["usage_per_level"] == [count / 64, 1 / 8]
    assert figures["codebook_usage"] == pytest.approx((count / 64 + 1 / 8) / 2)
    assert figures["perplexity"] == pytest.approx((count + 1) / 2) and figures["dead_codes"] == 64 - count + 7
    assert figures[kind.counted] == 2 and not {"usage", "dead", "tokens"} & figures.keys()


@each
def test_what_was_coded_is_counted_file_by_file(kind):
    originals, copies, indices = kind.batch()
    metrics, codec = kind.make(), TokenCodec([64], fingerprint=bytes(16))
    metrics.update(originals, copies, indices)
    assert not {"coded_bpp", "coded_kbps"} & metrics.compute().keys()
    metrics.add_coded(codec, originals, indices)
    extent, rate, amount = {
        "images": (Picture(32, 32), "coded_bpp", 2 * 32 * 32),
        "utterances": (Sound(4000, 16000), "coded_kbps", 2 * 4000 / 16),
    }[kind.counted]
    files = [codec.pack(sample[None], extent=extent).content for sample in indices]
    assert metrics.compute()[rate] == pytest.approx(8 * sum(map(len, files)) / amount)
