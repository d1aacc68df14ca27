import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.test_image_backbones import SMALL, shake
from tests.test_image_backbones import build as build_kind
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d, cosine_basis

build = partial(build_kind, "conv2d")


def test_channels_of_other_data() -> None:
    encoder = ConvEncoder2d(in_channels=5, **SMALL)
    decoder = ConvDecoder2d(out_channels=5, **SMALL)
    assert decoder(encoder(torch.randn(1, 5, 8, 8))).shape == (1, 5, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_factors": (16,)}, r"16 is no factor of a level \[1, 2, 4\]"),
        ({"attention_factors": (1,), "attention_heads": 3}, "attention_heads=3: expected a divisor of the width 8"),
        ({"latent_kernel_size": 2}, "latent_kernel_size=2: expected an odd number"),
        ({"latent_channels": 9}, "latent_channels=9: latent_kernel_size=None has no convolution from these to dim=6"),
        ({"latent_kernel_size": 1, "latent_channels": 0}, "latent_channels=0: expected a positive number"),
        ({"patch_size": 0}, "patch_size=0: expected a positive number"),
    ],
)
@pytest.mark.parametrize("kind", [ConvEncoder2d, ConvDecoder2d])
def test_bad_sizes_are_refused(kind: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**SMALL | options)


def photograph_like(size: int = 64) -> Tensor:
    """Noise whose amplitude falls with the frequency, as in photographs, and with two weak opponent colours."""
    torch.manual_seed(0)
    frequency = torch.fft.fftfreq(size)[:, None].square() + torch.fft.rfftfreq(size).square()
    spectrum = torch.fft.rfft2(torch.randn(8, 3, size, size)) / frequency.sqrt().clamp(min=1 / size)
    waves = torch.fft.irfft2(spectrum)
    waves = waves / waves.std() * torch.tensor([0.4, 0.1, 0.05]).view(3, 1, 1)
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    return torch.einsum("bchw,cd->bdhw", waves, colours)


def principal_error(images: Tensor, dim: int, patch_size: int) -> Tensor:
    patches = F.unfold(images, patch_size, stride=patch_size).mT.flatten(0, 1)
    return torch.linalg.svdvals(patches)[dim:].square().sum() / patches.numel()


@pytest.mark.parametrize(("multipliers", "patch_size"), [((1,), 4), ((1, 1), 2)])
def test_the_linear_path_starts_close_to_principal_components(multipliers: tuple[int, ...], patch_size: int) -> None:
    images = photograph_like()
    encoder, decoder = build(dim=8, channel_multipliers=multipliers, patch_size=patch_size, linear_path=True)
    with torch.no_grad():
        error = (decoder(encoder(images)) - images).square().mean()
    assert error < 1.1 * principal_error(images, 8, 4)
    assert error < 0.2 * images.var()
    plain_encoder, plain_decoder = build(dim=8, channel_multipliers=multipliers, patch_size=patch_size)
    with torch.no_grad():
        assert (plain_decoder(plain_encoder(images)) - images).square().mean() > 0.5 * images.var()


def test_the_linear_path_keeps_everything_when_there_is_room() -> None:
    images = torch.randn(2, 3, 8, 8)
    encoder, decoder = build(dim=50, channel_multipliers=(1,), patch_size=4, linear_path=True)
    torch.testing.assert_close(decoder(encoder(images)), images)


@pytest.mark.parametrize(("dim", "channels", "patch_size"), [(48, 3, 4), (7, 1, 3), (60, 3, 4)])
def test_the_cosine_basis_is_orthonormal(dim: int, channels: int, patch_size: int) -> None:
    basis = cosine_basis(dim, channels, patch_size).flatten(1).double()
    rank = min(dim, channels * patch_size**2)
    expected = torch.diag((torch.arange(dim) < rank).double())
    rounding = 6 * 2**-24  # an entry is a product of three numbers of float32, each rounded, as both products are
    torch.testing.assert_close(basis @ basis.T, expected, atol=2 * rounding, rtol=0)
    flat = torch.full_like(basis[0], 1 / math.sqrt(channels * patch_size**2))
    torch.testing.assert_close(basis[0], flat, atol=0, rtol=rounding)


def test_attention_mixes_distant_positions_and_convolutions_alone_do_not() -> None:
    def reach(attention_factors: tuple[int, ...]) -> Tensor:
        encoder, _ = build(channel_multipliers=(1,), attention_factors=attention_factors, norm_groups=8)
        shake(encoder)
        for module in encoder.modules():  # group norm mixes positions too: its statistics are held still here
            if isinstance(module, nn.GroupNorm):
                module.forward = lambda x: x  # type: ignore[method-assign]
        images = torch.randn(1, 3, 32, 32, requires_grad=True)
        encoder(images)[0, :, 0, 0].sum().backward()
        assert images.grad is not None
        return images.grad[0, :, -1, -1].abs().max()

    assert reach(()) == 0
    assert reach((1,)) > 0


@pytest.mark.parametrize("part", [0, 1], ids=["encoder", "decoder"])
def test_norms_have_the_epsilon_of_the_released_models(part: int) -> None:
    """(x - mean) / sqrt(variance + 1e-6) over each group, in every norm; seen in a nearly uniform image."""
    norms = [layer for layer in build(attention_factors=(1, 2, 4))[part].modules() if isinstance(layer, nn.GroupNorm)]
    assert len(norms) > 6
    for norm in norms:
        x = 1e-3 * torch.randn(2, norm.num_channels, 4, 4, dtype=torch.float64)
        groups = x.reshape(2, 4, -1)
        centred = groups - groups.mean(-1, keepdim=True)
        expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(norm.double()(x), expected.reshape(x.shape), rtol=0, atol=1e-12)
