"""What the metrics of every modality share: use of the codebooks, and the versions in a protocol."""

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Self

import torch
from torch import Tensor

from vqkit import CodebookUsage, QuantizerOutput
from vqkit.bitstream.codec import TokenCodec
from vqkit.bitstream.container import Extent
from vqkit.distributed import all_reduce_sum
from vqkit.metrics import countable
from vqkit.precision import widest_dtype

RENAMED = {"usage": "codebook_usage", "dead": "dead_codes"}
"""Figures of `vqkit.CodebookUsage` that have a longer name beside those of another kind."""

SHARED_CODES_PROTOCOL = {
    "codebook_usage": "share of the codes of a codebook that any of its scales used at least once in the whole set; "
    "perplexity 2^entropy of what all of them chose",
}
"""Of figures where levels share a codebook."""


class TokenizerMetrics(ABC):
    """Distortion, rate and codebook usage of a tokenizer on a set of files.

    Everything is summed per file and reduced over ranks once, in `compute`. Deliberately no module: figures are neither
    in checkpoints nor touched by weight averaging.

    Args:
        codebook_sizes: K of each level, or of the single codebook; empty where latents are continuous.
        books: the codebook of each level; see `CodebookUsage`.
    """

    def __init__(self, codebook_sizes: int | Sequence[int], *, books: Sequence[int] | None = None) -> None:
        self.codebook_sizes = [codebook_sizes] if isinstance(codebook_sizes, int) else list(codebook_sizes)
        self.usage = CodebookUsage(self.codebook_sizes, books=books) if countable(self.codebook_sizes) else None
        self.divergence = torch.zeros(2, dtype=torch.float64)  # nats, and vectors
        self.coded_bytes = torch.zeros(1, dtype=torch.int64)

    @abstractmethod
    def update(self, originals: Tensor, reconstructions: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """Add a batch; returns the figures of each sample, (B,), NaN where it was left out."""

    @torch.no_grad()
    def add_divergence(self, output: QuantizerOutput) -> None:
        """Add the divergence of a batch from the prior, where latents are continuous."""
        if "kl" in output.losses and not self.codebook_sizes:
            vectors = output.indices.shape[:-1].numel() - output.nonfinite
            self.divergence += torch.stack([output.losses["kl"] * vectors, vectors]).to(self.divergence)

    @abstractmethod
    def extent(self, originals: Tensor) -> Extent | None:
        """What a file of indices says of one of these originals; None where it says nothing."""

    @torch.no_grad()
    def add_coded(self, codec: TokenCodec, originals: Tensor, indices: Tensor) -> None:
        """Add what a batch takes as files of indices, one for each sample.

        Args:
            codec: of the quantizer.
            originals: as for `update`.
            indices: (B, ...) as `encode` returns them.
        """
        extent = self.extent(originals)
        self.coded_bytes += sum(len(codec.pack(sample[None], extent=extent).content) for sample in indices.cpu())

    def coded_bits(self) -> float:
        """Bits of all these files; 0 where none was added. Every rank must call it."""
        return 8 * float(all_reduce_sum(self.coded_bytes.clone()))

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The figures of all ranks; every rank must call it."""

    def to(self, device: torch.device) -> Self:
        """Move the sums to a device; to one without float64 in float32."""
        if self.usage is not None:
            self.usage.to(device)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                dtype = widest_dtype(device) if value.dtype == torch.float64 else value.dtype
                setattr(self, name, value.to(device, dtype))
        return self

    def per_level(self) -> dict[str, list[float]]:
        """Usage and perplexity of each level, coarse first; empty for a single codebook. Every rank must call it."""
        usage = {} if self.usage is None else self.usage.compute()
        return {name: value for name, value in usage.items() if isinstance(value, list)}

    def usage_figures(self) -> tuple[dict[str, float], list[float]]:
        """How the codes are used, and the entropy of each level in bits; every rank must call it.

        Returns:
            codebook_usage, perplexity, entropy (bits per code), normalized_entropy, gini, dead_codes, top_code and
            top_percent, each but dead_codes the mean over codebooks; nothing if the codes cannot be counted, which more
            than 2^28 cannot.
        """
        if self.usage is None:
            return {}, []
        usage = self.usage.compute()
        figures = {RENAMED.get(name, name): value for name, value in usage.items() if not isinstance(value, list)}
        del figures["tokens"]
        per_level = usage.get("entropy_per_level")
        return figures, per_level if isinstance(per_level, list) else [figures["entropy"]]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    installed = {}
    for package in packages:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
