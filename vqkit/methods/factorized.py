"""Factorized codes: search in a space of few dimensions, by angle, with linear maps in and out.

Source: Yu et al. 2021, "Vector-quantized Image Modeling with Improved VQGAN" (ViT-VQGAN, arXiv:2110.04627), sec. 3.2;
Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN" (DAC, arXiv:2306.06546), sec. 3.2.
"""

from torch import Tensor

from vqkit.parts import Parts
from vqkit.parts.codebooks import NormalCodebook
from vqkit.parts.estimators import Estimator, StraightThrough, straight_through
from vqkit.parts.losses import CodebookLoss, Commitment
from vqkit.parts.selection import Search, Selection


class UnnormalizedStraightThrough(Estimator):
    """Copies the gradient of the code to the vector as it was before `normalize`: d quantized / d latents = I.

    With `normalize=True` the losses compare unit vectors, and their gradient passes through the normalization; that of
    the decoder goes around it. Without `normalize` it is `StraightThrough`.

    Source: the released training code of ViT-VQGAN (enhancing-transformers). It adds the difference to the vector
    before normalization, LlamaGen to the normalized one: `normalize=True` with `StraightThrough()`.
    """

    def forward(self, selection: Selection) -> Tensor:
        """(N, D), equal to `selection.selected`."""
        return straight_through(selection.selected, selection.latents)


def factorized() -> Parts:
    """DAC's convention: the nearest code by angle in 8 dimensions, value and losses on vectors of any length;
    mse(sg z, e) + 0.25 mse(z, sg e).

    "l2-normalized codes" has four meanings, and each is expressible: this one; `Quantizer("vq", normalize=True,
    codebook_dim=8)` is LlamaGen's; with `estimator=UnnormalizedStraightThrough()` and `codebook_dim=32` that of
    ViT-VQGAN; `Quantizer("ema", normalize=True)` that of vector-quantize-pytorch's `use_cosine_sim`.

    Where `dim` is 8 already there are no maps, and a smaller `dim` is led up to 8: then set `codebook_dim`.

    Differs: the maps in and out are plain linear layers (DAC's are weight-normalized, which changes how they train but
    not what they can be).
    """
    return Parts(
        codebook=NormalCodebook,
        search=Search("cosine"),
        estimator=StraightThrough(),
        losses=(Commitment(0.25), CodebookLoss(1.0)),
        codebook_dim=8,
    )
