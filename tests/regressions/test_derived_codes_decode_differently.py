"""Indices of a codebook with a projector, a bridge or a second table decode to other vectors than forward gave.

Seen in: vector-quantize-pytorch 1.32.0 (measured: off by 0.53 with a bridge), the released SimVQ, whose
`get_codebook_entry` reads the frozen base (read), and the released VQGAN-LC, whose decoding of indices is broken
(read).
Avoided since 0.1.0: `codebook()` is the only way to the codes, for search, losses and decoding alike, and what is
searched instead of them (`search_vectors`) is read by the search alone.
"""

from functools import partial

from torch import Tensor

from tests.regressions.faults import both
from tests.regressions.test_decode_disagrees import OPTIONS, check
from vqkit import Quantizer


class ReadsTheBase(Quantizer):
    """Looks codes up before the projector or the bridge."""

    def code_lookup(self, indices: Tensor) -> Tensor:
        return self.codebook.base[indices]


class ReadsTheIndexVectors(Quantizer):
    """Looks codes up in the table that is searched."""

    def code_lookup(self, indices: Tensor) -> Tensor:
        return self.codebook.index_vectors[indices]


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[
        partial(Quantizer, method, codebook_dim=codebook_dim, **OPTIONS)
        for method in ["simvq", "vqgan_lc", "fvq", "cascaded", "coda"]
        for codebook_dim in [None, 3]
    ],
    faulty=[
        *(partial(ReadsTheBase, method, **OPTIONS) for method in ["simvq", "vqgan_lc", "fvq", "coda"]),
        partial(ReadsTheIndexVectors, "cascaded", **OPTIONS),
    ],
)
