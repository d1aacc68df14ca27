"""Published sound models with random weights, in whose layers variances neither grow nor vanish."""

import math
from functools import cache

import torch
from torch import Tensor, nn
from transformers import DacConfig, DacModel


def sound(frames: int, hop: int, batch: int = 2) -> Tensor:
    """(B, 1, T) in float64."""
    return torch.randn(batch, 1, frames * hop, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 3


def shake(model: nn.Module, seed: int = 0) -> None:
    """Other weights than the first ones: Snakes of both signs, codes of unit spread, biases that are not 0.

    Filters of the last convolution of a residual branch are small, so that the variance grows little with the depth.
    """
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        layer = modules[name.rpartition(".")[0]]
        if name.endswith("alpha"):
            nn.init.uniform_(parameter, 0.3, 2.0, generator=generator)
            parameter.data[:, ::3] *= -1
        elif isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) and parameter.ndim == 3:
            fan_in = parameter[0].numel() if isinstance(layer, nn.Conv1d) else 2 * len(parameter)
            in_branch = layer.kernel_size == (1,) and layer.in_channels == layer.out_channels
            nn.init.normal_(parameter, std=(0.25 if in_branch else 0.9) / math.sqrt(fan_in), generator=generator)
        else:
            nn.init.normal_(parameter, std=1.0 if "codebook" in name else 0.1, generator=generator)


@cache
def dac(strides: tuple[int, ...] = (2, 5), levels: int = 3, sample_rate: int = 24000) -> DacModel:
    """A small `DacModel`, in eval mode and float32."""
    config = DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=list(strides),
        decoder_hidden_size=4 * 2 ** len(strides),
        n_codebooks=levels,
        codebook_size=16,
        codebook_dim=4,
        sampling_rate=sample_rate,
    )
    model = DacModel(config).eval()
    shake(model)
    return model


NORMED = ("weight_g", "weight_v")


def normed(state: dict[str, Tensor], names: tuple[str, str] = NORMED) -> dict[str, Tensor]:
    """The same filters with weight norm over the first axis, of directions that are not of the filters' length."""
    made = {}
    for name, value in state.items():
        if value.ndim != 3 or not name.endswith(".weight"):
            made[name] = value
            continue
        start = name.removesuffix("weight")
        length = value.double().flatten(1).norm(dim=1)[:, None, None]
        made[start + names[0]] = length.float()
        made[start + names[1]] = (value * torch.linspace(0.5, 2.0, len(value))[:, None, None]).contiguous()
    return made


def authors_names(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The state of a `DacModel` with this number of strides, under the names of DAC's authors.

    encoder.block[1 + i].block[0 to 2] are residual units, [3] Snake, [4] the strided convolution; in the decoder the
    two come first. Units have Snake, convolution, Snake, convolution in `block`.
    """
    return {_authors_name(name, levels): value for name, value in state.items()}


def _authors_name(name: str, levels: int) -> str:
    side, *path = name.split(".")
    if side == "quantizer":
        return name
    kind = path.pop()
    inside = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
    sequence = "encoder.block" if side == "encoder" else "decoder.model"
    if path[0] != "block":
        place = {"conv1": 0, "snake1": levels + 1, "conv2": levels + 2}[path[0]]
        return f"{sequence}.{place}.{kind}"
    level, part = int(path[1]) + 1, path[2]
    if part.startswith("res_unit"):
        place = int(part[-1]) - 1 + 2 * (side == "decoder")
        return f"{sequence}.{level}.block.{place}.block.{inside[path[3]]}.{kind}"
    place = ("snake1", "conv1").index(part) + 3 if side == "encoder" else ("snake1", "conv_t1").index(part)
    return f"{sequence}.{level}.block.{place}.{kind}"
