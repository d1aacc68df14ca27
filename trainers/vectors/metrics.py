"""Figures of a tokenizer of vectors: what is lost, how items collide, and what is kept of their neighbourhoods."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.core.metrics import TokenizerMetrics, versions
from trainers.vectors.neighbours import QUERIES, recall_by_prefix, recall_by_vectors, true_neighbours
from vqkit.bitstream.codec import TokenCodec
from vqkit.distributed import all_reduce_sum, gather_rows
from vqkit.tokenizers.vectors import Scaling
from vqkit.tokens.semantic_ids import collisions

NEIGHBOURS = 10
KEPT_ITEMS = 2**16
"""Items of a split whose collisions and neighbours are looked at, the first ones; of larger splits the rest is not."""

PROTOCOL = {
    "explained": "1 - squared error / squared distance from the mean of this set, both of scaled vectors",
    "cosine": "mean cosine between scaled vectors and their reconstructions",
    "bits_per_vector": "sum over levels of log2(codebook_size), without entropy coding; of series per series",
    "entropy_bits_per_vector": "sum over levels of the order-0 entropy of the codes of this very set",
    "codebook_usage": "share of the codes used at least once by the whole set, mean over levels; perplexity 2^entropy",
}
ITEMS_PROTOCOL = {
    "unique": "share of the items whose tuple of indices no other item of the set has",
    "recall": f"of the {NEIGHBOURS} nearest other items by scaled vectors, the share among the {NEIGHBOURS} nearest by "
    "decoded vectors, or by the length of the common prefix; ties in any order, in expectation; at most "
    f"{QUERIES} items are asked for",
}


class VectorMetrics(TokenizerMetrics):
    """Distortion, rate, use of codes, collisions and neighbourhoods of a set of vectors, or of series.

    Of series there are neither collisions nor neighbourhoods.

    Args:
        codebook_sizes: K of each level, or of the single codebook; empty where latents are continuous.
        books: the codebook of each level; see `CodebookUsage`.
        scaling: of the tokenizer: figures are those of scaled vectors.
    """

    def __init__(
        self, codebook_sizes: int | Sequence[int], *, scaling: Scaling, books: Sequence[int] | None = None
    ) -> None:
        super().__init__(codebook_sizes, books=books)
        self.scaling = scaling
        # Samples, vectors, squared errors, squared lengths, cosines, reconstructions that are not finite.
        self.sums = torch.zeros(6, dtype=torch.float64)
        self.means = torch.zeros(scaling.dim, dtype=torch.float64)
        self.tokens = torch.zeros(len(self.codebook_sizes), dtype=torch.int64)
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, originals: Tensor, reconstructions: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """Add a batch.

        Args:
            originals: (B, C) or (B, C, T), in their own units.
            reconstructions: like `originals`.
            indices: (B, ..., levels) int64, as `quantizer.by_level` gives them.

        Returns:
            squared_error and cosine, (B,) each.

        Raises:
            ValueError: the shapes differ.
        """
        if originals.shape != reconstructions.shape:
            raise ValueError(
                f"reconstructions have shape {tuple(reconstructions.shape)}: expected {tuple(originals.shape)}"
            )
        broken = ~reconstructions.flatten(1).isfinite().all(1)
        original, copy = (self.scaling(vectors.float()) for vectors in (originals, reconstructions))
        copy = copy.nan_to_num(0.0, 0.0, 0.0)
        errors = (original - copy).square().sum(1)
        cosines = F.cosine_similarity(original, copy, dim=1)
        each = [errors, original.square().sum(1), cosines]
        summed = [value.double().sum() for value in each]
        counts = torch.tensor([len(originals), errors.numel()], dtype=torch.float64)
        self.sums += torch.stack([value.to(self.sums) for value in (*counts, *summed, broken.sum())])
        self.means += original.movedim(1, -1).flatten(0, -2).double().sum(0).to(self.means)
        if self.codebook_sizes:
            levels = indices.reshape(-1, len(self.codebook_sizes))
            self.tokens += (levels >= 0).sum(0).to(self.tokens)
            if originals.ndim == 2 and sum(len(kept) for kept, _, _ in self.kept) < KEPT_ITEMS:
                self.kept.append((original.cpu(), copy.cpu(), levels.cpu()))
        if self.usage is not None:
            self.usage.update(indices)
        per_sample = {"squared_error": errors, "cosine": cosines}
        return {name: value.flatten(1).mean(1) if value.ndim > 1 else value for name, value in per_sample.items()}

    def add_coded(self, codec: TokenCodec, originals: Tensor, indices: Tensor) -> None:
        """Nothing: an ID is a few indices, and no file."""

    def extent(self, originals: Tensor) -> None:
        """None: vectors have no pixels and no seconds."""

    def compute(self) -> dict[str, float]:
        """The figures of all ranks; every rank must call it.

        Returns:
            explained, cosine, items (samples), not_finite, bits_per_vector; where there are codes and samples are
            single vectors unique, colliding, largest_group, and with more than 10 items recall and prefix_recall;
            entropy_bits_per_vector and `usage_figures` if the codes can be counted.

        Raises:
            ValueError: nothing was seen on any rank.
        """
        packed = all_reduce_sum(torch.cat([self.sums, self.means]))
        items, vectors, errors, squares, cosines, broken = packed[:6].tolist()
        tokens = all_reduce_sum(self.tokens).tolist()
        usage, entropies = self.usage_figures()
        if not items:
            raise ValueError("nothing was measured: the split is empty")
        spread = squares - float(packed[6:].square().sum()) / vectors
        figures = {"explained": 1 - errors / spread if spread > 0 else math.nan, "cosine": cosines / vectors}
        figures |= {"items": int(items), "not_finite": int(broken)}
        if self.codebook_sizes:
            bits = [math.log2(size) for size in self.codebook_sizes]
            figures["bits_per_vector"] = _per_item(tokens, bits, items)
            figures |= self._of_items()
        return figures | ({"entropy_bits_per_vector": _per_item(tokens, entropies, items)} | usage if usage else {})

    def _of_items(self) -> dict[str, float]:
        """Collisions and neighbourhoods; nothing of series."""
        levels = len(self.codebook_sizes)
        empty = (torch.zeros(0, self.scaling.dim), torch.zeros(0, self.scaling.dim), torch.zeros(0, levels).long())
        device = self.sums.device  # what a process group gathers lies there
        own = [torch.cat(part)[:KEPT_ITEMS].to(device) for part in zip(empty, *self.kept, strict=True)]
        original, decoded, indices = (gather_rows(part)[:KEPT_ITEMS].cpu() for part in own)
        return item_figures(original, decoded, indices) if len(indices) else {}


def item_figures(vectors: Tensor, decoded: Tensor, semantic_ids: Tensor) -> dict[str, float]:
    """Collisions and neighbourhoods of items.

    Args:
        vectors: (M, D) scaled.
        decoded: like `vectors`.
        semantic_ids: (M, levels).

    Returns:
        unique, colliding, largest_group; with more than 10 items recall and prefix_recall.
    """
    found = collisions(semantic_ids)
    figures = {"unique": found.unique, "colliding": found.colliding, "largest_group": found.largest_group}
    if len(vectors) > NEIGHBOURS:
        queries, neighbours = true_neighbours(vectors, NEIGHBOURS)
        figures["recall"] = recall_by_vectors(queries, neighbours, decoded)
        figures["prefix_recall"] = recall_by_prefix(queries, neighbours, semantic_ids)
    return figures


def protocol(figures: Mapping[str, float], **circumstances: Any) -> dict[str, Any]:
    """How `figures` were measured, so that nobody compares what cannot be compared.

    Args:
        figures: what `VectorMetrics.compute` returned.
        circumstances: facts that only the caller knows (split, checkpoint, precision).
    """
    record: dict[str, Any] = PROTOCOL | (ITEMS_PROTOCOL if "unique" in figures else {})
    return record | {"items": figures["items"]} | circumstances | {"versions": versions(("torch", "numpy"))}


def _per_item(tokens: Sequence[int], bits: Sequence[float], items: float) -> float:
    return sum(count * own for count, own in zip(tokens, bits, strict=True)) / items
