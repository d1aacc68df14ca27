"""Cascaded codebooks: a frozen table decides the index, a trainable one of the same size is read.

Source: UniCode^2, 2025, "Cascaded Large-scale Codebooks for Unified Multimodal Understanding and Generation"
(arXiv:2506.20214).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vqkit.methods.vector_file import read_vectors
from vqkit.parts import Parts
from vqkit.parts.codebooks import Codebook
from vqkit.parts.estimators import Estimator, straight_through
from vqkit.parts.selection import Search, Selection


class CascadedCodebook(Codebook):
    """K frozen index vectors, which are searched, and K trainable values, which are read.

    Whatever the task does to the values, the index of a vector stays: K may be very large (500,000 in the paper)
    without a code ever dying, and what was tokenized once stays valid.

    State:
        index_vectors: (K, D) float32 buffer, searched; never trained.
        vectors: (K, D) float32 parameter, read; starts as a copy.
        And usage as in `Codebook`.

    Args:
        codebook_size: K.
        dim: D.
        base_path: a safetensors file of one tensor (K, D) for both tables, such as k-means centres of a pretrained
            encoder's features (`scripts/build_codebook.py`). Without one, `initialize` takes k-means centres of the
            data, and until then they are N(0, 1). The file is read at construction only: `from_pretrained` does not
            ask for it.
        usage_decay: see `Codebook`.
        seed: of the random start.

    Optimizers: a value that no vector of the batch chose has a gradient of zero. SGD and Adam leave it alone as long
    as it was never chosen; Adam goes on moving one that was, by its running mean, and weight decay shrinks all of them:
    give this parameter `weight_decay=0`.

    Source: UniCode^2 (arXiv:2506.20214), from the abstract and second-hand notes: no code is published.
    Differs: there the values are the index vectors after the projector of a language model. Here the projection out
    (`codebook_dim` other than `dim`) stands behind the values, so that at the start they are equal too.

    Raises:
        FileNotFoundError: there is no file at `base_path`.
        ValueError: an argument is out of its range, or the file holds something else.
    """

    rows = "frozen"
    cascaded = True
    per_code = ("vectors", "index_vectors")

    index_vectors: Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        base_path: str | None = None,
        usage_decay: float = 0.99,
        seed: int = 0,
    ) -> None:
        self.base_path = base_path
        super().__init__(codebook_size, dim, usage_decay=usage_decay, seed=seed)

    def build_vectors(self, generator: torch.Generator) -> None:
        """Two equal tables; see `Codebook`."""
        if self.base_path is None:
            base = torch.randn(self.codebook_size, self.dim, generator=generator, dtype=torch.float32)
        else:
            base = read_vectors(self.base_path, self.codebook_size, self.dim, dim_name="dim")
        self.register_buffer("index_vectors", base)
        self.vectors = nn.Parameter(base.clone())

    def search_vectors(self, vectors: Tensor) -> Tensor:
        """The index vectors (K, D), whatever the values are."""
        return self.index_vectors

    @torch.no_grad()
    def initialize(self, samples: Tensor, *, vectors_per_step: int, seed: int) -> None:
        """Without a file, put k-means centres of `samples` (M, D) into both tables; with one, keep its vectors. See
        `Codebook`.
        """
        if self.base_path is None:
            super().initialize(samples, vectors_per_step=vectors_per_step, seed=seed)
            self.index_vectors.copy_(self.vectors)
            return
        self.assume_uniform_usage(vectors_per_step)

    def extra_repr(self) -> str:
        """Sizes, and where the vectors come from."""
        return f"{super().extra_repr()}, base_path={self.base_path!r}"


class EmbeddingStraightThrough(Estimator):
    """Straight-through for the vector, and for the code its plain gradient, that of an embedding.

    d quantized / d z = I and d quantized / d selected = I. The task trains the codes: codes that are searched too would
    move away from the vectors that choose them.

    Source: UniCode^2 (arXiv:2506.20214), which trains the values by the task's loss.
    Differs: a gradient reaches z, too, for an encoder that is trained along.
    """

    trains_codebook = True

    def conflicts(self, codebook: Codebook) -> Iterator[str]:
        """The codes that the task moves must not be the ones that are searched."""
        if not codebook.cascaded:
            yield (
                f"{type(self).__name__} trains codes for the task alone, which pulls them away from the vectors, but "
                f"those of {type(codebook).__name__} are searched too: use CascadedCodebook, or StraightThrough() with "
                "CodebookLoss()"
            )

    def forward(self, selection: Selection) -> Tensor:
        """(N, D), equal to `selection.selected`."""
        surrogate = selection.selected + selection.z
        return straight_through(selection.selected, surrogate)


def cascaded() -> Parts:
    """Values that only the task trains, and no penalty: the published encoder is frozen.

    For an encoder that is trained, add `losses=[Commitment()]`.
    """
    return Parts(codebook=CascadedCodebook, search=Search("euclidean"), estimator=EmbeddingStraightThrough())
