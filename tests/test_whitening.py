"""Whitening by a control set: its covariance becomes the identity, and `inverse` goes back."""

import torch
from torch import Tensor

from tests.refusals import refused
from vqkit.quantizers.whitening import PCAWhitening
from vqkit.saving.config import from_config, to_config

D = 6
SCALES = torch.tensor([5.0, 2.0, 1.0, 0.5, 0.1, 0.02], dtype=torch.float64)


def control(count: int = 500) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    return torch.randn(count, D, generator=generator, dtype=torch.float64) * SCALES @ turn + 3


def covariance(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(0)
    return centred.T @ centred / len(rows)


def fitted(rows: Tensor, **options) -> PCAWhitening:
    whitening = PCAWhitening(D, **options).double()
    whitening.fit(rows.split(70))
    return whitening


def test_the_whitened_control_has_the_identity_as_covariance_and_no_mean() -> None:
    x = control()
    whitening = fitted(x)
    y = whitening(x)
    # Condition 250 squared, times eps, times a sum of 500.
    torch.testing.assert_close(covariance(y), torch.eye(D, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(y.mean(0), torch.zeros(D, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(whitening.inverse(y), x, rtol=0, atol=1e-11)
    other = torch.randn(3, 4, D, dtype=torch.float64)
    torch.testing.assert_close(whitening.inverse(whitening(other)), other, rtol=0, atol=1e-10)


def test_shrinkage_holds_small_axes_down() -> None:
    x = control()
    variances = torch.linalg.eigvalsh(covariance(x)).flip(0)
    whitening = fitted(x, shrinkage=0.1)
    expected = variances / (0.9 * variances + 0.1 * variances.mean())
    torch.testing.assert_close(covariance(whitening(x)), torch.diag(expected), rtol=0, atol=1e-9)
    torch.testing.assert_close(whitening.inverse(whitening(x)), x, rtol=0, atol=1e-11)


def test_fewer_axes_are_a_projection() -> None:
    x = control()
    whitening = fitted(x, components=2)
    y = whitening(x)
    torch.testing.assert_close(covariance(y), torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-9)
    back = whitening.inverse(y)
    torch.testing.assert_close(whitening.inverse(whitening(back)), back, rtol=0, atol=1e-11)
    lost = (x - back).square().sum() / len(x)
    torch.testing.assert_close(lost, torch.linalg.eigvalsh(covariance(x))[:-2].sum(), rtol=1e-9, atol=0)


def test_it_is_saved_with_its_settings() -> None:
    whitening = fitted(control(), components=3, shrinkage=0.2)
    twin = from_config(to_config(whitening)).double()
    twin.load_state_dict(whitening.state_dict())
    assert torch.equal(twin(control()), whitening(control()))


test_what_cannot_be_is_refused = refused(
    (lambda: PCAWhitening(0), "dim=0"),
    (lambda: PCAWhitening(4, components=5), "components=5"),
    (lambda: PCAWhitening(4, shrinkage=1.0), r"shrinkage=1\.0"),
    (lambda: PCAWhitening(D).fit([control(D)]), "control holds 6 features: expected more than 6"),
    (lambda: PCAWhitening(D).fit([control()[:, :5]]), r"a batch of \(500, 5\): expected floating point"),
    (lambda: PCAWhitening(D).fit([torch.ones(20, D).cumsum(0)]), "control varies along 1 axes: expected 6"),
)


def test_fewer_features_than_axes_do_with_shrinkage() -> None:
    whitening = PCAWhitening(D, shrinkage=0.5).double()
    whitening.fit([control(3)])
    assert whitening(control()).isfinite().all()


def test_neither_autocast_nor_features_in_float64_cost_digits() -> None:
    features = control()
    whitening = PCAWhitening(D)
    whitening.fit([features])
    narrow = features.float()
    expected = whitening(narrow)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(whitening(narrow), expected)
        back = whitening.inverse(expected)
    assert torch.equal(back, whitening.inverse(expected))
    wide = whitening(features)
    assert wide.dtype == torch.float64
    # A rounding of each factor, of features about 10 over deviations of 0.02.
    torch.testing.assert_close(wide.float(), expected, rtol=0, atol=D * 2**-23 * 10 / 0.02)
    torch.testing.assert_close(whitening.inverse(wide), features, rtol=0, atol=D * 2**-23 * 30)
