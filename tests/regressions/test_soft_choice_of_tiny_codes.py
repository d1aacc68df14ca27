"""A soft choice among codes that start within +-1/K passes the encoder no gradient, and nothing says so.

Seen in: IBQ with the initial codes that VQGAN and its descendants use (measured: with 512 codes in 16 dimensions about
a millionth of the gradient arrives).
Avoided since 0.1.0: the methods that choose softly, "ibq" and "gumbel", start from codes of unit variance.
"""

from functools import partial

import torch

from tests.regressions.faults import both
from vqkit import Codebook, Quantizer, ReinMax, RelaxedGumbelSoftmax


def check(quantizer: Quantizer) -> None:
    x = torch.randn(64, 16).requires_grad_()
    upstream = torch.randn(64, 16)
    (gradient,) = torch.autograd.grad(quantizer(x).quantized, [x], upstream)
    share = float(gradient.norm() / upstream.norm())
    assert share > 0.05, f"the encoder gets {share:.0e} of the gradient"


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[
        build(dim=16, codebook_size=512)
        for build in [
            partial(Quantizer, "ibq"),
            partial(Quantizer, "gumbel"),
            partial(Quantizer, "gumbel", estimator=RelaxedGumbelSoftmax()),
            partial(Quantizer, "gumbel", estimator=ReinMax()),
        ]
    ],
    faulty=[Quantizer(method, dim=16, codebook_size=512, codebook=Codebook) for method in ["ibq", "gumbel"]],
    message="e-06 of the gradient",
)
