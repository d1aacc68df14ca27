"""A default of the arithmetic changes, and models that were saved before compute other values when they are loaded.

Seen in: vqkit 0.1, whose epsilon of group norms, side of the odd zero and GELU of VQBridge were not the published ones
(measured: latents up to 0.9 % off with another epsilon).
Avoided since 0.2.0: files of earlier formats are given the arithmetic that they were trained with.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqkit import BridgedCodebook, Quantizer, ResidualQuantizer, Tokenizer
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.saving.config import from_config

IMAGES = {"dim": 4, "channels": 8, "norm_groups": 2, "channel_multipliers": (1, 2), "num_res_blocks": 1}
SOUND = {"dim": 4, "channels": 4, "strides": (3, 5), "dilations": (1,)}


def images(**former: Any) -> nn.Module:
    quantizer = Quantizer("vq", dim=4, codebook_size=8, channel_dim=1)
    return Tokenizer(ConvEncoder2d(**IMAGES, **former), quantizer, ConvDecoder2d(**IMAGES, **former))


def sound(**former: Any) -> nn.Module:
    quantizer = Quantizer("vq", dim=4, codebook_size=8, channel_dim=1)
    return Tokenizer(ConvEncoder1d(**SOUND, **former), quantizer, ConvDecoder1d(**SOUND, **former))


def bridge(**former: Any) -> nn.Module:
    codebook = partial(BridgedCodebook, **former) if former else None
    return Quantizer("fvq", dim=4, codebook_size=16, codebook=codebook)


def residual_bridges(**former: Any) -> nn.Module:
    codebook = partial(BridgedCodebook, **former) if former else None
    return ResidualQuantizer(partial(Quantizer, "fvq", dim=4, codebook_size=16, codebook=codebook), 2)


MODELS: list[tuple[Callable[..., nn.Module], dict[str, Any], tuple[int, ...]]] = [
    (images, {"norm_eps": 1e-5}, (2, 3, 8, 8)),
    (sound, {"odd_zero_first": False}, (2, 1, 60)),
    (bridge, {"tanh_gelu": False}, (9, 4)),
    (residual_bridges, {"tanh_gelu": False}, (9, 4)),
]


def values(model: nn.Module, x: Tensor) -> Tensor:
    """What the changed arithmetic decides: the latents and what is made of them, or the codes."""
    if isinstance(model, Tokenizer):
        latents = model.encoder(x)
        return torch.cat([latents.flatten(), model.decoder(latents).flatten()])
    return torch.cat([part() for part in model.modules() if isinstance(part, BridgedCodebook)])


def check(model: nn.Module, former: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(values(model, x), values(former, x)), "other values than when it was saved"


@pytest.fixture(params=MODELS, ids=lambda model: model[0].__name__)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[nn.Module, Path, Tensor]:
    """A model with the former arithmetic, its folder in format version 3, and an input."""
    build, former, shape = request.param
    model = build(**former).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**without(config, former.keys()), "format_version": 3}))
    return model, tmp_path, 0.1 * torch.randn(shape)


def without(config: Any, names: Any) -> Any:
    """As the version before wrote it: without the arguments that it did not have."""
    if isinstance(config, list):
        return [without(item, names) for item in config]
    if not isinstance(config, dict):
        return config
    if config.get("factory") == "vqkit.BridgedCodebook" and not config["init_args"].keys() - names:
        return None  # what the method has by itself
    return {key: without(item, names) for key, item in config.items() if key not in names}


def test_vqkit_does_not_have_the_fault(saved: tuple[nn.Module, Path, Tensor], tmp_path: Path) -> None:
    """Nor when the loaded model is saved and loaded again, in the current format."""
    model, folder, x = saved
    loaded = type(model).from_pretrained(folder)
    check(loaded, model, x)
    loaded.save_pretrained(tmp_path / "again")
    check(type(model).from_pretrained(tmp_path / "again"), model, x)


def test_the_check_catches_the_fault(saved: tuple[nn.Module, Path, Tensor]) -> None:
    """With today's defaults in place of those that the model was trained with."""
    model, folder, x = saved
    built = from_config(json.loads((folder / "config.json").read_text()))
    built.load_state_dict(model.state_dict())
    with pytest.raises(AssertionError, match="other values than when it was saved"):
        check(built.eval(), model, x)
