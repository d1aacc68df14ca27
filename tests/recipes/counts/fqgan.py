"""FQGAN: the entries of its state dict, as `tests/conversion/fqgan.py` writes them down."""

from tests.conversion.fqgan import FQGANDual
from tests.recipes.counts.vqgan import counted

COUNTERS = [f"quantize_{branch}.codebook_used" for branch in FQGANDual.branches]
COUNTS = {
    "fqgan": counted(
        FQGANDual, *COUNTERS, *FQGANDual.predictors, adapter_depth=6, dim=8, codebook_size=16384, latent_channels=256
    ),
}
