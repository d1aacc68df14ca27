"""K-means with fewer samples than codes leaves equal codes, of which all but the first can never be chosen.

Seen in: vector-quantize-pytorch 1.32.0 (measured: 17 distinct codes of 64 for 16 samples), VQP#19, VQFR#10,
VQGAN-LC#8.
Avoided since 0.1.0: `kmeans` returns distinct centres whatever the samples are; what repeats gets a little noise.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vqkit import Quantizer


def initialized(samples: Tensor) -> Tensor:
    quantizer = Quantizer("ema", dim=samples.shape[1], codebook_size=64)
    quantizer.initialize([samples])
    return quantizer.codebook.vectors


def with_replacement(samples: Tensor) -> Tensor:
    return samples[torch.randint(len(samples), (64,))]


def check(fit: Callable[[Tensor], Tensor], samples: Tensor) -> None:
    codes = fit(samples)
    assert codes.shape == (64, 4) and codes.isfinite().all()
    assert len(codes.unique(dim=0)) == 64, "equal codes"
    nearest = torch.cdist(samples, codes).amin(1)
    assert nearest.max() < 0.1 * samples.std(), "the samples have no codes of their own"


@pytest.mark.filterwarnings("ignore:.*initialize got")
def test_vqkit_does_not_have_the_fault() -> None:
    samples = torch.randn(16, 4)
    check(initialized, samples)
    check(initialized, samples.repeat(40, 1))  # many samples, but 16 different ones


def test_the_check_catches_the_fault() -> None:
    with pytest.raises(AssertionError, match="equal codes"):
        check(with_replacement, torch.randn(16, 4))
