"""FQGAN as equations, under its names."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conversion.published import LlamaGen, Transformers

HEADS = 8


@dataclass
class FQGANDual(Transformers, LlamaGen):
    """Two branches behind LlamaGen's encoder, visual and semantic; each has a transformer and a codebook."""

    adapter_depth: int = 2
    branches: ClassVar[dict[str, str]] = {"vis": "visual_head", "sem": "semantic_head"}
    predictors: ClassVar[dict[str, int]] = {"feat_pred_head": 1024}
    """What predicts features in training, with the width of its transformer; a tokenizer does not need it."""

    def adapter(self, name: str, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT + self.tensor(f"{name}.positional_embedding", x[0, 0].numel(), x.shape[1])
        return self.transformer(name, tokens, self.adapter_depth).mT.reshape(x.shape)

    def latents(self, images: Tensor) -> Tensor:
        features, joined = self.features(images), []
        for name, adapter in self.branches.items():
            x = self.adapter(f"encoder.{adapter}.0", features)
            x = self.swish_conv(f"encoder.norm_out_{name}", f"encoder.conv_out_{name}", x, self.latent_channels)
            joined.append(self.conv(f"quant_conv_{name}", x, self.dim, 1))
        return torch.cat(joined, dim=1)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        indices, vectors = [], []
        for name, part in zip(self.branches, latents.split(self.dim, dim=1), strict=True):
            self.tensor(f"quantize_{name}.codebook_used", 65536)
            codes = F.normalize(self.codes(f"quantize_{name}.embedding.weight", part), dim=1)
            found, chosen = self.read(codes, torch.einsum("bdhw,kd->bhwk", F.normalize(part, dim=1), codes).argmax(-1))
            indices.append(found)
            vectors.append(chosen)
        return torch.stack(indices, dim=-1), torch.cat(vectors, dim=1)

    def predict(self, name: str, vectors: Tensor, width: int) -> Tensor:
        """Features (B, 1 + h w, width) of a frozen network as training predicts them, that of the picture first."""
        x = self.linear(f"{name}.upscale.0", vectors.flatten(2).mT, width).clamp(min=0)
        x = self.linear(f"{name}.upscale.2", x, width)
        x = torch.cat([self.tensor(f"{name}.class_embedding", 1, width).expand(len(x), -1, -1), x], dim=1)
        x = x + self.tensor(f"{name}.positional_embedding", *x.shape[1:])
        return self.transformer(name, x, 3)

    def images(self, quantized: Tensor) -> Tensor:
        semantic = quantized.split(self.dim, dim=1)[1:]
        for (name, width), vectors in zip(self.predictors.items(), semantic, strict=True):
            self.predict(name, vectors, width if self.device == "meta" else HEADS)
        return super().images(quantized)


class FQGANTriple(FQGANDual):
    """Three branches: visual, and two semantic ones."""

    branches = {"vis": "visual_head", "sem_mid": "semantic_head_mid", "sem_high": "semantic_head_high"}
    predictors = {"mid_sem_feat_pred": 384, "high_sem_feat_pred": 768}
