"""Layouts: how the indices of a tokenizer become the sequence of a language model, and back.

    >>> from vqkit import layouts
    >>> layout = layouts.delay(50, [0, 1, 2, 3]).framed(["bos"])
    >>> tokens = layout.pack(indices, layouts.Vocabulary.by_level([2048] * 4))  # (B, 50, 4) -> (B, 54, 4)

A `Layout` is a table: which (level, position) cell stands at which (step, slot). The functions make the tables of the
field, in any order of the positions; a `Vocabulary` has the numbers of codes and of special tokens. Plain tensors: no
model and no quantizer is needed.
"""

from vqkit.layouts.layout import Layout as Layout
from vqkit.layouts.patterns import coarse_first as coarse_first
from vqkit.layouts.patterns import delay as delay
from vqkit.layouts.patterns import flat as flat
from vqkit.layouts.patterns import multi_rate as multi_rate
from vqkit.layouts.patterns import next_scale as next_scale
from vqkit.layouts.patterns import parallel as parallel
from vqkit.layouts.patterns import partial_flat as partial_flat
from vqkit.layouts.patterns import stack_delay as stack_delay
from vqkit.layouts.scans import hilbert as hilbert
from vqkit.layouts.scans import raster as raster
from vqkit.layouts.scans import strided as strided
from vqkit.layouts.scans import zigzag as zigzag
from vqkit.layouts.vocabulary import Vocabulary as Vocabulary
