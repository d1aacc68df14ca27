"""With a mask the loss compares the codes with the input before projection and normalization: a crash, or another
number.

Seen in: vector-quantize-pytorch 1.32.0 (measured: crash where codebook_dim != dim; 22.99 instead of 0.060 for a
cosine codebook and an all-true mask), VQP#62, VQP#149, VQP#188.
Avoided since 0.1.0: losses see one `Selection` of vectors in the code space, and average over its valid rows; a mask
changes nothing else.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import (
    LFQ,
    BitEntropy,
    CodebookLoss,
    Contrastive,
    DistributionMatching,
    Quantizer,
    QuantizerOutput,
    Search,
)

VARIANTS = {
    "codebook_dim": {"codebook_dim": 4},
    "normalize": {"normalize": True},
    "cosine": {"search": Search("cosine"), "codebook_dim": 4},
}


class LossAgainstTheInput(Quantizer):
    """Computes the masked loss from what went into the layer."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        output = super().forward(x, mask)
        if mask is None:
            return output
        codes = self.code_vectors()[output.indices.clamp(min=0)]
        return replace(output, loss=1.25 * (codes - x)[mask].square().mean())


def check(build) -> None:
    quantizer = build(dim=6, codebook_size=16)
    x = 3 * torch.randn(4, 10, 6)
    everything = torch.ones(4, 10, dtype=torch.bool)
    torch.testing.assert_close(quantizer(x, everything).loss, quantizer(x).loss)
    mask = torch.rand(4, 10) < 0.5
    torch.testing.assert_close(quantizer(x, mask).loss, quantizer(x[mask]).loss)


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[
        *(partial(Quantizer, "vq", **options) for options in VARIANTS.values()),
        *(partial(Quantizer, "vq", losses=[CodebookLoss(), loss]) for loss in [Contrastive(), DistributionMatching()]),
        partial(Quantizer, "ibq"),  # with an entropy
        partial(Quantizer, "gumbel"),  # with a prior
    ],
    faulty=[partial(LossAgainstTheInput, "vq", **options) for options in VARIANTS.values()],
    error=(AssertionError, RuntimeError),
)


def test_the_entropy_of_bits_does_not_have_it_either() -> None:
    check(lambda dim, codebook_size: LFQ(dim, losses=[BitEntropy(diversity=0.5)]))
