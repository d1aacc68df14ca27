"""Filters with weight norm and what `bake` makes of them: the same filters, stored as they are applied."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from vqkit import AudioTokenizer, Quantizer, Tokenizer, bake
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.depthwise1d import DepthwiseDecoder1d, DepthwiseEncoder1d
from vqkit.backbones.encodec import TimeGroupNorm
from vqkit.backbones.noise1d import NoiseInjection1d
from vqkit.backbones.resampled import ResampledDecoder1d, ResampledEncoder1d
from vqkit.backbones.temporal import Convolution1d, Deconvolution1d, FilterLayer
from vqkit.backbones.weight_norm import PlainFilters
from vqkit.conversion.source import Source
from vqkit.conversion.weight_norm import NAMES, normalization_of
from vqkit.saving.config import Configured

DIM = 16
SIZES: dict[str, Any] = {"dim": DIM, "channels": 4, "strides": (2, 3), "dilations": (1,), "convolved_skip": True}
BACKBONES: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "centred": lambda: (ConvEncoder1d(**SIZES), ConvDecoder1d(**SIZES)),
    "causal": lambda: (ConvEncoder1d(**SIZES, causal=True), ConvDecoder1d(**SIZES, causal=True)),
    "linear path": lambda: (ConvEncoder1d(**SIZES, linear_path=True), ConvDecoder1d(**SIZES, linear_path=True)),
    "resampled": lambda: (
        ResampledEncoder1d(ConvEncoder1d(**SIZES)),
        ResampledDecoder1d(ConvDecoder1d(**SIZES)),
    ),
    "depthwise": lambda: (
        DepthwiseEncoder1d(channels=4, strides=(2, 3)),
        DepthwiseDecoder1d(dim=DIM, channels=4, strides=(2, 3)),
    ),
}


class Own(Configured, nn.Module):
    """Somebody's encoder, which builds one of ours by itself."""

    downsampling_factor = 6

    def __init__(self) -> None:
        super().__init__()
        self.inner = ConvEncoder1d(**SIZES)

    def forward(self, waves: Tensor) -> Tensor:
        return self.inner(waves)


def codec(name: str) -> AudioTokenizer:
    """With g that are not |v|, as after training."""
    encoder, decoder = BACKBONES[name]()
    made = AudioTokenizer(encoder, Quantizer("vq", dim=DIM, codebook_size=32, channel_dim=1), decoder, sample_rate=8000)
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            if key.endswith("original0"):
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    return made.eval()


def normed(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if is_parametrized(part)]


@pytest.mark.parametrize("name", BACKBONES)
def test_a_baked_codec_has_the_same_filters_bit_for_bit_and_stores_them(name: str, tmp_path: Path) -> None:
    trained = codec(name)
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    baked = bake(trained)
    assert normed(trained) and all(isinstance(baked.get_submodule(key), nn.Conv1d) for key in normed(baked))
    noise = [part for part in baked.modules() if isinstance(part, NoiseInjection1d)]
    assert len(normed(baked)) == len(noise)  # the maps of noise, which a sound without noise never runs
    baked.save_pretrained(tmp_path)
    wave = torch.rand(2, 1, 120) - 0.5
    for copy in (baked, Tokenizer.from_pretrained(tmp_path), bake(baked)):
        assert torch.equal(copy.encoder(wave), trained.encoder(wave))
        indices = trained.encode(wave)
        assert torch.equal(copy.encode(wave), indices)
        with torch.no_grad():
            assert torch.equal(copy.decode(indices), trained.decode(indices))
    after = trained.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_the_model_that_was_baked_trains_on_with_weight_norm() -> None:
    """A copy of a layer with weight norm shares its class, of which torch's own removal takes the norm away."""
    trained = codec("causal")
    baked = bake(trained)
    wave = torch.rand(1, 1, 60)
    old = trained.encoder(wave).detach()
    with torch.no_grad():
        for part in trained.encoder.modules():
            if isinstance(part, FilterLayer):
                part.convolution.parametrizations.weight.original0.mul_(2)
    assert not torch.allclose(trained.encoder(wave), old)
    assert torch.equal(baked.encoder(wave), old)


def test_filters_of_a_baked_codec_can_be_trained_where_those_before_could() -> None:
    trained = codec("centred")
    trained.decoder.requires_grad_(False)
    baked = bake(trained)
    baked.decoder(baked.encoder(torch.rand(1, 1, 60))).square().sum().backward()
    found = {key: parameter.grad is not None for key, parameter in baked.named_parameters()}
    assert all(found[key] == key.startswith("encoder") for key in found)


def test_filters_that_a_configuration_does_not_reach_stay_as_they_are() -> None:
    module = Tokenizer(Own(), Quantizer("vq", dim=DIM, codebook_size=8, channel_dim=1), ConvDecoder1d(**SIZES))
    baked = bake(module)
    assert all(name.startswith("encoder.inner") for name in normed(baked)) and normed(baked.encoder)
    assert torch.equal(baked.encoder(torch.ones(1, 1, 60)), module.encoder(torch.ones(1, 1, 60)))


def test_a_norm_over_time_stays() -> None:
    music = SIZES | {"normalization": TimeGroupNorm}
    module = Tokenizer(
        ConvEncoder1d(**music), Quantizer("vq", dim=DIM, codebook_size=8, channel_dim=1), ConvDecoder1d(**music)
    )
    kinds = [type(part) for part in bake(module).encoder.modules()]
    assert kinds.count(TimeGroupNorm) == kinds.count(Convolution1d) and PlainFilters not in kinds


@pytest.mark.parametrize("causal", [True, False])
def test_plain_filters_are_those_of_torch(causal: bool) -> None:
    for layer in (
        Convolution1d(2, 3, 4, stride=2, causal=causal, normalization=PlainFilters),
        Deconvolution1d(2, 3, 4, stride=2, causal=causal, normalization=PlainFilters),
    ):
        assert [key for key, _ in layer.named_parameters()] == ["convolution.weight", "convolution.bias"]
    assert layer.drops  # nothing is computed to be dropped, as with weight norm


@pytest.mark.parametrize("kind", [*NAMES, None])
def test_a_converted_model_has_weight_norm_where_its_file_has(kind: tuple[str, str] | None) -> None:
    names = [f"encoder.conv1.{part}" for part in kind or ("weight",)] + ["decoder.conv1.weight", "encoder2.weight_g"]
    source = Source(Path("none"), {name: torch.ones(1) for name in names}, {}, None)
    assert normalization_of(source, "encoder") is (PlainFilters if kind is None else None)
    assert normalization_of(source, "decoder") is PlainFilters
