"""TiTok and TA-TiTok: the entries of the published state dicts, as `tests/conversion/titok.py` writes them down."""

from tests.conversion.titok import released
from tests.recipes.counts.layers import blur_patchgan

OWNERS = {"encoder": "encoder", "latent_tokens": "encoder", "quantize": "quantizer"}
OWNERS |= {"decoder": "decoder", "pixel_decoder": "decoder", "pixel_quantize": "decoder"}


def counted(name: str) -> dict[str, int]:
    """Parameters of a published model by part; of the text its 77 positions alone."""
    parts = dict.fromkeys(("encoder", "quantizer", "decoder"), 0)
    for entry, tensor in released(name).state.items():
        if not entry.startswith(("quantize.embed_prob", "decoder.text_guidance_proj")):
            parts[OWNERS[entry.partition(".")[0]]] += tensor.numel()
    return parts


L32, BL64 = counted("titok l-32"), counted("ta-titok bl-64")
COUNTS = {
    "titok_l32_stage1": L32,
    "titok_l32_stage2": L32 | {"discriminators": blur_patchgan()},
    "tatitok_bl64": BL64 | {"discriminators": blur_patchgan()},
}
