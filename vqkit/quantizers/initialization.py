"""Before training: what a quantizer takes from data."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.quantizers.base import BaseQuantizer, VectorQuantizer
from vqkit.runtime import autocast_disabled


def enough_samples(codebook_size: int, samples: int | None) -> int:
    """The default of `initialize`: 64 vectors per code, within 65,536 and 262,144, and at least 4 per code."""
    if samples is None:
        return max(min(max(64 * codebook_size, 65_536), 262_144), 4 * codebook_size)
    return samples


def collect_vectors(quantizer: BaseQuantizer, latents: Iterable[Tensor], samples: int) -> tuple[Tensor, int]:
    """This rank's share of `samples` finite vectors (M, dim), and how many of them a batch held on average.

    Args:
        quantizer: whose layout the latents have.
        latents: tensors in the layout of `quantizer.forward`; each rank gives its own.
        samples: how many vectors to use, over all ranks.

    Raises:
        ValueError: `samples` is below 1, or no rank gave a finite vector.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}: expected at least 1 vector, or None for the default")
    wanted = math.ceil(samples / distributed.world_size())
    rows: list[Tensor] = []
    collected, batches = 0, 0
    for x in latents:
        vectors, valid, _ = quantizer.open(x)
        rows.append(vectors[valid])
        collected += len(rows[-1])
        batches += 1
        if collected >= wanted:
            break
    # All ranks raise, or none: one that raised alone would leave the others waiting.
    if not int(distributed.all_reduce_sum(quantizer.nonfinite_seen.new_tensor(collected))):
        raise ValueError("latents: expected at least one finite vector to initialize from, got none")
    nothing = quantizer.latent_spread.new_zeros(0, quantizer.dim)
    return torch.cat([nothing, *rows])[:wanted], math.ceil(collected / max(batches, 1))


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
    if not isinstance(quantizer.project_in, nn.Linear):
        return
    rows, _ = collect_vectors(quantizer, latents, 65_536 if samples is None else samples)
    with autocast_disabled(rows.device):
        z = distributed.gather_rows(quantizer.project_in(rows))
    spread = z.std(0, correction=0)
    # A dimension without spread (one vector, equal vectors) keeps its scale.
    scale = torch.where(spread > 1e-6 * z.abs().amax().clamp(min=1e-30), 1 / spread, 1.0)
    weight, bias = quantizer.project_in.weight, quantizer.project_in.bias
    weight.copy_(distributed.from_first_rank(weight * scale.unsqueeze(-1)))
    bias.copy_(distributed.from_first_rank((bias - z.mean(0)) * scale))
