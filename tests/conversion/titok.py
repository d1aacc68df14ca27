"""TiTok and TA-TiTok as equations, under the names of bytedance/1d-tokenizer."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conversion.maskgit import MaskGIT
from tests.conversion.published import Transformers


@dataclass
class TiTok(Transformers, MaskGIT):
    """L-32 and the like: latents with channels of all tokens, codes on the sphere, and MaskGIT's decoder."""

    multipliers: tuple[int, ...] = (1, 1, 2)
    num_res_blocks: int = 1
    image_size: int = 16
    num_tokens: int = 6
    encoder_width: int = 128
    decoder_width: int = 64
    encoder_depth: int = 2
    decoder_depth: int = 1
    encoder_patch: int = 8
    teachers_codes: int = 24
    teachers_dim: int = 7

    mixes_tokens = True
    on_the_sphere = True

    def heads(self, width: int) -> int:
        """See `Transformers`."""
        return width // 64

    # ------------------------------------------------------------------ the model

    def latents(self, images: Tensor) -> Tensor:
        """(B, T, D)."""
        number, width, size = len(images), self.encoder_width, self.encoder_patch
        weight = self.tensor("encoder.patch_embed.weight", width, 3, size, size)
        x = F.conv2d((images + 1) / 2, weight, self.tensor("encoder.patch_embed.bias", width), stride=size)
        x = x.flatten(2).mT
        first = self.tensor("encoder.class_embedding", 1, width).expand(number, 1, width)
        x = torch.cat([first, x], 1) + self.tensor("encoder.positional_embedding", 1 + x.shape[1], width)
        tokens = self.tensor("latent_tokens", self.num_tokens, width)
        tokens = tokens + self.tensor("encoder.latent_token_positional_embedding", self.num_tokens, width)
        x = self.transformer("encoder", torch.cat([x, tokens.expand(number, -1, -1)], 1), self.encoder_depth)
        x = x[:, -self.num_tokens :]
        if self.mixes_tokens:
            row = x.flatten(1)
            x = torch.stack([row[:, token :: self.num_tokens] for token in range(self.num_tokens)], 1)
        return self.linear("encoder.conv_out", x, self.dim, 1, 1)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (B, T), and the vectors (B, T, D) that are decoded."""
        spread, middle = latents.std((0, 1)), latents.mean((0, 1))
        codes = self.tensor("quantize.embedding.weight", self.codebook_size, self.dim, scale=spread, offset=middle)
        if self.on_the_sphere:
            latents, codes = F.normalize(latents, dim=-1), F.normalize(codes, dim=-1)
        indices = (latents.unsqueeze(-2) - codes).square().sum(-1).argmin(-1)
        return indices, codes[indices]

    def patch_tokens(self, quantized: Tensor, patches: int) -> Tensor:
        number, width = len(quantized), self.decoder_width
        x = self.linear("decoder.decoder_embed", quantized, width)
        masks = torch.cat(
            [
                self.tensor("decoder.class_embedding", 1, width),
                self.tensor("decoder.mask_token", 1, 1, width)[0].expand(patches, width),
            ]
        ) + self.tensor("decoder.positional_embedding", 1 + patches, width)
        x = x + self.tensor("decoder.latent_token_positional_embedding", self.num_tokens, width)[: x.shape[1]]
        parts = [masks.expand(number, -1, -1), x, *(part.expand(number, -1, -1) for part in self.context())]
        return self.transformer("decoder", torch.cat(parts, 1), self.decoder_depth)[:, 1 : 1 + patches]

    def context(self) -> list[Tensor]:
        return []

    def images(self, quantized: Tensor) -> Tensor:
        side = self.image_size // 2 ** (len(self.multipliers) - 1)
        x = self.patch_tokens(quantized, side**2)
        x = self.linear("decoder.ffn.0", x, 2 * self.decoder_width, 1, 1).tanh()
        logits = self.linear("decoder.ffn.2", x, self.teachers_codes, 1, 1)
        codes = self.tensor("pixel_quantize.embedding.weight", self.teachers_codes, self.teachers_dim)
        means = torch.einsum("bnk,kd->bdn", logits.softmax(-1), codes).unflatten(2, (side, side))
        return 2 * self.pixels(means, "pixel_decoder") - 1

    def prefix(self, images: Tensor, length: int) -> Tensor:
        """Pictures of the first tokens alone."""
        return self.images(self.quantize(self.latents(images.double()))[1][:, :length])


@dataclass
class TiTokPixels(TiTok):
    """Those of 8192 codes: a latent of each token, the nearest code, and pixels by a linear map."""

    decoder_patch: int = 4

    mixes_tokens = False
    on_the_sphere = False

    def images(self, quantized: Tensor) -> Tensor:
        size = self.decoder_patch
        side = self.image_size // size
        x = self.linear("decoder.ffn.0", self.patch_tokens(quantized, side**2), 3 * size**2, 1, 1)
        x = x.reshape(-1, side, side, size, size, 3).permute(0, 5, 1, 3, 2, 4)  # row, column, y, x, colour
        x = x.reshape(-1, 3, self.image_size, self.image_size)
        return 2 * self.conv("decoder.conv_out", x, 3) - 1


@dataclass
class TATiTok(TiTokPixels):
    """With a text that the decoder reads, and counts of usage."""

    text_tokens: int = 5
    text_dim: int = 9

    def text(self) -> Tensor:
        return torch.randn(self.text_tokens, self.text_dim, generator=torch.Generator().manual_seed(5))

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        self.tensor("quantize.embed_prob", self.codebook_size, scale=0.0, offset=1 / self.codebook_size)
        return super().quantize(latents)

    def context(self) -> list[Tensor]:
        """As it is stored, in float32."""
        x = self.linear("decoder.text_guidance_proj", self.text().double()[None].to(self.device), self.decoder_width)[0]
        positions = self.tensor("decoder.text_guidance_positional_embedding", self.text_tokens, self.decoder_width)
        return [(x + positions).float().double()]


TEACHER: dict[str, Any] = {
    "channels": 128,
    "multipliers": (1, 1, 2, 2, 4),
    "num_res_blocks": 2,
    "teachers_codes": 1024,
    "teachers_dim": 256,
}
SIZES = ("num_tokens", "encoder_width", "decoder_width", "encoder_depth", "decoder_depth")
RELEASED: dict[str, tuple[Any, ...]] = {
    "titok l-32": (TiTok, 32, 1024, 1024, 24, 24),
    "titok b-64": (TiTok, 64, 768, 768, 12, 12),
    "titok s-128": (TiTok, 128, 512, 512, 8, 8),
    "titok sl-256": (TiTokPixels, 256, 512, 1024, 8, 24),
    "ta-titok bl-64": (TATiTok, 64, 768, 1024, 12, 24),
}
FURTHER: dict[type[TiTok], dict[str, int]] = {
    TiTok: {"dim": 12, "codebook_size": 4096},
    TiTokPixels: {"dim": 64, "codebook_size": 8192, "decoder_patch": 16},
    TATiTok: {"dim": 64, "codebook_size": 8192, "decoder_patch": 16, "text_tokens": 77, "text_dim": 768},
}


def released(name: str) -> TiTok:
    """A model of a published size with all its entries, on the meta device."""
    cls, *sizes = RELEASED[name]
    options = dict(zip(SIZES, sizes, strict=True)) | FURTHER[cls] | TEACHER
    model = cls(**options, image_size=256, encoder_patch=16, device="meta")
    latents = model.latents(torch.empty(1, 3, 256, 256, dtype=torch.float64, device="meta"))
    model.images(model.quantize(latents)[1])
    return model
