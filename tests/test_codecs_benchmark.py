"""benchmarks/codecs.py at tiny sizes: both sides compute the same, and the form of its table."""

from pathlib import Path

import pytest
import torch

from benchmarks import codecs
from tests.few import few

TINY = {
    "DAC 16 kHz": {
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 32,
        "hidden_size": 64,
        "downsampling_ratios": [2, 4, 5, 8],
        "upsampling_ratios": [8, 5, 4, 2],
        "n_codebooks": 2,
        "codebook_size": 16,
        "codebook_dim": 4,
        "sampling_rate": 16000,
    },
    "EnCodec 24 kHz": {
        "num_filters": 2,
        "hidden_size": 8,
        "codebook_size": 16,
        "codebook_dim": 8,
        "num_lstm_layers": 1,
    },
    "Mimi": {
        "num_filters": 2,
        "hidden_size": 16,
        "codebook_size": 16,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "num_quantizers": 3,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 16,
        "upsample_groups": 16,
    },
}


@pytest.fixture(params=few(list(TINY), "Mimi"))
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A codec of which the sizes are small."""
    codec = codecs.CODECS[request.param]
    tiny = codec._replace(config=type(codec.config)(**TINY[request.param]))
    monkeypatch.setitem(codecs.CODECS, request.param, tiny)
    return request.param


def test_both_sides_compute_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "in_own_process", lambda function, *arguments: 2**22)
    output = tmp_path / "table.md"
    words = ["--codecs", name, "--seconds", "1", "--batches", "2", "--rounds", "1", "--output", str(output)]
    codecs.main(words)
    text = output.read_text()
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    assert header == list(codecs.HEADER)
    table = {row[1]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(table) == ["encode", "decode", "stream"][: 3 if codecs.CODECS[name].start else 2]
    for call, row in table.items():
        assert row["same codes"] == ("-" if call == "decode" else "100.00%")
        assert all(float(row[column]) > 0 for column in ("transformers ms", "vqkit ms", "vqkit / transformers"))
        assert row["vqkit MiB"] == ("-" if call == "stream" else "4")
    assert float(table["decode"]["difference"]) < 1e-4  # of float32 samples of about 1, through some ten layers
    assert f"--codecs {name!r} --seconds 1 --batches 2 --rounds 1 --threads 1" in text
    assert str(tmp_path) not in text


def test_as_many_codes_are_decoded_as_the_sound_has(name: str, tmp_path: Path) -> None:
    folders = codecs.build(codecs.CODECS[name], tmp_path)
    model = codecs.load(name, 1, folders[1])
    waves = codecs.sound(codecs.CODECS[name].config, 1, 1)
    codes = codecs.prepared(name, 1, model, "encode", waves)()
    assert codes.dtype == torch.int64 and codes.shape == codecs.first_codes(codecs.CODECS[name].config, waves).shape
