"""How long a sound file is and what is in it, whatever its header says; how several channels become one."""

import struct
from pathlib import Path

import numpy
import pytest
import soundfile

from tests.trainers.recordings import tones
from trainers.audio import AudioFolderData, LoudestChannel, OneChannel
from trainers.audio.files import AudioFile, inspect, read
from vqkit.media.sound import header, pieces

RATE = 16000
FRAMES = 3 * RATE
MPEG_FRAMES = (
    -(-(FRAMES + 1105) // 576) * 576 + 576
)  # the delay of LAME's encoder and decoder, and the frame of the tag

PICTURE = b"ID3\3\0\0\0\0\x40\0" + b"Xing\xff\xfb\x90\x64" * 1024


def encoded(folder: Path, suffix: str, **options) -> bytes:
    """Half of it a chord, half of it noise: frames of unequal size where the bit rate follows the sound."""
    wave = tones(FRAMES / RATE, sample_rate=RATE)
    wave[FRAMES // 2 :, 0] = 0.2 * numpy.random.default_rng(0).standard_normal(FRAMES - FRAMES // 2)
    soundfile.write(folder / f"source{suffix}", wave, RATE, **options)
    return (folder / f"source{suffix}").read_bytes()


def changed(content: bytes, place: int, layout: str, *values: int) -> bytes:
    packed = struct.pack(layout, *values)
    return content[:place] + packed + content[place + len(packed) :]


def mp3(folder: Path) -> dict[str, tuple[bytes, int | str]]:
    tagged = encoded(folder, ".mp3", bitrate_mode="VARIABLE", compression_level=0.6)
    place = tagged.find(b"Xing")
    bare = tagged.replace(b"Xing", bytes(4))
    wave = b"WAVEfmt " + struct.pack("<IHHIIHHHHIHHH", 30, 0x55, 1, RATE, 8000, 1, 0, 12, 1, 2, 576, 1, 1393)
    return {
        "tagged": (tagged, FRAMES),
        "with tags around it": (PICTURE + tagged + b"TAG" + bytes(125), FRAMES),
        "in a WAV": (_riff(wave, tagged), FRAMES),
        "bare": (bare, MPEG_FRAMES),
        "bare behind a picture": (PICTURE + bare, MPEG_FRAMES),
        "tag that counts no frames": (changed(tagged, place + 7, "B", 14), MPEG_FRAMES),
        "two tagged": (2 * tagged, 2 * MPEG_FRAMES),
        "two bare": (2 * bare, 2 * MPEG_FRAMES),
        "bare in a WAV": (_riff(wave, bare), "an MP3 inside of another file"),
    }


def _riff(head: bytes, data: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(head + data) + 8) + head + b"data" + struct.pack("<I", len(data)) + data


def flac(folder: Path) -> dict[str, tuple[bytes, int | str]]:
    whole = encoded(folder, ".flac")
    return {
        "whole": (whole, FRAMES),
        "streamed": (changed(whole, 22, ">I", 0), FRAMES),
        "promises twice as much": (changed(whole, 22, ">I", 2 * FRAMES), FRAMES),
        "promises a quarter": (changed(whole, 22, ">I", FRAMES // 4), FRAMES),
        "promises whole blocks": (changed(whole, 22, ">I", 4096), FRAMES),
        "promises one sample less": (changed(whole, 22, ">I", FRAMES - 1), FRAMES),
        "promises less behind a tag": (PICTURE + changed(whole, 22, ">I", FRAMES // 4), FRAMES),
        "with a tag before it": (PICTURE + whole, FRAMES),
        "with a tag behind it": (whole + b"TAG" + b"1" * 125, FRAMES),
        "with zeros behind it": (whole + bytes(8192), FRAMES),
        "cut": (whole[: len(whole) // 2], "flac decoder lost sync"),
    }


def ogg(folder: Path) -> dict[str, tuple[bytes, int | str]]:
    first, second = encoded(folder, ".ogg"), encoded(folder, ".ogg")
    return {"whole": (first, FRAMES), "chained": (first + second, "several recordings one after the other")}


def pcm(suffix: str, place: int, layout: str, endless: int, **options):
    """Formats whose header has the number of bytes at a place; libsndfile compares it with the size of the file."""

    def cases(folder: Path) -> dict[str, tuple[bytes, int | str]]:
        whole = encoded(folder, suffix, subtype="PCM_16", **options)
        start = len(whole) - 2 * FRAMES
        return {
            "whole": (whole, FRAMES),
            "streamed": (changed(whole, place, layout, endless), FRAMES),
            "cut": (whole[: start + FRAMES], FRAMES // 2),
            "cut amid a sample": (whole[: start + FRAMES + 1], FRAMES // 2),
            "not closed": (changed(whole, place, layout, 0), "its header promises no samples, but it has 960"),
        }

    return cases


LENGTHS = [
    (".mp3", mp3),
    (".flac", flac),
    (".ogg", ogg),
    (".wav", pcm(".wav", 40, "<I", 2**32 - 1)),
    (".au", pcm(".au", 8, ">I", 2**32 - 1, format="AU")),
]


@pytest.mark.parametrize(("suffix", "cases"), LENGTHS, ids=[suffix for suffix, _ in LENGTHS])
def test_what_is_read_is_what_is_there(tmp_path, suffix, cases):
    for name, (content, expected) in cases(tmp_path).items():
        path = tmp_path / f"{name}{'.wav' if name.endswith('WAV') else suffix}"
        path.write_bytes(content)
        found = inspect(path, root=tmp_path, channels=1, min_seconds=0)
        if isinstance(expected, str):
            assert isinstance(found, str) and expected in found, (name, found)
            continue
        assert isinstance(found, AudioFile) and found.frames == expected, (name, found)
        whole = read(path, found)
        assert len(whole) == expected
        # The decoder of MP3 rounds otherwise after a jump: within what ISO/IEC 11172-4 allows of an accurate one.
        allowed = 2**-14 if whole.dtype.kind == "f" else 0
        for start in (1, expected // 2, expected - 2000):
            assert numpy.abs(read(path, found, start=start, frames=2000) - whole[start : start + 2000]).max() <= allowed
        joined = numpy.concatenate(list(pieces(path, header(path), 7001)))
        assert joined.shape == whole.shape, name


COUNTED = {  # the place of the number of bytes
    "wav": (".wav", 40, "<I", {}),
    "wav big-endian": (".wav", 40, ">I", {"endian": "BIG"}),
    "wav extensible": (".wav", 76, "<I", {"format": "WAVEX"}),
    "rf64": (".rf64", 28, "<Q", {"format": "RF64"}),
    "aiff": (".aiff", 42, ">I", {}),
    "caf": (".caf", 4084, ">Q", {}),
    "au": (".au", 8, ">I", {}),
    "au little-endian": (".au", 8, "<I", {"endian": "LITTLE"}),
}
LIST = b"LIST" + struct.pack("<I", 9000) + bytes(range(1, 251)) * 36
BEHIND = {
    "chunks": LIST + LIST,
    "a byte and a chunk": b"\0" + LIST,
    "a cut chunk": LIST[:-1000],
    "ID3": b"TAG" + b"1" * 125,
    "ID3 of version 2": PICTURE,
    "zeros": bytes(8192),
    "notes of its maker": b"written by hand\n" * 8,
}


@pytest.mark.parametrize("name", COUNTED)
def test_sound_after_the_end_that_a_header_promises_is_named(tmp_path, name):
    """As in a WAV of more than 4 GiB, whose size is cut to 32 bits."""
    suffix, place, layout, options = COUNTED[name]
    whole = encoded(tmp_path, suffix, subtype="PCM_16", **options)
    (tmp_path / f"short{suffix}").write_bytes(changed(whole, place, layout, FRAMES // 2))
    found = inspect(tmp_path / f"short{suffix}", root=tmp_path, channels=1, min_seconds=0)
    assert isinstance(found, str) and "sound may follow its end" in found and f"--ignore-length short{suffix}" in found


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("name", ["wav", "rf64", "au"])
def test_what_is_no_sound_may_follow_it(tmp_path, name, behind):
    suffix, place, layout, options = COUNTED[name]
    whole = encoded(tmp_path, suffix, subtype="PCM_16", **options)
    path = tmp_path / f"longer{suffix}"
    path.write_bytes(changed(whole, place, layout, 2 * FRAMES) + BEHIND[behind])
    found = inspect(path, root=tmp_path, channels=1, min_seconds=0)
    assert isinstance(found, AudioFile) and found.frames == FRAMES and found.exact


@pytest.mark.parametrize("promised", ["too much", "as of a stream"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("name", ["wav", "wav big-endian", "wav extensible", "aiff"])
def test_chunks_are_no_sound_where_a_header_promises_more_than_there_is(tmp_path, name, subtype, promised):
    """Recorders that stream cannot write a size, and libsndfile reads on to the end of the file then."""
    suffix, _, layout, options = COUNTED[name]
    whole = encoded(tmp_path, suffix, subtype=subtype, **options)
    at = whole.find(b"SSND" if suffix == ".aiff" else b"data", 12) + 4
    size = len(whole) + 5001 if promised == "too much" else 2**32 - 1
    text = b"Lavf58.29.100"
    chunk = struct.pack(f"{layout[0]}4sI", b"LIST", len(text)) + text + b"\0"  # odd, so that a byte is added
    path = tmp_path / f"promised{suffix}"
    path.write_bytes(changed(whole, at, layout, size) + chunk + chunk)
    found = inspect(path, root=tmp_path, channels=1, min_seconds=0)
    assert isinstance(found, AudioFile) and found.frames == FRAMES


def test_what_follows_the_sound_of_a_w64_is_no_sound(tmp_path):
    whole = encoded(tmp_path, ".w64", subtype="PCM_16")
    (tmp_path / "longer.w64").write_bytes(whole + bytes(range(1, 100)))
    found = inspect(tmp_path / "longer.w64", root=tmp_path, channels=1, min_seconds=0)
    assert isinstance(found, AudioFile) and found.frames == FRAMES


def test_a_cut_mp3_is_read_to_its_last_whole_frame(tmp_path):
    content = encoded(tmp_path, ".mp3", bitrate_mode="VARIABLE", compression_level=0.6)
    path = tmp_path / "cut.mp3"
    path.write_bytes(content[: len(content) // 2])
    found = inspect(path, root=tmp_path, channels=1, min_seconds=0)
    assert FRAMES // 4 < found.frames < FRAMES and found.frames % 576 == 0 and not found.exact
    assert len(read(path, found)) == len(read(path, found, start=576)) + 576 == found.frames


# ---- channels


def sides(left: float, right: float, channels: int = 2) -> numpy.ndarray:
    """(RATE, channels): the same noise on the first two."""
    noise = 0.2 * numpy.random.default_rng(0).standard_normal(RATE)
    return noise[:, None] * numpy.array([left, right] + [0.0] * (channels - 2))


STEREO = {
    "antiphase.wav": (sides(1, -1), True),
    "left.wav": (sides(1, 0), True),
    "nearly left.wav": (sides(1, 1e-3), True),
    "one of six.wav": (sides(1, 0, 6), True),
    "mono twice.wav": (sides(1, 1), False),
    "quieter right.wav": (sides(1, 0.5), False),
    "two voices.wav": (0.2 * numpy.random.default_rng(1).standard_normal((RATE, 2)), False),
    "silence.wav": (sides(0, 0), False),
}


def stereo(folder: Path) -> None:
    for name, (wave, _) in STEREO.items():
        soundfile.write(folder / name, wave, RATE, subtype="FLOAT")


@pytest.mark.parametrize("cache_bytes", [2**30, 0])
def test_sound_that_is_lost_in_the_mean_is_named(tmp_path, cache_bytes):
    stereo(tmp_path)
    data = AudioFolderData(str(tmp_path), batch_size=1, num_workers=0, cache_bytes=cache_bytes)
    with pytest.warns(UserWarning) as caught:
        data.setup("fit")
        waves = {name: wave for batch in _all(data) for name, wave in zip(batch["name"], batch["audio"], strict=True)}
    said = " ".join(str(warning.message) for warning in caught)
    lost = {name for name, (_, is_lost) in STEREO.items() if is_lost}
    assert {name for name in STEREO if f"/{name}" in said} == lost
    assert "channels, the loudest at -14.0 dB, become one at -inf dB" in said
    assert said.count("downmix") == len(caught)
    assert cache_bytes or len({str(warning.message) for warning in caught}) == len(lost)
    assert not waves["antiphase.wav"].any()


def _all(data: AudioFolderData):
    yield from data.val_dataloader()
    data.setup("predict")
    yield from data.predict_dataloader()


@pytest.mark.parametrize(("downmix", "left"), [(OneChannel(0), 1), (OneChannel(1), -1), (LoudestChannel(), 1)])
def test_a_downmix_of_choice_keeps_the_sound(tmp_path, recwarn, downmix, left):
    soundfile.write(tmp_path / "antiphase.wav", sides(1, -1), RATE, subtype="FLOAT")
    data = AudioFolderData(str(tmp_path), num_workers=0, downmix=downmix)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert numpy.abs(batch["audio"][0, 0].numpy() - left * sides(1, -1)[:, 0]).max() < 1e-7
    assert not recwarn
    assert data.predict_hash() != AudioFolderData(str(tmp_path)).predict_hash()


def test_a_channel_that_is_not_there_is_a_reason(tmp_path):
    stereo(tmp_path)
    data = AudioFolderData(str(tmp_path), num_workers=0, batch_size=1, downmix=OneChannel(5))
    data.setup("predict")
    with pytest.warns(UserWarning) as caught:
        assert [batch["name"] for batch in data.predict_dataloader()] == [["one of six.wav"]]
    assert "has 2 channels, of which number 5 is wanted, from 0 on" in " ".join(str(item.message) for item in caught)
    with pytest.raises(ValueError, match="number=-1: expected the place of a channel"):
        OneChannel(-1)


# ---- samples of every kind


@pytest.mark.parametrize(
    ("subtype", "step"),
    [
        ("PCM_U8", 2**-7),
        ("PCM_16", 2**-15),
        ("PCM_24", 2**-23),
        ("PCM_32", 2**-24),
        ("FLOAT", 2**-24),
        ("DOUBLE", 2**-24),
    ],
)
@pytest.mark.parametrize("rate", [8000, 44101, 192000])
def test_samples_of_every_width_and_rate_keep_their_level(tmp_path, subtype, step, rate):
    wave = tones(0.5, sample_rate=rate) + 0.1  # with an offset
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype=subtype)
    data = AudioFolderData(str(tmp_path), num_workers=0, sample_rate=rate, min_seconds=0)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert numpy.abs(batch["audio"][0, 0].numpy() - wave[:, 0]).max() <= step + 2**-24
    other = AudioFolderData(str(tmp_path), num_workers=0, sample_rate=16000, min_seconds=0)
    other.setup("predict")
    (batch,) = other.predict_dataloader()
    assert abs(batch["lengths"][0] - 8000) <= 1
    assert abs(float(batch["audio"].mean()) - wave.mean()) < 0.01


@pytest.mark.parametrize("subtype", ["ULAW", "ALAW"])
def test_companded_samples_keep_their_level(tmp_path, subtype):
    wave = tones(0.5)
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype=subtype)
    found = inspect(tmp_path / "a.wav", root=tmp_path, channels=1, min_seconds=0)
    error = read(tmp_path / "a.wav", found) - wave
    assert (numpy.abs(error) <= numpy.maximum(numpy.abs(wave) / 16, 2**-9)).all()  # 16 steps in each octave
