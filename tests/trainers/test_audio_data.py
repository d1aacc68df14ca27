"""Recordings as data: which files are used, what a segment is, and that a stream of them can be continued."""

import importlib.util
import json
import os
import sys
import types
from pathlib import Path

import numpy
import pytest
import soundfile
import torch

from tests.refusals import refused
from tests.trainers.recordings import tones, write_recordings
from tests.trainers.test_folder_data import names, stream
from trainers.audio import files
from trainers.audio.data import AudioFolderData
from trainers.audio.samples import AudioStore, TrainingSegments
from trainers.data.manifests import read_manifest
from vqkit import distributed
from vqkit.media.channels import as_floats, level_db
from vqkit.tokenizers.resampling import resample
from vqkit.tokens.names import escaped

ASSETS = Path(__file__).parents[2] / "assets" / "audio"


def data(root: Path | None, **options) -> AudioFolderData:
    small = {"sample_rate": 8000, "segment_seconds": 0.25, "batch_size": 4, "num_workers": 0}
    return AudioFolderData(None if root is None else str(root), **(small | options))


def ready(root: Path | None, **options) -> AudioFolderData:
    made = data(root, **options)
    made.setup("fit")
    return made


def store(folder: Path, *, sample_rate: int = 8000, channels: int = 1) -> AudioStore:
    found = files.scan(folder, channels=channels, min_seconds=0).files
    return AudioStore(folder, found, sample_rate=sample_rate, channels=channels)


# ---- files

FORMATS = [
    ("a.wav", "WAV", "PCM_16", "int16"),
    ("b.wav", "WAV", "FLOAT", "float32"),
    ("c.flac", "FLAC", "PCM_24", "float32"),
    ("d.ogg", "OGG", "VORBIS", "float32"),
    ("e.opus", "OGG", "OPUS", "float32"),
    ("f.MP3", "MP3", "MPEG_LAYER_III", "float32"),
    ("g.aiff", "AIFF", "PCM_16", "int16"),
    ("deep/grün 写真.au", "AU", "ULAW", "float32"),
]


@pytest.mark.parametrize(("name", "form", "subtype", "dtype"), FORMATS, ids=lambda value: str(value))
def test_every_format_is_read_whole_and_in_parts(tmp_path, name, form, subtype, dtype):
    wave = tones(1.5, sample_rate=16000, channels=2)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    soundfile.write(tmp_path / name, wave, 16000, format=form, subtype=subtype)
    (found,) = files.scan(tmp_path, channels=1, min_seconds=0.5).files
    assert (found.name, found.frames, found.sample_rate, found.channels) == (name, len(wave), 16000, 2)
    assert found.dtype == dtype
    whole = files.read(tmp_path / name, found)
    assert whole.shape == wave.shape
    assert numpy.abs(as_floats(whole) - wave).mean() < 0.03
    for start in (1, 5000, 20000):
        part = files.read(tmp_path / name, found, start=start, frames=3000)
        # The decoder of MP3 rounds otherwise after a jump.
        assert numpy.abs(part - whole[start : start + 3000]).max() <= (1e-6 if subtype == "MPEG_LAYER_III" else 0)


def test_sixteen_bits_are_what_soundfile_makes_floats(tmp_path):
    write_recordings(tmp_path, 1, suffix=".flac")
    (found,) = files.scan(tmp_path, channels=1, min_seconds=0).files
    expected, _ = soundfile.read(tmp_path / "000.flac", dtype="float32", always_2d=True)
    read = files.read(tmp_path / "000.flac", found)
    assert read.dtype == numpy.int16
    assert numpy.array_equal(as_floats(read), expected)


def broken(folder: Path) -> None:
    """Every kind of file that cannot be used, beside twelve that can."""
    write_recordings(folder, 12)
    (folder / "text.wav").write_text("hello")
    (folder / "empty.flac").touch()
    soundfile.write(folder / "header.wav", numpy.zeros((0, 1)), 8000)
    soundfile.write(folder / "sample.wav", numpy.zeros((1, 1)), 8000)
    soundfile.write(folder / "short.wav", tones(0.4), 8000)
    soundfile.write(folder / "surround.wav", tones(1, channels=6), 8000)
    wave = tones(1)
    wave[4000] = numpy.nan
    soundfile.write(folder / "nan.wav", wave, 8000, subtype="FLOAT")
    soundfile.write(folder / "cut.flac", tones(2), 8000)
    content = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(content[: len(content) // 2])
    (folder / "video.m4a").write_bytes(b"some bytes")
    (folder / "notes.txt").write_text("not a recording, and not meant to be one")


REASONS = {
    "text.wav": "not a sound file that libsndfile can read",
    "empty.flac": "empty: the file has no bytes",
    "header.wav": "empty: it has no samples",
    "sample.wav": "too short: 0.000125 s, min_seconds is 0.5",
    "short.wav": "too short: 0.4 s, min_seconds is 0.5",
    "surround.wav": "has 6 channels, which cannot be made 2",
    "nan.wav": "has samples that are not finite numbers",
    "cut.flac": "not a sound file that libsndfile can read: flac decoder lost sync",
    "video.m4a": ".m4a files need the package torchcodec",
}


def without_torchcodec(monkeypatch) -> None:
    whole = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchcodec" else whole(name))


def test_unusable_files_are_skipped_counted_and_named(tmp_path, monkeypatch):
    without_torchcodec(monkeypatch)
    broken(tmp_path)
    audio = data(tmp_path, channels=2, min_seconds=0.5)
    with pytest.warns(UserWarning, match=r"9 files are left out, .*2 empty, 2 too short, .*; \.\.\.$") as caught:
        audio.setup("fit")
    found = {Path(path).name: reason for path, reason in audio.skipped.items()}
    assert found.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert found[name].startswith(reason), found[name]
    assert "12 recordings" in audio.describe()
    assert len(caught) == 1


def test_files_that_need_torchcodec_are_read_by_it(tmp_path, monkeypatch):
    class AudioDecoder:  # the interface of torchcodec's decoder, as far as it is used
        def __init__(self, path: str) -> None:
            if "bad" in path:
                raise RuntimeError("Could not open input file: bad.m4a Invalid data\nmore lines")
            self.samples = 3000 if "cut" in path else 7990
            self.metadata = types.SimpleNamespace(duration_seconds=1.0, sample_rate=8000, num_channels=2)

        def get_all_samples(self):
            return torch.arange(2.0)[:, None].expand(2, self.samples), 0.0, 1.0, 8000

    decoders = types.ModuleType("torchcodec.decoders")
    decoders.AudioDecoder = AudioDecoder
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    for name in ("good.m4a", "bad.m4a", "cut.m4a"):
        (tmp_path / name).write_bytes(name.encode())
    folder = files.scan(tmp_path, channels=1, min_seconds=0.5)
    cut, good = folder.files
    assert (good.name, good.frames, good.channels) == ("good.m4a", 8000, 2)
    assert "torchcodec can read: Could not open input file: bad.m4a Invalid data" in str(folder.skipped)
    with pytest.raises(ValueError, match="ends after 3000 of 8000 samples"):
        files.read(tmp_path / "cut.m4a", cut)
    read = files.read(tmp_path / "good.m4a", good, start=10)
    assert read.shape == (7990, 2)
    assert read[:7980].mean(0).tolist() == [0, 1]
    assert not read[7980:].any()


# ---- channels and sample rates


def test_channels_are_averaged_and_copied(tmp_path):
    wave = tones(1, channels=2)
    soundfile.write(tmp_path / "two.wav", wave, 8000, subtype="FLOAT")
    stereo, mono = (store(tmp_path, channels=channels).wave(store(tmp_path).files[0]) for channels in (2, 1))
    assert numpy.array_equal(stereo, wave)
    assert numpy.allclose(mono[:, 0], (wave[:, 0] + wave[:, 1]) / 2)
    (tmp_path / "two.wav").unlink()
    soundfile.write(tmp_path / "one.wav", wave[:, 0], 8000, subtype="FLOAT")
    copied = store(tmp_path, channels=2).wave(store(tmp_path).files[0])
    assert numpy.array_equal(copied, wave[:, [0, 0]])


def tone(frequency: float, sample_rate: int) -> numpy.ndarray:
    return numpy.sin(2 * numpy.pi * frequency * numpy.arange(sample_rate) / sample_rate).astype(numpy.float32)[:, None]


def loss_db(resample, frequency: float, old: int, new: int) -> float:
    made = resample(tone(frequency, old), old, new)[new // 8 : -new // 8]
    return -3.01 - level_db(made)


def of_the_tokenizer(samples: numpy.ndarray, old: int, new: int) -> numpy.ndarray:
    return resample(torch.from_numpy(samples.T), old, new).numpy().T


@pytest.mark.parametrize("old", [48000, 44100])
@pytest.mark.parametrize("rule", [files.resampled, of_the_tokenizer])
def test_resampling_keeps_what_fits_and_lets_nothing_through_that_does_not(rule, old):
    new = 16000
    assert abs(loss_db(rule, 0.90 * new / 2, old, new)) < 0.1
    assert loss_db(rule, 1.05 * new / 2, old, new) > 110


@pytest.mark.parametrize("old", [8000, 11025, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("new", [8000, 24000])
def test_segments_of_any_rate_are_parts_of_the_resampled_whole(tmp_path, old, new):
    soundfile.write(tmp_path / "a.wav", tones(1.03, sample_rate=old, seed=3), old, subtype="FLOAT")
    at = store(tmp_path, sample_rate=new)
    (file,) = at.files
    whole = at.wave(file)
    assert abs(len(whole) - 1.03 * new) <= 1
    step = old // numpy.gcd(old, new)  # so many samples of the file are a whole number of samples after resampling
    for start in (0, step * (4000 // step), file.frames - file.frames % step - step * (3000 // step)):
        begin = start * new // old
        samples = min(new // 10, len(whole) - begin)
        part = at.wave(file, start, samples)
        assert part.shape == (samples, 1)
        assert numpy.abs(part - whole[begin : begin + samples])[: samples - 100].max() < 2e-4


def test_a_whole_folder_of_mixed_files_gives_one_kind_of_batch(tmp_path):
    for number, (rate, channels, suffix) in enumerate([(8000, 1, "wav"), (44100, 2, "flac"), (48000, 1, "ogg")]):
        write_recordings(tmp_path / str(number), 3, sample_rate=rate, channels=channels, suffix=f".{suffix}")
    audio = ready(tmp_path, sample_rate=24000, channels=2, validation_fraction=0.3)
    for batch in audio.train_dataloader():
        assert batch["audio"].shape == (4, 2, 6000)
        assert batch["audio"].dtype == torch.float32
        assert batch["audio"].abs().max() <= 1
    assert "8000 Hz" in audio.describe()
    assert "1, 2 channel(s)" in audio.describe()


# ---- training segments


def test_of_a_long_file_only_the_part_is_read(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.flac", tones(60), 8000)
    whole, read = files.sndfile_part, []

    def part(path, recording, start, frames):
        read.append(frames)
        return whole(path, recording, start, frames)

    monkeypatch.setattr(files, "sndfile_part", part)
    at = store(tmp_path, sample_rate=16000)
    assert at.wave(at.files[0], 200000, 16000).shape == (16000, 1)
    assert len(read) == 1
    assert 8000 <= read[0] <= 9000


def test_long_recordings_give_more_segments(tmp_path):
    for seconds, name in ((10, "long"), (2, "short"), (0.1, "tiny")):
        soundfile.write(tmp_path / f"{name}.wav", tones(seconds), 8000)
    segments = TrainingSegments(
        store(tmp_path), segment_samples=8000, silence_db=None, loudness_db=None, gain_db=(0, 0), repeats=2, seed=0
    )
    drawn = [segments[(0, sample)] for sample in range(len(segments))]
    assert [sample["file"].name for sample in drawn] == ["long.wav"] * 20 + ["short.wav"] * 4 + ["tiny.wav"] * 2
    drawn_next = [segments[(1, sample)] for sample in range(24)]
    assert len({sample["sample"].numpy().tobytes() for sample in drawn[:24] + drawn_next}) == 48
    for sample in drawn[24:]:
        assert sample["sample"].shape == (1, 8000)
        assert sample["sample"][0, :800].abs().max() > 0.1
        assert not sample["sample"][0, 800:].any()


def mostly_silent(folder: Path) -> TrainingSegments:
    """Ten seconds of which only the second half of every second second is loud."""
    wave = tones(10)
    wave.reshape(-1, 4000)[[0, 1, 2] * 5 + list(range(4, 20, 4))] *= 1e-4
    soundfile.write(folder / "a.wav", wave, 8000, subtype="FLOAT")
    return TrainingSegments(
        store(folder), segment_samples=1000, silence_db=-50.0, loudness_db=None, gain_db=(0, 0), repeats=1, seed=0
    )


def levels(segments: TrainingSegments) -> list[float]:
    return [level_db(segments[(0, sample)]["sample"].numpy()) for sample in range(len(segments))]


def test_silent_segments_are_drawn_again(tmp_path):
    segments = mostly_silent(tmp_path)
    filtered = levels(segments)
    segments.silence_db = None
    unfiltered = levels(segments)
    silent = sum(level < -50 for level in unfiltered)
    assert silent > 10
    assert sum(level < -50 for level in filtered) < silent / 4
    assert all(new == old for new, old in zip(filtered, unfiltered, strict=True) if old >= -50)


def test_where_all_is_silent_the_loudest_of_a_few_is_taken(tmp_path):
    segments = mostly_silent(tmp_path)
    segments.silence_db = 0.0  # nothing reaches it
    drawn = levels(segments)
    assert len(drawn) == 80
    assert sum(level > -50 for level in drawn) > 70
    soundfile.write(tmp_path / "a.wav", numpy.zeros(80000), 8000)
    silence = mostly_silent(tmp_path / ".." / tmp_path.name)
    assert silence[(0, 0)]["sample"].shape == (1, 1000)


def test_digital_silence_stays_silence(tmp_path):
    soundfile.write(tmp_path / "a.wav", numpy.zeros(8000), 8000)
    segments = TrainingSegments(
        store(tmp_path), segment_samples=1000, silence_db=-50.0, loudness_db=-20.0, gain_db=(0, 6), repeats=1, seed=0
    )
    assert not segments[(0, 0)]["sample"].any()


def test_loudness_is_reached_and_the_gain_stays_in_its_range(tmp_path):
    write_recordings(tmp_path, 6)
    for options, low, high in (
        ({"loudness_db": -24.0}, -24.0, -24.0),
        ({"loudness_db": -24.0, "gain_db": (-6, 3)}, -30.0, -21.0),
    ):
        taken, _ = stream(ready(tmp_path, silence_db=None, **options), "audio", 8)
        found = [level_db(wave.numpy()) for wave in taken.flatten(0, 1)]
        assert low - 0.01 <= min(found) <= max(found) <= high + 0.01
        assert max(found) - min(found) >= 0.5 * (high - low)


def test_no_gain_clips(tmp_path):
    write_recordings(tmp_path, 6)
    soundfile.write(tmp_path / "over.wav", 3 * tones(1, seed=9), 8000, subtype="FLOAT")
    for options in ({"gain_db": (30, 40)}, {"loudness_db": -1.0}, {}):
        audio = ready(tmp_path, **options)
        segments = audio.training_samples(tmp_path, audio.find(tmp_path).files)
        plain = data(tmp_path).training_samples(tmp_path, audio.find(tmp_path).files)
        for sample in range(len(segments)):
            wave = segments[(0, sample)]["sample"]
            assert wave.abs().max() <= 1
            untouched = segments.store.wave(
                segments.store.files[
                    [file.name for file in segments.store.files].index(segments[(0, sample)]["file"].name)
                ]
            )
            assert numpy.isfinite(untouched).all()
            if options:  # scaled, not clipped: the shape is that of the segment without a gain
                other = plain[(0, sample)]["sample"]
                assert torch.allclose(wave / wave.std(), other / other.std(), atol=1e-4)


# ---- evaluation


@pytest.mark.parametrize("ranks", [1, 2])
def test_evaluation_sees_every_recording_once_with_its_length(tmp_path, monkeypatch, ranks):
    write_recordings(tmp_path, 5)
    seen, counts = [], []
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        audio = data(tmp_path)
        audio.setup("predict")
        batches = list(audio.predict_dataloader())
        counts.append(len(batches))
        seen += names(batches)
        for batch in batches:
            for name, wave, length in zip(batch["name"], batch["audio"], batch["lengths"], strict=True):
                expected, _ = soundfile.read(tmp_path / name, dtype="float32")
                assert length == len(expected)
                assert torch.equal(wave[0, :length], torch.from_numpy(expected))
                assert not wave[0, length:].any()
    assert len(set(counts)) == 1
    assert sorted(seen) == [f"{number:03d}.wav" for number in range(5)]


def test_long_utterances_are_cut_at_the_start_where_wanted(tmp_path):
    write_recordings(tmp_path, 3, sample_rate=16000)
    audio = data(tmp_path, max_evaluation_seconds=0.5)
    audio.setup("predict")
    whole, _ = soundfile.read(tmp_path / "000.wav", dtype="float32")
    for batch in audio.predict_dataloader():
        assert batch["audio"].shape == (1, 1, 4000)
    first = next(iter(audio.predict_dataloader()))["audio"][0, 0].numpy()
    expected = files.resampled(whole[:, None], 16000, 8000)[:4000, 0]
    assert numpy.abs(first - expected)[:3900].max() < 1e-3


# ---- split and manifests


def manifest(folder: Path, name: str, sides: bool) -> str:
    paths = [f"sounds/{number:03d}.wav" for number in range(8)]
    side = ["validation" if number < 2 else "train" for number in range(8)]
    if name.endswith(".txt"):
        lines = ["# a list", "", *paths]
    elif name.endswith(".jsonl"):
        rows = [{"path": path, "speaker": 3} for path in paths]
        rows = [row | {"split": one} for row, one in zip(rows, side, strict=True)] if sides else rows
        lines = [json.dumps(row) for row in rows]
    else:
        comma = "\t" if name.endswith(".tsv") else ","
        lines = [comma.join(["speaker", "path"] + ["split"] * sides)]
        lines += [comma.join(["3", path] + [one] * sides) for path, one in zip(paths, side, strict=True)]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt"])
def test_manifests_choose_and_divide(tmp_path, name):
    write_recordings(tmp_path / "sounds", 10)
    audio = ready(None, manifest=manifest(tmp_path, name, sides=False), validation_fraction=0.4, seed=3)
    validation = names(audio.val_dataloader())
    _, seen = stream(audio, "audio", 12)
    assert set(validation) | set(seen) == {f"sounds/{number:03d}.wav" for number in range(8)}
    assert not set(validation) & set(seen)
    if not name.endswith(".txt"):
        audio = ready(None, manifest=manifest(tmp_path, name, sides=True))
        assert names(audio.val_dataloader()) == ["sounds/000.wav", "sounds/001.wav"]
        _, seen = stream(audio, "audio", 12)
        assert set(seen) == {f"sounds/{number:03d}.wav" for number in range(2, 8)}
    audio.setup("predict")
    assert len(names(audio.predict_dataloader())) == 8


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\udcff0", r"a\.txt is not text in UTF-8"),
        ("a.xml", "", r"manifest='.*a\.xml' must end in one of \.txt, \.csv"),
        ("a.txt", "# nothing\n", r"a\.txt lists no file"),
        ("a.txt", "000.wav\nmissing.wav\n", r"a\.txt:2 lists missing\.wav, but .* is not a file"),
        ("a.txt", "000.wav\n\n000.wav\n", r"a\.txt:3 lists 000\.wav a second time, after line 1"),
        ("a.csv", "file,split\n000.wav,train\n", r"a\.csv:1 must be a header with the column path, got \['file'"),
        ("a.csv", "path,split\n000.wav,train\n001.wav,dev\n", r"a\.csv:3 has split='dev'; it must be one of train"),
        ("a.csv", "path,split\n000.wav,train\n001.wav\n", r"a\.csv:3 has split=''"),
        ("a.csv", "path,split\n,train\n", r"a\.csv:2 has no path"),
        ("a.jsonl", '{"path": "000.wav"}\n{"path": 3}\n', r"a\.jsonl:2 must be an object with a text"),
        ("a.jsonl", '{"path": "000.wav"}\n{"path"\n', r"a\.jsonl:2 is not JSON"),
        (
            "a.jsonl",
            '{"path": "000.wav"}\n{"path": "001.wav", "split": "train"}\n',
            r"a\.jsonl:2 differs from the lines",
        ),
    ],
)
def test_bad_manifests_name_file_and_line(tmp_path, name, text, message):
    write_recordings(tmp_path, 2)
    (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path / name)


@pytest.mark.parametrize("suffix", ["txt", "csv", "tsv", "jsonl"])
def test_manifests_list_names_of_any_bytes_escaped(suffix, tmp_path):
    listed = [os.fsdecode(name) for name in (b"caf\xe9.wav", b"new\nline.wav", b"line\xc2\x85.wav", b"a\\x41.wav")]
    for name in listed:
        write_recordings(tmp_path, 1)
        (tmp_path / "000.wav").rename(tmp_path / name)
    written = [*map(escaped, listed[:2]), *listed[2:]]  # what is text may stand as it is
    lines = [json.dumps({"path": name}) for name in written] if suffix == "jsonl" else written
    (tmp_path / f"list.{suffix}").write_text("\n".join(["path"] * (suffix[1:] == "sv") + lines))
    assert [line.path.name for line in read_manifest(tmp_path / f"list.{suffix}")] == listed


def test_a_side_without_a_usable_recording_is_named(tmp_path):
    write_recordings(tmp_path, 2)
    (tmp_path / "a.csv").write_text("path,split\n000.wav,train\n001.wav,train\n")
    with pytest.raises(ValueError, match="no usable recording with split='validation'"):
        data(None, manifest=str(tmp_path / "a.csv")).setup("fit")


# ---- mistakes


test_wrong_arguments_stop_at_construction = refused(
    ({"root": "nowhere"}, r"root='nowhere' is not a folder"),
    ({"manifest": "nowhere.csv"}, r"Give either root or manifest"),
    ({"root": None}, r"Give either root or manifest, got root=None and manifest=None"),
    ({"root": None, "manifest": "nowhere.csv"}, r"manifest='nowhere.csv' is not a file"),
    ({"sample_rate": 0}, r"sample_rate must be at least 1, got 0"),
    ({"channels": 0}, r"channels must be at least 1, got 0"),
    ({"segment_seconds": 0.0}, r"segment_seconds must hold a sample, got 0\.0 at 8000 Hz"),
    ({"min_seconds": -1.0}, r"min_seconds must not be negative"),
    ({"max_evaluation_seconds": 0.0}, r"max_evaluation_seconds must be positive or None"),
    ({"silence_db": 3.0}, r"silence_db is relative to full scale and must not be above 0, got 3\.0"),
    ({"loudness_db": 3.0}, r"loudness_db is relative to full scale"),
    ({"gain_db": (3.0, -3.0)}, r"gain_db must be \(least, greatest\), got \(3\.0, -3\.0\)"),
    by=lambda options: data(**{"root": ASSETS} | options),
)


# ---- real recordings


def test_the_speech_of_the_sample_set_is_read_at_its_rate_and_another():
    audio = ready(ASSETS / "train", validation_root=str(ASSETS / "eval"), sample_rate=16000, batch_size=8)
    assert audio.skipped == {}
    assert "20 train, 11 validate" in audio.describe()
    batch = next(iter(audio.train_dataloader()))
    found = [level_db(wave.numpy()) for wave in batch["audio"]]
    assert -50 < min(found) <= max(found) < -3
    prompt = next(iter(audio.val_dataloader()))
    assert prompt["name"] == ["librivox_0870.flac"]
    expected, _ = soundfile.read(ASSETS / "eval" / "librivox_0870.flac", dtype="float32")
    assert torch.equal(prompt["audio"][0, 0], torch.from_numpy(expected))
    at_8000 = AudioStore(ASSETS / "eval", audio.find(ASSETS / "eval").files[:1], sample_rate=8000, channels=2)
    made = at_8000.wave(at_8000.files[0])
    assert made.shape == (round(len(expected) / 2), 2)
    assert abs(level_db(made) - level_db(expected)) < 1


def test_a_recording_of_one_sample_stays_one(tmp_path):
    write_recordings(tmp_path / "many", 3)
    soundfile.write(tmp_path / "many" / "one.wav", numpy.full((1, 1), 0.5, numpy.float32), 48000)
    audio = data(tmp_path / "many", min_seconds=0.0, sample_rate=16000)
    audio.setup("predict")
    lengths = {batch["name"][0]: batch["audio"].shape[-1] for batch in audio.predict_dataloader()}
    assert lengths["one.wav"] == 1


@pytest.mark.parametrize("argument", ["predict_root", "validation_root"])
def test_the_folder_of_a_manifest_is_not_the_files_that_it_lists(tmp_path, argument):
    write_recordings(tmp_path, 4)
    (tmp_path / "list.txt").write_text("000.wav\n001.wav\n")
    with pytest.raises(ValueError, match=f"{argument}=.* is the folder of the manifest"):
        data(None, manifest=str(tmp_path / "list.txt"), **{argument: str(tmp_path)})
