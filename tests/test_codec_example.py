"""examples/codec.py on real speech and a small untrained codec: files, levels, streams, other rates."""

from functools import partial

import numpy
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from tests.few import few
from tests.test_audio_tokenizer import HOP, SIZES
from tests.test_examples import ROOT, load_example
from vqkit import AudioTokenizer, Quantizer, ResidualQuantizer
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d

SPEECH = sorted((ROOT / "assets/audio/eval").glob("*.flac"))[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {**SIZES, "causal": True}
    quantizer = ResidualQuantizer(partial(Quantizer, "ema", dim=8, codebook_size=300), 2, channel_dim=1)
    codec = AudioTokenizer(ConvEncoder1d(**sizes), quantizer, ConvDecoder1d(**sizes), sample_rate=8000)
    folder = tmp_path_factory.mktemp("codec") / "tokenizer"
    codec.save_pretrained(folder)
    return folder


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["codec.py", *map(str, words)])
    load_example("codec").main()


def clip(path, seconds, rate=8000, channels=1):
    samples, _ = soundfile.read(SPEECH, dtype="float32", frames=int(seconds * rate))
    soundfile.write(path, numpy.repeat(samples[:, None], channels, axis=1), rate)
    return path


def test_a_file_becomes_tokens_and_sound_again(saved, tmp_path, monkeypatch, capsys):
    source = clip(tmp_path / "speech.wav", 1.31)
    run(monkeypatch, "encode", saved, source, tmp_path / "tokens.safetensors")
    codec = AudioTokenizer.from_pretrained(saved)
    wave = torch.from_numpy(soundfile.read(source, dtype="float32")[0])[None, None]
    indices = codec.encode(wave)
    tokens = load_file(tmp_path / "tokens.safetensors")["indices"]
    assert tokens.dtype == torch.uint16 and torch.equal(tokens.long(), indices[0])
    for levels, kept in ((), indices), (("--levels", 1), indices[..., :1]):
        run(monkeypatch, "decode", saved, tmp_path / "tokens.safetensors", tmp_path / "again.wav", *levels)
        sound, rate = soundfile.read(tmp_path / "again.wav", dtype="float32")
        expected = codec.decode(kept, length=wave.shape[-1])[0, 0].clamp(-1, 1)
        assert rate == 8000
        # 16 bits, written as the nearest of 32767 steps and read as that of 32768
        torch.testing.assert_close(torch.from_numpy(sound), expected, atol=1.5 * 2**-15 + 1e-6, rtol=0)
    assert f"{tuple(indices.shape[1:])} indices at 400 frames/s" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.wav", "speech.wav", "tokens.safetensors"]


@pytest.mark.parametrize("milliseconds", few([1.0, 37.0, 5000.0], 37.0))
def test_a_stream_gives_the_sound_of_the_file(saved, tmp_path, monkeypatch, capsys, milliseconds):
    source = clip(tmp_path / "speech.wav", 0.5)
    run(monkeypatch, "stream", saved, source, tmp_path / "streamed.wav", "--chunk-ms", milliseconds)
    run(monkeypatch, "encode", saved, source, tmp_path / "tokens.safetensors")
    run(monkeypatch, "decode", saved, tmp_path / "tokens.safetensors", tmp_path / "whole.wav")
    streamed, _ = soundfile.read(tmp_path / "streamed.wav")
    whole, _ = soundfile.read(tmp_path / "whole.wav")
    assert len(streamed) == -(-len(whole) // HOP) * HOP
    assert abs(streamed[: len(whole)] - whole).max() <= 2**-15
    assert f"algorithmic delay {1000 * HOP / 8000:g} ms" in capsys.readouterr().out


def test_other_rates_and_stereo_are_converted(saved, tmp_path, monkeypatch):
    source = clip(tmp_path / "speech.wav", 1.0, rate=44100, channels=2)
    run(monkeypatch, "encode", saved, source, tmp_path / "tokens.safetensors")
    assert load_file(tmp_path / "tokens.safetensors")["indices"].shape == (400, 2)


def test_nothing_is_left_half_written(saved, tmp_path, monkeypatch):
    damaged = tmp_path / "damaged.wav"
    damaged.write_bytes(clip(tmp_path / "speech.wav", 0.5).read_bytes()[:30])
    with pytest.raises(SystemExit, match=r"damaged\.wav: not a sound file"):
        run(monkeypatch, "stream", saved, damaged, tmp_path / "sound.wav")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.wav", "speech.wav"]
