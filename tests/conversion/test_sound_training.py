"""Converted models of sound as any other tokenizer: trained on, saved again, and cut into blocks."""

from pathlib import Path

import pytest
import torch

from tests.conversion import test_dac, test_snac
from tests.trainers.tiny import LIGHTNING_REMARKS, Sounds, make_audio_task, make_trainer
from trainers.core.checkpoints import saved_tokenizer
from trainers.run.origin import Origin
from vqkit import AudioTokenizer, Tokenizer, convert
from vqkit.conversion import DAC, SNAC, Family, TransformersDAC

pytestmark = [*LIGHTNING_REMARKS, pytest.mark.slow]

KINDS = ("DAC", "DAC of transformers", "SNAC at 24 kHz", "SNAC at 32 and 44.1 kHz")


def published(kind: str, folder: Path) -> tuple[Path, Family]:
    if kind == "DAC":
        return test_dac.published("authors", folder), DAC(sample_rate=16000)
    if kind == "DAC of transformers":
        return test_dac.published("transformers", folder), TransformersDAC(sample_rate=16000)
    size = "24 kHz" if "24" in kind else "32 and 44 kHz"
    return test_snac.published(size, folder, sampling_rate=16000), SNAC()


@pytest.mark.parametrize("kind", KINDS)
def test_converted_weights_encode_decode_learn_and_are_saved_again(kind: str, tmp_path: Path) -> None:
    source, family = published(kind, tmp_path)
    convert(source, tmp_path / "converted", family=family, license="mit")
    codec = Tokenizer.from_pretrained(tmp_path / "converted")
    assert isinstance(codec, AudioTokenizer)
    sounds = Sounds(8).sounds
    indices = codec.encode(sounds)
    for levels in range(1, 4 if "DAC" in kind else len(codec.quantizer.strides) + 1):
        prefix = indices[..., :levels] if "DAC" in kind else codec.quantizer.prefix(indices, levels)
        assert codec.decode(prefix, length=320).shape == sounds.shape
    pieces = list(codec.encode_blocks(sounds.split(100, dim=-1), frames_per_block=4))
    assert torch.equal(codec.join(pieces), indices)
    with pytest.raises(ValueError, match="streaming needs a causal encoder"), codec.streaming():
        pass
    task = make_audio_task(Tokenizer.from_pretrained(tmp_path / "converted"), learning_rate=3e-4)
    Origin.of(str(tmp_path / "converted")).load(task)
    make_trainer(max_steps=20).fit(task, datamodule=Sounds(8))
    task.tokenizer.eval().save_pretrained(tmp_path / "tuned")
    tuned = Tokenizer.from_pretrained(tmp_path / "tuned")
    before, after = ((model(sounds).reconstruction - sounds).abs().mean() for model in (codec, tuned))
    assert after < 0.9 * before
    assert tuned.provenance == codec.provenance and tuned.provenance["license"] == "mit"
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    assert saved_tokenizer(checkpoint).provenance == codec.provenance
