"""Measures by frozen networks: against torchmetrics, scipy and the formulas; on ranks, in records, and of bad input."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from scipy.linalg import sqrtm
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore as TorchmetricsInceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from tests.trainers.conftest import ROOT, examples_of
from tests.trainers.tiny import make_frozen
from trainers.image import FeatureMeasure, FrechetDistance, ImageMeasure, InceptionScore, KernelDistance
from trainers.image.metrics import ImageMetrics, protocol
from vqkit.precision import WITHOUT_FLOAT64

SINGULAR = pytest.mark.filterwarnings("ignore:frechet_distance of .* the covariance is singular")


class Given(torch.nn.Module):
    """Features as they are, for torchmetrics."""

    num_features = 6

    def forward(self, rows: Tensor) -> Tensor:
        return rows


def rows(count: int, dim: int = 6, *, seed: int = 0, scale: float = 1.0) -> Tensor:
    """float32 features, correlated, with a mean far from 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator)
    return scale * torch.randn(count, dim, generator=generator) @ mixing + 3


def halves_of(count: int) -> Tensor:
    return torch.arange(count) % 2


def measured(statistic, originals: Tensor, copies: Tensor, *, batch: int = 7) -> dict[str, float]:
    statistic.reset(originals.shape[1], torch.device("cpu"))
    halves = halves_of(len(originals))
    for start in range(0, len(originals), batch):
        some = slice(start, start + batch)
        statistic.update(originals[some], copies[some], halves[some])
    return statistic.compute()


def frechet_by_scipy(first: Tensor, second: Tensor) -> float:
    """The formula of the paper, with the root of the product that is not symmetric."""
    first, second = first.double(), second.double()
    root = torch.from_numpy(sqrtm((first.T.cov() @ second.T.cov()).numpy()).real)
    traces = first.T.cov().trace() + second.T.cov().trace()
    return float((first.mean(0) - second.mean(0)).square().sum() + traces - 2 * root.trace())


def mmd_by_pairs(first: Tensor, second: Tensor) -> float:
    """Gretton's estimate, pair by pair."""

    def mean(one: Tensor, other: Tensor, *, same: bool) -> float:
        pairs = [
            (float(a @ b) / len(a) + 1) ** 3
            for i, a in enumerate(one.double())
            for j, b in enumerate(other.double())
            if not (same and i == j)
        ]
        return sum(pairs) / len(pairs)

    return mean(first, first, same=True) + mean(second, second, same=True) - 2 * mean(first, second, same=False)


# ------------------------------------------------------------------ statistics of features


def test_frechet_distance_is_that_of_torchmetrics_and_scipy() -> None:
    originals, copies = rows(60), rows(60, seed=1, scale=0.7)
    found = measured(FrechetDistance(), originals, copies)
    reference = FrechetInceptionDistance(Given(), normalize=True, input_img_size=(6,)).set_dtype(torch.float64)
    reference.update(originals, real=True)
    reference.update(copies, real=False)
    # Traces of covariances, as differences of sums of 60 products each; then decompositions of 6 dimensions.
    allowed = 60 * 6 * 2.0**-52 * float(torch.cat([originals, copies]).square().sum(1).mean())
    assert found["frechet_distance"] == pytest.approx(frechet_by_scipy(originals, copies), abs=allowed)
    assert found["frechet_distance"] == pytest.approx(float(reference.compute()), rel=2.0**-24)  # float32
    assert found["frechet_halves"] == pytest.approx(frechet_by_scipy(originals[::2], originals[1::2]), abs=allowed)


BUFFERS = pytest.mark.filterwarnings("ignore:Metric `.*` will save all extracted features")


@BUFFERS
@pytest.mark.filterwarnings("ignore:std\\(\\). degrees of freedom")
def test_inception_score_is_that_of_torchmetrics_in_one_split() -> None:
    originals, copies = rows(40, 10), rows(40, 10, seed=1, scale=0.3)
    with pytest.raises(TypeError, match="layer"):  # by default the features of `avgpool` would pass for logits
        InceptionScore()
    found = measured(InceptionScore(layer=None), originals, copies)
    for logits, name in ((copies, "inception_score"), (originals, "inception_score_originals")):
        reference = TorchmetricsInceptionScore(Given(), splits=1).set_dtype(torch.float64)
        reference.update(logits.double())
        assert found[name] == pytest.approx(float(reference.compute()[0]), rel=1e-6)  # float32
        assert found[name] > 1.05


@BUFFERS
def test_kernel_distance_is_that_of_torchmetrics_and_of_the_pairs() -> None:
    originals, copies = rows(30), rows(30, seed=1, scale=0.7)
    found = measured(KernelDistance(), originals, copies)
    reference = KernelInceptionDistance(Given(), subsets=1, subset_size=30).set_dtype(torch.float64)
    reference.update(originals.double(), real=True)
    reference.update(copies.double(), real=False)
    largest = (float(originals.square().sum(1).max()) / 6 + 1) ** 3
    allowed = 30 * 6 * 2.0**-52 * largest
    assert found["kernel_distance"] == pytest.approx(mmd_by_pairs(originals, copies), abs=allowed)
    assert found["kernel_halves"] == pytest.approx(mmd_by_pairs(originals[::2], originals[1::2]), abs=allowed)
    # torchmetrics has the kernel in float32, hence each of its means of pairs.
    assert found["kernel_distance"] == pytest.approx(float(reference.compute()[0]), abs=4 * 2.0**-24 * largest)


def test_a_singular_covariance_is_said_and_measured() -> None:
    """Four images, six features: rank 3 at most, where a root of the product needs an epsilon."""
    originals, copies = rows(4), rows(4, seed=1)
    with pytest.warns(UserWarning, match=r"frechet_distance of 4 images with 6 features: the covariance is singular"):
        found = measured(statistic := FrechetDistance(), originals, copies)
    # Tr (S S')^(1/2) is the sum of singular values of X X'^T / (n - 1), of centred features X (n, D).
    x, y = ((features - features.mean(0)).double() for features in (originals, copies))
    x, y = x - x.mean(0), y - y.mean(0)
    shared = torch.linalg.svdvals(x @ y.T).sum()
    gap = originals.double().mean(0) - copies.double().mean(0)
    expected = float(gap.square().sum() + (x.square().sum() + y.square().sum() - 2 * shared) / 3)
    # What is 0 comes out of D^2 products as their rounding, of which the root is taken: D of them.
    size = float(x.square().sum() + y.square().sum())
    assert found["frechet_distance"] == pytest.approx(expected, abs=6 * size * (36 * 2.2e-16) ** 0.5)
    assert statistic.record("by their places")["covariance"] == "singular: 4 images, 6 features"
    assert statistic.record("by their places")["halves"] == [2, 2]
    found = measured(KernelDistance(), originals, copies)
    assert found["kernel_distance"] == pytest.approx(mmd_by_pairs(originals, copies))


@SINGULAR
@pytest.mark.parametrize("statistic", [FrechetDistance(), KernelDistance(), InceptionScore(layer=None)])
def test_too_few_images(statistic) -> None:
    with pytest.raises(ValueError, match=r"[a-z]+_[a-z]+ of 1 images: expected 2 or more"):
        measured(statistic, rows(1), rows(1, seed=1))
    assert not any(name.endswith("halves") for name in measured(statistic, rows(2), rows(2, seed=1)))  # of one each


@pytest.mark.parametrize("statistic", [FrechetDistance(), KernelDistance()])
def test_a_device_without_float64_sums_on_the_host(monkeypatch, statistic) -> None:
    originals, copies = rows(60), rows(60, seed=1)
    expected = measured(statistic, originals, copies)
    monkeypatch.setattr("trainers.image.measures.statistics.WAITING", 20)
    monkeypatch.setattr("vqkit.precision.WITHOUT_FLOAT64", WITHOUT_FLOAT64 | {"cpu"})
    assert measured(statistic, originals, copies) == expected


# ------------------------------------------------------------------ of images


def pictures(count: int, size: int = 16, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator) * 2 - 1


def make_measure() -> FeatureMeasure:
    return FeatureMeasure(make_frozen(layers=["5", "6"]), [FrechetDistance(), KernelDistance(layer="6")], name="tiny")


def figures_of(seeds, measures) -> dict[str, float]:
    metrics = ImageMetrics(8, measures=measures)
    for seed in seeds:
        originals, copies = pictures(5, seed=seed), pictures(5, seed=100 + seed)
        metrics.update(originals, copies, torch.zeros(5, 2, 2, dtype=torch.int64))
    return metrics.compute()


def figures_on_rank(rank: int, *shares: list[int]) -> dict[str, float]:
    return figures_of(shares[rank], [make_measure()])


@pytest.mark.parametrize("shares", [([0, 1, 2], [3]), ([0, 1, 2, 3], [])], ids=["uneven", "nothing"])
def test_ranks_give_the_figures_of_one_process(shares, rank_pair) -> None:
    expected = figures_of([2, 0, 3, 1], [make_measure()])
    assert {"tiny_frechet_distance", "tiny_frechet_halves", "tiny_kernel_halves"} <= expected.keys()
    for figures in rank_pair(figures_on_rank, *shares):
        assert figures == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_features_are_those_of_the_images_on_the_grid() -> None:
    measure = make_measure()
    metrics = ImageMetrics(8, measures=[measure])
    originals, copies = pictures(40), 1.5 * pictures(40, seed=1)
    copies[3, 0, 0, 0] = math.nan
    metrics.update(originals, copies, torch.zeros(40, 2, 2, dtype=torch.int64))
    figures = metrics.compute()
    network = make_frozen(layers=["5"])
    seen = [(images.nan_to_num().clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1 for images in (originals, copies)]
    with torch.no_grad():
        first, second = (network(images)[0] for images in seen)
    assert figures["tiny_frechet_distance"] == pytest.approx(frechet_by_scipy(first, second), rel=1e-4)
    assert figures["not_finite"] == 1
    record = protocol(figures, measures=[measure])["measures"]["tiny"]
    assert record["weights"] == "random numbers" and record["resize"] == "BilinearResize(16, antialias=True)"
    assert record["frechet_distance"]["originals"] == record["frechet_distance"]["reconstructions"] == 40
    halves = record["kernel_distance"]["halves"]
    assert sum(halves) == 40 and min(halves) > 5


@pytest.mark.parametrize(
    "source", ["image_measures", *(ROOT / "configs/measures").glob("*.yaml")], ids=lambda source: Path(source).name
)
def test_examples_and_overlays_are_parsed(source) -> None:
    blocks = [source.read_text()] if isinstance(source, Path) else examples_of(source)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--test_measures", type=list[ImageMeasure])
    for block in blocks:
        config = yaml.safe_load(block)
        arguments = config.get("model.init_args") or config["model"]["init_args"]
        for measure in parser.parse_object(arguments).test_measures:
            assert measure.class_path.startswith("trainers.image.")
