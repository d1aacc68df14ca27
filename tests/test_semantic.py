"""The script of the semantic first book: labels, what a code says of them, Whisper's weights, and the table."""

import json
import math
import struct
from pathlib import Path

import numpy
import pytest
import semantic
import torch
import whisper_encoder


def labelled(train, validation, phones=3):
    """Utterances of these phones, one in each split."""
    made = object.__new__(semantic.Labelled)
    made.phones = [str(number) for number in range(phones)]
    made.paths = {"train": ["a"], "validation": ["b"]}
    made.labels = {"train": [torch.tensor(train)], "validation": [torch.tensor(validation)]}
    return made


def test_a_phone_is_that_at_the_middle_of_a_frame(tmp_path) -> None:
    (tmp_path / "one.lab").write_text("signal one\nnfields 1\n#\n0.05000 125 pau\n0.07000 125 k\n0.12000 125 a\n")
    ends = semantic.phone_ends(tmp_path / "one.lab")
    assert ends == [(0.05, "pau"), (0.07, "k"), (0.12, "a")]
    found = semantic.on_grid(ends, {"pau": 0, "k": 1, "a": 2}, 8)
    assert found.tolist() == [0, 0, 1, 2, 2, 2, 2, 2]  # middles at 0.01, 0.03, ...; the last phone goes on


def test_codes_that_are_the_phones_have_all_their_bits() -> None:
    phones = [0, 1, 2] * 200
    utterances = labelled(phones, phones)
    told = semantic.probe({split: torch.tensor(phones) for split in ("train", "validation")}, utterances)
    assert told.accuracy == 1
    # 200 counts and a third of a vote beside each, of 201
    assert told.bits == pytest.approx(math.log2(3) + math.log2((200 + 1 / 3) / 201), abs=1e-6)


def test_codes_that_say_nothing_have_no_bits_whatever_their_number() -> None:
    generator = torch.Generator().manual_seed(0)
    phones, codes = (torch.randint(high, (2000,), generator=generator) for high in (3, 1024))
    utterances = labelled(phones[:1000].tolist(), phones[1000:].tolist())
    told = semantic.probe({"train": codes[:1000], "validation": codes[1000:]}, utterances)
    assert told.bits < 0 and told.accuracy < 0.45


def test_a_linear_map_finds_phones_that_are_linear_in_features() -> None:
    phones = torch.arange(600) % 3
    features = torch.nn.functional.one_hot(phones, 3).float() @ torch.randn(3, 8) + 0.01 * torch.randn(600, 8)
    utterances = labelled(phones[:300].tolist(), phones[300:].tolist())
    found = semantic.linear_probe({"train": features[:300], "validation": features[300:]}, utterances)
    assert found.accuracy == 1 and "bits" not in found.facts()


def test_the_table_has_a_row_for_each_codec_and_for_the_teacher(tmp_path, monkeypatch) -> None:
    levels = [str(count) for count in semantic.DECODED]
    codec = {
        "training": {"steps": 7, "precision": "32-true"},
        "phones": {level: {"accuracy": 0.25, "bits": 1.5} for level in "01"},
        "word_errors": dict.fromkeys(levels, 0.75),
        "sound": {level: {"stoi": 0.5, "mel_distance": 2.0} for level in levels},
    }
    split = {"train": [5, 5000], "validation": [2, 1000]}
    record = {
        "machine": "one thread of something",
        "phones": {"phones": 50, "entropy": 4.5, "most frequent": 0.2} | split,
        "words": {"utterances": 5, "original": 0.04},
        "teacher": {"linear": {"accuracy": 0.7}, "kmeans": {"accuracy": 0.6, "bits": 2.5}},
        **dict.fromkeys(semantic.TWINS, codec),
    }
    monkeypatch.setattr(semantic, "RECORD", tmp_path / "semantic.json")
    semantic.RECORD.write_text(json.dumps(record))
    head, line, *rows = semantic.table().partition("\n\n")[0].splitlines()
    assert len(rows) == 4 and {row.count("|") for row in (head, line, *rows)} == {head.count("|")}
    assert rows[0].startswith("| taught what Whisper hears | 25.0% | 1.50 | 25.0% | 1.50 | 0.75 |")


# ------------------------------------------------------------------ Whisper's weights


def ct2_file(path: Path, state: dict[str, torch.Tensor], *, version: int = 6) -> Path:
    """What CTranslate2 writes for an encoder of one layer with this state dict of transformers."""
    layer = "encoder/layer_0"
    fused = [
        torch.cat([state.get(f"layers.0.self_attn.{letter}_proj.{kind}", torch.zeros(64)) for letter in "qkv"])
        for kind in ("weight", "bias")
    ]
    variables = {"encoder/position_encodings/encodings": state["embed_positions.weight"]}
    for kind, whole in zip(("weight", "bias"), fused, strict=True):
        variables[f"{layer}/self_attention/linear_0/{kind}"] = whole
        for theirs, ours in whisper_encoder.LINEARS.items():
            variables[f"{layer}/{theirs}/{kind}"] = state[f"layers.0.{ours}.{kind}"]
        for name in ("conv1", "conv2"):
            variables[f"encoder/{name}/{kind}"] = state[f"{name}.{kind}"]
    for theirs, ours in {f"{layer}/{k}": f"layers.0.{v}" for k, v in whisper_encoder.NORMS.items()}.items():
        variables |= {f"{theirs}/gamma": state[f"{ours}.weight"], f"{theirs}/beta": state[f"{ours}.bias"]}
    variables |= {"encoder/layer_norm/gamma": state["layer_norm.weight"]}
    variables |= {"encoder/layer_norm/beta": state["layer_norm.bias"]}

    def text(name: str) -> bytes:
        return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"

    data = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        half = value.numpy().astype(numpy.float16)
        data += text(name) + struct.pack(f"<B{half.ndim}I", half.ndim, *half.shape)
        data += struct.pack("<BI", 4, half.nbytes) + half.tobytes()
    path.write_bytes(data + struct.pack("<I", 0))
    return path


@pytest.fixture
def encoder():
    from transformers import WhisperConfig, WhisperModel

    sizes = {"d_model": 64, "encoder_layers": 1, "encoder_attention_heads": 1, "encoder_ffn_dim": 16}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    config = WhisperConfig(**sizes, max_source_positions=8, decoder_layers=0, vocab_size=1, **tokens)
    model = WhisperModel(config).encoder.eval()
    for parameter in model.parameters():
        parameter.data = (parameter + 0.1 * torch.randn_like(parameter)).half().float()
    return model


def test_weights_of_ctranslate2_become_those_of_transformers(encoder, tmp_path) -> None:
    from trainers.audio import SpeechTeacher

    count = whisper_encoder.write_encoder(ct2_file(tmp_path / "model.bin", encoder.state_dict()), tmp_path / "whisper")
    teacher = SpeechTeacher(str(tmp_path / "whisper"))
    found = teacher.held.network.state_dict()
    assert found.keys() == encoder.state_dict().keys() and count == sum(part.numel() for part in encoder.parameters())
    assert all(torch.equal(found[name], value) for name, value in encoder.state_dict().items())


def test_files_of_another_version_are_refused(encoder, tmp_path) -> None:
    path = ct2_file(tmp_path / "model.bin", encoder.state_dict(), version=5)
    with pytest.raises(ValueError, match="is a CTranslate2 file of version 5: expected 6"):
        whisper_encoder.read_variables(path)
