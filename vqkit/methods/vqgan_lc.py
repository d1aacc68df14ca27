"""VQGAN-LC: features of a pretrained network, frozen, under one trainable projector.

Source: Zhu et al. 2024, "Scaling the Codebook Size of VQGAN to 100,000 with a Utilization Rate of 99%"
(arXiv:2406.11837).
"""

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.clustering.kmeans import kmeans
from vqkit.methods.vector_file import read_vectors
from vqkit.parts import Parts
from vqkit.parts.codebooks import ProjectedCodebook, match_linear
from vqkit.parts.estimators import StraightThrough
from vqkit.parts.losses import CodebookLoss, Commitment
from vqkit.parts.selection import Search


class FeatureCodebook(ProjectedCodebook):
    """K codes that a trainable projector makes of K frozen feature vectors.

    The features come from a file (for instance k-means centres of the patch features of a CLIP model, as
    `scripts/build_codebook.py` writes them); without one, `initialize` takes k-means centres of the data itself, and
    until then they are random. The file is read at construction only: the features are part of the state, and
    `from_pretrained` does not ask for the file.

    State:
        base: (K, base_dim) float32 buffer, the features.
        projector: linear (base_dim, D) with bias; with `hidden_dim`, two such layers around a ReLU.
        And usage as in `Codebook`.

    Args:
        codebook_size: K.
        dim: D, 8 in the paper.
        base_path: a safetensors file that holds one tensor (K, base_dim).
        base_dim: the size of a feature, 768 in the paper. Required with `base_path`, since a saved quantizer is built
            again without the file; without one it is `dim`.
        hidden_dim: of the projector with two layers, 256 in the released code; None is the linear one of the paper.
        usage_decay: see `Codebook`.
        seed: of the projector, and of the random features.

    Source: VQGAN-LC (arXiv:2406.11837), sec. 3.2; projector weights N(0, 1/sqrt(D)).
    Differs: that start collapses where the features are not of about unit length (with N(0, 1) features of 768
    dimensions the codes spread ten times as far as the latents, and 0.2% of them were used). `initialize` therefore
    sets the projector so that the codes have the mean and covariance of the data, with the features' leading principal
    directions; without `initialize` the start is the published one. The two layers start as in torch.nn.Linear, as
    released.

    Raises:
        FileNotFoundError: there is no file at `base_path`.
        ValueError: an argument is out of its range, or the file holds something else.
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        base_path: str | None = None,
        base_dim: int | None = None,
        hidden_dim: int | None = None,
        usage_decay: float = 0.99,
        seed: int = 0,
    ) -> None:
        if base_path is not None and base_dim is None:
            raise ValueError(
                f"base_dim=None with base_path={base_path!r}: expected the size of the features in that file, so that "
                "a saved quantizer can be built again without it"
            )
        if base_path is None and base_dim not in (None, dim):
            raise ValueError(
                f"base_dim={base_dim} without base_path: the base is then made of k-means centres of the data, of "
                f"dim={dim}; leave base_dim out, or name a file of features in base_path"
            )
        for name, size in (("base_dim", base_dim), ("hidden_dim", hidden_dim)):
            if size is not None and size < 1:
                raise ValueError(f"{name}={size}: expected at least 1")
        self.base_path = base_path
        self.base_dim = base_dim or dim
        self.hidden_dim = hidden_dim
        super().__init__(codebook_size, dim, usage_decay=usage_decay, seed=seed)

    def build_vectors(self, generator: torch.Generator) -> None:
        """The features and the projector; see `Codebook`."""
        if self.base_path is None:
            base = torch.randn(self.codebook_size, self.dim, generator=generator, dtype=torch.float32)
        else:
            base = read_vectors(self.base_path, self.codebook_size, self.base_dim, dim_name="base_dim")
        self.register_buffer("base", base)
        if self.hidden_dim is None:
            self.projector = _linear(self.base_dim, self.dim, generator)
            nn.init.normal_(self.projector.weight, std=self.dim**-0.5, generator=generator)
        else:
            first = _linear(self.base_dim, self.hidden_dim, generator)
            self.projector = nn.Sequential(first, nn.ReLU(), _linear(self.hidden_dim, self.dim, generator))

    @torch.no_grad()
    def initialize(self, samples: Tensor, *, vectors_per_step: int, seed: int) -> None:
        """Without a file, make k-means centres of `samples` (M, D) the features. Then, in any case, match the
        projector to the samples; see `ProjectedCodebook`.
        """
        if self.base_path is None:
            self.base.copy_(distributed.from_first_rank(kmeans(samples, self.codebook_size, seed=seed).centers))
        super().initialize(samples, vectors_per_step=vectors_per_step, seed=seed)

    def match_samples(self, samples: Tensor, seed: int) -> None:
        """Set the last layer of the projector; see `ProjectedCodebook`."""
        if self.hidden_dim is None:
            super().match_samples(samples, seed)
            return
        first, activation, last = self.projector.children()
        assert isinstance(last, nn.Linear)
        match_linear(last, activation(first(self.base)), samples)

    def extra_repr(self) -> str:
        """Sizes, and where the features come from."""
        return f"{super().extra_repr()}, base_path={self.base_path!r}, base_dim={self.base_dim}"


def vqgan_lc() -> Parts:
    """mse(z, sg e) + 0.33 mse(sg z, e), straight-through.

    The paper's training multiplies this sum by 0.1 before it adds the other terms: the weight that a task gives to
    `QuantizerOutput.loss`.
    """
    return Parts(
        codebook=FeatureCodebook,
        search=Search("euclidean"),
        estimator=StraightThrough(),
        losses=(Commitment(1.0), CodebookLoss(0.33)),
    )


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, dtype=torch.float32)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer
