"""The VQGAN family: the entries of the published state dicts, as `tests/conversion/published.py` writes them down."""

from typing import Any

import torch

from tests.conversion.published import Published, Taming
from tests.recipes.counts.layers import patchgan

OWNERS = {"encoder": "encoder", "quant_conv": "encoder", "decoder": "decoder", "post_quant_conv": "decoder"}
OWNERS |= {"quantize": "quantizer"}
F16: dict[str, Any] = {"channels": 128, "multipliers": (1, 1, 2, 2, 4), "num_res_blocks": 2, "attention_levels": (4,)}
WIDE: dict[str, Any] = {"dim": 256, "latent_channels": 256}


def counted(cls: type[Published], *counters: str, **sizes: Any) -> dict[str, int]:
    """Parameters of a published model by part, without the entries whose names start with one of `counters`."""
    model = cls(**F16 | sizes, device="meta")
    model(torch.empty(1, 3, 256, 256, device="meta"))
    parts = dict.fromkeys(("encoder", "quantizer", "decoder"), 0)
    for name, tensor in model.state.items():
        if not name.startswith(counters):
            parts[next(part for start, part in OWNERS.items() if name.startswith(start))] += tensor.numel()
    return parts | {"discriminators": patchgan()}


COUNTS = {
    "vqgan_f16_1024": counted(Taming, **WIDE, codebook_size=1024),
    "vqgan_f16_16384": counted(Taming, **WIDE, codebook_size=16384),
}
