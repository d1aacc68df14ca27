import math

import auraloss
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from tests.refusals import refused
from trainers.audio import (
    ComplexSTFT,
    EnvelopeCorrelation,
    LinearAndLogMel,
    LoudnessDifference,
    MultiResolutionMel,
    MultiResolutionSTFT,
    NegativeSISDR,
    SumAndDifference,
    WaveformL1,
    WaveformL2,
)
from trainers.audio.objectives.envelopes import third_octaves
from trainers.audio.spectra import MelSpectrum, ShortTimeSpectrum
from trainers.core import Objective

RATE = 16_000


def everything() -> list[Objective]:
    return [
        MultiResolutionMel(RATE),
        MultiResolutionMel(RATE, log_weight=2.0, linear_weight=1.0),
        LinearAndLogMel(RATE),
        MultiResolutionSTFT(),
        ComplexSTFT(),
        WaveformL1(),
        WaveformL2(),
        NegativeSISDR(),
        EnvelopeCorrelation(RATE),
        LoudnessDifference(RATE),
    ]


each = pytest.mark.parametrize("objective", everything(), ids=lambda objective: type(objective).__name__)


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    """A decaying tone and a noisy copy."""
    time = torch.arange(shape[-1]) / RATE
    wave = 0.5 * torch.exp(-3 * time) * torch.sin(2 * math.pi * 300 * time) * torch.rand(*shape[:-1], 1)
    return wave, wave + 0.05 * torch.randn(shape)


def mel_matrix(sample_rate: int, window: int, bins: int) -> Tensor:
    """Slaney's mel bands, written out: linear below 1 kHz, logarithmic above, triangles of area 1. Float64."""

    def hertz(mel: Tensor) -> Tensor:
        return torch.where(mel < 15, 200 / 3 * mel, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))

    top = sample_rate / 2
    highest = 15 + 27 * math.log(top / 1000) / math.log(6.4)
    edges = hertz(torch.linspace(0, highest, bins + 2, dtype=torch.float64))
    frequencies = torch.linspace(0, top, window // 2 + 1, dtype=torch.float64)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = torch.minimum((frequencies - low) / (centre - low), (high - frequencies) / (high - centre)).clamp(min=0)
    return triangles * 2 / (high - low)


def magnitudes(wave: Tensor, window: int) -> Tensor:
    """(T,) -> (frames, bins), one transform after another, in float64."""
    padded = F.pad(wave.double()[None, None], (window // 2, window // 2), "reflect")[0, 0]
    frames = padded.unfold(0, window, window // 4)
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(window, dtype=torch.float64) / window)
    return torch.fft.rfft(frames * hann).abs()


# ------------------------------------------------------------------ equations


def test_mel_is_the_published_equation() -> None:
    reference, reconstruction = pair(1, 1, 3000)
    objective = MultiResolutionMel(
        RATE, window_lengths=[64, 512], mel_bins=[10, 60], log_weight=0.7, linear_weight=0.2, floor=1e-3
    )
    expected = 0.0
    for window, bins in ((64, 10), (512, 60)):
        bands = mel_matrix(RATE, window, bins)
        x, y = (magnitudes(wave[0, 0], window) @ bands for wave in (reference, reconstruction))
        logs = (x.clamp(min=1e-3).log10() - y.clamp(min=1e-3).log10()).abs().mean()
        expected += 0.7 * logs + 0.2 * (x - y).abs().mean()
    torch.testing.assert_close(objective(reference, reconstruction), expected.float(), rtol=1e-4, atol=0)


def test_linear_and_log_mel_is_the_published_equation() -> None:
    reference, reconstruction = pair(1, 1, 3000)
    objective = LinearAndLogMel(RATE, window_lengths=[32, 1024], mel_bins=64)
    expected = []
    for window in (32, 1024):
        bands = mel_matrix(RATE, window, 64)
        bands = bands[:, bands.sum(0) > 0]
        length = torch.hann_window(window, dtype=torch.float64).norm()
        x, y = (magnitudes(wave[0, 0], window) / length @ bands for wave in (reference, reconstruction))
        expected.append((x - y).abs().mean() + ((x + 1e-5).log10() - (y + 1e-5).log10()).square().mean())
    torch.testing.assert_close(objective(reference, reconstruction), (sum(expected) / 2).float(), rtol=1e-4, atol=0)


def test_stft_agrees_with_auraloss() -> None:
    reference, reconstruction = pair(2, 1, 4000)
    ours = reconstruction.clone().requires_grad_()
    theirs = reconstruction.clone().requires_grad_()
    value, expected = MultiResolutionSTFT()(reference, ours), auraloss.freq.MultiResolutionSTFTLoss()(theirs, reference)
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("shares", [(1.0, 1.0), (0.25, 2.0)])
def test_sum_and_difference_agree_with_auraloss(shares) -> None:
    reference, reconstruction = pair(3, 2, 4000)
    sizes = {"fft_sizes": [512, 128], "hop_lengths": [100, 30], "window_lengths": [400, 128]}
    theirs = auraloss.freq.SumAndDifferenceSTFTLoss(*sizes.values(), w_sum=shares[0], w_diff=shares[1])
    ours = SumAndDifference(MultiResolutionSTFT(weight=0.5, **sizes), sum_weight=shares[0], difference_weight=shares[1])
    torch.testing.assert_close(ours(reference, reconstruction), theirs(reconstruction, reference))
    assert (ours.weight, ours.name) == (0.5, "sum_difference_stft")


def test_the_difference_sees_an_image_that_collapses() -> None:
    wave, _ = pair(1, 2, 4000)
    mono = wave.mean(1, keepdim=True).expand_as(wave)
    for shares, hears in (((1.0, 0.0), False), ((0.0, 1.0), True)):
        objective = SumAndDifference(WaveformL1(), sum_weight=shares[0], difference_weight=shares[1])
        assert (objective(wave, mono) > 1e-3) == hears


def test_sum_and_difference_are_of_stereo() -> None:
    with pytest.raises(ValueError, match=r"sum_difference_waveform_l1 is of stereo, got 1 channel\(s\)"):
        SumAndDifference(WaveformL1())(*pair(2, 1, 100))
    with pytest.raises(ValueError, match=r"sum_weight=0\.0, difference_weight=0\.0: expected"):
        SumAndDifference(WaveformL1(), sum_weight=0.0, difference_weight=0.0)


def test_complex_stft_compresses_both_parts() -> None:
    reference, reconstruction = pair(1, 1, 3000)
    spectra = [
        torch.stft(wave[0], 382, 80, 320, torch.hann_window(320), return_complex=True)
        for wave in (reference, reconstruction)
    ]
    parts = [torch.stack([s.real, s.imag]) for s in spectra]
    x, y = (part.sign() * part.abs() ** 0.3 for part in parts)
    torch.testing.assert_close(
        ComplexSTFT(floor=1e-9)(reference, reconstruction),
        (x - y).square().mean(),
        rtol=0.01,
        atol=0,  # the floor's
    )
    plain = ComplexSTFT(power=1.0)(reference, reconstruction)
    torch.testing.assert_close(plain, (parts[0] - parts[1]).square().mean())


def test_complex_stft_hears_the_phase_and_magnitudes_do_not() -> None:
    reference, _ = pair(1, 1, 3000)
    assert ComplexSTFT()(reference, -reference) > 0.1
    assert MultiResolutionSTFT()(reference, -reference) == 0


def test_waveform_distances() -> None:
    reference, reconstruction = pair(3, 2, 400)
    difference = reconstruction - reference
    torch.testing.assert_close(WaveformL1()(reference, reconstruction), difference.abs().mean())
    torch.testing.assert_close(WaveformL2()(reference, reconstruction), difference.square().mean())
    ratio = scale_invariant_signal_distortion_ratio(reconstruction, reference)
    torch.testing.assert_close(NegativeSISDR()(reference, reconstruction), -ratio.mean())


def test_si_sdr_leaves_silent_recordings_out() -> None:
    reference, reconstruction = pair(2, 1, 400)
    alone = NegativeSISDR()(reference[:1], reconstruction[:1])
    reference[1] = 0
    torch.testing.assert_close(NegativeSISDR()(reference, reconstruction), alone)


def test_envelope_correlation_is_the_equation_of_stoi() -> None:
    def envelopes(wave: Tensor) -> Tensor:
        """(T,) -> (frames, bands), windows of 25.6 ms in the middle of transforms of 512 samples, in float64."""
        frames = F.pad(wave[None, None], (256, 256), "reflect")[0, 0].unfold(0, 512, 205)
        hann = F.pad(torch.hann_window(410, dtype=torch.float64), (51, 51))
        return (torch.fft.rfft(frames * hann).abs().square() @ third_octaves(RATE, 512).double() + 1e-6).sqrt()

    noisy = pair(1, 1, 10_000)[1].double()  # above the floor in every band
    reference, reconstruction = noisy, noisy + 0.05 * torch.randn_like(noisy)
    x, y = envelopes(reference.flatten()), envelopes(reconstruction.flatten())
    correlations = [
        torch.corrcoef(torch.stack([side[start : start + 30, band] for side in (x, y)]))[0, 1]
        for start in range(0, len(x) - 29, 3)
        for band in range(15)
    ]
    expected = 1 - torch.stack(correlations).mean()
    # The window is one of float32.
    torch.testing.assert_close(EnvelopeCorrelation(RATE)(reference, reconstruction), expected, rtol=0, atol=1e-6)


def test_third_octaves_share_every_frequency_between_their_borders() -> None:
    shares = third_octaves(RATE, 512)
    assert shares.shape == (257, 15) and shares.min() == 0
    total, width = shares.sum(1), RATE / 512
    inside = torch.arange(257) * width
    within = (inside > 150 * 2 ** (-1 / 6) + width) & (inside < 4276 - width)
    torch.testing.assert_close(total[within], torch.ones(int(within.sum())), rtol=0, atol=1e-4)  # borders in float32
    assert total[inside > 4277 + width].max() == 0


def test_envelope_correlation_hears_no_level_and_no_phase() -> None:
    noise, other = 0.1 * torch.randn(2, 1, 1, 16_000)
    objective = EnvelopeCorrelation(RATE)
    # An energy of about 0.01 * 410 * 3 / 8 for each frequency of a band: the floor changes its root by a millionth.
    assert objective(noise, -0.5 * noise) < 1e-6
    assert objective(noise, other) > 0.5


def test_loudness_difference_is_that_of_bands_of_hearing_in_float64() -> None:
    def hertz(z: Tensor) -> Tensor:  # Traunmüller's formula, solved for the frequency
        return 1960 * (z + 0.53) / (26.28 - z)

    ends = [26.81 * f / (1960 + f) - 0.53 for f in (100.0, 7800.0)]
    edges = hertz(torch.linspace(*ends, 49, dtype=torch.float64))
    middles = (edges[1:] + edges[:-1]) / 2000
    decibels = 3.64 * middles**-0.8 - 6.5 * torch.exp(-0.6 * (middles - 3.3) ** 2) + 0.001 * middles**4
    threshold, width = 10 ** (decibels / 10), RATE / 512
    lower = width * (torch.arange(257, dtype=torch.float64)[:, None] - 0.5)
    shares = (torch.minimum(lower + width, edges[1:]) - torch.maximum(lower, edges[:-1])).clamp(min=0) / width

    def powers(wave: Tensor) -> Tensor:
        frames = F.pad(wave[None, None], (256, 256), "reflect")[0, 0].unfold(0, 512, 256)
        return torch.fft.rfft(frames * torch.hann_window(512, dtype=torch.float64)).abs().square() @ shares

    def sones(power: Tensor) -> Tensor:
        return (2 * threshold) ** 0.23 * ((0.5 + 0.5 * power / threshold) ** 0.23 - 1).clamp(min=0)

    reference = pair(1, 1, 10_000)[1].double()
    reconstruction = 0.7 * reference + 0.05 * torch.randn_like(reference)
    x, y = powers(reference.flatten()), powers(reconstruction.flatten())
    x, y = (side * 10**7.9 / (x.sum(1).mean() + 1e-4) for side in (x, y))
    softer, louder = torch.minimum(sones(x), sones(y)), torch.maximum(sones(x), sones(y))
    differences = (louder - 1.25 * softer).clamp(min=0)
    ratio = ((y + 1e4) / (x + 1e4)) ** 1.2
    factor = torch.where(ratio < 3, 0, ratio.clamp(max=12))
    roots = (differences.square().mean(1) + 1e-4).sqrt() - 0.01
    assert 0 < (factor > 0).double().mean() < 1
    expected = roots.mean() + 0.3 * (factor * differences).mean()
    # Window, bands and threshold are those of float32.
    found = LoudnessDifference(RATE)(reference, reconstruction)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_loudness_difference_hears_no_phase_and_counts_what_is_added_once_more() -> None:
    time = torch.arange(16_000) / RATE
    tone = 0.3 * torch.sin(2 * math.pi * 300 * time)[None, None]
    noisy = tone + 0.01 * torch.randn(1, 1, 16_000)
    objective, even = LoudnessDifference(RATE), LoudnessDifference(RATE, added=0.0)
    assert objective(noisy, -noisy) == 0
    assert objective(noisy, tone) == even(noisy, tone) > 0
    assert objective(tone, noisy) > even(tone, noisy)


# ------------------------------------------------------------------ what holds for all


@each
def test_descends_and_is_least_at_the_recording(objective: Objective) -> None:
    reference, start = pair(2, 1, 2000)
    start.requires_grad_()
    before = objective(reference, start)
    before.backward()
    gradient = start.grad
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    step = 1e-3 * start.detach().norm() / gradient.norm()
    assert objective(reference, start.detach() - step * gradient) < before
    if not isinstance(objective, NegativeSISDR):
        assert objective(reference, reference) == 0
    assert objective(reference, reference) < before


@each
@pytest.mark.parametrize("samples", [1, 2, 15, 17, 300])
def test_takes_clips_shorter_than_its_windows(objective: Objective, samples: int) -> None:
    reference, reconstruction = pair(2, 1, samples)
    reconstruction.requires_grad_()
    value = objective(reference, reconstruction)
    value.backward()
    assert value.isfinite() and reconstruction.grad.isfinite().all()


@each
@pytest.mark.parametrize("silent", ["reference", "reconstruction", "both"])
def test_digital_silence_is_finite(objective: Objective, silent: str) -> None:
    reference, reconstruction = pair(2, 1, 1000)
    if silent != "reconstruction":
        reference.zero_()
    if silent != "reference":
        reconstruction.zero_()
    reconstruction.requires_grad_()
    value = objective(reference, reconstruction)
    value.backward()
    assert value.isfinite() and reconstruction.grad.isfinite().all()
    if silent == "both":
        assert reconstruction.grad.abs().max() == 0


@each
def test_channels_count_as_items(objective: Objective) -> None:
    reference, reconstruction = pair(2, 3, 1000)
    mono = objective(reference.reshape(6, 1, 1000), reconstruction.reshape(6, 1, 1000))
    torch.testing.assert_close(objective(reference, reconstruction), mono)


@each
def test_is_computed_in_float32_under_autocast(objective: Objective) -> None:
    reference, reconstruction = pair(2, 1, 1000)
    reconstruction = reconstruction.bfloat16()
    expected = objective(reference, reconstruction.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = objective(reference, reconstruction)
    assert value.dtype == torch.float32 and torch.equal(value, expected)
    assert objective(reference.double(), reference.double() + 0.1).dtype == torch.float64


@each
def test_has_no_state_of_its_own(objective: Objective) -> None:
    assert not objective.state_dict() and not list(objective.parameters())


@each
def test_refuses_different_shapes(objective: Objective) -> None:
    wave = torch.zeros(2, 1, 100)
    for other in (torch.zeros(2, 1, 101), torch.zeros(1, 1, 100)):
        with pytest.raises(ValueError, match="expected the same"):
            objective(wave, other)
    with pytest.raises(ValueError, match="none of them 0"):
        objective(wave[..., :0], wave[..., :0])
    with pytest.raises(ValueError, match=r"\(batch, channels, samples\)"):
        objective(wave[0], wave[0])


# ------------------------------------------------------------------ empty bands, bad arguments, configuration


def test_band_limits_are_obeyed() -> None:
    time = torch.arange(4000) / RATE
    tone = torch.sin(2 * math.pi * 3000 * time)[None]
    low = MelSpectrum(RATE, window_length=512, mel_bins=20, max_frequency=2000.0)
    high = MelSpectrum(RATE, window_length=512, mel_bins=20, min_frequency=2000.0)
    inner = slice(4, -4)  # the reflected ends of a tone hold all frequencies
    assert high(tone)[:, inner].mean() > 100 * low(tone)[:, inner].mean()


test_bad_arguments_are_refused = refused(
    (lambda: WaveformL1(weight=-1.0), "weight=-1.0 of the objective 'waveform_l1'"),
    (lambda: WaveformL1(weight=math.nan), "at least 0"),
    (lambda: MultiResolutionMel(RATE, window_lengths=[64], mel_bins=[5, 10]), "one number of bands"),
    (lambda: MultiResolutionMel(RATE, window_lengths=[], mel_bins=[]), "at least one window"),
    (lambda: MultiResolutionMel(RATE, floor=0.0), "floor=0.0: expected a positive"),
    (lambda: MultiResolutionMel(RATE, log_weight=0.0), "one of them above 0"),
    (lambda: MultiResolutionMel(RATE, max_frequency=9000.0), "sample_rate / 2"),
    (lambda: LinearAndLogMel(RATE, window_lengths=[]), "window_lengths is empty"),
    (lambda: LinearAndLogMel(RATE, mel_bins=0), "mel_bins=0"),
    (lambda: MultiResolutionSTFT(fft_sizes=[512]), "one of each for every resolution"),
    (lambda: MultiResolutionSTFT(floor=-1.0), "floor=-1.0"),
    (lambda: ComplexSTFT(power=0.0), "power=0.0: expected an exponent"),
    (lambda: ComplexSTFT(floor=0.0), "floor=0.0"),
    (lambda: EnvelopeCorrelation(8_000), "sample_rate=8000: the highest band ends at 4276 Hz; expected a sample rate"),
    (lambda: LoudnessDifference(200), "sample_rate=200: expected more than 200 Hz"),
    (lambda: LoudnessDifference(RATE, added=-1.0), "added=-1.0: expected a factor"),
    (lambda: ShortTimeSpectrum(64, 16, 128), "window_length <= fft_size"),
    (lambda: ShortTimeSpectrum(64, 0), "1 <= hop_length"),
    (lambda: MelSpectrum(RATE, window_length=4, mel_bins=2, min_frequency=10, max_frequency=20), "lengthen the window"),
)
