"""Features of a frozen network, predicted from codes."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.core.objective import LatentObjective
from trainers.image.networks.network import FrozenNetwork
from vqkit.backbones.positions import LearnedPositions
from vqkit.backbones.transformer import SelfAttention, TransformerBlock
from vqkit.runtime import autocast_disabled


class FeaturePrediction(LatentObjective):
    """Makes codes say what a frozen network says of a picture: a transformer predicts its feature from them.

    With p_i the prediction for picture i of a batch and f_i its feature, both of unit length, it is

        -mean_i log(exp(<p_i, f_i>) / sum_j exp(<p_i, f_j>))

    so the feature of a picture has to be told from those of the others, of which a process sees its own: two or more.
    The transformer reads one token for each position and one of its own, the first, whose output is p. It is trained
    with the tokenizer, and is no part of it.

    Source: Bai et al. 2024 (FQGAN, [arXiv:2411.16681](https://arxiv.org/abs/2411.16681)), sec. 3.3, as its released
    code computes it, with weight 0.5 and a transformer of three blocks.

    Args:
        network: its output is the feature, (B, F), or the first of its tokens (B, N, F); a class token.
        channels: first channel of the quantized vectors that is read, and the one behind the last; of one group of a
            `GroupedQuantizer`.
        grid_size: (h, w) of the quantized vectors (B, D, h, w), in positions.
        depth: transformer blocks.
        num_heads: of their attention; must divide F.
        weight: factor of the term in the total.
        name: under which the term is logged.

    Raises:
        ValueError: the network gives something else, or a size does not fit; in `forward` if the vectors have other
            channels or another grid.
    """

    def __init__(
        self,
        network: FrozenNetwork,
        *,
        channels: tuple[int, int],
        grid_size: Sequence[int] = (16, 16),
        depth: int = 3,
        num_heads: int = 8,
        weight: float = 0.5,
        name: str = "prediction",
    ) -> None:
        super().__init__(weight=weight, name=name)
        first, last = channels
        if not 0 <= first < last:
            raise ValueError(
                f"channels={tuple(channels)}: expected the first one, and the one behind the last: (8, 16)"
            )
        self.network = network
        self.channels = slice(first, last)
        side = network.resize.resolution if network.resize else 224
        width = self.features(torch.zeros(1, 3, side, side)).shape[-1]
        self.enter = nn.Sequential(nn.Linear(last - first, width), nn.ReLU(), nn.Linear(width, width))
        self.token = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.positions = LearnedPositions(width, grid_size)
        self.blocks = nn.Sequential(
            nn.LayerNorm(width),
            *(TransformerBlock(width, SelfAttention(width, num_heads=num_heads)) for _ in range(depth)),
            nn.LayerNorm(width),
        )

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(B, F) of images (B, 3, H, W) in [-1, 1]."""
        (output, *others) = self.network(images)
        if others or output.ndim not in (2, 3):
            shapes = [tuple(found.shape) for found in (output, *others)]
            raise ValueError(f"the network of {self.name!r} gives {shapes}: expected (B, F), or tokens (B, N, F)")
        return output if output.ndim == 2 else output[:, 0]

    def predict(self, quantized: Tensor) -> Tensor:
        """(B, F) of vectors (B, D, h, w)."""
        if quantized.ndim != 4 or quantized.shape[1] < self.channels.stop:
            raise ValueError(
                f"quantized vectors of {self.name!r} have shape {tuple(quantized.shape)}: expected (B, D, h, w) with "
                f"channels {self.channels.start} to {self.channels.stop - 1}"
            )
        tokens = self.positions(self.enter(quantized[:, self.channels].movedim(1, -1))).flatten(1, 2)
        return self.blocks(torch.cat([self.token.expand(len(tokens), 1, -1), tokens], dim=1))[:, 0]

    def penalty(self, reference: Tensor, quantized: Tensor) -> Tensor:
        """See `LatentObjective`."""
        predicted, found = self.compared(self.predict(quantized)), self.compared(self.features(reference))
        with autocast_disabled(quantized.device):  # features of one network are alike: 8 bits do not tell them apart
            similarity = F.normalize(predicted, dim=-1) @ F.normalize(found, dim=-1).T
            return F.cross_entropy(similarity, torch.arange(len(found), device=found.device))
