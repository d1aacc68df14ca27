"""Encoder and decoder of `AutoencoderKL`, the autoencoder of latent diffusion, as the package diffusers has it."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqkit.backbones.gaussian import GaussianEncoder
from vqkit.saving.config import Configured, weights_will_follow


class AutoencoderKLEncoder(GaussianEncoder):
    """The encoder, with the convolution behind it; its latents are scaled as diffusion models get them.

    The mean is (mean - shift_factor) * scaling_factor, and the log-variance that of the scaled latents.

    Args:
        source: folder with `config.json` and weights, as `AutoencoderKL.save_pretrained` writes it and hubs hold it.
            Where a state is loaded right afterwards (`vqkit.saving.config.weights_follow`), no weights are read. None
            starts from new weights.
        config: arguments of `AutoencoderKL`, as its `config.json` has them, in place of those of `source`. Saved
            tokenizers have all of them, and need no `source`.

    Source: Rombach et al. 2021 (arXiv:2112.10752); the package diffusers.

    Raises:
        FileNotFoundError: `source` is no folder.
        ImportError: diffusers is not installed.
        ValueError: neither argument is given, or latents are normalised by channel (`latents_mean`).
    """

    def __init__(self, source: str | None = None, *, config: dict[str, Any] | None = None) -> None:
        vae = _load(source, config)
        super().__init__(_ScaledMoments(vae))
        self.record(source=None, config=_arguments(vae))


class AutoencoderKLDecoder(Configured, nn.Module):
    """The decoder, behind a convolution and the inverse of the scaling; arguments as for `AutoencoderKLEncoder`."""

    channel_dim = 1
    output_layer = "decoder.conv_out"

    def __init__(self, source: str | None = None, *, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        vae = _load(source, config)
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder
        self.dim = vae.config.latent_channels
        self.out_channels = vae.config.out_channels
        self.downsampling_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.scale, self.shift = _scaling(vae)
        self.record(source=None, config=_arguments(vae))

    def forward(self, latents: Tensor) -> Tensor:
        """Images (B, C, f h, f w) of scaled latents (B, dim, h, w)."""
        latents = latents / self.scale + self.shift
        return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))


class _ScaledMoments(nn.Module):
    """Images (B, C, H, W) to means and log-variances (B, 2 D, H / f, W / f) of scaled latents."""

    channel_dim = 1

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder = vae.encoder
        self.quant_conv = vae.quant_conv
        self.dim = 2 * vae.config.latent_channels
        self.in_channels = vae.config.in_channels
        self.downsampling_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.scale, self.shift = _scaling(vae)

    def forward(self, images: Tensor) -> Tensor:
        moments = self.encoder(images)
        mean, log_variance = (moments if self.quant_conv is None else self.quant_conv(moments)).chunk(2, dim=1)
        return torch.cat([(mean - self.shift) * self.scale, log_variance + 2 * math.log(self.scale)], dim=1)


def _load(source: str | None, config: dict[str, Any] | None) -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ImportError('AutoencoderKL needs diffusers: pip install "vqkit[diffusers]"') from error
    if source is None and config is None:
        raise ValueError("source=None, config=None: expected a folder, or the arguments of AutoencoderKL")
    found = source is not None and Path(source).is_dir()
    if source is not None and not found and (config is None or not weights_will_follow()):
        raise FileNotFoundError(
            f"source={source!r}: there is no such folder; of a model of the hub, fetch its folder `vae` first (hf "
            "download)"
        )
    if source is None or weights_will_follow():
        vae: Any = AutoencoderKL(**((AutoencoderKL.load_config(source) if found else {}) | (config or {})))
    else:
        vae = AutoencoderKL.from_pretrained(source, low_cpu_mem_usage=False, **(config or {}))
    if vae.config.latents_mean is not None or vae.config.latents_std is not None:
        raise ValueError("latents_mean, latents_std: expected none; latents are scaled by scaling_factor alone")
    return vae.train()


def _scaling(vae: Any) -> tuple[float, float]:
    return vae.config.scaling_factor, vae.config.shift_factor or 0.0


def _arguments(vae: Any) -> dict[str, Any]:
    return {name: value for name, value in vae.config.items() if not name.startswith("_")}
