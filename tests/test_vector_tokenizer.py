"""Tokenizers of vectors: scaling, fully connected backbones, and what is saved."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from vqkit import Quantizer, ResidualQuantizer, Tokenizer
from vqkit.backbones.activations import GELU
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.mlp import MLPDecoder, MLPEncoder, Passthrough
from vqkit.tokenizers.vectors import CommonScale, Scaling, Standardization, VectorTokenizer


def vectors(count: int = 300) -> Tensor:
    return torch.randn(count, 5) * torch.tensor([1.0, 2.0, 0.1, 10.0, 0.0]) + torch.tensor([0.0, 1e3, 5.0, -7.0, 3.0])


@pytest.mark.parametrize("kind", [CommonScale, Standardization])
def test_scaling_is_that_of_the_data(kind: type[Scaling]) -> None:
    data = vectors()
    scaling = kind(5)
    scaling.fit(data.split(70))
    wide = data.double()
    variance = wide.var(0, correction=0)
    scale = variance.mean().sqrt().expand(5) if kind is CommonScale else torch.where(variance > 0, variance.sqrt(), 1)
    torch.testing.assert_close(scaling.mean.double(), wide.mean(0), rtol=2e-7, atol=1e-6)
    torch.testing.assert_close(scaling.scale.double(), scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(scaling.inverse(scaling(data)), data, rtol=1e-6, atol=1e-5)
    series = data.view(10, 30, 5).mT
    again = kind(5)
    again.fit([series])
    torch.testing.assert_close(again.mean, scaling.mean)
    torch.testing.assert_close(scaling(series).mT.reshape(-1, 5), scaling(data))
    assert scaling.bfloat16().mean.dtype == torch.float32 and bool(scaling.is_fitted)


def test_a_channel_that_does_not_vary_keeps_the_scale_1() -> None:
    constant = 3 * torch.rand(500, dtype=torch.float64)
    scaling = Standardization(500)
    scaling.fit(constant.expand(7, -1).split(3))
    assert scaling.scale.equal(torch.ones(500)) and scaling.mean.equal(constant.float())


def mean_and_scale(rank: int) -> tuple[Tensor, Tensor]:
    scaling = Standardization(5)
    scaling.fit([vectors().split([100, 200])[rank]])
    return scaling.mean, scaling.scale


def test_ranks_fit_one_scaling(rank_pair: Callable) -> None:
    scaling = Standardization(5)
    torch.manual_seed(0)
    scaling.fit([vectors()])
    first, second = rank_pair(seeded_mean_and_scale)
    assert all(ours.equal(theirs) for ours, theirs in zip(first, second, strict=True))
    torch.testing.assert_close(first, (scaling.mean, scaling.scale), rtol=1e-6, atol=1e-6)


def seeded_mean_and_scale(rank: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return mean_and_scale(rank)


def test_scaling_refuses_what_it_cannot_fit() -> None:
    with pytest.raises(ValueError, match="fit saw 0 vectors"):
        CommonScale(5).fit([])
    with pytest.raises(ValueError, match="all of them finite"):
        CommonScale(5).fit([vectors() / 0])
    with pytest.raises(ValueError, match=r"shape \(3, 4\): expected \(B, 5"):
        CommonScale(5).fit([torch.ones(3, 4)])


def rqvae() -> VectorTokenizer:
    encoder = MLPEncoder(in_channels=5, dim=4, widths=(8,), activation=GELU)
    decoder = MLPDecoder(out_channels=5, dim=4, widths=(8,), activation=GELU)
    quantizer = ResidualQuantizer(partial(Quantizer, "ema", dim=4, codebook_size=8), 2)
    return VectorTokenizer(encoder, quantizer, decoder, scaling=CommonScale(5))


def test_a_saved_one_gives_the_same_ids_in_the_units_of_the_data(tmp_path) -> None:
    made, data = rqvae(), vectors()
    made.scaling.fit([data])
    made.initialize([data])
    made.eval()
    ids = made.encode(data)
    assert ids.shape == (300, 2)
    assert made.decode(ids).equal(made(data).reconstruction)
    assert (made.decode(ids)[:, 1] - 1e3).abs().max() < 1e2
    scaled = made.scaling(data)
    assert ids.equal(made.quantizer.encode(made.encoder(scaled)))
    made.save_pretrained(tmp_path)
    for loaded in (Tokenizer.from_pretrained(tmp_path), VectorTokenizer.from_pretrained(tmp_path)):
        assert loaded.encode(data).equal(ids) and loaded.encoder.layers[1].__class__ is GELU
    made.half().encode(data)  # scaled before it is cast: 1e3 keeps its differences


def test_without_an_encoder_it_is_the_quantizer_alone() -> None:
    quantizer = ResidualQuantizer(lambda: Quantizer("ema", dim=5, codebook_size=16), 2)
    made, data = VectorTokenizer(Passthrough(5), quantizer, Passthrough(5), scaling=CommonScale(5)), vectors()
    made.scaling.fit([data])
    made.initialize([data])
    assert made.eval().encode(data).equal(quantizer.encode(made.scaling(data)))


@pytest.mark.parametrize("causal", [False, True])
def test_series(causal: bool) -> None:
    sizes = {"dim": 4, "channels": 4, "strides": (2,), "dilations": (1,), "causal": causal}
    encoder, decoder = ConvEncoder1d(in_channels=5, **sizes), ConvDecoder1d(out_channels=5, **sizes)
    quantizer = Quantizer("ema", dim=4, codebook_size=8, channel_dim=1)
    made = VectorTokenizer(encoder, quantizer, decoder, scaling=Standardization(5)).eval()
    series = torch.randn(3, 5, 16)
    ids = made.encode(series)
    assert ids.shape == (3, 8) and made.decode(ids).shape == series.shape
    changed = series.clone()
    changed[..., -2:] += 1
    latents, others = (made.encoder(made.scaling(each)) for each in (series, changed))
    assert causal == latents[..., :-1].equal(others[..., :-1])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder.in_channels=5 and scaling.dim=6"):
        VectorTokenizer(Passthrough(5), Quantizer(dim=5, codebook_size=4), Passthrough(5), scaling=CommonScale(6))
    with pytest.raises(ValueError, match=r"data has shape \(3, 4\): expected \(B, 5\) vectors"):
        rqvae().encode(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"expected \(B, 5\); series"):
        rqvae().encode(torch.ones(3, 5, 2))
    with pytest.raises(ValueError, match="width=0"):
        MLPEncoder(in_channels=5, widths=(0,))
