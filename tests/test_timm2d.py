"""Networks of timm as encoders of a tokenizer: features, weights, what is saved, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.refusals import refused
from vqkit import Quantizer, Tokenizer
from vqkit.backbones import timm2d
from vqkit.backbones.timm2d import TimmEncoder
from vqkit.backbones.vit import ViTDecoder
from vqkit.saving.config import from_config, to_config, weights_follow
from vqkit.saving.weights import HubWeights, RandomWeights, WeightsFile

timm = pytest.importorskip("timm", reason='pip install "vqkit[perceptual]"')

NAME = "test_vit4"
"""Nine blocks of 96 channels, patches of 16 pixels."""
REGISTERS: dict[str, Any] = {"reg_tokens": 3, "class_token": True, "img_size": 32}


def images(*shape: int) -> Tensor:
    return torch.rand(shape or (2, 3, 32, 32)) * 2 - 1


def written(folder: Path, name: str = NAME, **arguments: Any) -> tuple[Any, WeightsFile]:
    """A network with random weights, and their file."""
    torch.manual_seed(3)
    network = timm.create_model(name, **arguments).eval()
    save_file(network.state_dict(), folder / "weights.safetensors")
    return network, WeightsFile(str(folder / "weights.safetensors"))


def build(name: str = NAME, **options: Any) -> TimmEncoder:
    return TimmEncoder(name, **{"weights": RandomWeights()} | options)


def features(network: Any, x: Tensor, blocks: int) -> Tensor:
    """Tokens of patches behind some of the blocks, with the last norm: the layers one after the other."""
    shape = (-1, 1, 1)
    mean, deviation = (torch.tensor(network.pretrained_cfg[name]).reshape(shape) for name in ("mean", "std"))
    tokens = network._pos_embed(network.patch_embed((x / 2 + 0.5 - mean) / deviation))
    for block in network.blocks[:blocks]:
        tokens = block(tokens)
    tokens = network.norm(tokens)[:, network.num_prefix_tokens :]
    return tokens.mT.unflatten(2, (x.shape[2] // 16, x.shape[3] // 16))


@pytest.mark.parametrize("layer", [-1, 8, 3, -9])
def test_features_of_a_layer_without_class_and_register_tokens(layer: int, tmp_path: Path) -> None:
    network, weights = written(tmp_path, **REGISTERS)
    assert network.num_prefix_tokens == 4
    encoder = TimmEncoder(NAME, weights=weights, layer=layer, arguments=REGISTERS).eval()
    assert (encoder.dim, encoder.downsampling_factor, encoder.channel_dim) == (96, 16, 1)
    assert len(encoder.network.blocks) == layer % 9 + 1
    x = images()
    with torch.no_grad():
        # float32: sums of at most 288 products, nine blocks of which each is normalized before.
        torch.testing.assert_close(encoder(x), features(network, x, layer % 9 + 1), rtol=1e-4, atol=1e-5)


def test_every_parameter_trains_or_the_map_alone(tmp_path: Path) -> None:
    encoder = TimmEncoder(NAME, weights=None, dim=6, layer=2, arguments=REGISTERS)
    assert encoder.dim == 6
    encoder(images()).square().sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []
    encoder.network.requires_grad_(False)
    assert {name for name, parameter in encoder.named_parameters() if parameter.requires_grad} == {
        "projection.weight",
        "projection.bias",
    }


@pytest.mark.parametrize(("name", "factor"), [("test_convnext", 8), ("test_resnet", 8)])
def test_stages_of_convolutional_networks(name: str, factor: int) -> None:
    encoder = TimmEncoder(name, weights=None, dim=4, layer=-3)
    assert encoder.downsampling_factor in (4, factor)
    size = 2 * encoder.downsampling_factor
    assert encoder(images(1, 3, size, 2 * size)).shape == (1, 4, 2, 4)


def test_other_sizes() -> None:
    encoder = TimmEncoder(NAME, weights=None, arguments={"img_size": 32, "dynamic_img_size": True})
    assert encoder(images(1, 3, 48, 16)).shape == (1, 96, 3, 1)
    strict = TimmEncoder(NAME, weights=None, arguments={"img_size": 32, "dynamic_img_size": False})
    with pytest.raises(ValueError, match=r"images of 48 x 16 pixels: the network is built for 32 x 32; give arguments"):
        strict(images(1, 3, 48, 16))


def test_saved_tokenizer_asks_for_no_other_weights(tmp_path: Path) -> None:
    _, weights = written(tmp_path, **REGISTERS)
    encoder = TimmEncoder(NAME, weights=weights, dim=6, layer=1, arguments=REGISTERS)
    assert to_config(encoder)["init_args"]["weights"] is None
    decoder = ViTDecoder(dim=6, image_size=32, patch_size=16, channels=8, depth=1, num_heads=1)
    tokenizer = Tokenizer(encoder, Quantizer("vq", dim=6, codebook_size=8, channel_dim=1), decoder).eval()
    tokenizer.save_pretrained(tmp_path / "saved")
    weights.path.unlink()
    again = Tokenizer.from_pretrained(tmp_path / "saved")
    x = images()
    assert torch.equal(again.encode(x), tokenizer.encode(x))
    with torch.no_grad():
        torch.testing.assert_close(again(x).reconstruction, tokenizer(x).reconstruction, rtol=0, atol=0)


def test_weights_of_the_hub_are_fetched_once_and_not_where_a_state_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, weights = written(tmp_path, "test_vit")
    asked = []

    def hub_file(repository: str, file: str) -> Path:
        asked.append((repository, file))
        return weights.path

    monkeypatch.setattr(timm2d, "hub_file", hub_file)
    encoder = TimmEncoder("test_vit.r160_in1k", weights=HubWeights())
    assert asked == [("timm/test_vit.r160_in1k", "model.safetensors")]
    assert torch.equal(encoder.network.blocks[0].attn.qkv.weight, network.blocks[0].attn.qkv.weight)
    from_config(to_config(encoder))
    with weights_follow():
        TimmEncoder("test_vit", weights=HubWeights("no_such_tag"))
    assert len(asked) == 1
    with pytest.raises(ValueError, match=r"tag='no_such_tag': timm has no such weights on the hub; give a file"):
        TimmEncoder("test_vit", weights=HubWeights("no_such_tag"))


test_what_timm_has_not_is_refused = refused(
    ({"name": "no_such_network"}, "name='no_such_network': expected a network of timm"),
    ({"name": "test_vit.no_such_tag"}, "expected a network of timm"),
    ({"name": "hf-hub:somebody/something"}, "expected a network of timm"),
    ({"name": "hiera_tiny_224"}, "'hiera_tiny_224': timm gives no normalized features of Hiera; take another"),
    ({"name": "hieradet_small"}, "timm gives no normalized features of Hiera"),
    ({"layer": 9}, "layer=9: test_vit4 has layers 0 to 8, or -9 to -1"),
    ({"layer": -10}, "layer=-10: test_vit4 has layers 0 to 8"),
    ({"arguments": {"pretrained": True}}, "'pretrained' is timm's own; weights=... says where"),
    ({"arguments": {"checkpoint_path": "a.pth"}}, "'checkpoint_path' is timm's own"),
    ({"arguments": {"features_only": True}}, "'features_only' is timm's own"),
    ({"weights": WeightsFile("nowhere.pth")}, r"path='nowhere.pth' of weights: there is no such file"),
    by=lambda options: build(**options),
)


def test_weights_of_another_network_are_refused_by_the_name_of_their_file(tmp_path: Path) -> None:
    _, weights = written(tmp_path, "test_vit3")
    with pytest.raises(ValueError, match=r"weights\.safetensors: is damaged or of another kind"):
        TimmEncoder(NAME, weights=weights)


test_images_that_do_not_fit_are_refused = refused(
    ((1, 3, 40, 32), "images of 40 x 32 pixels cannot be divided by the downsampling factor 16"),
    ((0, 3, 32, 32), r"images has shape \(0, 3, 32, 32\): expected at least one image"),
    ((1, 1, 32, 32), r"images has shape \(1, 1, 32, 32\): expected \(B, 3, H, W\)"),
    by=lambda shape: TimmEncoder(NAME, weights=None, arguments={"img_size": 32})(torch.zeros(shape)),
)


def test_features_that_are_not_those_of_the_patches_are_refused() -> None:
    """LeViT's last stage halves 14 x 14 to 7 x 7 and this to 4 x 4, which is no factor."""
    with torch.device("meta"):
        encoder = TimmEncoder("levit_128s", weights=None, layer=-1).eval()
    encoder.downsampling_factor = 32
    message = "224 x 224 pixels: layer 2 of levit_128s gives 4 x 4 features, not one for 32 x 32"
    with pytest.raises(ValueError, match=message):
        encoder(torch.zeros(1, 3, 224, 224, device="meta"))


def test_message_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'timm is not installed: pip install "vqkit\[perceptual\]"'):
        TimmEncoder(NAME, weights=None)
