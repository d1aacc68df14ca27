"""What a fixed grid can take from data: the scale of the projection into it."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.quantizers.vector import VectorQuantizer
from vqkit.runtime import autocast_disabled


@torch.no_grad()
def standardize_projection(quantizer: VectorQuantizer, latents: Iterable[Tensor], samples: int | None) -> None:
    """Scale and shift `quantizer.project_in` so that each dimension of the code space has mean 0 and standard deviation
    1 over the data; the same on every rank.

    Without a projection there is nothing to set, and `latents` is not read.

    Args:
        quantizer: its `project_in` is rewritten.
        latents: tensors in the layout of `quantizer.forward`; each rank gives its own.
        samples: how many vectors to use, over all ranks; None means 65,536.
    """
    if not quantizer.has_projection:
        return
    rows, _ = quantizer._collect(latents, 65_536 if samples is None else samples)
    with autocast_disabled(rows.device):
        z = distributed.gather_rows(quantizer.to_code_space(rows))
    spread = z.std(0, correction=0)
    # A dimension without spread (one vector, equal vectors) keeps its scale.
    scale = torch.where(spread > 1e-6 * z.abs().amax().clamp(min=1e-30), 1 / spread, 1.0)
    assert isinstance(quantizer.project_in, nn.Linear)
    weight, bias = quantizer.project_in.weight, quantizer.project_in.bias
    weight.copy_(distributed.from_first_rank(weight * scale.unsqueeze(-1)))
    bias.copy_(distributed.from_first_rank((bias - z.mean(0)) * scale))
