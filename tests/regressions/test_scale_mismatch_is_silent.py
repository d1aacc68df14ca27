"""A codebook whose scale is not that of the latents collapses, and nothing says so.

Seen in: VQGAN-LC's initialization (measured: 0.2 % of the codes used, against 93 % at a matching scale), VQP#154,
VQP#170, 1d-tokenizer#27.
Avoided since 0.1.0: `initialize(latents)` matches the scale for every kind of codebook, and `health()` warns once
where the ratio of spreads leaves 0.1 ... 3.
"""

import warnings

import torch

from tests.regressions.faults import both
from vqkit import Quantizer
from vqkit.quantizers.quantizer import spread


class KeepsQuiet(Quantizer):
    """Reports no ratio."""

    def health(self) -> dict[str, float]:
        return {"nonfinite": 0.0}


def check(quantizer: Quantizer, scale: float) -> None:
    data = scale * torch.randn(500, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantizer(data)
        quantizer.health()
        quantizer.health()
    assert [str(entry.message) for entry in caught if "healthy" in str(entry.message)], "a silent mismatch"
    assert len(caught) == 1
    quantizer.initialize([data])
    assert 0.5 < quantizer.health()["scale_ratio"] < 1.5
    assert len(quantizer.encode(data).unique()) > 0.8 * quantizer.codebook_size


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[
        (Quantizer(method, dim=4, codebook_size=16), scale)
        for scale in [1e-3, 1e3]
        for method in ["vq", "ema", "simvq"]
    ],
    faulty=[(KeepsQuiet("vq", dim=4, codebook_size=16), 1e3)],
    message="silent",
)


def test_codes_that_k_means_gives_to_a_few_loud_vectors_are_no_mismatch() -> None:
    """As of bands of speech: most codes lie where few latents do, and none of them is of another scale."""
    latents = torch.cat([0.01 * torch.randn(3900, 2), 10 * torch.randn(100, 2)])
    quantizer = Quantizer("ema", dim=2, codebook_size=64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantizer.initialize([latents], samples=4000)
        ratio = quantizer.health()["scale_ratio"]
    assert spread(quantizer.codebook.vectors) / spread(latents) > 3
    assert 0.9 < ratio <= 1 + 1e-5  # means of their latents, up to what float32 loses of 4000 of them
