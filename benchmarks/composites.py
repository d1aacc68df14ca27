"""One training step of quantizers made of quantizers beside vector-quantize-pytorch or a loop: time and memory.

    python benchmarks/composites.py                                # writes benchmarks/results/composites.md
    python benchmarks/composites.py --methods "8 stages of ema"

As `quantizer_step.py`, for chains of 8 and 32 stages and for 8 groups; and for VAR's 10 scales, which that library does
not have, beside their equations as a plain loop in torch.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

from benchmarks import quantizer_step
from benchmarks.arguments import Shape
from benchmarks.counterparts import COMPOSITES, PEER

SHAPES = (Shape(8192, 1024, 64),)
TABLE = quantizer_step.Table(
    script="composites",
    title="A training step of composites",
    methods=list(COMPOSITES),
    shapes=SHAPES,
    judged=[method for method, sides in COMPOSITES.items() if sides.other == PEER],
    judged_shapes=SHAPES,
    speedup=5,
    share=1 / 3,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything that was asked for, and write the table."""
    quantizer_step.main(arguments, TABLE)


if __name__ == "__main__":
    main()
