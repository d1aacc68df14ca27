"""What happens to codes that are not used. Policies are stateless: usage, counters and seeds belong to the codebook."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.config import Configured

if TYPE_CHECKING:
    from vqkit.codebooks import Codebook


class Maintenance(Configured, nn.Module):
    """A rule that may rewrite codes before a search, from the batch that is about to be quantized."""

    def refresh(self, codebook: "Codebook", z: Tensor, valid: Tensor) -> None:
        """Rewrite codes in place, the same on every rank; called once per optimizer step, without gradients.

        Args:
            codebook: judged by its `usage` up to the previous step.
            z: (N, D) the vectors of this batch on this rank.
            valid: (N,) bool.
        """
        raise NotImplementedError


class RandomRestart(Maintenance):
    """Replaces dead codes by random vectors of the batch, without drawing a vector twice.

    A code is dead when its usage is below `threshold` times the mean usage, a rule that does not depend on the batch
    size. A replaced code starts with mean usage, so it has time to win vectors: with decay 0.99 and threshold 0.1 about
    230 steps.

    Args:
        threshold: fraction of uniform usage, in [0, 1).
        every: optimizer steps between checks; at least 1.
        limit: most codes replaced in one check (the most dead first); bounds what is sent between ranks. At least 1.

    Source: the rule and constants of Mimi's codebook (Défossez et al. 2024, arXiv 2410.00037).
    Differs: vectors are drawn over the batch of all ranks with a counter-based generator, so that N ranks replace the
    same codes by the same vectors as one process would; Mimi broadcasts rank 0's draw.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, threshold: float = 0.1, *, every: int = 5, limit: int = 1024) -> None:
        super().__init__()
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold}: expected a fraction of uniform usage, in [0, 1); Mimi uses 0.1")
        if every < 1:
            raise ValueError(f"every={every}: expected a number of steps, at least 1")
        if limit < 1:
            raise ValueError(f"limit={limit}: expected a number of codes, at least 1")
        self.threshold = threshold
        self.every = every
        self.limit = limit

    def refresh(self, codebook: "Codebook", z: Tensor, valid: Tensor) -> None:
        """Replace up to `limit` dead codes."""
        if codebook.steps % self.every:
            return
        count = min(self.limit, codebook.codebook_size)
        usage, candidates = torch.topk(codebook.usage, count, largest=False)
        dead = usage < self.threshold * codebook.usage.mean()
        vectors, drawn = distributed.shared_rows(
            z.detach(), valid, count=count, seed=codebook.seed, step=codebook.steps
        )
        replaced = dead & drawn
        codebook.overwrite(
            candidates,
            vectors,
            share=replaced.to(usage.dtype),
            usage=torch.where(replaced, codebook.usage.mean(), usage),
        )

    def extra_repr(self) -> str:
        """The rule's constants."""
        return f"threshold={self.threshold}, every={self.every}, limit={self.limit}"
