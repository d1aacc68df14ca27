"""Codebook features: a vector becomes the mean of the k codes that are nearest to it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqkit.parts.codebooks import Codebook
from vqkit.parts.estimators import straight_through
from vqkit.parts.losses import CodebookLoss, Loss
from vqkit.parts.selection import Noise, Search, Selection
from vqkit.quantizers.several import SeveralCodesQuantizer


class LayerNormSearch(Search):
    """The largest inner product of LN(z) with the code of unit length; LN(z) has mean 0 and variance 1 over the
    dimensions, without a trained scale.

    Source: Tamkin, Taufeeque, Goodman 2023 (Codebook Features, arXiv:2310.17230), the default of their code.
    """

    finds_nearest = False

    def __init__(self) -> None:
        super().__init__("cosine")

    def forward(self, z: Tensor, codes: Tensor, noise: Noise | None = None) -> Tensor:
        """See `Search`."""
        return self.best(z, codes, 1).squeeze(-1)

    def best(self, z: Tensor, codes: Tensor, k: int) -> Tensor:
        """See `Search`."""
        return super().best(nn.functional.layer_norm(z.detach(), z.shape[-1:]), codes, k)


class TopKQuantizer(SeveralCodesQuantizer):
    """The mean of the k best codes: x = (1/k) sum_{j in top k} C_j. `vqkit.inspect.attach` puts it behind a layer.

    Indices are (B, *S, k), best first. The divisor stays k where codes are left out (-1): each adds C_j / k, so that
    what ablation or a prefix takes away is exactly what these codes gave. With k = 1 and `Search("euclidean")` this is
    the quantizer "vq"; with k = K every vector becomes the mean of all codes. A token names a set: its k log2 K bits
    count the order, log2 of K over k do not.

    The vectors get the gradient as it is (straight through), and the codes that made them get it too, 1/k each, besides
    that of `CodebookLoss`. For one codebook for each attention head, put it into a `GroupedQuantizer`.

    Args:
        dim: D, size of the input's channel axis and of the codes.
        codebook_size: K.
        k: codes for each vector, 1 to K.
        search: which codes are best.
        losses: None means `[CodebookLoss()]`; the published default has no commitment.
        channel_dim: see `BaseQuantizer`.
        auto_step: see `Quantizer`.
        seed: of the initial codes.

    Source: Tamkin, Taufeeque, Goodman 2023 (Codebook Features, arXiv:2310.17230), with k = 8 and K = 10,000, the loss
    that their code calls "aeloss". The paper speaks of the sum of the codes; the released code takes the mean, as here.
    Differs: the released code normalizes the vectors (LN) and passes on codes of that scale, so that the network has to
    be trained again. Here the norm decides the choice alone, and codes stand for the vectors as they are: a frozen
    network can be looked into. There `counts` grow by 1 for a batch; here they count tokens.

    Raises:
        IncompatibleParts: see `SeveralCodesQuantizer`.
        ValueError: a size is not positive, `k` is not within 1 and K, or `LayerNormSearch` is given one dimension.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        k: int = 8,
        *,
        search: Search = LayerNormSearch(),  # noqa: B008 - stateless
        losses: Sequence[Loss] | None = None,
        channel_dim: int = -1,
        auto_step: bool = True,
        seed: int = 0,
    ) -> None:
        if not 1 <= k <= codebook_size:
            raise ValueError(f"k={k}: expected 1 to codebook_size={codebook_size}, the codes of each vector")
        if dim == 1 and isinstance(search, LayerNormSearch):
            raise ValueError("dim=1: LayerNormSearch sees 0 in place of a single number; give Search('euclidean')")
        super().__init__(
            dim,
            Codebook(codebook_size, dim, seed=seed),
            losses=[CodebookLoss()] if losses is None else losses,
            channel_dim=channel_dim,
            auto_step=auto_step,
        )
        self.num_codebooks = self.k = k
        self.search = search

    @classmethod
    def default_parts(cls, *args: Any, **kwargs: Any) -> Sequence[type]:
        """Search and loss; see `Configured`."""
        return LayerNormSearch, CodebookLoss

    @property
    def level_books(self) -> tuple[int, ...]:
        """All levels choose from one codebook."""
        return (0,) * self.k

    def level_tables(self) -> list[Tensor | None]:
        """The codebook; see `BaseQuantizer`."""
        return [self.codebook().detach()] * self.k

    def choose(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        """The k best codes of each row of `latents` (N, D); see `VectorQuantizer`."""
        if self.learning:
            self.refresh(latents, valid)
        codes = self.codebook()
        found = self.search.best(latents, codes, self.k)
        selected = self._mean(codes, found)
        indices = torch.where(valid.unsqueeze(-1), found, -1)
        selection = self.selection(latents, valid, selected, indices, indices)
        estimated = straight_through(selected, latents + selected) if torch.is_grad_enabled() else selected
        return estimated, selection

    def assign(self, latents: Tensor, valid: Tensor) -> Tensor:
        """The search alone; see `BaseQuantizer`."""
        if self.passes_through:
            return super().assign(latents, valid)
        found = self.search.best(latents.reshape(-1, self.dim), self.codebook(), self.k)
        return torch.where(valid.unsqueeze(-1), found.reshape(*valid.shape, self.k), -1)

    def code_lookup(self, indices: Tensor) -> Tensor:
        """Means (N, D) of the codes of `indices` (N, levels), where a code that is left out counts as 0."""
        return self._mean(self.codebook(), indices)

    def _mean(self, codes: Tensor, indices: Tensor) -> Tensor:
        total = codes.new_zeros(indices.shape[0], self.dim)
        for level in indices.unbind(-1):
            chosen = nn.functional.embedding(level.clamp(min=0), codes)
            total = total + torch.where((level >= 0).unsqueeze(-1), chosen, 0)
        return total / self.k

    def fit(self, rows: Tensor, vectors_per_step: int, seed: int) -> None:
        """k-means centres; see `SeveralCodesQuantizer`."""
        self.codebook.initialize(rows, vectors_per_step=self.k * vectors_per_step, seed=seed)

    def extra_repr(self) -> str:
        """Sizes and layout."""
        return f"k={self.k}, dim={self.dim}, channel_dim={self.channel_dim}"
