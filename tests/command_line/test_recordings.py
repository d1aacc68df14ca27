"""`python -m vqkit` on sound: real speech and small untrained codecs: files, levels, rates, what cannot be used."""

import importlib.util
import os
from contextlib import nullcontext
from functools import partial

import numpy
import pytest
import soundfile
import torch

from tests.few import few
from tests.test_audio_tokenizer import RATES, SCALES, SIZES, make_codec
from tests.test_examples import ROOT
from vqkit import AudioTokenizer, Quantizer, ResidualQuantizer
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.bitstream.codec import TokenCodec
from vqkit.bitstream.container import Sound, inspect
from vqkit.command_line import main as main_module
from vqkit.command_line.main import main
from vqkit.media.channels import DOWNMIXES
from vqkit.media.recordings import write_pieces

SPEECH = sorted((ROOT / "assets/audio/eval").glob("*.flac"))[0]


def make_causal():
    """With codes that are not fitted to noise, so that speech has many of them."""
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(partial(Quantizer, "ema", dim=8, codebook_size=300), 2, channel_dim=1)
    sizes = {**SIZES, "causal": True}
    return AudioTokenizer(ConvEncoder1d(**sizes), quantizer, ConvDecoder1d(**sizes), sample_rate=8000).eval()


CODECS = {
    "causal": make_causal,
    "looks ahead": lambda: make_codec(levels=2, causal=False),
    "one codebook": lambda: make_codec(levels=0),
    "several rates": lambda: make_codec(levels=RATES),
    "scales": lambda: make_codec(levels=SCALES),
    "stereo": lambda: make_codec(levels=2, channels=2),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders and codecs, saved once."""
    made = {}
    for name, build in CODECS.items():
        codec, folder = build(), tmp_path_factory.mktemp("codec") / name
        codec.save_pretrained(folder)
        made[name] = folder, codec
    return made


def run(action, *words):
    """By a coder that takes no time where nothing is compiled."""
    quick = ("--coder", "fixed width") if action == "encode" else ()
    return main([str(word) for word in (action, *quick, *words)])


def clip(path, seconds, rate=8000, channels=1):
    samples, _ = soundfile.read(SPEECH, dtype="float32", frames=int(seconds * rate))
    soundfile.write(path, numpy.repeat(samples[:, None], channels, axis=1), rate)
    return path


def indices_of(path, codec, **options):
    return TokenCodec.of(codec).unpack(path.read_bytes(), **options).indices


def first_levels(codec, indices, count):
    return codec.quantizer.prefix(indices, count) if indices.ndim == 2 else indices[..., :count]


@pytest.mark.parametrize("name", few([*CODECS], "causal", "several rates", "scales"))
def test_a_file_becomes_indices_and_sound_again(folders, tmp_path, name, capsys):
    folder, codec = folders[name]
    source = clip(tmp_path / "speech.wav", 1.31, channels=codec.channels)
    words = ("--tokenizer", folder)
    assert run("encode", *words, source, tmp_path / "a.vqk") == 0
    wave = torch.from_numpy(soundfile.read(source, dtype="float32", always_2d=True)[0]).T[None]
    indices, header = codec.encode(wave), inspect((tmp_path / "a.vqk").read_bytes())
    assert torch.equal(indices_of(tmp_path / "a.vqk", codec), indices)
    assert header.extent == Sound(wave.shape[-1], 8000)
    for count in (None, 1) if name != "one codebook" else (None,):
        kept = indices if count is None else first_levels(codec, indices, count)
        levels = () if count is None else ("--levels", count)
        assert run("decode", *words, "--overwrite", *levels, tmp_path / "a.vqk", tmp_path / "again.wav") == 0
        sound, rate = soundfile.read(tmp_path / "again.wav", dtype="float32", always_2d=True)
        expected = codec.decode(kept, length=wave.shape[-1])[0].clamp(-1, 1).T
        assert rate == 8000
        # 16 bits, written as the nearest of 32767 steps and read as that of 32768
        torch.testing.assert_close(torch.from_numpy(sound), expected, atol=1.5 * 2**-15 + 1e-6, rtol=0)
    size, seconds = (tmp_path / "a.vqk").stat().st_size, wave.shape[-1] / 8000
    assert f"{size:,} bytes, {8 * size / seconds / 1000:.4f} kbit/s" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.vqk", "again.wav", "speech.wav"]


def test_sound_goes_block_by_block_where_the_context_is_finite(folders, tmp_path, monkeypatch):
    folder, codec = folders["looks ahead"]
    source = clip(tmp_path / "speech.wav", 3)
    words = ("--tokenizer", folder)
    longest = []
    run_encoder = type(codec.encoder).forward

    def watched(self, data):
        longest.append(data.shape[-1])
        return run_encoder(self, data)

    monkeypatch.setattr(type(codec.encoder), "forward", watched)
    assert run("encode", *words, source, tmp_path / "a.vqk") == 0
    assert len(longest) > 3 and max(longest) < 8000
    longest.clear()
    monkeypatch.setattr(AudioTokenizer, "latency", None)  # as for a model whose attention sees all
    assert run("encode", *words, source, tmp_path / "whole.vqk") == 0
    assert longest == [24000] and (tmp_path / "whole.vqk").read_bytes() == (tmp_path / "a.vqk").read_bytes()
    assert run("decode", *words, tmp_path / "whole.vqk", tmp_path / "again.wav") == 0
    assert soundfile.info(tmp_path / "again.wav").frames == 24000


def test_other_rates_and_channels_are_converted(folders, tmp_path, capsys):
    folder, codec = folders["causal"]
    source = clip(tmp_path / "speech.wav", 1.0, rate=44100, channels=2)
    assert run("encode", "--tokenizer", folder, source, tmp_path / "a.vqk") == 0
    assert indices_of(tmp_path / "a.vqk", codec).shape == (1, 400, 2)
    assert run("decode", "--tokenizer", folders["stereo"][0], tmp_path / "a.vqk", tmp_path / "b.wav") == 1
    assert "another tokenizer" in capsys.readouterr().err
    stereo = folders["stereo"][0]
    assert run("encode", "--tokenizer", stereo, clip(tmp_path / "mono.wav", 0.5), tmp_path / "b.vqk") == 0
    assert run("decode", "--tokenizer", stereo, "--ending", "flac", tmp_path / "b.vqk", tmp_path / "b.flac") == 0
    assert (soundfile.info(tmp_path / "b.flac").channels, soundfile.info(tmp_path / "b.flac").frames) == (2, 4000)


def test_a_folder_of_sound_and_its_rates(folders, tmp_path, capsys):
    folder, codec = folders["causal"]
    (tmp_path / "sounds/deep").mkdir(parents=True)
    clip(tmp_path / "sounds/a.wav", 0.5)
    clip(tmp_path / "sounds/deep/b.flac", 0.25)
    assert run("encode", "--tokenizer", folder, tmp_path / "sounds", tmp_path / "coded") == 0
    assert run("decode", "--tokenizer", folder, "--ending", ".flac", tmp_path / "coded", tmp_path / "again") == 0
    assert soundfile.info(tmp_path / "again/deep/b.flac").frames == 2000
    capsys.readouterr()
    assert run("rate", "--tokenizer", folder, tmp_path / "sounds") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "kbit/s" in lines[0] and len(lines) == 4
    assert all(float(line.split()[0]) == pytest.approx(codec.kbps, abs=5e-5) for line in lines[1:])
    assert run("info", tmp_path / "coded/a.vqk") == 0
    assert "0.500 s at 8000 Hz" in capsys.readouterr().out


def damaged(folder):
    """What is no recording by its name, and what a person is told."""
    (folder / "text.wav").write_text("hello")
    (folder / "empty.wav").touch()
    (folder / "sound.m4a").write_text("hello")
    (folder / "head.wav").write_bytes(clip(folder / "speech.wav", 0.5).read_bytes()[:30])
    wave = numpy.zeros((8000, 6))
    soundfile.write(folder / "no samples.wav", wave[:0], 8000)
    soundfile.write(folder / "short.wav", wave[:1, 0], 48000)
    wave[4000] = numpy.nan
    soundfile.write(folder / "nan.wav", wave[:, :1], 8000, subtype="FLOAT")
    os.mkfifo(folder / "pipe.wav")
    clip(folder / "whole.flac", 3)
    content = (folder / "whole.flac").read_bytes()
    (folder / "cut.flac").write_bytes(content[: len(content) // 2])
    return {
        "pipe.wav": "not a plain file, but a pipe, a socket, a device or a folder",
        "text.wav": "not a sound file that libsndfile can read: Format not recognised; expected a recording",
        "empty.wav": "empty: the file has no bytes; expected a recording",
        "sound.m4a": "install it, or convert it: ffmpeg -i sound.m4a sound.flac",
        "head.wav": "No 'data' chunk marker; expected a recording",
        "cut.flac": "flac decoder lost sync; expected a recording",
        "no samples.wav": "0 samples at 8000 Hz, too short for 8000 Hz; expected a longer one",
        "short.wav": "1 samples at 48000 Hz, too short for 8000 Hz; expected a longer one",
        "nan.wav": "has samples that are not finite numbers, the first at 0.500 s; mend it",
    }


def test_what_cannot_be_encoded_is_named_in_a_line_and_leaves_nothing(folders, tmp_path, monkeypatch, capsys):
    whole = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchcodec" else whole(name))
    source, coded = tmp_path / "sounds", tmp_path / "coded"
    source.mkdir()
    told = damaged(source)
    assert run("encode", "--tokenizer", folders["causal"][0], source, coded) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(told)
    for name, reason in told.items():
        assert any(line.startswith(f"{source / name}: ") and reason in line for line in lines), (name, lines)
    assert sorted(path.name for path in coded.iterdir()) == ["speech.vqk", "whole.vqk"]
    assert run("encode", "--tokenizer", folders["causal"][0], source / "nan.wav", tmp_path / "a.vqk") == 1
    assert told["nan.wav"] in capsys.readouterr().err and not (tmp_path / "a.vqk").exists()
    assert run("decode", "--tokenizer", folders["causal"][0], coded / "speech.vqk", tmp_path / "a.m4a") == 2
    assert "a.m4a: expected a format that libsndfile writes, such as a.wav" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["raw", "xi", "sd2"])
def test_formats_that_lose_the_sample_rate_are_refused(folders, tmp_path, monkeypatch, capsys, ending):
    folder, codec = folders["causal"]
    packed = TokenCodec.of(codec).pack(torch.zeros(1, 10, 2, dtype=torch.int64), extent=Sound(200, 8000))
    (tmp_path / "a.vqk").write_bytes(packed.content)
    target = tmp_path / f"a.{ending}"
    monkeypatch.chdir(tmp_path)  # where SD2 has its other file
    assert run("decode", "--tokenizer", folder, tmp_path / "a.vqk", target) in (1, 2)
    assert f"{target}: " in capsys.readouterr().err and sorted(tmp_path.iterdir()) == [tmp_path / "a.vqk"]


@pytest.mark.parametrize(("ending", "refused"), [("wav", True), ("aiff", True), ("w64", False), ("flac", False)])
def test_sound_of_more_bytes_than_a_format_counts(tmp_path, monkeypatch, ending, refused):
    """libsndfile writes it, and a header that ends sooner."""
    monkeypatch.setattr("vqkit.media.recordings.MOST_BYTES", 4000)
    noise = torch.rand(1, 1, 8000, generator=torch.Generator().manual_seed(0))
    target = tmp_path / f"a.{ending}"
    with pytest.raises(ValueError, match="more than 4 GiB") if refused else nullcontext():
        write_pieces(target, noise.split(1000, dim=-1), sample_rate=8000, channels=1)
    assert [path.name for path in tmp_path.iterdir()] == [target.name] * (not refused)


def test_sound_of_values_that_are_not_numbers_is_refused(folders, tmp_path, monkeypatch, capsys):
    folder, codec = folders["causal"]
    packed = TokenCodec.of(codec).pack(torch.zeros(1, 10, 2, dtype=torch.int64), extent=Sound(200, 8000))
    (tmp_path / "a.vqk").write_bytes(packed.content)
    monkeypatch.setattr(AudioTokenizer, "decode_blocks", lambda self, blocks: [torch.full((1, 1, 200), torch.nan)])
    assert run("decode", "--tokenizer", folder, tmp_path / "a.vqk", tmp_path / "b.wav") == 1
    assert "values that are not numbers" in capsys.readouterr().err and not (tmp_path / "b.wav").exists()


def test_words_of_the_command_are_those_of_the_readers():
    assert tuple(DOWNMIXES) == main_module.DOWNMIXES


def test_names_are_shown_on_a_line(folders, tmp_path, capsys):
    source = tmp_path / "sounds"
    source.mkdir()
    (source / "\x1b[31mbad\n.wav").write_text("none")
    clip(source / "a.wav", 0.5)
    wave = soundfile.read(source / "a.wav")[0]
    soundfile.write(source / "\x1b[31mlost\n.wav", numpy.stack([wave, -wave], axis=1), 8000)
    assert run("encode", "--tokenizer", folders["causal"][0], source, tmp_path / "coded") == 1
    said = capsys.readouterr().err
    assert "\x1b" not in said and len(said.splitlines()) == 2 and said.count(r"\x1b[31m") == 2


def test_a_file_that_says_another_length_is_refused(folders, tmp_path, capsys):
    folder, codec = folders["causal"]
    indices = torch.zeros(1, 10, 2, dtype=torch.int64)
    for extent, said in (
        (Sound(201, 8000), "its indices stand for 200 samples at 8000 Hz"),
        (Sound(200, 16000), "its indices stand for 200 samples at 8000 Hz"),
        (None, "does not say how large the original was"),
    ):
        (tmp_path / "a.vqk").write_bytes(TokenCodec.of(codec).pack(indices, extent=extent).content)
        assert run("decode", "--tokenizer", folder, tmp_path / "a.vqk", tmp_path / "a.wav") == 1
        assert said in capsys.readouterr().err and not (tmp_path / "a.wav").exists()


def test_long_silence_is_shown_left_out_and_decoded(folders, tmp_path, monkeypatch, capsys):
    """Many indices in few bytes: what this command writes, it has to read."""
    folder, codec = folders["causal"]
    monkeypatch.setattr("vqkit.bitstream.container.FREE_CELLS", 100)
    soundfile.write(tmp_path / "a.wav", numpy.zeros(200_000), 8000)
    words = ("--tokenizer", folder)
    assert main(["encode", *map(str, words), str(tmp_path / "a.wav"), str(tmp_path / "a.vqk")]) == 0
    assert run("encode", *words, tmp_path / "a.wav", tmp_path / "a.vqk") == 0
    assert "1 were there already" in capsys.readouterr().out
    assert run("info", tmp_path / "a.vqk") == 0
    assert run("decode", *words, tmp_path / "a.vqk", tmp_path / "b.wav") == 1
    cells = indices_of(tmp_path / "a.vqk", codec, most_cells=10**6).numel()
    assert f"give most_cells={cells}" in capsys.readouterr().err
    assert run("decode", *words, "--most-cells", cells, tmp_path / "a.vqk", tmp_path / "b.wav") == 0
    assert soundfile.info(tmp_path / "b.wav").frames == 200_000


def test_info_of_sound_at_no_rate(tmp_path, capsys):
    codec = TokenCodec((4,), fingerprint=bytes(16))
    packed = codec.pack(torch.zeros(1, 3, dtype=torch.int64), extent=Sound(10, 0))
    (tmp_path / "a.vqk").write_bytes(packed.content)
    assert run("info", tmp_path / "a.vqk") == 0
    assert "0.000 s at 0 Hz" in capsys.readouterr().out


def test_an_mp3_of_variable_bit_rate_is_encoded_whole(folders, tmp_path):
    """Without the tag that counts its frames, a third of it was."""
    folder, codec = folders["causal"]
    wave = numpy.concatenate(
        [0.3 * numpy.sin(numpy.arange(24000)), 0.2 * numpy.random.default_rng(0).normal(size=24000)]
    )
    path = tmp_path / "a.mp3"
    soundfile.write(path, wave, 16000, format="MP3", bitrate_mode="VARIABLE", compression_level=0.6)
    path.write_bytes(path.read_bytes().replace(b"Xing", bytes(4)))
    assert run("encode", "--tokenizer", folder, path, tmp_path / "a.vqk") == 0
    frames = indices_of(tmp_path / "a.vqk", codec).shape[1]
    assert 3 * 400 <= frames <= 3.2 * 400  # the padding of the coder is some 0.1 s


@pytest.mark.parametrize(
    ("words", "warned"),
    [((), "dB; try --downmix loudest"), (("--downmix", "right"), ""), (("--downmix", "loudest"), "")],
)
def test_sound_that_cancels_is_said_or_kept(folders, tmp_path, capsys, words, warned):
    folder, codec = folders["causal"]
    clip(tmp_path / "mono.wav", 0.5)
    mono = soundfile.read(tmp_path / "mono.wav", dtype="float32")[0]
    soundfile.write(tmp_path / "stereo.wav", numpy.stack([-0.4 * mono, 0.5 * mono], axis=1), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "mono.wav", 0.5 * mono, 8000, subtype="FLOAT")
    indices = {}
    for name in ("stereo", "mono"):
        run("encode", "--tokenizer", folder, *words, tmp_path / f"{name}.wav", tmp_path / f"{name}.vqk")
        indices[name] = indices_of(tmp_path / f"{name}.vqk", codec)
    said = capsys.readouterr().err
    assert warned in said if warned else not said
    assert torch.equal(indices["stereo"], indices["mono"]) == (not warned)
