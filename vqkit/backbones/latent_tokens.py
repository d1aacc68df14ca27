"""A picture as a row of tokens, each of which may say something of all of it: one-dimensional tokenizers.

A transformer reads the patches of a picture together with T latent tokens, which are parameters, and only what became
of these is quantized. Another reads mask tokens, one for each patch, together with the T codes, or the first n of them,
and only what became of the masks is drawn.

Source: Yu et al. 2024 (TiTok, arXiv:2406.07550), sec. 3.2, and its released code; Kim et al. 2025 (TA-TiTok,
arXiv:2501.07730). `vqkit.conversion` reads their weights (`docs/weights.md`).
Differs: images lie in [-1, 1], as everywhere here, and are mapped to the [0, 1] of the published models inside of
encoder and decoder; projections to queries, keys and values start as all other linear maps do (published: uniform, by
Glorot's rule); the text that TA-TiTok's decoder reads is a constant (`context_tokens`).
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from vqkit.backbones.protocol import properties_of
from vqkit.backbones.sizes import check_positive
from vqkit.backbones.transformer import SelfAttention, TransformerBlock, initialize_linears
from vqkit.backbones.vit import PatchEmbedding, patches_on_a_side
from vqkit.saving.config import Configured


class LatentTokenEncoder(Configured, nn.Module):
    """Images (B, C, S, S) to latents (B, T, dim) of T tokens, in [-1, 1] and of one size S.

    Sizes of TiTok: small has channels=512, depth=8, num_heads=8; base 768, 12, 12; large 1024, 24, 16.

    Args:
        in_channels: C.
        dim: channels of the latents; the quantizer's `dim`, whose `channel_dim` is -1.
        num_tokens: T.
        image_size: S, in pixels; a multiple of `patch_size`.
        patch_size: side of a patch, in pixels.
        channels: width of the transformer.
        depth: number of its blocks.
        num_heads: must divide `channels`.

    Raises:
        ValueError: if a size is not positive or does not fit; in `forward` if the images have another size.

    Examples:
        >>> encoder = LatentTokenEncoder(
        ...     dim=12, num_tokens=8, image_size=64, channels=64, depth=2, num_heads=1
        ... )
        >>> encoder(torch.rand(1, 3, 64, 64) * 2 - 1).shape
        torch.Size([1, 8, 12])
    """

    channel_dim = -1

    def __init__(
        self,
        *,
        in_channels: int = 3,
        dim: int,
        num_tokens: int,
        image_size: int = 256,
        patch_size: int = 16,
        channels: int = 768,
        depth: int = 12,
        num_heads: int = 12,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_tokens=num_tokens)
        self.in_channels = in_channels
        self.dim = dim
        self.image_size = image_size
        self.num_tokens = num_tokens
        side = patches_on_a_side(image_size, patch_size)
        self.patches = PatchEmbedding(in_channels, channels, patch_size=patch_size)
        self.class_token = _token_parameter(1, channels)
        self.positions = _token_parameter(1 + side**2, channels)
        self.latents = _token_parameter(num_tokens, channels)
        self.latent_positions = _token_parameter(num_tokens, channels)
        self.blocks = _blocks(channels, depth=depth, num_heads=num_heads)
        self.norm = nn.LayerNorm(channels)
        self.projection = nn.Linear(channels, dim)
        initialize_linears(self)

    def forward(self, images: Tensor) -> Tensor:
        """Latents (B, T, dim) of images (B, C, S, S) in [-1, 1]."""
        size = self.image_size
        if images.ndim == 4 and images.shape[-2:] != (size, size):
            raise ValueError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels: expected {size} x {size}, the one size of "
                "which this encoder has learned positions; crop or resize them"
            )
        patches = self.patches((images + 1) / 2).flatten(1, 2)
        first = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], 1) + self.positions
        latents = (self.latents + self.latent_positions).expand(patches.shape[0], -1, -1)
        tokens = self.blocks(torch.cat([first, latents], 1))
        return self.project(self.norm(tokens[:, -self.num_tokens :]))

    def project(self, tokens: Tensor) -> Tensor:
        """Latents (B, T, dim) of what became of the latent tokens, (B, T, channels)."""
        return self.projection(tokens)


class TiTokEncoder(LatentTokenEncoder):
    """The encoder of the released TiTok-L-32, B-64 and S-128, of which a latent has channels of all tokens.

    Before the projection their (T, channels) numbers are read as (channels, T), without a transposition: channel c of
    what becomes latent t is number c T + t of all of them. Later models do not have it (`is_legacy: False` in their
    configurations). For weights that were trained so; a new model has `LatentTokenEncoder`.

    Arguments, attributes and errors are those of `LatentTokenEncoder`.
    """

    def project(self, tokens: Tensor) -> Tensor:
        """See `LatentTokenEncoder`."""
        number, channels = tokens.shape[1:]
        return self.projection(tokens.reshape(-1, channels, number).mT)


class LatentTokenDecoder(Configured, nn.Module):
    """Latents (B, n, dim) of the first n of T tokens to images (B, C, S, S), by a mask token for each patch.

    Arguments are those of `LatentTokenEncoder`. What differs:

    Args:
        dim: channels of the latents.
        head: from what became of the mask tokens, (B, S / patch_size, S / patch_size, channels), to images: `PixelHead`
            or `CodeHead`.
        context_tokens: further tokens that are read, which are trained parameters. TA-TiTok reads a text there, 77
            tokens of CLIP; converted models have those of one text.

    Raises:
        ValueError: if a size is not positive or does not fit, or the head is of another width or of other patches; in
            `forward` if there are no latents, or more than T.

    Examples:
        >>> head = PixelHead(channels=64, patch_size=16)
        >>> decoder = LatentTokenDecoder(
        ...     dim=12, num_tokens=8, head=head, image_size=64, channels=64, depth=2, num_heads=1
        ... )
        >>> decoder(torch.randn(1, 8, 12)).shape, decoder(torch.randn(1, 3, 12)).shape
        (torch.Size([1, 3, 64, 64]), torch.Size([1, 3, 64, 64]))
    """

    channel_dim = -1

    def __init__(
        self,
        *,
        dim: int,
        num_tokens: int,
        head: nn.Module,
        image_size: int = 256,
        patch_size: int = 16,
        channels: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        context_tokens: int = 0,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_tokens=num_tokens)
        if context_tokens < 0:
            raise ValueError(f"context_tokens={context_tokens}: expected 0 or more")
        own = properties_of(head)
        for name, found, expected in (
            ("channels", getattr(head, "channels", None), channels),
            ("downsampling_factor", own.downsampling_factor, patch_size),
        ):
            if found not in (None, expected):
                raise ValueError(f"head={type(head).__name__} has {name}={found}: expected {expected}, as the decoder")
        self.dim = dim
        self.num_tokens = num_tokens
        self.out_channels = own.out_channels
        self.side = patches_on_a_side(image_size, patch_size)
        self.embedding = nn.Linear(dim, channels)
        self.class_token = _token_parameter(1, channels)
        self.mask_token = _token_parameter(1, channels)
        self.positions = _token_parameter(1 + self.side**2, channels)
        self.latent_positions = _token_parameter(num_tokens, channels)
        self.context = _token_parameter(context_tokens, channels) if context_tokens else None
        self.blocks = _blocks(channels, depth=depth, num_heads=num_heads)
        self.norm = nn.LayerNorm(channels)
        initialize_linears(self)
        self.head = head
        self.output_layer = f"head.{own.output_layer}" if own.output_layer else None

    def patch_tokens(self, latents: Tensor) -> Tensor:
        """What becomes of the mask tokens, (B, S / patch_size, S / patch_size, channels), of latents (B, n, dim)."""
        if latents.ndim != 3 or latents.shape[-1] != self.dim or not 1 <= latents.shape[1] <= self.num_tokens:
            raise ValueError(
                f"latents has shape {tuple(latents.shape)}: expected (B, n, {self.dim}), those of the first n of "
                f"{self.num_tokens} tokens"
            )
        masks = torch.cat([self.class_token, self.mask_token.expand(self.side**2, -1)]) + self.positions
        known = self.embedding(latents) + self.latent_positions[: latents.shape[1]]
        tokens = [masks.expand(latents.shape[0], -1, -1), known]
        if self.context is not None:
            tokens.append(self.context.expand(latents.shape[0], -1, -1))
        drawn = self.blocks(torch.cat(tokens, 1))[:, 1 : 1 + self.side**2]
        return rearrange(self.norm(drawn), "b (h w) c -> b h w c", h=self.side)

    def forward(self, latents: Tensor) -> Tensor:
        """Images (B, C, S, S), about in [-1, 1] and not clipped, of latents (B, n, dim)."""
        return self.head(self.patch_tokens(latents))


class PixelHead(Configured, nn.Module):
    """Tokens (B, h, w, channels) to images (B, C, p h, p w): a linear map of each token, and a convolution.

    Args:
        out_channels: C.
        channels: of the tokens.
        patch_size: p, in pixels.

    Raises:
        ValueError: a size is not positive.

    Source: the released code of TA-TiTok (Kim et al. 2025, arXiv:2501.07730) and of TiTok with 8192 codes, which are
    trained in one stage.
    """

    output_layer = "convolution"

    def __init__(self, *, out_channels: int = 3, channels: int = 768, patch_size: int = 16) -> None:
        super().__init__()
        check_positive(out_channels=out_channels, channels=channels, patch_size=patch_size)
        self.out_channels = out_channels
        self.channels = channels
        self.downsampling_factor = patch_size
        self.to_pixels = nn.Linear(channels, patch_size**2 * out_channels)
        self.convolution = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        initialize_linears(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        side = self.downsampling_factor
        images = rearrange(self.to_pixels(tokens), "b h w (p q c) -> b c (h p) (w q)", p=side, q=side)
        return 2 * self.convolution(images) - 1


class CodeHead(Configured, nn.Module):
    """Tokens (B, h, w, channels) to images by way of the codes of a teacher, another tokenizer of pictures.

    Each token gives logits of the teacher's K codes. The mean of these codes, weighted by the softmax of the logits, is
    read by the teacher's decoder. In stage 1 of the training the logits learn to predict the teacher's codes
    (`trainers.image.CodePredictionTask`), in stage 2 all of the head learns from pictures, behind a frozen encoder and
    quantizer.

    Args:
        pixels: the teacher's decoder, of latents (B, D, h, w); it becomes a part of this one.
        channels: of the tokens.
        codebook_size: K.

    Attributes:
        codes: the teacher's, an embedding of K vectors (D,).

    Raises:
        ValueError: a size is not positive, or `pixels` does not say its `dim`, D.

    Source: Yu et al. 2024 (arXiv:2406.07550), sec. 3.3, and its released code. The teacher is the VQGAN of MaskGIT.
    """

    def __init__(self, *, pixels: nn.Module, channels: int = 768, codebook_size: int = 1024) -> None:
        super().__init__()
        check_positive(channels=channels, codebook_size=codebook_size)
        own = properties_of(pixels)
        if own.dim is None or own.channel_dim not in (None, 1):
            raise ValueError(
                f"pixels={type(pixels).__name__} has dim={own.dim} and channel_dim={own.channel_dim}: expected a "
                "decoder of latents (B, dim, h, w) that says its dim, such as vqkit.backbones.maskgit.MaskGITDecoder2d"
            )
        self.channels = channels
        self.codebook_size = codebook_size
        self.out_channels = own.out_channels
        self.downsampling_factor = own.downsampling_factor
        self.output_layer = f"pixels.{own.output_layer}" if own.output_layer else None
        self.to_logits = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.Tanh(), nn.Linear(2 * channels, codebook_size)
        )
        self.codes = nn.Embedding(codebook_size, own.dim)
        initialize_linears(self.to_logits)
        self.pixels = pixels

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, K, h, w), of tokens (B, h, w, channels)."""
        return self.to_logits(tokens).movedim(-1, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        means = self.to_logits(tokens).softmax(-1).to(self.codes.weight.dtype) @ self.codes.weight
        return self.pixels(means.movedim(-1, 1).contiguous())


def _token_parameter(number: int, channels: int) -> nn.Parameter:
    """(number, channels), of vectors of length 1 or so."""
    check_positive(channels=channels)
    return nn.Parameter(torch.randn(number, channels) * channels**-0.5)


def _blocks(channels: int, *, depth: int, num_heads: int) -> nn.Sequential:
    """A norm, and `depth` transformer blocks on tokens (B, N, channels)."""
    check_positive(depth=depth)
    blocks = (TransformerBlock(channels, SelfAttention(channels, num_heads=num_heads)) for _ in range(depth))
    return nn.Sequential(nn.LayerNorm(channels), *blocks)
