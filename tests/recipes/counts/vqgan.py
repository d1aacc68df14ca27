"""The VQGAN family: the entries of the published state dicts, as `tests/conversion/published.py` writes them down.

IBQ's tree is that of taming-transformers.
"""

from typing import Any

import torch

from tests.conversion.published import VAR, LlamaGen, Published, Taming
from tests.recipes.counts.layers import bridge, linear, patchgan, token_heads

OWNERS = {"encoder": "encoder", "quant_conv": "encoder", "decoder": "decoder", "post_quant_conv": "decoder"}
OWNERS |= {"quantize": "quantizer"}
F16: dict[str, Any] = {"channels": 128, "multipliers": (1, 1, 2, 2, 4), "num_res_blocks": 2, "attention_levels": (4,)}
COUNTER, USAGE = "quantize.codebook_used", "quantize.ema_vocab_hit_SV"
SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
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
    "cvq": counted(Taming, **WIDE, codebook_size=1024),
    "llamagen_vq16": counted(LlamaGen, COUNTER, dim=8, latent_channels=256, codebook_size=16384),
    "fvq": counted(LlamaGen, COUNTER, **WIDE, codebook_size=16384),
    "ibq_16384": counted(Taming, **WIDE, num_res_blocks=4, codebook_size=16384),
    "ibq_262144": counted(Taming, **WIDE, num_res_blocks=4, codebook_size=262144),
    "vqgan_lc": counted(Taming, dim=8, latent_channels=256, codebook_size=100_000),
    "var_vae": counted(VAR, USAGE, channels=160, dim=32, latent_channels=32, codebook_size=4096, scales=SCALES),
}
COUNTS["fvq"]["quantizer"] += bridge(256, 4, width=256, blocks=2)
COUNTS["vqgan_lc"]["quantizer"] = 100_000 * 768 + linear(768, 8)
COUNTS["var_vae"]["discriminators"] = token_heads(384, number=4)

STATED = {"llamagen_vq16": 72}
