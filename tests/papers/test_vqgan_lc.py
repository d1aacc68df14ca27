"""VQGAN-LC against its equations (Zhu et al. 2024), in float64."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.papers.equations import assert_computes
from tests.refusals import refused
from vqkit import FeatureCodebook, Quantizer
from vqkit.saving.config import weights_follow

K, BASE_DIM, DIM = 20, 12, 5


@pytest.fixture
def path(tmp_path: Path) -> str:
    save_file({"vectors": torch.randn(K, BASE_DIM)}, tmp_path / "features.safetensors")
    return str(tmp_path / "features.safetensors")


def build(path: str, **options) -> Quantizer:
    codebook = partial(FeatureCodebook, base_path=path, base_dim=BASE_DIM, **options)
    return Quantizer("vqgan_lc", dim=DIM, codebook_size=K, codebook=codebook)


def test_values_losses_and_gradients(path: str) -> None:
    quantizer = build(path).double()

    def equations(z: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        codes = quantizer.codebook.base @ weights["codebook.projector.weight"].T + weights["codebook.projector.bias"]
        indices = torch.cdist(z.detach(), codes.detach()).argmin(1)
        chosen = codes[indices]
        loss = 1.0 * F.mse_loss(z, chosen.detach()) + 0.33 * F.mse_loss(chosen, z.detach())
        return z + (chosen - z).detach(), indices, loss

    output = assert_computes(equations, quantizer, torch.randn(30, DIM, dtype=torch.float64), atol=1e-14)
    assert torch.equal(output.quantized, quantizer.decode(output.indices))


def test_only_the_projector_learns_and_all_codes_move(path: str) -> None:
    quantizer = build(path)
    base, before = quantizer.codebook.base.clone(), quantizer.codebook().detach()
    assert {name for name, _ in quantizer.named_parameters()} == {
        "codebook.projector.weight",
        "codebook.projector.bias",
    }
    output = quantizer(torch.randn(2, DIM))
    output.loss.backward()
    torch.optim.SGD(quantizer.parameters(), lr=0.1).step()
    assert torch.equal(quantizer.codebook.base, base)
    assert len(output.indices.unique()) <= 2 < K
    assert ((quantizer.codebook() - before).abs().sum(1) > 0).all()


@pytest.mark.parametrize(("scale", "expected"), [("normal", 9.80), ("unit", 0.354)])
def test_published_start_has_the_scale_of_the_sheet(tmp_path: Path, scale: str, expected: float) -> None:
    """Projector weights N(0, 8^-1/2): sqrt(768 / 8) times the scale of the features, which happens to suit some."""
    features = torch.randn(2000, 768)
    features = features if scale == "normal" else F.normalize(features)
    save_file({"f": features}, tmp_path / "f.safetensors")
    codebook = FeatureCodebook(2000, 8, base_path=str(tmp_path / "f.safetensors"), base_dim=768)
    assert abs(float(codebook.projector.weight.detach().std()) - 8**-0.5) < 0.01
    assert abs(float(codebook().detach().std()) / expected - 1) < 0.1


def test_initialize_uses_most_codes_where_the_published_start_uses_few(tmp_path: Path) -> None:
    save_file({"f": torch.randn(512, 96)}, tmp_path / "f.safetensors")
    codebook = partial(FeatureCodebook, base_path=str(tmp_path / "f.safetensors"), base_dim=96)
    quantizer = Quantizer("vqgan_lc", dim=8, codebook_size=512, codebook=codebook)
    data = torch.randn(8192, 8) + 0.5
    used_before = len(quantizer.encode(data).unique())
    quantizer.initialize([data])
    assert used_before < 100 and len(quantizer.encode(data).unique()) > 450
    assert quantizer.health()["scale_ratio"] == pytest.approx(1, abs=0.01)


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    rows = rows.double()
    return rows.mean(0), rows.T.cov(correction=0)


@pytest.mark.parametrize(
    ("base_dim", "rank", "hidden_dim"), [(12, 12, None), (5, 5, None), (12, 6, None), (12, 12, 16), (3, 3, 64)]
)
def test_initialize_matches_mean_and_covariance(
    tmp_path: Path, base_dim: int, rank: int, hidden_dim: int | None
) -> None:
    """More features than code dimensions, as many, dependent ones, and two layers."""
    features = torch.randn(400, rank) @ torch.randn(rank, base_dim) + 3
    save_file({"f": features}, tmp_path / "f.safetensors")
    codebook = FeatureCodebook(
        400, DIM, base_path=str(tmp_path / "f.safetensors"), base_dim=base_dim, hidden_dim=hidden_dim
    )
    samples = torch.randn(3000, DIM) @ torch.randn(DIM, DIM) - 2
    codebook.initialize(samples, vectors_per_step=100, seed=0)
    (mean, covariance), (wanted_mean, wanted) = moments(codebook().detach()), moments(samples)
    torch.testing.assert_close(mean, wanted_mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(covariance, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
    assert (codebook.usage == 100 / 400).all() and torch.equal(codebook.base, features)


@pytest.mark.parametrize(("base_dim", "rank"), [(3, 3), (12, 3)])
def test_features_of_few_dimensions_get_the_leading_directions(tmp_path: Path, base_dim: int, rank: int) -> None:
    save_file({"f": torch.randn(400, rank) @ torch.randn(rank, base_dim)}, tmp_path / "f.safetensors")
    codebook = FeatureCodebook(400, DIM, base_path=str(tmp_path / "f.safetensors"), base_dim=base_dim)
    samples = torch.randn(3000, DIM) * torch.tensor([1.0, 4.0, 2.0, 3.0, 0.1])
    codebook.initialize(samples, vectors_per_step=100, seed=0)
    values, vectors = torch.linalg.eigh(moments(samples)[1])
    best = (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].T
    torch.testing.assert_close(moments(codebook().detach())[1], best, rtol=0, atol=1e-4)


def test_without_a_file_the_features_are_centres_of_the_data() -> None:
    quantizer = Quantizer("vqgan_lc", dim=4, codebook_size=8)
    centers = 100 * torch.randn(8, 4)
    quantizer.initialize([(centers.repeat(50, 1) + 0.1 * torch.randn(400, 4))])
    assert (torch.cdist(centers, quantizer.codebook.base).min(1).values < 1).all()


def test_two_layers_are_linear_relu_linear(path: str) -> None:
    codebook = build(path, hidden_dim=7).codebook
    first, first_bias, second, second_bias = codebook.projector.parameters()
    assert first.shape == (7, BASE_DIM) and second.shape == (DIM, 7)
    expected = (codebook.base @ first.T + first_bias).clamp(min=0) @ second.T + second_bias
    torch.testing.assert_close(codebook(), expected)


def test_the_file_is_not_needed_to_load_a_saved_quantizer(path: str, tmp_path: Path) -> None:
    quantizer = build(path, hidden_dim=7)
    quantizer.save_pretrained(tmp_path / "saved")
    Path(path).unlink()
    with pytest.raises(FileNotFoundError, match="there is no such file; scripts/build_codebook"):
        build(path)
    loaded = Quantizer.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.codebook(), quantizer.codebook())
    assert torch.equal(loaded.codebook.base, quantizer.codebook.base)
    with pytest.raises(FileNotFoundError):  # the context is left behind
        build(path)


def test_the_context_ends_with_an_error(path: str) -> None:
    with pytest.raises(KeyError), weights_follow():
        raise KeyError
    assert torch.equal(build(path).codebook.base, build(path).codebook.base)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.zeros(K, BASE_DIM), "b": torch.zeros(1)}, r"holds 2 tensors \['a', 'b'\]: expected one"),
        ({}, "holds 0 tensors"),
        ({"a": torch.zeros(K)}, r"a tensor of shape \(20,\): expected \(20, 12\)"),
        ({"a": torch.zeros(K + 1, BASE_DIM)}, "holds 21 vectors: expected codebook_size=20; build a file"),
        ({"a": torch.zeros(K, BASE_DIM + 1)}, "holds vectors of 13 numbers: expected base_dim=12"),
        ({"a": torch.zeros(K, BASE_DIM, dtype=torch.int64)}, "holds torch.int64: expected floating point"),
        ({"a": torch.full((K, BASE_DIM), float("inf"))}, "holds NaN or infinity"),
        ({"a": torch.full((K, BASE_DIM), 1e300, dtype=torch.float64)}, "holds NaN or infinity"),
    ],
)
def test_an_unfit_file_is_refused_with_words(path: str, tensors: dict[str, Tensor], message: str) -> None:
    save_file(tensors, path)
    with pytest.raises(ValueError, match=message):
        build(path)


def test_a_file_of_another_kind_is_refused_with_words(path: str) -> None:
    Path(path).write_bytes(b"no header")
    with pytest.raises(ValueError, match="is damaged or of another kind"):
        build(path)


test_wrong_arguments_are_refused_with_words = refused(
    ({"base_path": "f", "base_dim": 0}, "base_dim=0: expected at least 1"),
    ({"hidden_dim": 0}, "hidden_dim=0: expected at least 1"),
    by=lambda options: FeatureCodebook(8, 4, **options),
)
