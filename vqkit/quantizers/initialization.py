"""Initialization of quantizers from data, before training."""

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor

from vqkit import distributed
from vqkit.quantizers.base import BaseQuantizer
from vqkit.runtime import warn_caller
from vqkit.sharding import refuse_sharded

INITIALIZE_FIRST = "what it writes would be lost: call it before fully_shard"


def enough_samples(codebook_size: int, samples: int | None) -> int:
    """The default of `initialize`, over all ranks: 64 per code, within 65,536 and 262,144, and at least 4 per code."""
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
        ValueError: `samples` is below 1, no rank gave a finite vector, or the weights are sharded.
    """
    rows = [maps[valid] for maps, valid in collect_maps(quantizer, latents, samples)]
    nothing = quantizer.latent_spread.new_zeros(0, quantizer.dim)
    collected = torch.cat([nothing, *rows])
    return collected[: _share(samples)], math.ceil(len(collected) / max(len(rows), 1))


def collect_maps(quantizer: BaseQuantizer, latents: Iterable[Tensor], samples: int) -> list[tuple[Tensor, Tensor]]:
    """The first batches of this rank that hold its share of `samples` finite vectors, each as `quantizer.open` gives
    it: (B, *S, dim), and which are finite (B, *S). Arguments and errors are those of `collect_vectors`.
    """
    refuse_sharded(quantizer, "initialize", INITIALIZE_FIRST)
    if samples < 1:
        raise ValueError(f"samples={samples}: expected at least 1 vector, or None for the default")
    batches: list[tuple[Tensor, Tensor]] = []
    collected = 0
    for x in latents:
        maps, valid, _ = quantizer.open(x)
        batches.append((maps, valid))
        collected += int(valid.sum())
        if collected >= _share(samples):
            break
    # All ranks raise, or none: one that raised alone would leave the others waiting.
    if not int(distributed.all_reduce_sum(quantizer.nonfinite_seen.new_tensor(collected))):
        raise ValueError("latents: expected at least one finite vector to initialize from, got none")
    return batches


class MemberWarnings:
    """Warnings say of which members of a composite they are, each once for all members that give it.

        >>> with MemberWarnings("stage") as warned:
        ...     for number, stage in enumerate(stages):
        ...         with warned.by(number):
        ...             stage.initialize(rows)

    Args:
        kind: what a member is called, such as `stage`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._said: dict[tuple[str, type[Warning]], list[int]] = {}

    @contextmanager
    def by(self, number: int) -> Iterator[None]:
        """What is warned of inside is of this member."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
            finally:
                for said in dict.fromkeys((str(warning.message), warning.category) for warning in caught):
                    self._said.setdefault(said, []).append(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Warn, also where an error ends it: what was warned of may be why."""
        for (message, category), numbers in self._said.items():
            plural = ("es" if self.kind.endswith("ch") else "s") if len(numbers) > 1 else ""
            warn_caller(f"{message} ({self.kind}{plural} {', '.join(map(str, numbers))})", category)


def _share(samples: int) -> int:
    return math.ceil(samples / distributed.world_size())
