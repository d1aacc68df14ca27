"""Residual k-means as a tokenizer: codebooks that are fitted at once, without an encoder."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from vqkit import Quantizer, ResidualQuantizer
from vqkit.backbones.mlp import Passthrough
from vqkit.clustering import KMeans, kmeans, residual_kmeans
from vqkit.tokenizers.vectors import CommonScale, VectorTokenizer

PLAIN = partial(kmeans, iterations=50)
"""k-means until it stands, or nearly: what is fitted once and stays may take the time."""


@torch.no_grad()
def kmeans_tokenizer(
    vectors: Tensor, sizes: Sequence[int], *, cluster: Callable[..., KMeans] = PLAIN, seed: int = 0
) -> VectorTokenizer:
    """A tokenizer of the centers of `vqkit.clustering.residual_kmeans`, in eval mode.

    Args:
        vectors: (M, D) of items.
        sizes: codes of each level, coarse first.
        cluster: `PLAIN`, or `vqkit.clustering.balanced_kmeans`.
        seed: of the clustering.
    """
    dim = vectors.shape[1]
    scaling = CommonScale(dim)
    scaling.fit([vectors])
    stages = [partial(Quantizer, "ema", dim=dim, codebook_size=size, maintenance=[]) for size in sizes]
    quantizer = ResidualQuantizer(stages)
    tokenizer = VectorTokenizer(Passthrough(dim), quantizer, Passthrough(dim), scaling=scaling)
    install(quantizer, residual_kmeans(scaling(vectors), sizes, cluster=cluster, seed=seed))
    return tokenizer.eval()


def writable_stages(quantizer: ResidualQuantizer) -> list[Quantizer]:
    """The stages, whose codes can be written.

    Raises:
        ValueError: a stage has none.
    """
    found: list[Quantizer] = []
    for number, stage in enumerate(quantizer.stages):
        if not isinstance(stage, Quantizer) or stage.codebook.rows != "writable":
            name = type(stage.codebook if isinstance(stage, Quantizer) else stage).__name__
            raise ValueError(
                f"stage {number} is a {name}, whose codes cannot be written: expected stored ones, as of the methods "
                "'vq' and 'ema'"
            )
        found.append(stage)
    return found


@torch.no_grad()
def install(quantizer: ResidualQuantizer, codebooks: Sequence[Tensor], *, vectors_per_step: int = 1) -> None:
    """Make the centers (K, D) of each level the codes of each stage, as a start or for good.

    Args:
        quantizer: whose stages are filled.
        codebooks: of each level.
        vectors_per_step: that a training step will show, over all ranks, if there will be any.

    Raises:
        ValueError: a stage has other codes, or none that can be written.
    """
    for stage, centers in zip(writable_stages(quantizer), codebooks, strict=True):
        stage.codebook.write(centers.to(stage.codebook.vectors))
        stage.codebook.assume_uniform_usage(vectors_per_step)
