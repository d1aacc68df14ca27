"""The baselines beside which a codec is judged: they must be as good as they can be, or the comparison flatters."""

import io
import math
import stat
from pathlib import Path

import pytest
import soundfile
import torch

from trainers.audio import baselines as audio_baselines
from trainers.audio.baselines import aligned, codec2, lag, ogg_packets, opus, speech_codecs, speex
from trainers.audio.mdct_kmeans import MDCTKMeans, SplitMDCTKMeans, draw_windows, equal_shares

RATE = 16000
KINDS = [MDCTKMeans, SplitMDCTKMeans]


def tones(seed: int, samples: int = 8000) -> torch.Tensor:
    """Three tones with moving loudness, and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.arange(samples) / RATE
    wave = 0.01 * torch.randn(samples, generator=generator)
    for pitch, speed in zip((220.0, 950.0, 3100.0), (2.0, 5.0, 9.0), strict=True):
        shift = 6.28 * torch.rand(1, generator=generator)
        wave = wave + 0.2 * torch.sin(6.2832 * pitch * times + shift) * torch.sin(speed * times + shift)
    return wave


# ---------------------------------------------------------------------- k-means of MDCT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [1, 159, 160, 161, 1000])
def test_with_a_code_for_every_frame_nothing_is_lost(kind, samples):
    """As many codes as frames, and the frames themselves: decoding gives the waveform back, sample for sample."""
    wave = tones(3, samples)
    baseline = kind([tones(1)], [4], hop_length=160, num_frames=20, iterations=1)
    frames = torch.nn.functional.pad(wave, (160, 160 * (math.ceil(samples / 160) + 1) - samples)).unfold(0, 320, 160)
    baseline.codebooks = [frames @ baseline.basis * baseline.weights]
    indices = baseline.encode(wave)
    assert indices.shape == (math.ceil(samples / 160) + 1, 1)
    assert torch.allclose(baseline.decode(indices, length=samples), wave, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_spends_the_bits_of_the_codec(kind):
    sizes = [32, 32, 16]
    baseline = kind([tones(1)], sizes, hop_length=160, num_frames=400, iterations=2)
    indices = baseline.encode(tones(2))
    assert indices.shape == (8000 // 160 + 1, 3)
    assert [len(codes) for codes in baseline.codebooks] == sizes
    assert all(int(column.max()) < size for column, size in zip(indices.unbind(-1), sizes, strict=True))
    assert f"{len(sizes)} " in baseline.protocol and "hop 160" in baseline.protocol


@pytest.mark.parametrize("kind", KINDS)
def test_more_codes_and_more_levels_do_not_make_it_worse(kind):
    training, wave = [tones(seed) for seed in range(3)], tones(9)

    def error(sizes: list[int], iterations: int = 6) -> float:
        baseline = kind(training, sizes, hop_length=160, num_frames=1500, iterations=iterations)
        copy = baseline.decode(baseline.encode(wave), length=len(wave))
        return float((copy - wave).square().mean())

    assert error([64] * 3) < error([8] * 3) < 0.5 * float(wave.square().mean())
    assert error([32] * 4) < error([32])


def test_residual_levels_are_decoded_as_the_sum_of_what_was_left_over():
    baseline = MDCTKMeans([tones(1)], [16, 16], hop_length=160, num_frames=500, iterations=3)
    wave = tones(2)
    frames = torch.nn.functional.pad(wave, (160, 160)).unfold(0, 320, 160) @ baseline.basis * baseline.weights
    first = torch.cdist(frames, baseline.codebooks[0]).argmin(1)
    second = torch.cdist(frames - baseline.codebooks[0][first], baseline.codebooks[1]).argmin(1)
    assert torch.equal(baseline.encode(wave), torch.stack([first, second], dim=1))


def test_bands_hold_equal_shares_and_at_least_one_coefficient():
    spread = 1 / torch.arange(1, 101).float()
    widths = equal_shares(spread, 4)
    assert sum(widths) == 100 and widths == sorted(widths)
    shares = [float(part.sum() / spread.sum()) for part in spread.split(widths)]
    assert all(share == pytest.approx(0.25, abs=0.2) for share in shares)
    assert equal_shares(torch.tensor([1.0, 0, 0, 0, 0]), 5) == [1] * 5
    assert equal_shares(torch.tensor([0.0, 0, 0, 0, 1]), 3) == [3, 1, 1]
    with pytest.raises(ValueError, match="6 bands of 5 coefficients"):
        equal_shares(torch.ones(5), 6)


def test_windows_come_from_everywhere_in_proportion_to_the_lengths():
    waves = [torch.arange(1000.0), torch.zeros(10), torch.arange(5000.0, 8000.0)]
    windows = draw_windows(waves, 2000, 20, torch.Generator().manual_seed(0))
    assert windows.shape == (2000, 20) and bool((windows.diff(dim=1) == 1).all())
    long = float((windows[:, 0] >= 5000).float().mean())
    assert long == pytest.approx(2981 / (2981 + 981), abs=0.04)
    assert float(windows.min()) < 30 and float(windows.max()) > 7970
    with pytest.raises(ValueError, match="no training recording has the 20 samples"):
        draw_windows([torch.zeros(19)], 5, 20, torch.Generator())


# ---------------------------------------------------------------------- codecs


def test_opus_is_aligned_as_long_as_the_original_and_near_the_rate(speech):
    coded = opus([speech, speech[:20000]], RATE, 11.0, steps=7)
    assert [len(wave) for wave in coded.waves] == [len(speech), 20000]
    assert [lag(copy, wave) for copy, wave in zip(coded.waves, (speech, speech[:20000]), strict=True)] == [0, 0]
    assert coded.kbps == pytest.approx(11, abs=0.6), "rates have steps of whole bytes"
    assert coded.file_kbps > coded.kbps, "a file has a container too"
    error = (coded.waves[0] - speech).square().mean() / speech.square().mean()
    assert float(error) < 0.5, "it is the same speech"


def test_less_than_opus_can_is_given_its_least_and_said(speech):
    coded = opus([speech], RATE, 1.0, steps=3)
    assert 4.5 < coded.kbps < 7.5 and "compression level 1.0000" in coded.protocol


def test_opus_takes_any_sample_rate(speech):
    coded = opus([speech[:11025]], 11025, 20.0, steps=2)
    assert len(coded.waves[0]) == 11025 and abs(lag(coded.waves[0], speech[:11025])) <= 1
    assert "48000 Hz" in coded.protocol


def test_packets_are_counted_without_their_container(speech):
    """Lacing: a packet of 255 n bytes ends with an empty segment, and one may go on over pages."""
    page = b"OggS" + bytes(22)
    data = page + bytes([3, 255, 10, 255]) + bytes(520) + page + bytes([2, 0, 7]) + bytes(7)
    assert ogg_packets(data) == [265, 255, 7]
    buffer = io.BytesIO()
    soundfile.write(buffer, speech.numpy(), RATE, format="OGG", subtype="OPUS")
    sizes = ogg_packets(buffer.getvalue())
    assert sizes[0] == 19, "the identification header of Opus, RFC 7845"
    assert len(sizes) - 2 == pytest.approx(len(speech) / RATE / 0.02, abs=2)
    with pytest.raises(ValueError, match="no Ogg page at byte 0"):
        ogg_packets(b"RIFFxxxx")


@pytest.mark.parametrize("delay", [-37, 0, 1, 400])
def test_delays_are_found_and_taken_back(delay, speech):
    wave = speech[8000:24000]
    delayed = torch.nn.functional.pad(wave, (delay, 0))[:16000] if delay >= 0 else wave[-delay:]
    assert lag(delayed, wave) == delay
    copy = aligned(delayed, wave)
    assert len(copy) == len(wave)
    inner = slice(500, 15000)
    assert torch.allclose(copy[inner], wave[inner])


def programs(folder: Path, scripts: dict[str, str]) -> None:
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(stat.S_IRWXU)


def test_programs_that_are_not_there_are_named(monkeypatch, tmp_path, speech):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = speech_codecs([speech], RATE, 6.0)
    assert found["codec2"] == "not measured: c2enc and c2dec not on the PATH (Debian: apt install codec2)"
    assert found["speex"] == "not measured: speexenc and speexdec not on the PATH (Debian: apt install speex)"


def test_codec2_is_asked_for_the_mode_nearest_to_the_rate(monkeypatch, tmp_path, speech):
    """With programs in its place that keep every byte, and write down what they were asked for."""
    log = tmp_path / "asked"
    copying = f'echo $(basename $0) $1 >> {log}; cp "$2" "$3"'
    programs(tmp_path, {"c2enc": copying, "c2dec": copying})
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found = speech_codecs([speech], RATE, 2.2)
    assert log.read_text().split() == ["c2enc", "2400", "c2dec", "2400"]
    coded = found["codec2"]
    assert coded.kbps == pytest.approx(8 * 16, rel=1e-3), "bytes of 8 kHz samples of 16 bits"
    assert lag(coded.waves[0], speech) == 0 and len(coded.waves[0]) == len(speech)


def test_speex_is_tried_at_every_quality(monkeypatch, tmp_path, speech):
    """With a program that grows with its quality in the place of the codec; what comes back is late, and is aligned."""
    encoder = "import sys; q, source, target = int(sys.argv[2]), sys.argv[4], sys.argv[5]\n"
    encoder += "size = 100 * q + 50; lacing = bytes([255] * (size // 255) + [size % 255])\n"
    encoder += "page = lambda l, n: b'OggS' + bytes(22) + bytes([len(l)]) + l + bytes(n)\n"
    encoder += "open(target, 'wb').write(page(bytes([5, 5]), 10) + page(lacing, size)); "
    encoder += "open(target + '.wav', 'wb').write(open(source, 'rb').read())"
    import sys

    (tmp_path / "encode.py").write_text(encoder)
    encode = f'{sys.executable} -S {tmp_path}/encode.py "$@"'
    programs(tmp_path, {"speexenc": encode, "speexdec": 'cp "$2.wav" "$3"'})
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(audio_baselines, "SPEEX_QUALITIES", range(2, 5))
    wave = speech[:16000]
    coded = speex([wave], RATE, 8 * 360 / 1000)
    assert "--quality 3" in coded.protocol and coded.kbps == pytest.approx(8 * 350 / 1000)
    assert torch.allclose(coded.waves[0], wave, atol=1e-4)


def test_codec2_without_a_program_fails_aloud(monkeypatch, tmp_path, speech):
    programs(tmp_path, {"c2enc": "exit 3", "c2dec": "exit 0"})
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(Exception, match="exit status 3"):
        codec2([speech], RATE, 2.4)
