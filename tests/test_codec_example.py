"""examples/codec.py on real speech and a small untrained codec: files, levels, streams, other rates."""

import importlib.util
import os
from functools import partial

import numpy
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from tests.few import few
from tests.test_audio_tokenizer import HOP, RATES, SIZES, make_codec
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


@pytest.fixture
def loaded(saved, monkeypatch):
    """The folder, of which the codec is read once."""
    codec = AudioTokenizer.from_pretrained(saved)
    monkeypatch.setattr(AudioTokenizer, "from_pretrained", lambda folder: codec)
    return saved


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


def test_levels_of_several_rates_end_in_a_line(tmp_path, monkeypatch):
    codec = make_codec(levels=RATES)
    monkeypatch.setattr(AudioTokenizer, "from_pretrained", lambda folder: codec)
    source = clip(tmp_path / "speech.wav", 0.1)
    with pytest.raises(SystemExit, match=r"levels of \(100.0, 200.0, 400.0\) indices a second"):
        run(monkeypatch, "encode", tmp_path, source, tmp_path / "tokens.safetensors")


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


def damaged(folder):
    """What is no recording by its name, and what a person is told."""
    (folder / "text.wav").write_text("hello")
    (folder / "empty.wav").touch()
    (folder / "sound.m4a").write_text("hello")
    (folder / "cut.wav").write_bytes(clip(folder / "speech.wav", 0.5).read_bytes()[:30])
    wave = numpy.zeros((8000, 6))
    soundfile.write(folder / "no samples.wav", wave[:0], 8000)
    soundfile.write(folder / "short.wav", wave[:1, 0], 48000)
    soundfile.write(folder / "six.wav", wave, 8000)
    wave[4000] = numpy.nan
    soundfile.write(folder / "nan.wav", wave[:, :1], 8000, subtype="FLOAT")
    os.mkfifo(folder / "pipe.wav")
    clip(folder / "whole.flac", 3)
    content = (folder / "whole.flac").read_bytes()
    (folder / "cut.flac").write_bytes(content[: len(content) // 2])
    return {
        "nowhere.wav": "there is no such file; expected a recording",
        ".": "a folder; expected a recording",
        "pipe.wav": "not a plain file, but a pipe, a socket, a device or a folder; expected a recording",
        "text.wav": "not a sound file that libsndfile can read: Format not recognised; expected a recording",
        "empty.wav": "empty: the file has no bytes; expected a recording",
        "sound.m4a": "install it, or convert it: ffmpeg -i sound.m4a sound.flac",
        "cut.wav": "No 'data' chunk marker; expected a recording",
        "cut.flac": "flac decoder lost sync; expected a recording",
        "no samples.wav": "0 samples at 8000 Hz, too short for 8000 Hz; expected a longer one",
        "short.wav": "1 samples at 48000 Hz, too short for 8000 Hz; expected a longer one",
        "nan.wav": "has samples that are not finite numbers, the first at 0.500 s; mend it",
    }


def test_what_cannot_be_encoded_ends_in_a_line_and_leaves_nothing(loaded, tmp_path, monkeypatch):
    whole = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchcodec" else whole(name))
    told = damaged(tmp_path)
    before = sorted(tmp_path.iterdir())
    for name, reason in told.items():
        for action, target in ("encode", "tokens.safetensors"), ("stream", "sound.wav"):
            with pytest.raises(SystemExit) as caught:
                run(monkeypatch, action, loaded, tmp_path / name, tmp_path / target)
            line = str(caught.value)
            assert line.startswith(f"error: {tmp_path / name}: ") and reason in line and "\n" not in line, line
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_decoded_ends_in_a_line_and_leaves_nothing(loaded, tmp_path, monkeypatch):
    run(monkeypatch, "encode", loaded, clip(tmp_path / "speech.wav", 0.5), tmp_path / "tokens.safetensors")
    facts = {"samples": "4000", "sample_rate": "8000"}
    indices = load_file(tmp_path / "tokens.safetensors")["indices"].to(torch.int32)
    content = (tmp_path / "tokens.safetensors").read_bytes()
    (tmp_path / "cut").write_bytes(content[:-7])
    for name, tensor, own in (
        ("levels", indices[:, :1], facts),
        ("no frames", indices[:0], facts),
        ("floats", indices.float(), facts),
        ("range", indices + 300, facts),
        ("negative", indices - 300, facts),
        ("no facts", indices, {}),
        ("samples", indices, facts | {"samples": "4001"}),
        ("words", indices, facts | {"samples": "many"}),
        ("rate", indices, facts | {"sample_rate": "16000"}),
    ):
        save_file({"indices": tensor.contiguous()}, tmp_path / name, metadata=own)
    save_file({"other": indices}, tmp_path / "other")
    before = sorted(tmp_path.iterdir())
    for name, reason in (
        ("nowhere", "there is no such file; expected one that `encode` wrote"),
        (".", "not a plain file; expected one that `encode` wrote"),
        ("speech.wav", "is damaged or of another kind"),
        ("cut", "is damaged or of another kind"),
        ("other", "is damaged or of another kind"),
        ("levels", r"'indices' is I32 [200, 1]: expected U16 or I32 ['frames', 2]"),
        ("no frames", r"'indices' is I32 [0, 2]"),
        ("floats", r"'indices' is F32 [200, 2]"),
        ("range", "expected -1 (left out) or 0 ... 299"),
        ("negative", "indices"),
        ("no facts", "has samples=None, sample_rate=None: expected 1 to 4000 at 8000 Hz; encode again"),
        ("samples", "has samples=4001"),
        ("words", "Expecting value"),
        ("rate", "sample_rate=16000"),
    ):
        with pytest.raises(SystemExit) as caught:
            run(monkeypatch, "decode", loaded, tmp_path / name, tmp_path / "again.wav")
        line = str(caught.value)
        assert line.startswith(f"error: {tmp_path / name}: ") and reason in line and "\n" not in line, line
    for target in (tmp_path / "again.m4a", tmp_path / "nowhere" / "again.wav", tmp_path):
        with pytest.raises(SystemExit, match=f"error: {target}: expected a f"):
            run(monkeypatch, "decode", loaded, tmp_path / "tokens.safetensors", target)
    assert sorted(tmp_path.iterdir()) == before


def test_an_mp3_of_variable_bit_rate_is_encoded_whole(loaded, tmp_path, monkeypatch):
    """Without the tag that counts its frames, a third of it was."""
    wave = numpy.concatenate(
        [0.3 * numpy.sin(numpy.arange(24000)), 0.2 * numpy.random.default_rng(0).normal(size=24000)]
    )
    path = tmp_path / "a.mp3"
    soundfile.write(path, wave, 16000, format="MP3", bitrate_mode="VARIABLE", compression_level=0.6)
    path.write_bytes(path.read_bytes().replace(b"Xing", bytes(4)))
    run(monkeypatch, "encode", loaded, path, tmp_path / "tokens.safetensors")
    frames = len(load_file(tmp_path / "tokens.safetensors")["indices"])
    assert 3 * 400 <= frames <= 3.2 * 400  # the padding of the coder is some 0.1 s


@pytest.mark.parametrize(
    ("words", "warned"),
    [((), "dB; try --downmix loudest"), (("--downmix", "right"), ""), (("--downmix", "loudest"), "")],
)
def test_sound_that_cancels_is_said_or_kept(loaded, tmp_path, monkeypatch, capsys, words, warned):
    clip(tmp_path / "mono.wav", 0.5)
    mono = soundfile.read(tmp_path / "mono.wav", dtype="float32")[0]
    soundfile.write(tmp_path / "stereo.wav", numpy.stack([-0.4 * mono, 0.5 * mono], axis=1), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "mono.wav", 0.5 * mono, 8000, subtype="FLOAT")
    tokens = {}
    for name in ("stereo", "mono"):
        run(monkeypatch, "encode", loaded, tmp_path / f"{name}.wav", tmp_path / name, *words)
        tokens[name] = load_file(tmp_path / name)["indices"]
    said = capsys.readouterr().err
    assert warned in said if warned else not said
    assert torch.equal(tokens["stereo"], tokens["mono"]) == (not warned)
