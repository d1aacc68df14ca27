"""Vision transformer as encoder and decoder of images: a token for each patch, and attention among all of them.

Source: Yu et al. 2021 (ViT-VQGAN, arXiv:2110.04627), sec. 3.1; Zhao et al. 2024 (BSQ-ViT, arXiv:2406.07548), whose
public model has `input_norm=True`, and a decoder with `head_channels=3072`. Positions are parts (`positions.py`), which
say whether there are other sizes than that of the training.

Attention is among all patches of a picture, so tokens of a tile (`vqkit.Tiles`) are those of a picture that ends at its
edges. With `LearnedPositions` larger pictures need tiles of `image_size` pixels.
"""

from collections.abc import Callable

from einops import rearrange
from torch import Tensor, nn

from vqkit.backbones.activations import GELU
from vqkit.backbones.layers2d import check_images, check_latents
from vqkit.backbones.positions import LearnedPositions, Positions
from vqkit.backbones.sizes import check_positive
from vqkit.backbones.transformer import SelfAttention, TransformerBlock, initialize_linears
from vqkit.saving.config import Configured


class ViTEncoder(Configured, nn.Module):
    """Images (B, C, H, W) to latents (B, dim, H / p, W / p), with p = patch_size.

    Sizes of ViT-VQGAN (its table of transformers), and of ViT-Base: small has channels=512, depth=8, num_heads=8; base
    768, 12, 12; large 1280, 32, 16. All have mlp_ratio=4.

    Args:
        in_channels: C.
        dim: channels of the latents; the quantizer's `dim`.
        image_size: side of the pictures that it is trained with, in pixels; a multiple of `patch_size`.
        patch_size: p, in pixels.
        channels: width of the transformer.
        depth: number of blocks.
        num_heads: must divide `channels`.
        mlp_ratio: width of the hidden layer of a block relative to `channels`.
        activation: builds that of the hidden layers for their width, such as `vqkit.backbones.activations.Tanh`.
        positions: builds what adds positions to the tokens.
        input_norm: whether a norm stands in front of the first block; the patches have no bias then.
        query_key_value_bias: whether queries, keys and values have one.
        norm_eps: added to each variance.
        head_channels: width of a tanh layer between the last norm and the latents; None: one linear map alone.

    Raises:
        ValueError: if a size is not positive or does not fit; in `forward` if H or W is not a multiple of p, or of
            another size than the positions know.

    Examples:
        >>> encoder = ViTEncoder(dim=32, image_size=64, patch_size=8, channels=64, depth=2, num_heads=4)
        >>> encoder(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 32, 8, 8])
    """

    channel_dim = 1

    def __init__(
        self,
        *,
        in_channels: int = 3,
        dim: int,
        image_size: int = 256,
        patch_size: int = 8,
        channels: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        activation: Callable[[int], nn.Module] = GELU,
        positions: Positions = LearnedPositions,
        input_norm: bool = False,
        query_key_value_bias: bool = True,
        norm_eps: float = 1e-6,
        head_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim)
        self.in_channels = in_channels
        self.dim = dim
        self.downsampling_factor = patch_size
        self.patches = PatchEmbedding(in_channels, channels, patch_size=patch_size, bias=not input_norm)
        self.positions = positions(channels, [patches_on_a_side(image_size, patch_size)] * 2)
        self.blocks = _blocks(
            channels,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            activation=activation,
            input_norm=input_norm,
            bias=query_key_value_bias,
            norm_eps=norm_eps,
        )
        self.head = _head(channels, head_channels, dim)
        initialize_linears(self)

    def forward(self, images: Tensor) -> Tensor:
        """Latents (B, dim, H / p, W / p) of images (B, C, H, W) in [-1, 1]."""
        tokens = self.positions(self.patches(images))
        height, width = tokens.shape[1:3]
        latents = self.head(self.blocks(tokens.flatten(1, 2)))
        return rearrange(latents, "b (h w) d -> b d h w", h=height, w=width)


class ViTDecoder(Configured, nn.Module):
    """Latents (B, dim, h, w) to images (B, C, p h, p w), the mirror of `ViTEncoder`.

    Arguments are those of the encoder; each token becomes a patch by a linear map. What differs:

    Args:
        out_channels: C.
        dim: channels of the latents; a linear map takes them to `channels` where the two differ.
        input_norm: whether a norm stands in front of the first block.
        head_channels: width of a tanh layer between the last norm and the pixels, as in ViT-VQGAN; None: one linear map
            alone.

    Raises:
        ValueError: if a size is not positive or does not fit; in `forward` if the latents do not.
    """

    channel_dim = 1

    def __init__(
        self,
        *,
        out_channels: int = 3,
        dim: int,
        image_size: int = 256,
        patch_size: int = 8,
        channels: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        activation: Callable[[int], nn.Module] = GELU,
        positions: Positions = LearnedPositions,
        input_norm: bool = False,
        query_key_value_bias: bool = True,
        norm_eps: float = 1e-6,
        head_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(out_channels=out_channels, dim=dim, patch_size=patch_size)
        self.out_channels = out_channels
        self.dim = dim
        self.downsampling_factor = patch_size
        self.input = nn.Linear(dim, channels) if dim != channels else nn.Identity()
        self.positions = positions(channels, [patches_on_a_side(image_size, patch_size)] * 2)
        self.blocks = _blocks(
            channels,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            activation=activation,
            input_norm=input_norm,
            bias=query_key_value_bias,
            norm_eps=norm_eps,
        )
        self.head = _head(channels, head_channels, out_channels * patch_size**2)
        self.output_layer = f"head.{len(self.head) - 1}"
        initialize_linears(self)

    def forward(self, latents: Tensor) -> Tensor:
        """Images (B, C, p h, p w), about in [-1, 1] and not clipped, of latents (B, dim, h, w)."""
        check_latents(latents, self.dim)
        tokens = self.positions(self.input(rearrange(latents, "b d h w -> b h w d")))
        height, width = tokens.shape[1:3]
        patches = self.head(self.blocks(tokens.flatten(1, 2)))
        side = self.downsampling_factor
        return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=height, w=width, p=side, q=side)


class PatchEmbedding(nn.Module):
    """One linear map of each p x p patch: images (B, C, H, W) to tokens (B, H / p, W / p, channels).

    Args:
        in_channels: C.
        channels: of the tokens.
        patch_size: p, in pixels.
        bias: whether the map has one.

    Raises:
        ValueError: if a size is not positive; in `forward` if H or W is no multiple of p.
    """

    def __init__(self, in_channels: int, channels: int, *, patch_size: int, bias: bool = True) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, channels=channels, patch_size=patch_size)
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.projection = nn.Conv2d(in_channels, channels, patch_size, stride=patch_size, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H / p, W / p, channels)."""
        check_images(images, self.in_channels, self.patch_size, divided="into patches of")
        return rearrange(self.projection(images), "b c h w -> b h w c")


def patches_on_a_side(image_size: int, patch_size: int) -> int:
    """How many patches fit a side of an image.

    Raises:
        ValueError: a size is not positive, or there is no whole number of patches.
    """
    check_positive(image_size=image_size, patch_size=patch_size)
    if image_size % patch_size:
        raise ValueError(f"image_size={image_size}: expected a multiple of patch_size={patch_size}")
    return image_size // patch_size


def _blocks(
    channels: int,
    *,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    activation: Callable[[int], nn.Module],
    input_norm: bool,
    bias: bool,
    norm_eps: float,
) -> nn.Sequential:
    """Norm, `depth` blocks and a norm, for tokens (B, T, channels)."""
    check_positive(channels=channels, depth=depth)
    if mlp_ratio * channels < 1 or norm_eps <= 0:
        raise ValueError(f"mlp_ratio={mlp_ratio}, norm_eps={norm_eps}: expected positive numbers, such as 4 and 1e-6")
    first: list[nn.Module] = [nn.LayerNorm(channels, eps=norm_eps)] if input_norm else []
    blocks = (
        TransformerBlock(
            channels,
            SelfAttention(channels, num_heads=num_heads, bias=bias),
            mlp_ratio=mlp_ratio,
            activation=activation,
            norm_eps=norm_eps,
        )
        for _ in range(depth)
    )
    return nn.Sequential(*first, *blocks, nn.LayerNorm(channels, eps=norm_eps))


def _head(channels: int, hidden: int | None, out_channels: int) -> nn.Sequential:
    """A linear map, or two with a tanh between them."""
    if hidden is None:
        return nn.Sequential(nn.Linear(channels, out_channels))
    check_positive(head_channels=hidden)
    return nn.Sequential(nn.Linear(channels, hidden), nn.Tanh(), nn.Linear(hidden, out_channels))
