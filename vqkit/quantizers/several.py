"""What quantizers share that make each vector of several codes of one codebook."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vqkit import distributed
from vqkit.parts.codebooks import Codebook
from vqkit.parts.compatibility import IncompatibleParts, check_names
from vqkit.parts.losses import Loss
from vqkit.parts.selection import Selection
from vqkit.quantizers.base import WATCHED_STEP, WATCHED_VECTORS, VectorQuantizer
from vqkit.quantizers.initialization import collect_vectors, enough_samples
from vqkit.quantizers.quantizer import spread
from vqkit.runtime import autocast_disabled, uncompiled


class SeveralCodesQuantizer(VectorQuantizer):
    """A vector is made of several codes of one codebook, which the levels of its indices name.

    Subclasses write `choose`, which calls `refresh` first, `code_lookup` for rows (N, levels), and `fit`.

    Args:
        dim: D, size of the input's channel axis and of the codes.
        codebook: of that size, trained by gradients.
        losses: penalties that are defined for a sum of codes: `CodebookLoss`, `Commitment`.
        channel_dim: see `BaseQuantizer`.
        auto_step: see `Quantizer`.

    Raises:
        IncompatibleParts: a loss compares with single codes, or two have one name.
        ValueError: a size is not positive.
    """

    level_axis = True
    codebook: Codebook

    def __init__(
        self, dim: int, codebook: Codebook, *, losses: Sequence[Loss], channel_dim: int = -1, auto_step: bool = True
    ) -> None:
        super().__init__(dim, channel_dim=channel_dim, losses=losses)
        check_names(loss.name for loss in losses)
        if wrong := [loss for loss in losses if not loss.fits_sums]:
            raise IncompatibleParts(
                [
                    f"{type(loss).__name__} is defined for single codes, and {type(self).__name__} passes on what "
                    "several make together: use CodebookLoss() or Commitment()"
                    for loss in wrong
                ]
            )
        self.codebook = codebook
        self.codebook_size = codebook.codebook_size
        self.auto_step = auto_step

    @abstractmethod
    def fit(self, rows: Tensor, vectors_per_step: int, seed: int) -> None:
        """`initialize` on the vectors (M, D) of all ranks; the same on each of them.

        Args:
            rows: finite.
            vectors_per_step: how many vectors a training step will show, over all ranks.
            seed: of random choices.
        """

    def selection(self, latents: Tensor, valid: Tensor, selected: Tensor, indices: Tensor, codes: Tensor) -> Selection:
        """What `choose` gives to losses and statistics.

        Args:
            latents: (N, D), which are compared as they are.
            valid: (N,) bool.
            selected: (N, D) what the codes make together.
            indices: (N, levels).
            codes: (N, k), those of `indices` that name codes.
        """
        return Selection(
            latents=latents,
            z=latents,
            codes=None,  # of which none is selected by itself
            indices=indices,
            selected=selected,
            valid=valid,
            several=codes,
        )

    @uncompiled  # the step counters are Python numbers
    @torch.no_grad()
    def refresh(self, z: Tensor, valid: Tensor) -> None:
        """Fold in the statistics of the batch before; for the start of `choose`, where the forward is `learning`.

        Args:
            z: (N, D) the vectors of this batch.
            valid: (N,) bool, which of them count.
        """
        some = slice(None, None, WATCHED_STEP if len(z) > WATCHED_VECTORS else 1)
        self.latent_spread.copy_(spread(z[some], valid[some]))
        if self.auto_step:
            self.codebook.step()

    def step(self) -> None:
        """Fold the statistics gathered since the last step into the codebook."""
        self.codebook.step()

    def lookup(self, indices: Tensor) -> Tensor:
        """Vectors for indices: (..., levels) int64 -> (..., dim), for any prefix of the levels; -1 adds nothing."""
        vectors = self.code_lookup(indices.reshape(-1, indices.shape[-1]))
        return vectors.reshape(*indices.shape[:-1], self.dim)

    @torch.no_grad()
    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Fit the codes to data, by default to `enough_samples`; see `BaseQuantizer`."""
        rows, rows_per_batch = collect_vectors(self, latents, enough_samples(self.codebook_size, samples))
        with autocast_disabled(rows.device):
            rows = distributed.gather_rows(rows)
            per_step = int(distributed.all_reduce_sum(torch.tensor(rows_per_batch, device=rows.device)))
            self.fit(rows, per_step, seed)
        self.latent_spread.copy_(spread(rows))
        self.health()

    def health(self) -> dict[str, float]:
        """The share of `underused` codes, see `Quantizer.health`; and see `BaseQuantizer`."""
        usage = self.codebook.usage
        return super().health() | {"underused": float((usage < 0.1 * usage.mean()).float().mean())}
