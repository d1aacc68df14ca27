"""The tokenizer of sound: lengths, rates, bad input, streams and blocks; on small models with random weights."""

import itertools
import sys
import warnings
from functools import partial

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm

from tests.few import few
from tests.refusals import refused
from vqkit import (
    AudioTokenizer,
    MultiRateQuantizer,
    MultiScaleQuantizer,
    Quantizer,
    ResidualQuantizer,
    without_quantization,
)
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.tokenizers.resampling import resample

HOP = 20
RATES = [4, 2, 1]
SCALES = [1, 2, 3, 6]
SIZES = {"dim": 8, "channels": 4, "strides": (2, 2, 5)}


def make_codec(*, levels=3, causal=True, channels=1, **sizes):
    torch.manual_seed(0)
    sizes = {**SIZES, "causal": causal, **sizes}
    stage = partial(Quantizer, "ema", dim=8, codebook_size=32)
    if levels == RATES:
        quantizer = MultiRateQuantizer(stage, RATES, channel_dim=1)
    elif levels == SCALES:
        quantizer = MultiScaleQuantizer(stage, SCALES, axes=1, channel_dim=1)
    elif levels:
        quantizer = ResidualQuantizer(stage, levels, channel_dim=1)
    else:
        quantizer = stage(channel_dim=1)
    encoder, decoder = ConvEncoder1d(in_channels=channels, **sizes), ConvDecoder1d(out_channels=channels, **sizes)
    codec = AudioTokenizer(encoder, quantizer, decoder, sample_rate=8000)
    codec.initialize([noise(4, channels, 4000)], samples=400)
    return codec.eval()


def noise(*shape):
    return 0.3 * torch.randn(*shape)


def pieces_of(codec, indices, size):
    """As `size` steps at a time come from a stream."""
    rows = codec.quantizer.interleave(indices)
    return [codec.quantizer.deinterleave(part) for part in rows.split(size, dim=1)]


def chunks_of(wave, seed):
    generator = torch.Generator().manual_seed(seed)
    start = 0
    while start < wave.shape[-1]:
        length = int(torch.randint(1, 3 * HOP, (), generator=generator))
        yield wave[..., start : start + length]
        start += length


def comes_back(codec, length, step=HOP):
    """A recording is filled with zeros to whole steps, and cut to its length again: its indices and what comes back."""
    wave = noise(2, codec.channels, length)
    indices, output = codec.encode(wave), codec(wave)
    filled = torch.cat([wave, torch.zeros(2, codec.channels, -length % step)], dim=-1)
    assert torch.equal(codec.encode(filled), indices) and torch.equal(output.quantizer.indices, indices)
    assert output.reconstruction.shape == wave.shape and (length < 1000 or len(indices.unique()) > 4)
    torch.testing.assert_close(codec.decode(indices, length=length), output.reconstruction)
    return indices, output.reconstruction


@pytest.mark.parametrize("length", [1, HOP - 1, HOP, HOP + 1, 1000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_length_comes_back(length, channels):
    indices, _ = comes_back(make_codec(channels=channels), length)
    assert indices.shape == (2, -(-length // HOP), 3)


@pytest.mark.filterwarnings("ignore:.*initialize got")
def test_initialization_takes_segments_of_any_length():
    codec = make_codec()
    codec.initialize([{"audio": noise(3, 1, 4 * HOP + 7), "name": ["a", "b", "c"]}], samples=15)
    assert codec.quantizer.stages[0].codebook.usage.count_nonzero() > 1


def test_single_codebooks_have_no_level_axis():
    codec = make_codec(levels=0)
    assert codec.encode(noise(2, 1, 100)).shape == (2, 5)
    assert codec.kbps == pytest.approx(400 * 5 / 1000)
    assert make_codec(levels=3).kbps == pytest.approx(3 * 400 * 5 / 1000)
    assert codec.frame_rate == 400


@pytest.mark.parametrize("length", [1, 4 * HOP, 4 * HOP + 1, 1000])
def test_levels_of_several_rates_take_any_length_too(length):
    codec = make_codec(levels=RATES)
    indices, whole = comes_back(codec, length, 4 * HOP)
    steps = -(-length // (4 * HOP))
    assert [level.shape[1] for level in codec.quantizer.split_levels(indices)] == [steps, 2 * steps, 4 * steps]
    coarse = codec.decode(codec.quantizer.prefix(indices, 1), length=length)
    assert coarse.shape == whole.shape and not torch.equal(coarse, whole)
    with pytest.raises(ValueError, match=f"the samples of {4 * steps} frames"):
        codec.decode(indices, length=10_000)


@pytest.mark.parametrize("length", [1, 6 * HOP, 6 * HOP + 1, 1000])
def test_scales_take_any_length_too_in_blocks_of_the_last_one(length):
    codec = make_codec(levels=SCALES)
    indices, whole = comes_back(codec, length, 6 * HOP)
    assert indices.shape == (2, 12 * -(-length // (6 * HOP)))
    prefixes = [codec.decode(codec.quantizer.prefix(indices, n), length=length) for n in (1, 2, 3, 4)]
    assert torch.equal(prefixes[-1], whole)
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(prefixes))


def test_scales_cost_what_their_indices_do():
    codec = make_codec(levels=SCALES)
    assert codec.level_rates == pytest.approx([400 / 6, 400 / 3, 200, 400]) and codec.frames_per_step == 6
    six_seconds = codec.encode(noise(1, 1, 6 * 8000))
    assert six_seconds.numel() * 5 / 6000 == pytest.approx(codec.kbps)
    assert codec.latency == 6 * HOP / 8000


def test_levels_of_several_rates_cost_what_their_indices_do():
    codec = make_codec(levels=RATES)
    assert codec.level_rates == (100, 200, 400) and codec.frames_per_step == 4
    assert codec.kbps == pytest.approx((100 + 200 + 400) * 5 / 1000)
    second = codec.encode(noise(1, 1, 8000))
    assert second.numel() * 5 / 1000 == pytest.approx(codec.kbps)
    assert codec.latency == 4 * HOP / 8000


@pytest.mark.parametrize("levels", [0, 3, RATES, SCALES], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_a_stream_gives_the_codes_of_the_whole(levels, seed):
    codec = make_codec(levels=levels)
    wave = noise(2, 1, 1003)
    whole = codec.encode(wave)
    with codec.streaming() as stream:
        parts = [stream.encode(chunk) for chunk in chunks_of(wave, seed)] + [stream.flush()]
    streamed = codec.join(parts)
    assert torch.equal(streamed, whole)
    with codec.streaming():
        sound = torch.cat([codec.decode(part) for part in pieces_of(codec, streamed, 5)], dim=-1)
    torch.testing.assert_close(sound, codec.decode(whole), atol=1e-5, rtol=0)


def test_a_stream_has_an_end_and_leaves_nothing_behind():
    codec = make_codec()
    wave = noise(1, 1, 5 * HOP)
    with codec.streaming():
        assert codec.encode(wave[..., :3]).shape == (1, 0, 3)
        codec.encode(wave)
    assert codec.encode(wave[..., :3]).shape == (1, 1, 3)
    with codec.streaming():
        assert torch.equal(codec.encode(wave), make_codec().encode(wave))
        assert codec.flush().shape == (1, 0, 3)
        with pytest.raises(ValueError, match="ended by flush"):
            codec.encode(wave)
        with pytest.raises(ValueError, match="call it once"):
            codec.flush()
    with pytest.raises(ValueError, match="flush ends a stream"):
        codec.flush()


def test_a_model_that_looks_ahead_does_not_stream():
    with pytest.raises(ValueError, match=r"causal=True, or use encode_blocks"), make_codec(causal=False).streaming():
        pass


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("frames_per_block", few([1, 7, 256], 7))
@pytest.mark.parametrize("levels", [3, RATES, SCALES], ids=str)
def test_blocks_give_the_codes_of_the_whole(causal, frames_per_block, levels):
    codec = make_codec(causal=causal, levels=levels)
    wave = noise(2, 1, 1503)
    whole = codec.encode(wave)
    blocks = codec.encode_blocks(chunks_of(wave, 1), frames_per_block=frames_per_block)
    assert torch.equal(codec.join(blocks), whole)
    sound = codec.decode_blocks(pieces_of(codec, whole, 3), frames_per_block=frames_per_block)
    torch.testing.assert_close(torch.cat(list(sound), dim=-1), codec.decode(whole), atol=1e-5, rtol=0)


def test_latency_is_what_the_sound_of_a_frame_waits_for():
    assert make_codec().latency == HOP / 8000
    codec = make_codec(causal=False, levels=0).double()
    first, wave = 60 * HOP, noise(1, 1, 120 * HOP).double().requires_grad_()
    with without_quantization(codec):
        codec(wave).reconstruction[..., first : first + HOP].sum().backward()
    assert int(wave.grad[0, 0].nonzero().max()) - first + 1 == codec.latency * 8000


def test_latency_of_several_rates_is_that_of_the_frame_that_waits_longest():
    codec = make_codec(causal=False, levels=RATES).double()
    waits = []
    for first in range(60 * HOP, 64 * HOP, HOP):
        wave = noise(1, 1, 128 * HOP).double().requires_grad_()
        with without_quantization(codec):
            codec(wave).reconstruction[..., first : first + HOP].sum().backward()
        # Every frame of a step waits for its last one.
        frame = int(wave.grad[0, 0].nonzero().max()) - codec._encoding_context[1] - HOP + 1
        waits.append((frame // (4 * HOP) + 1) * 4 * HOP + codec._encoding_context[1] - first)
    assert max(waits) == codec.latency * 8000


def test_other_rates_are_resampled():
    codec = make_codec()
    times = torch.arange(24000) / 24000
    tone = 0.5 * torch.sin(2 * torch.pi * 440 * times)[None, None]
    at_model_rate = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(8000) / 8000)[None, None]
    resampled = resample(tone, 24000, 8000)
    torch.testing.assert_close(resampled[..., 100:-100], at_model_rate[..., 100:-100], atol=2e-3, rtol=0)
    assert torch.equal(codec.encode(tone, 24000), codec.encode(resampled))
    assert torch.equal(codec.encode(tone, 8000), codec.encode(tone))


def test_resampling_does_not_alias():
    times = torch.arange(24000, dtype=torch.float64) / 24000
    tone = torch.sin(2 * torch.pi * 5000 * times)  # above half of 8000 Hz
    assert resample(tone, 24000, 8000)[100:-100].abs().max() < 1e-4


def test_resampling_without_torchaudio_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    with pytest.raises(ImportError, match=r"24000 Hz to 8000 Hz needs torchaudio: pip install 'vqkit\[audio\]'"):
        make_codec().encode(noise(1, 1, 300), 24000)


test_bad_input_is_explained = refused(
    (lambda: make_codec(channels=2).encode(noise(1, 1, 100)), r"expected \(B, 2, T\)"),
    (lambda: make_codec().encode(noise(1, 2, 100)), r"mono from stereo is"),
    (lambda: make_codec().encode(noise(1, 100)), r"data\[None\]"),
    (lambda: make_codec().encode(noise(1, 1, 0)), "no samples"),
    (lambda: make_codec().encode(noise(1, 1, 9).log()), "NaN or infinite"),
    (lambda: make_codec()(torch.zeros(1, 1, 9, dtype=torch.int16)), r"int16 / 32768"),
    (lambda: make_codec().encode(noise(1, 1, 9), 0), "sample_rate=0"),
    (
        lambda: make_codec().decode(torch.zeros(1, 2, 3, dtype=torch.int64), length=41),
        "length=41: expected 0 to 40, the samples of 2 frames",
    ),
)


def test_samples_of_another_scale_are_warned_of_once():
    codec = make_codec()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            codec.encode(noise(1, 1, 100).abs())  # sound that lacks negative values is sound
        for _ in range(2):
            codec.encode(noise(1, 1, 100) * 32767)
    assert len(caught) == 1 and "expects [-1, 1]" in str(caught[0].message)
    assert "int16 / 32768" in str(caught[0].message)


def test_a_forward_does_not_touch_the_stream():
    codec = make_codec()
    with codec.streaming(), pytest.raises(ValueError, match="forward inside of streaming"):
        codec(noise(1, 1, 100))


def test_another_rate_inside_a_stream_is_refused():
    codec = make_codec()
    with codec.streaming(), pytest.raises(ValueError, match="resample the stream outside"):
        codec.encode(noise(1, 1, 100), 16000)


def test_parts_that_differ_are_refused():
    encoder, decoder = ConvEncoder1d(**SIZES), ConvDecoder1d(**{**SIZES, "strides": (2, 5, 5)})
    quantizer = Quantizer("vq", dim=8, codebook_size=4, channel_dim=1)
    with pytest.raises(ValueError, match=r"decoder.downsampling_factor=50, but the encoder has 20"):
        AudioTokenizer(encoder, quantizer, decoder, sample_rate=8000)
    with pytest.raises(ValueError, match=r"decoder.out_channels=2, but the encoder has 1"):
        AudioTokenizer(encoder, quantizer, ConvDecoder1d(out_channels=2, **SIZES), sample_rate=8000)
    with pytest.raises(ValueError, match="sample_rate=0"):
        AudioTokenizer(encoder, quantizer, ConvDecoder1d(**SIZES), sample_rate=0)
    maps = MultiScaleQuantizer(partial(Quantizer, "vq", dim=8, codebook_size=4), [1, 2], channel_dim=1)
    with pytest.raises(ValueError, match=r"MultiScaleQuantizer takes maps of one size.* with axes=1"):
        AudioTokenizer(encoder, maps, ConvDecoder1d(**SIZES), sample_rate=8000)


def test_any_modules_are_taken_by_what_they_say_of_themselves():
    """Mono and without bounds where they say nothing; a frame has to have a size."""
    encoder, decoder = torch.nn.Conv1d(1, 8, 4, stride=4), torch.nn.ConvTranspose1d(8, 1, 4, stride=4)
    quantizer = Quantizer("vq", dim=8, codebook_size=4, channel_dim=1)
    with pytest.raises(ValueError, match="encoder=Conv1d has no downsampling_factor"):
        AudioTokenizer(encoder, quantizer, decoder, sample_rate=8000)
    encoder.downsampling_factor = decoder.downsampling_factor = 4
    codec = AudioTokenizer(encoder, quantizer, decoder, sample_rate=8000)
    assert codec.eval()(noise(1, 1, 10)).reconstruction.shape == (1, 1, 10)
    assert (codec.channels, codec.causal, codec.latency) == (1, False, None)
    with pytest.raises(ValueError, match="blocks need a bounded context"):
        next(codec.encode_blocks([noise(1, 1, 10)]))
    with pytest.raises(ValueError, match="blocks need a bounded context"):
        next(codec.decode_blocks([codec.encode(noise(1, 1, 10))]))
    encoder.context = decoder.context = (0, 0)
    encoder.frames_per_window = 3
    assert codec.latency == 4 / 8000
    assert [block.shape[1] for block in codec.encode_blocks([noise(1, 1, 40)], frames_per_block=4)] == [6, 4]


def test_without_quantization_latents_pass_and_every_parameter_is_reached():
    codec = make_codec(levels=0).train()
    quantizer = Quantizer("factorized", dim=8, codebook_size=32, codebook_dim=4, channel_dim=1)
    codec = AudioTokenizer(codec.encoder, quantizer, codec.decoder, sample_rate=8000)
    wave = noise(2, 1, 103)
    with without_quantization(codec):
        output = codec(wave)
    assert output.reconstruction.shape == wave.shape
    assert output.quantizer.indices.shape == (2, 6) and bool((output.quantizer.indices == -1).all())
    (output.reconstruction.square().mean() + output.quantizer.loss).backward()
    assert all(parameter.grad is not None for parameter in codec.parameters())
    assert float(output.quantizer.loss.detach()) == 0
    latents = codec.encoder(torch.nn.functional.pad(wave, (0, 17)))
    expected = quantizer.project_out(quantizer.project_in(latents.movedim(1, -1))).movedim(-1, 1)
    torch.testing.assert_close(output.quantizer.quantized, expected)


def test_a_stream_leaves_other_models_alone():
    codec, other = make_codec(), weight_norm(torch.nn.Linear(4, 1))
    with codec.streaming():
        other(noise(1, 4))
        with torch.enable_grad():
            other(noise(1, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in other.parameters())


def test_a_stream_takes_nothing_and_gives_nothing():
    codec = make_codec()
    with codec.streaming():
        nothing = codec.encode(noise(1, 1, 0))
        assert nothing.shape == (1, 0, 3) and codec.decode(nothing).shape == (1, 1, 0)
        with pytest.raises(ValueError, match="began with 1 recordings and continues with 2"):
            codec.encode(noise(2, 1, 100))
        with pytest.raises(ValueError, match="inside of streaming"):
            next(codec.encode_blocks([noise(1, 1, 100)]))


def test_recordings_in_double_precision_are_taken():
    codec, wave = make_codec(), noise(1, 1, 300)
    assert torch.equal(codec.encode(wave.double()), codec.encode(wave))


def test_blocks_have_frames():
    codec = make_codec(causal=False)
    for blocks in (
        codec.encode_blocks([noise(1, 1, 99)], frames_per_block=0),
        codec.decode_blocks([], frames_per_block=0),
    ):
        with pytest.raises(ValueError, match="frames_per_block=0"):
            next(blocks)
