"""Checkpoints are read whole and without code, or refused with their name and the entry."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainers.core.checkpoints import (
    check_same_parts,
    check_same_tokenizer,
    described,
    migrated,
    read_checkpoint,
    saved_tokenizer,
)
from vqkit import Quantizer, Tokenizer
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d

CONTENT: dict[str, Any] = {
    "state_dict": {"tokenizer.weight": torch.arange(300.0)},
    "loops": {},
    "callbacks": {},
    "optimizer_states": [],
    "lr_schedulers": [],
    "epoch": 1,
    "global_step": 7,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(CONTENT, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_a_sound_one_comes_back(path: Path) -> None:
    found = read_checkpoint(path)
    assert found["global_step"] == 7
    assert torch.equal(found["state_dict"]["tokenizer.weight"], torch.arange(300.0))


def test_a_flipped_byte_is_found(path: Path) -> None:
    """`torch.load` takes it."""
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(300.0).numpy().tobytes()) + 600] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)["state_dict"]["tokenizer.weight"], torch.arange(300.0))
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(path))}: entry '.*data/0' is damaged: take another checkpoint"
    ):
        read_checkpoint(path)


@pytest.mark.parametrize("length", [0, 1, 1000, -1])
def test_one_that_ends_too_early_is_refused(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"last\.ckpt: is no checkpoint, or ends too early"):
        read_checkpoint(path)


def test_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        read_checkpoint(tmp_path / "none.ckpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT | {"loops": None}, "entry 'loops' is a NoneType: expected dict"),
        ({"state_dict": {}}, "entry 'loops' is a NoneType: expected dict"),
        (CONTENT | {"global_step": "7"}, "entry 'global_step' is a str: expected int"),
        ([1], "holds a list: expected the dictionary of a checkpoint"),
        (CONTENT | {"state_dict": {"a.b": torch.tensor([1, torch.nan])}}, "entry 'a.b' holds NaN or infinity in 1"),
        (CONTENT | {"optimizer_states": [torch.zeros(1).expand(10**12)]}, r"shape \(1000000000000,\) holds fewer"),
        (CONTENT | {"callbacks": {"a": nn.Linear(1, 1)}}, "holds more than tensors and plain values, which only code"),
    ],
)  # fmt: skip
def test_what_no_run_wrote_is_refused(path: Path, content: Any, message: str) -> None:
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"last\.ckpt: (a tensor of )?{message}"):
        read_checkpoint(path)


def test_norms_of_before_are_not_resumed_with_todays() -> None:
    """A description without a version is one of before; the epsilon alone of all numbers has to be the same."""
    sizes: dict[str, Any] = {"dim": 4, "channels": 8, "norm_groups": 2, "num_res_blocks": 1}

    def build(**former: float) -> Tokenizer:
        quantizer = Quantizer("vq", dim=4, codebook_size=8, channel_dim=1)
        return Tokenizer(ConvEncoder2d(**sizes, **former), quantizer, ConvDecoder2d(**sizes, **former))

    saved = described(build())
    assert saved is not None
    before = {key: value for key, value in saved.items() if key != "format_version"}
    for part in ("encoder", "decoder"):
        arguments = dict(saved["init_args"][part]["init_args"])
        del arguments["norm_eps"]
        before["init_args"] = before["init_args"] | {part: saved["init_args"][part] | {"init_args": arguments}}
    check_same_parts(migrated(saved), described(build()))
    check_same_parts(migrated(before), described(build(norm_eps=1e-5)))
    arguments = r"--model.tokenizer.decoder.norm_eps=1e-05 --model.tokenizer.encoder.norm_eps=1e-05"
    for checkpoint in (before, None):  # version 0.1 described nothing
        check_same_tokenizer(checkpoint, build(norm_eps=1e-5), "last.ckpt")
        with pytest.raises(
            ValueError, match=rf"last.ckpt: .* its tokenizer.*norm_eps is 1e-05, not 1e-06.*{arguments}"
        ):
            check_same_tokenizer(checkpoint, build(), "last.ckpt")
    with pytest.raises(ValueError, match=r"last.ckpt: describes a tokenizer in format 9.*update vqkit"):
        check_same_tokenizer({**saved, "format_version": 9}, build(), "last.ckpt")
    weights = {f"tokenizer.{name}": value for name, value in build().state_dict().items()}
    exported = described(saved_tokenizer({"tokenizer": before, "state_dict": weights}))
    assert exported == described(build(norm_eps=1e-5)) != saved
