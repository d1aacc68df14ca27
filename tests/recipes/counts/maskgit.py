"""MaskGIT's VQGAN: the entries of its state dict, as `tests/conversion/maskgit.py` writes them down."""

import itertools

from tests.conversion.maskgit import MaskGIT
from tests.recipes.counts.layers import convolution, linear
from tests.recipes.counts.vqgan import counted


def residual_discriminator(widths: list[int]) -> int:
    """MaskGIT's, of maps of these widths from the pictures to 4 x 4: what is published in the place of PatchGAN."""
    blocks = sum(
        convolution(before, before, 3) + convolution(before, after, 3) + convolution(before, after, 1, bias=False)
        for before, after in itertools.pairwise(widths)
    )
    last = widths[-1]
    return (
        convolution(3, widths[0], 3) + blocks + convolution(last, last, 3) + linear(16 * last, last) + linear(last, 1)
    )


COUNTS = {
    "maskgit_vqgan": counted(MaskGIT, dim=256, codebook_size=1024)
    | {"discriminators": residual_discriminator([64, 128, 256, 512, 512, 512, 512])},
}
