"""A tokenizer of segments that overlap, each at its volume."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from vqkit import MultiRateQuantizer, Quantizer, ResidualQuantizer, SegmentTokenizer, Tokenizer
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.depthwise1d import DepthwiseDecoder1d, DepthwiseEncoder1d
from vqkit.backbones.encodec import TimeGroupNorm
from vqkit.tokenizers.segments import overlap_add, volume_of

RATE = 100


def build(**options) -> SegmentTokenizer:
    torch.manual_seed(0)
    sizes = {"dim": 4, "channels": 2, "strides": (4,), "normalization": TimeGroupNorm, "padding_mode": "reflect"}
    stage = partial(Quantizer, "ema", dim=4, codebook_size=16)
    quantizer = ResidualQuantizer(stage, 2, channel_dim=1)
    encoder, decoder = ConvEncoder1d(in_channels=2, **sizes), ConvDecoder1d(out_channels=2, **sizes)
    return SegmentTokenizer(encoder, quantizer, decoder, sample_rate=RATE, **options).eval()


def sound(samples: int) -> Tensor:
    return 0.1 * torch.randn(3, 2, samples, generator=torch.Generator().manual_seed(1))


def test_pieces_that_agree_are_put_together_unchanged() -> None:
    signal = torch.randn(2, 3, 100, dtype=torch.float64)
    for stride in (40, 30, 13):
        pieces = [signal[..., start : start + 40] for start in range(0, 100, stride)]
        torch.testing.assert_close(overlap_add(pieces, stride), signal, rtol=0, atol=1e-14)


def test_one_fades_out_while_the_next_fades_in() -> None:
    made = overlap_add([torch.ones(6), torch.zeros(6)], 4)
    torch.testing.assert_close(made, torch.tensor([1, 1, 1, 1, 2 / 3, 1 / 3, 0, 0, 0, 0]))


@pytest.mark.parametrize("samples", [1, 99, 100, 250, 299])
def test_a_recording_of_any_length_comes_back_with_its_length(samples: int) -> None:
    codec = build()
    segments = codec.encode_segments(sound(samples))
    starts = range(0, samples, 99)
    assert [indices.shape for indices in segments.indices] == [
        (3, -(-min(100, samples - start) // 4), 2) for start in starts
    ]
    assert segments.volumes.shape == (3, len(starts))
    assert codec.decode_segments(segments).shape == (3, 2, samples)
    assert not torch.equal(codec.decode_segments(segments), codec.decode_segments(segments, levels=1))


def test_a_louder_recording_has_the_same_indices_and_comes_back_louder() -> None:
    codec, wave = build(), sound(250)
    quiet, loud = (codec.encode_segments(x) for x in (wave, 8 * wave))
    assert all(torch.equal(*pair) for pair in zip(quiet.indices, loud.indices, strict=True))
    torch.testing.assert_close(codec.decode_segments(loud), 8 * codec.decode_segments(quiet))
    assert torch.equal(codec.encode(wave[..., :100]), quiet.indices[0])
    torch.testing.assert_close(
        codec(wave[..., :50]).reconstruction,
        codec.decode(codec.encode(wave[..., :50]), length=50) * volume_of(wave[..., :50]),
    )


def test_silence_has_indices() -> None:
    codec = build()
    assert codec.decode_segments(codec.encode_segments(torch.zeros(1, 2, 150))).abs().max() < 1e-6


def test_silence_and_quiet_sound_have_a_volume_in_half_precision() -> None:
    for wave in (torch.zeros(1, 2, 150), 1e-4 * sound(150)):
        torch.testing.assert_close(volume_of(wave.half()), volume_of(wave.half().double()).float())
    codec = build().half()
    assert codec(sound(50)).reconstruction.dtype == torch.float16
    assert all(bool((x >= 0).all()) for x in codec.encode_segments(torch.zeros(1, 2, 150)).indices)


def of_one_book(quantizer, *, windows: int | None = None, **options) -> SegmentTokenizer:
    torch.manual_seed(0)
    sizes = {"channels": 32, "strides": (4,), "window_frames": windows}
    encoder, decoder = DepthwiseEncoder1d(**sizes), DepthwiseDecoder1d(dim=64, **sizes)
    return SegmentTokenizer(encoder, quantizer, decoder, sample_rate=RATE, **options).eval()


def test_levels_are_levels_and_never_frames() -> None:
    code = partial(Quantizer, "ema", dim=64, codebook_size=16)
    wave = sound(150)[:, :1]
    single = of_one_book(code(channel_dim=1))
    with pytest.raises(ValueError, match="levels=3: this tokenizer has one codebook and no levels"):
        single.decode_segments(single.encode_segments(wave), levels=3)
    several = of_one_book(MultiRateQuantizer(code, (4, 1), channel_dim=1))
    segments = several.encode_segments(wave)
    with pytest.raises(ValueError, match="levels=3: expected 1 to 2"):
        several.decode_segments(segments, levels=3)
    first = [several.quantizer.prefix(indices, 1) for indices in segments.indices]
    torch.testing.assert_close(
        several.decode_segments(segments, levels=1), several.decode_segments(replace(segments, indices=first))
    )


@pytest.mark.parametrize("windows", [None, 8])
def test_segments_are_filled_up_to_steps_and_windows_and_cut_back(windows: int | None) -> None:
    quantizer = MultiRateQuantizer(partial(Quantizer, "ema", dim=64, codebook_size=16), (4, 1), channel_dim=1)
    codec = of_one_book(quantizer, windows=windows, segment_seconds=0.7, overlap=0.1)
    segments = codec.encode_segments(sound(150)[:, :1])
    assert [indices.shape[1] for indices in segments.indices] == ([30, 30, 10] if windows else [25, 25, 10])
    pieces = [codec.decode(indices)[..., :70] for indices in segments.indices]
    scaled = [piece * volume[:, None, None] for piece, volume in zip(pieces, segments.volumes.T, strict=True)]
    torch.testing.assert_close(codec.decode_segments(segments), overlap_add(scaled, 63)[..., :150])


def test_an_encoder_that_fills_frames_is_given_whole_steps() -> None:
    codec = build()
    codec.quantizer = MultiRateQuantizer(partial(Quantizer, "ema", dim=4, codebook_size=16), (4, 1), channel_dim=1)
    assert codec.decode_segments(codec.encode_segments(sound(50))).shape == (3, 2, 50)


def test_it_initializes_at_volume_1_learns_and_is_saved(tmp_path) -> None:
    codec = build(segment_seconds=0.5, overlap=0.2)
    codec.initialize([sound(50)])
    other = copy.deepcopy(codec)
    other.initialize([2 * sound(50)])
    torch.testing.assert_close(other.quantizer.state_dict(), codec.quantizer.state_dict())
    wave = sound(50).requires_grad_()
    codec.train()(wave).reconstruction.square().sum().backward()
    assert wave.grad is not None and bool(wave.grad.isfinite().all()) and bool(wave.grad.any())
    codec.eval().save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert isinstance(again, SegmentTokenizer)
    assert (again.segment_length, again.segment_stride, again.latency) == (50, 40, 0.5)
    torch.testing.assert_close(
        again.decode_segments(again.encode_segments(sound(120))),
        codec.decode_segments(codec.encode_segments(sound(120))),
    )


def test_what_does_not_fit_is_refused() -> None:
    codec = build()
    for call in (codec, codec.encode):
        with pytest.raises(ValueError, match="has 101 samples: expected at most a segment, 100; encode_segments takes"):
            call(sound(101))
    with pytest.raises(ValueError, match="has 101 samples: expected at most a segment"):
        codec.initialize([sound(101)])
    with pytest.raises(ValueError, match=r"has 26 frames: expected at most 25, .* decode_segments puts"):
        codec.decode(torch.zeros(1, 26, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"streaming would lose the volume of each segment.*: use encode_segments"):
        codec.streaming().__enter__()
    for refused in (codec.encode_blocks, codec.decode_blocks):
        with pytest.raises(ValueError, match="_blocks would lose the volume of each segment"):
            refused([])
    for options in ({"segment_seconds": 0.001}, {"overlap": 1.0}, {"overlap": -0.1}):
        with pytest.raises(ValueError, match="expected at least one sample, and an overlap of 0 to below 1"):
            build(**options)
