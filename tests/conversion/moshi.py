"""A small Mimi under the names of Kyutai's release, and what Kyutai's own code makes of a sound with it.

The package moshi asks for an older torch than this library is tested with. So its answers (of moshi 0.2.13) are kept,
in `moshi.json`; where it is installed,

    python -m tests.conversion.moshi

writes them again. Weights and sound come from NumPy's `RandomState`, whose numbers are the same in all its versions.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

ANSWERS = Path(__file__).with_name("moshi.json")
DIM, CHANNELS, RATIOS, LAYERS = 32, 4, (3, 2), 2
"""Channels of the latents, for eight heads of four, and at the audio; strides, last one first; of a transformer."""
LEVELS, CODES, CODE_DIM = 4, 24, 8
FRAMES = 20
SAMPLES = 2 * 3 * 2 * FRAMES


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all entries, as in the released file."""
    widths = [CHANNELS * 2**level for level in range(len(RATIOS) + 1)]
    yield from _filters("encoder.model.0.conv.conv", (CHANNELS, 1, 7))
    place = 1
    for ratio, width in zip(reversed(RATIOS), widths, strict=False):
        yield from _unit(f"encoder.model.{place}", width)
        yield from _filters(f"encoder.model.{place + 2}.conv.conv", (2 * width, width, 2 * ratio))
        place += 3
    yield from _filters(f"encoder.model.{place + 1}.conv.conv", (DIM, widths[-1], 3))
    yield from _filters("decoder.model.0.conv.conv", (widths[-1], DIM, 7))
    place = 2
    for ratio, width in zip(RATIOS, reversed(widths), strict=False):
        yield from _filters(f"decoder.model.{place}.convtr.convtr", (width, width // 2, 2 * ratio), width // 2)
        yield from _unit(f"decoder.model.{place + 1}", width // 2)
        place += 3
    yield from _filters(f"decoder.model.{place}.conv.conv", (1, CHANNELS, 3))
    for side in ("encoder", "decoder"):
        for layer in range(LAYERS):
            block = f"{side}_transformer.transformer.layers.{layer}"
            yield f"{block}.self_attn.in_proj_weight", (3 * DIM, DIM)
            yield f"{block}.self_attn.out_proj.weight", (DIM, DIM)
            yield f"{block}.linear1.weight", (4 * DIM, DIM)
            yield f"{block}.linear2.weight", (DIM, 4 * DIM)
            for norm in ("norm1", "norm2"):
                yield f"{block}.{norm}.weight", (DIM,)
                yield f"{block}.{norm}.bias", (DIM,)
            for scale in ("layer_scale_1", "layer_scale_2"):
                yield f"{block}.{scale}.scale", (DIM,)
    yield "downsample.conv.conv.conv.weight", (DIM, DIM, 4)
    yield "upsample.convtr.convtr.convtr.weight", (DIM, 1, 4)
    for branch, levels in (("rvq_first", 1), ("rvq_rest", LEVELS - 1)):
        yield f"quantizer.{branch}.input_proj.weight", (CODE_DIM, DIM, 1)
        yield f"quantizer.{branch}.output_proj.weight", (DIM, CODE_DIM, 1)
        for level in range(levels):
            book = f"quantizer.{branch}.vq.layers.{level}._codebook"
            yield f"{book}._initialized", (1,)
            yield f"{book}.cluster_usage", (CODES,)
            yield f"{book}.embedding_sum", (CODES, CODE_DIM)


def _filters(name: str, shape: tuple[int, ...], outputs: int | None = None) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", (outputs or shape[0],)


def _unit(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _filters(f"{name}.block.1.conv.conv", (width // 2, width, 3))
    yield from _filters(f"{name}.block.3.conv.conv", (width, width // 2, 1))


def weights() -> dict[str, Tensor]:
    """Random numbers for all of them; one code of each book was hardly used, so that the least usage counts."""
    random, state = numpy.random.RandomState(0), {}
    for name, shape in shapes():
        numbers = 0.3 * random.standard_normal(shape)
        if name.endswith("cluster_usage"):
            numbers = numpy.abs(numbers) + 0.1
            numbers[0] = 1e-7
        if name.endswith("_initialized"):
            numbers = numpy.ones(shape)
        state[name] = torch.from_numpy(numbers).float()
    return state


def sound() -> Tensor:
    """(2, 1, `SAMPLES`) noise."""
    return torch.from_numpy(0.3 * numpy.random.RandomState(1).standard_normal((2, 1, SAMPLES))).float()


def answers() -> tuple[Tensor, Tensor]:
    """Codes (2, frames, levels), and the sound (2, 1, `SAMPLES`) of all levels."""
    kept = json.loads(ANSWERS.read_text())
    return torch.tensor(kept["codes"]).movedim(1, -1), torch.tensor(kept["sound"])


def upstream() -> Any:
    """Kyutai's own model with these weights."""
    from moshi.models import loaders
    from moshi.models.compression import MimiModel
    from moshi.modules import SEANetDecoder, SEANetEncoder
    from moshi.modules.transformer import ProjectedTransformer
    from moshi.quantization import SplitResidualVectorQuantizer

    convolutions = loaders._seanet_kwargs | {"dimension": DIM, "n_filters": CHANNELS, "ratios": list(RATIOS)}
    sizes = {"d_model": DIM, "input_dimension": DIM, "output_dimensions": [DIM], "dim_feedforward": 4 * DIM}
    blocks = loaders._transformer_kwargs | sizes | {"num_layers": LAYERS, "device": "cpu"}
    rate = loaders.SAMPLE_RATE / (SAMPLES // FRAMES)
    model = MimiModel(
        SEANetEncoder(**convolutions),
        SEANetDecoder(**convolutions),
        SplitResidualVectorQuantizer(
            dimension=CODE_DIM, n_q=LEVELS, bins=CODES, input_dimension=DIM, output_dimension=DIM
        ),
        channels=1,
        sample_rate=loaders.SAMPLE_RATE,
        frame_rate=rate,
        encoder_frame_rate=2 * rate,
        causal=True,
        resample_method="conv",
        encoder_transformer=ProjectedTransformer(**blocks),
        decoder_transformer=ProjectedTransformer(**blocks),
    )
    model.load_state_dict(weights())
    return model.eval()


def main() -> None:
    """Write the answers."""
    model = upstream()
    with torch.no_grad():
        codes = model.encode(sound())
        made = model.decode(codes)
    numbers = {
        "codes": codes.tolist(),
        "sound": [[[round(x, 7) for x in one] for one in each] for each in made.tolist()],
    }
    ANSWERS.write_text(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    main()
