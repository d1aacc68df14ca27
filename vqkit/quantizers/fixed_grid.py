"""What quantizers without a codebook share: their codes are a fixed grid, and only the maps into it can be fitted."""

from abc import abstractmethod
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.quantizers.base import WATCHED_STEP, WATCHED_VECTORS, VectorQuantizer
from vqkit.quantizers.initialization import collect_vectors
from vqkit.runtime import autocast_disabled


class FixedGrid(VectorQuantizer):
    """A quantizer whose codes are computed from the index.

    Class attributes:
        grid_buffer: the buffer that tells one grid from another. Indices mean something else on another grid, so a
            state with another one is refused.

    Attributes:
        grid_values: what it holds, as Python numbers: a module that was built on the meta device has no others.
        watched: (2048, D) rows of the last training forward, where `watch_rows` keeps some.
        watched_valid: (2048,) which of them count.
    """

    grid_buffer: ClassVar[str]
    grid_values: list[int]
    watched: Tensor
    watched_valid: Tensor

    @abstractmethod
    def grid_mismatch(self, found: Tensor) -> str:
        """What to say of a state whose `grid_buffer` is `found`."""

    @torch.no_grad()
    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Scale and shift the projection into the code space so that each dimension has mean 0 and standard deviation 1
        over the data, by default 65,536 vectors of it; without a projection nothing is read. See `BaseQuantizer`.
        """
        if isinstance(self.project_in, nn.Linear):
            rows, _ = collect_vectors(self, latents, 65_536 if samples is None else samples)
            with autocast_disabled(rows.device):
                z = distributed.gather_rows(self.project_in(rows))
            spread = z.std(0, correction=0)
            # A dimension without spread (one vector, equal vectors) keeps its scale.
            scale = torch.where(spread > 1e-6 * z.abs().amax().clamp(min=1e-30), 1 / spread, 1.0)
            weight, bias = self.project_in.weight, self.project_in.bias
            weight.copy_(distributed.from_first_rank(weight * scale.unsqueeze(-1)))
            bias.copy_(distributed.from_first_rank((bias - z.mean(0)) * scale))
        self.health()

    def register_watched(self) -> None:
        """Make room for the rows that `watch_rows` keeps."""
        size = WATCHED_VECTORS, self.codebook_dim
        self.register_unsaved("watched", partial(torch.zeros, size, dtype=torch.float32))
        self.register_unsaved("watched_valid", partial(torch.zeros, WATCHED_VECTORS, dtype=torch.bool))

    def watch_rows(self, latents: Tensor, valid: Tensor) -> None:
        """Keep some rows of `latents` (N, D), and which of them are valid: `share_beyond` is for `health` alone."""
        step = WATCHED_STEP if len(latents) > WATCHED_VECTORS else 1
        some = slice(None, step * WATCHED_VECTORS, step)
        rows = latents.detach()[some]
        self.watched[: len(rows)].copy_(rows)
        self.watched_valid.zero_()[: len(rows)].copy_(valid[some])

    def share_beyond(self) -> float:
        """Of the entries of the watched rows that are valid the share beyond 3; hardly any gradient is left there."""
        far = (self.watched.abs() > 3) & self.watched_valid.unsqueeze(-1)
        return float(far.sum() / (self.codebook_dim * self.watched_valid.sum().clamp(min=1)))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        found = state_dict.get(f"{prefix}{self.grid_buffer}")
        if found is not None and found.tolist() != self.grid_values:
            error_msgs.append(prefix + self.grid_mismatch(found))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
