"""TiTok and TA-TiTok: the entries of the published state dicts, as `tests/conversion/titok.py` writes them down."""

from typing import Any

import torch

from tests.conversion.titok import TATiTok, TiTok
from tests.recipes.counts.layers import blur_patchgan

OWNERS = {"encoder": "encoder", "latent_tokens": "encoder", "quantize": "quantizer"}
OWNERS |= {"decoder": "decoder", "pixel_decoder": "decoder", "pixel_quantize": "decoder"}
SIZES: dict[str, Any] = {"image_size": 256, "encoder_patch": 16, "device": "meta"}
TEACHER: dict[str, Any] = {
    "channels": 128,
    "multipliers": (1, 1, 2, 2, 4),
    "num_res_blocks": 2,
    "teachers_codes": 1024,
    "teachers_dim": 256,
}


def counted(model: TiTok) -> dict[str, int]:
    """Parameters of a published model by part; of the text its 77 positions alone."""
    latents = model.latents(torch.empty(1, 3, 256, 256, dtype=torch.float64, device="meta"))
    model.images(model.quantize(latents)[1])
    parts = dict.fromkeys(("encoder", "quantizer", "decoder"), 0)
    for name, tensor in model.state.items():
        if not name.startswith(("quantize.embed_prob", "decoder.text_guidance_proj")):
            parts[OWNERS[name.partition(".")[0]]] += tensor.numel()
    return parts


L32 = counted(
    TiTok(
        num_tokens=32, encoder_width=1024, decoder_width=1024, encoder_depth=24, decoder_depth=24, dim=12,
        codebook_size=4096, **SIZES, **TEACHER,
    )
)  # fmt: skip
BL64 = counted(
    TATiTok(
        num_tokens=64, encoder_width=768, decoder_width=1024, encoder_depth=12, decoder_depth=24, dim=64,
        codebook_size=8192, decoder_patch=16, text_tokens=77, text_dim=768, **SIZES,
    )
)  # fmt: skip

COUNTS = {
    "titok_l32_stage1": L32,
    "titok_l32_stage2": L32 | {"discriminators": blur_patchgan()},
    "tatitok_bl64": BL64 | {"discriminators": blur_patchgan()},
}
