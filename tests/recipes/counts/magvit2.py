"""The MAGVIT-2 family: the entries of the published state dicts, as `tests/conversion/magvit2.py` writes them down."""

from tests.conversion.magvit2 import OpenMAGVIT2Model, SimVQModel
from tests.recipes.counts.vqgan import counted

COUNTS = {
    "open_magvit2": counted(OpenMAGVIT2Model, dim=18, num_res_blocks=4, num_middle_blocks=4),
    "simvq": counted(SimVQModel, dim=128, multipliers=(1, 2, 2, 4), codebook_size=65536),
}
