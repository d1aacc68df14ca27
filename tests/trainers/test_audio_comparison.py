"""A whole comparison on real speech, its pictures and sounds, its table, and what it refuses."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import run_tables
import soundfile
import torch
from PIL import Image

from tests.refusals import refused
from trainers.audio.comparison import Comparison, Utterance, compare, draw, load_utterances, table, verdict
from vqkit import AudioTokenizer, MultiRateQuantizer, Quantizer, ResidualQuantizer
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.bitstream.codec import TokenCodec
from vqkit.bitstream.container import Sound

EVALUATION = Path(__file__).resolve().parents[2] / "assets/audio/eval"
RATE = 16000


def codec(channels: int = 1, *, strides: Sequence[int] = ()) -> AudioTokenizer:
    torch.manual_seed(0)
    sizes = {"dim": 8, "channels": 8, "strides": (4,), "patch_size": 40, "dilations": (1,), "linear_path": True}
    stage = partial(Quantizer, "ema", dim=8, codebook_size=16)
    chain = partial(MultiRateQuantizer, stage, strides) if strides else partial(ResidualQuantizer, stage, 2)
    encoder, decoder = ConvEncoder1d(in_channels=channels, **sizes), ConvDecoder1d(out_channels=channels, **sizes)
    return AudioTokenizer(encoder, chain(channel_dim=1), decoder, sample_rate=RATE).eval()


def spoken(seconds: float = 1.5) -> list[Utterance]:
    found = load_utterances(EVALUATION, RATE)
    return [Utterance(part.name, part.wave[8000 : 8000 + int(seconds * RATE)], part.text) for part in found[:2]]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    utterances = spoken()
    training = [utterance.wave for utterance in utterances]
    return compare(codec(), utterances, training, measures=("si_sdr", "stoi", "mel_distance"), kmeans_frames=200)


@pytest.mark.slow
def test_baselines_have_the_rate_of_the_codec_and_the_same_measures(comparison):
    assert comparison.figures["kbps"] == pytest.approx(100 * 2 * 4 / 1000)
    for name in ("mdct_kmeans", "mdct_split_kmeans"):
        assert comparison.baselines[name]["kbps"] == comparison.figures["kbps"]
    rows = {name: row for name, row in comparison.baselines.items() if not isinstance(row, str)}
    assert {"mdct_kmeans", "mdct_split_kmeans", "opus", "opus_coded"} <= rows.keys()
    files = [
        TokenCodec.of(codec()).pack(codec().encode(part.wave[None, None]), extent=Sound(len(part.wave), RATE))
        for part in spoken()
    ]
    seconds = sum(len(part.wave) for part in spoken()) / RATE
    assert comparison.figures["coded_kbps"] == pytest.approx(
        8 * sum(len(file.content) for file in files) / seconds / 1000
    )
    assert rows["mdct_kmeans"]["coded_kbps"] > 0
    for row in rows.values():
        assert {"si_sdr", "stoi", "mel_distance", "kbps", "protocol"} <= row.keys()
        assert row["si_sdr"] < 30 and row["mel_distance"] > 0.1, "what was decoded, not the original"
    assert rows["opus"]["stoi"] > 0.8 and rows["opus"]["kbps"] > 4
    json.dumps({"figures": comparison.figures, "levels": comparison.per_level, "baselines": comparison.baselines})


@pytest.mark.slow
def test_counts_are_those_of_the_codes(comparison):
    frames = sum(-(-len(wave) // 160) for wave in comparison.reconstructions["original"])
    assert comparison.counts.shape == (2, 16)
    assert comparison.counts.sum(1).tolist() == [frames, frames]
    assert comparison.per_level["tokens_per_level"] == [frames, frames]


@pytest.mark.slow
def test_what_is_measured_is_what_the_codes_decode_to(comparison):
    utterance, tokenizer = spoken()[0], codec()
    copy = tokenizer.decode(tokenizer.encode(utterance.wave[None, None]), length=len(utterance.wave))[0, 0]
    assert comparison.reconstructions["vqkit"][0].shape == copy.shape
    assert float(comparison.reconstructions["vqkit"][0].abs().max()) <= 1


@pytest.mark.slow
def test_pictures_and_sounds(comparison, tmp_path):
    draw(comparison, tmp_path / "run", sample_rate=RATE, rows=2)
    for name in ("reconstructions.png", "codebook.png"):
        with Image.open(tmp_path / "run" / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300
    sounds = sorted(path.name for path in (tmp_path / "run/samples").iterdir())
    assert sounds == [f"0{n}_{kind}.wav" for n in (0, 1) for kind in ("original", "reconstruction")]
    samples, rate = soundfile.read(tmp_path / "run/samples/01_original.wav", dtype="float32")
    assert rate == RATE
    assert torch.allclose(torch.from_numpy(samples), comparison.reconstructions["original"][1], atol=1e-4)


def test_the_table_is_honest(comparison):
    lines = table(comparison.figures, comparison.baselines).splitlines()
    assert len(lines) == 1 + 1 + len(comparison.baselines)
    assert f"{comparison.figures['stoi']:.3f}" in lines[1] and "0.80" in lines[1]
    good = {"stoi": 0.9, "mel_distance": 1.0}
    rows = {"mdct_kmeans": {"stoi": 0.8, "mel_distance": 2.0}, "mdct_split_kmeans": {"stoi": 0.95, "mel_distance": 1.5}}
    said = verdict(good, rows).split("; ")
    assert said[0] == "against k-means of MDCT frames: STOI better, mel distance better"
    assert said[1] == "against k-means of MDCT bands: STOI NOT better, mel distance better"
    equal = verdict({"stoi": 0.8, "mel_distance": 2.0}, rows).split("; ")[0]
    assert equal == "against k-means of MDCT frames: STOI NOT better, mel distance NOT better"
    missing = table({"kbps": 6.0}, {"codec2": "not measured: c2enc not on the PATH"}).splitlines()
    assert "not measured: c2enc" in missing[2] and missing[1].split().count("-") >= 4


def test_the_published_table_shows_every_codec_and_says_what_is_missing():
    figures = {"stoi": 0.861, "pesq": 1.6, "mel_distance": 1.3, "si_sdr": 7.1, "kbps": 6.0, "codebook_usage": 0.8}
    training = {"steps": 9, "seconds": 90, "capped": True, "precision": "32-true", "circumstances": "2 threads"}
    facts = {"utterances": 11, "seconds": 65.2, "protocol": {"split": "eval"}, "training": training}
    opus = {"stoi": 0.9, "kbps": 6.02, "wer": 0.1, "protocol": "libopus"}
    baselines = {"opus": opus, "speex": "not measured: speexenc not on the PATH"}
    record = figures | facts | {"usage_per_level": [1.0, 0.6], "baselines": baselines}
    lines = run_tables.codec_table(record).splitlines()
    assert lines[2] == "| vqkit | 0.861 | 1.60 | 1.300 | 7.10 dB | - | 6.00 | 80.0% |"
    assert lines[3] == "| Opus | 0.900 | - | - | - | 10% | 6.02 | - |"
    below = " ".join(lines[5:])
    for part in ("11 utterances", "65 s (eval)", "9 steps in 1.5 minutes, stopped by the time limit", "100%, 60%"):
        assert part in below
    assert below.endswith("Speex not measured: speexenc not on the PATH.")


class Listener:
    """Hears the words that it is given, or none."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def understands(self, text: str) -> bool:
        return text.isascii() and bool(text)

    def word_error_rate(self, waves, texts, sample_rate) -> float:
        assert len(texts) == len(waves) and all(self.understands(text) for text in texts)
        self.heard.append(len(waves))
        return 0.25


def test_words_are_counted_for_every_codec_where_they_are_understood(monkeypatch):
    from trainers.audio import comparison as audio_comparison

    utterances = [*spoken(0.5), Utterance("ru", spoken(0.5)[0].wave, "он был")]
    listener = Listener()
    monkeypatch.setattr(audio_comparison, "opus", lambda waves, rate, kbps: "not measured: left out of this test")
    training = [utterance.wave for utterance in utterances]
    found = compare(codec(), utterances, training, measures=(), kmeans_frames=100, transcriber=listener)
    assert set(listener.heard) == {2} and len(listener.heard) == 4
    assert found.figures["wer"] == found.figures["wer_original"] == found.baselines["mdct_kmeans"]["wer"] == 0.25


test_stereo_and_levels_of_several_rates_are_refused = refused(
    ({"channels": 2}, "one channel; this one has 2"),
    ({"strides": [2, 1]}, "codecs with one frame rate, and the levels of this one have"),
    by=lambda arguments: compare(codec(**arguments), spoken(), [spoken()[0].wave]),
)


def test_recordings_of_any_rate_are_read_with_their_texts(tmp_path):
    with pytest.raises(ValueError, match="holds no recordings"):
        load_utterances(tmp_path, RATE)
    (tmp_path / "notes.txt").write_text("no sound")
    (tmp_path / "one").mkdir()
    soundfile.write(tmp_path / "one/b.wav", torch.full((400, 2), 0.5).numpy() * [1.0, 0.5], 8000)
    soundfile.write(tmp_path / "one/a.flac", torch.zeros(160).numpy(), RATE)
    (tmp_path / "one/transcripts.tsv").write_text("name\ttext\na.flac\tquiet\n")
    first, second = load_utterances(tmp_path, RATE)
    assert (first.name, first.text, len(first.wave)) == ("a", "quiet", 160)
    assert (second.name, second.text, len(second.wave)) == ("b", "", 800)
    assert float(second.wave[300:500].mean()) == pytest.approx(0.375, abs=1e-3), "the mean of its channels"


def test_a_folder_is_read_as_the_trainer_reads_it(tmp_path):
    """The same suffixes, the same files left out, and nothing above full scale."""
    wave = torch.linspace(-1, 1, 2000).numpy()
    for name, loud in (("a.wav", 12.0), ("b.aif", 0.5), ("c.oga", 0.5)):
        subtype, kind = ("FLOAT", "WAV") if name == "a.wav" else (None, {"b.aif": "AIFF", "c.oga": "OGG"}[name])
        soundfile.write(tmp_path / name, loud * wave, 8000, subtype=subtype, format=kind)
    (tmp_path / "._a.wav").write_bytes(b"of a file system")
    (tmp_path / "damaged.wav").write_bytes(b"RIFF")
    (tmp_path / "x.raw").write_bytes(bytes(100))
    utterances = load_utterances(tmp_path, 8000)
    assert [utterance.name for utterance in utterances] == ["a", "b", "c"]
    assert all(utterance.wave.abs().max() <= 1 for utterance in utterances)
