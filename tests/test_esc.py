"""ESC's encoder, decoder and cross-scale tokenizer: any length, any cut, any number of streams."""

import copy
from collections.abc import Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.conftest import RankPair
from tests.papers.test_cross_scale import SIZES, product
from tests.refusals import refused
from vqkit import FSQ, GroupedQuantizer, Quantizer, ResidualQuantizer, RotationTrick, without_quantization
from vqkit.backbones.complex_spectrum import ComplexSpectrum
from vqkit.backbones.esc import ESCDecoder, ESCEncoder
from vqkit.backbones.swin2d import WindowAttention2d
from vqkit.tokenizers.cross_scale import CrossScaleQuantizer, CrossScaleTokenizer


def build(dropout: float = 0.0, streams: int = 3, audio_channels: int = 1, **sizes) -> CrossScaleTokenizer:
    sizes = SIZES | {"audio_channels": audio_channels} | sizes
    encoder, decoder = ESCEncoder(**sizes), ESCDecoder(**sizes)
    dims = [encoder.dims[0], *encoder.dims][:streams]
    quantizer = CrossScaleQuantizer([product(dim) for dim in dims], dropout=dropout, seed=3)
    return CrossScaleTokenizer(encoder, quantizer, decoder, sample_rate=16000)


def fitted(**options) -> CrossScaleTokenizer:
    """With codes that lie where the latents do, so that few choices are near ties."""
    codec = build(**options).double()
    codec.initialize([torch.randn(8, codec.channels, 400, dtype=torch.float64)])
    return codec.eval()


def sound(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / 3


# ---------------------------------------------------------------------- spectra and windows


@pytest.mark.parametrize("sizes", [(24, 40, 10), (192, 320, 80), (17, 30, 10)])
def test_a_waveform_comes_back_from_its_spectra(sizes: tuple[int, int, int]) -> None:
    spectrum = ComplexSpectrum(sizes[0], window_length=sizes[1], hop_length=sizes[2]).double()
    wave = sound(2, 2, 30 * sizes[2])
    planes = spectrum.analyse(wave)
    assert planes.shape == (2, 4, sizes[0], 30)
    torch.testing.assert_close(spectrum.synthesise(planes), wave, rtol=1e-10, atol=1e-12)


def test_the_inverse_is_that_of_torch() -> None:
    spectrum = ComplexSpectrum(24, window_length=40, hop_length=10).double()
    planes = sound(1, 2, 24, 20)
    expected = torch.istft(
        torch.complex(planes[:, 0], planes[:, 1]), 46, 10, 40, spectrum.window, center=True, length=195
    )
    torch.testing.assert_close(spectrum.synthesise(planes)[0, :, :195], expected)


def dense(attention: WindowAttention2d, x: Tensor) -> Tensor:
    """The same by one look-up of who may see whom: windows of the (shifted) grid, cut off at the edges of the map."""
    height, width, channels = x.shape[1:]
    size, shift, heads = attention.window_size, attention.shift, attention.num_heads
    filled = height + -height % size
    x = F.pad(x, (0, 0, 0, 0, 0, filled - height))
    rows, columns = torch.meshgrid(torch.arange(filled), torch.arange(width), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    window = (rows + size - shift) // size * 1000 + (columns + size - shift) // size
    seen = window[:, None] == window
    maps = attention.query_key_value(x.flatten(1, 2)).unflatten(-1, (3, heads, -1))
    query, key, value = maps.permute(2, 0, 3, 1, 4)
    away = torch.stack([rows[:, None] - rows, columns[:, None] - columns]).clamp(1 - size, size - 1) + size - 1
    bias = attention.position_bias[away[0] * (2 * size - 1) + away[1]].permute(2, 0, 1)
    scores = query @ key.mT / (channels // heads) ** 0.5 + bias
    attended = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value
    return attention.output(attended.transpose(1, 2).flatten(2)).unflatten(1, (filled, width))[:, :height]


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("shape", [(8, 12), (2, 8), (4, 5), (3, 7), (8, 1), (2, 2)])
def test_windows_are_those_of_the_grid_at_any_size(shape: tuple[int, int], shift: int) -> None:
    attention = WindowAttention2d(6, num_heads=2, window_size=4, shift=shift).double()
    torch.nn.init.normal_(attention.position_bias)
    x = sound(2, *shape, 6)
    torch.testing.assert_close(attention(x), dense(attention, x))


# ---------------------------------------------------------------------- the tokenizer


@pytest.mark.parametrize("length", [1, 39, 40, 41, 397, 400])
def test_any_length_comes_back_exactly(length: int) -> None:
    codec = fitted()
    wave = sound(2, 1, length)
    output = codec(wave)
    indices = codec.encode(wave)
    assert output.reconstruction.shape == wave.shape
    assert indices.shape == (2, -(-length // 40), 6)
    assert torch.equal(indices, output.quantizer.indices)
    assert torch.equal(codec.decode(indices, length=length), output.reconstruction)
    assert torch.equal(codec.quantizer.decode(indices), output.quantizer.quantized)
    padded = F.pad(wave, (0, -length % 40))
    assert torch.equal(codec.encode(padded), indices)


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_any_number_of_streams_decodes(streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To what training with the others dropped gave; and a model with only these streams has these codes."""
    codec = fitted()
    wave = sound(2, 1, 200)
    decoded = codec.decode(codec.encode(wave)[..., : 2 * streams])
    monkeypatch.setattr(CrossScaleQuantizer, "sample_depths", lambda self, step, size: torch.full((size,), streams))
    codec.train()
    output = codec(wave)
    torch.testing.assert_close(decoded, output.reconstruction)
    assert (output.quantizer.indices[..., 2 * streams :] == -1).all()
    torch.testing.assert_close(codec.decode(output.quantizer.indices), decoded)  # -1 adds nothing


@pytest.mark.parametrize("options", [{"audio_channels": 2}, {"patches_per_frame": 1, "hop_length": 13}, {"depth": 3}])
def test_other_sizes(options: dict[str, int]) -> None:
    codec = fitted(**options)
    wave = sound(1, codec.channels, 330)
    output = codec(wave)
    assert output.reconstruction.shape == wave.shape
    assert torch.equal(codec.decode(codec.encode(wave), length=330), output.reconstruction)


def test_streams_may_be_of_any_method() -> None:
    encoder, decoder = ESCEncoder(**SIZES), ESCDecoder(**SIZES)
    residual = partial(ResidualQuantizer, partial(Quantizer, "ema", dim=64, codebook_size=8), 2)
    quantizer = CrossScaleQuantizer(
        [residual, partial(Quantizer, "ema", dim=64, codebook_size=16, estimator=RotationTrick())]
    )
    codec = CrossScaleTokenizer(encoder, quantizer, decoder, sample_rate=16000)
    assert codec.quantizer.codebook_sizes == (8, 8, 16) and codec.kbps == pytest.approx(0.4 * (3 + 3 + 4))
    wave = torch.randn(2, 1, 200)
    codec(wave).quantizer.loss.backward()
    codec.quantizer.step()
    codec.eval()
    indices = codec.encode(wave)
    assert indices.shape == (2, 5, 3)
    assert torch.equal(codec.decode(indices), codec(wave).reconstruction)
    assert codec.decode(indices[..., :2]).shape == (2, 1, 200)


def test_sizes_are_those_of_esc() -> None:
    """8.39 M and 15.58 M parameters as published, and the biases of our linear maps."""
    for depth, published in ((2, 8_386_373), (4, 15_580_931)):
        with torch.device("meta"):  # no time is lost on drawing weights
            encoder, decoder = ESCEncoder(depth=depth), ESCDecoder(depth=depth)
        dims = [encoder.dims[0], *encoder.dims]
        assert dims == [1536, 1536, 1536, 2304, 3072, 4608]
        one = partial(Quantizer, "factorized", codebook_size=1024)
        streams = [partial(product_of, one, dim) for dim in dims]
        codec = CrossScaleTokenizer(encoder, CrossScaleQuantizer(streams), decoder, sample_rate=16000)
        biases = sum(p.numel() for name, p in codec.named_parameters() if "project" in name and name.endswith("bias"))
        assert sum(parameter.numel() for parameter in codec.parameters()) - biases == published
        assert (codec.frame_rate, codec.kbps) == (50, 9)
        assert depth == 4 or codec.latency == pytest.approx(0.02 * (1 + 13 + 2 * 15))


def product_of(one, dim: int):
    return GroupedQuantizer(partial(one, dim=dim // 3), 3)


# ---------------------------------------------------------------------- in pieces


@torch.no_grad()
def unrounded(codec: CrossScaleTokenizer, wave: Tensor) -> Tensor:
    """What the third stream would be given if the first two had a code for everything."""
    latents = codec.encoder(wave)
    decoded = codec._walk(lambda number, decoded: codec._lacking(latents, number, decoded), 2)
    return codec._lacking(latents, 2, codec._at_scale_of(2, decoded))


@pytest.mark.parametrize(("pieces", "frames_per_block"), [([800, 333, 7, 700], 5), ([1840], 16)])
def test_blocks_give_what_the_whole_gives(
    pieces: Sequence[int], frames_per_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = fitted()
    wave = sound(1, 1, 1840)
    frames = codec.encoder.context[0] // 40 + codec.decoder.context[0]
    assert 2 * frames + 2 < 1840 // 40  # or each block would see everything
    indices = codec.encode(wave)
    joined = torch.cat(list(codec.encode_blocks(wave.split(pieces, -1), frames_per_block=frames_per_block)), 1)
    assert torch.equal(joined, indices)
    # Codes hardly depend on what is far away: so too what the last stream would be given without the others' rounding.
    expected = unrounded(codec, wave)
    monkeypatch.setattr(CrossScaleTokenizer, "_indices", unrounded)
    joined = torch.cat(list(codec.encode_blocks(wave.split(pieces, -1), frames_per_block=frames_per_block)), 1)
    torch.testing.assert_close(joined, expected, rtol=1e-10, atol=1e-12)
    lengths = [17, 1, indices.shape[1] - 18]
    blocks = codec.decode_blocks(indices.split(lengths, 1), frames_per_block=frames_per_block)
    torch.testing.assert_close(torch.cat(list(blocks), -1), codec.decode(indices), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_nothing_reaches_beyond_the_context(part: str) -> None:
    """By the gradient of one frame, at both places of a frame in its window; and the bound is not a wild one."""
    codec = build(depth=2).double()
    reach = 0
    for frame in (40, 41):
        if part == "encoder":
            x = sound(1, 1, 80 * 40).requires_grad_()
            torch.stack([latents[..., frame].sum() for latents in codec.encoder(x)]).sum().backward()
            touched, hop = x.grad[0, 0], 40
        else:
            x = sound(1, codec.decoder.dims[0], 80).requires_grad_()
            codec.decoder(x)[..., frame * 40 : (frame + 1) * 40].sum().backward()
            touched, hop = x.grad[0].abs().sum(0), 1
        places = touched.nonzero().squeeze(1)
        before, after = frame * hop - places.min(), places.max() - (frame + 1) * hop + 1
        context = getattr(codec, part).context
        assert before <= context[0] and after <= context[1]
        reach = max(reach, int(before), int(after))
    assert context[0] <= 2 * reach


# ---------------------------------------------------------------------- dropout


def _train_once(rank: int, state: dict[str, Tensor], wave: Tensor) -> tuple[Tensor, dict[str, float]]:
    codec = build(dropout=0.75)
    codec.load_state_dict(state)
    share = wave.chunk(2)[rank]
    output = codec(share)
    codec.quantizer.step()
    usage = [module.usage for module in codec.quantizer.modules() if hasattr(module, "usage")]
    return output.quantizer.indices, torch.cat(usage)


@pytest.mark.slow
def test_two_ranks_draw_as_one_process(rank_pair: RankPair) -> None:
    codec = build(dropout=0.75)
    wave = torch.randn(12, 1, 80)
    state = copy.deepcopy(codec.state_dict())
    output = codec(wave)
    codec.quantizer.step()
    expected = torch.cat([module.usage for module in codec.quantizer.modules() if hasattr(module, "usage")])
    (first, usage), (second, _) = rank_pair(_train_once, state, wave)
    assert torch.equal(torch.cat([first, second]), output.quantizer.indices)
    torch.testing.assert_close(usage, expected)


# ---------------------------------------------------------------------- training


def test_each_stream_is_fitted_to_what_the_others_leave() -> None:
    codec = build().double()
    waves = [sound(8, 1, 1200, seed=seed) for seed in range(3)]
    codec.encoder.eval()
    codec.initialize(waves, samples=300)
    assert codec.training and not codec.encoder.training
    codec.eval()
    sound_after = codec(waves[0])
    health = codec.quantizer.health()
    ratios = [value for name, value in health.items() if name.endswith("scale_ratio")]
    assert len(ratios) == 6 and all(0.4 < ratio < 1.3 for ratio in ratios)
    assert {name.split("/")[0] for name in health} == {"nonfinite", "stream_0", "stream_1", "stream_2"}
    usage = [len(level.unique()) for level in sound_after.quantizer.indices.flatten(0, 1).unbind(-1)]
    assert min(usage) > 12  # of 16


def test_initialization_reads_no_more_than_it_needs() -> None:
    codec = build().double()
    read = []

    def loader():
        for seed in range(9):
            read.append(seed)
            yield {"name": ["a"], "audio": sound(4, 1, 400, seed=seed)}

    codec.initialize(loader(), samples=100)
    assert read == [0, 1, 2]


def test_every_parameter_learns_and_evaluation_changes_nothing() -> None:
    codec = build(dropout=1.0)
    wave = torch.randn(1, 1, 200)  # one sample, so that some streams are dropped in whole
    for _ in range(4):
        output = codec(wave)
        (output.reconstruction.square().mean() + output.quantizer.loss).backward()
        assert all(parameter.grad is not None for parameter in codec.parameters())
    codec.eval()
    before = copy.deepcopy(codec.state_dict())
    codec(wave), codec.encode(wave), codec.decode(codec.encode(wave))
    with without_quantization(codec):
        codec(wave)
    codec.train().encode(wave)
    after = codec.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_it_learns() -> None:
    codec = build(dropout=0.5, depth=1)
    wave = torch.sin(torch.arange(320) / 7).expand(4, 1, -1) * torch.tensor([0.2, 0.4, 0.6, 0.8]).view(4, 1, 1)
    codec.initialize([wave])
    optimizer = torch.optim.Adam(codec.parameters(), lr=5e-3)
    errors = []
    for _ in range(40):
        output = codec(wave)
        error = (output.reconstruction - wave).square().mean()
        optimizer.zero_grad()
        (error + 0.01 * output.quantizer.loss).backward()
        optimizer.step()
        errors.append(error.detach())
    assert errors[-1] < 0.5 * errors[0]


def test_low_precision_keeps_codes_and_dtypes() -> None:
    codec = fitted().float()
    wave = sound(1, 1, 400).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = codec(wave)
        assert torch.equal(codec.decode(codec.encode(wave)), output.reconstruction)
    assert output.reconstruction.dtype == torch.float32 and output.reconstruction.isfinite().all()
    low = copy.deepcopy(codec).bfloat16()
    assert low.encoder.spectrum.window.dtype == torch.float32
    assert low(wave.bfloat16()).reconstruction.isfinite().all()


def test_what_a_block_of_the_decoder_spoils_reaches_no_codebook() -> None:
    """The latents are finite, and what the third stream is given is not."""
    codec = fitted().float().train()
    torch.nn.init.constant_(next(codec.decoder.blocks[0].parameters()), torch.inf)
    output = codec(torch.randn(2, 1, 400) / 3)
    assert (output.quantizer.indices[..., :4] >= 0).all() and (output.quantizer.indices[..., 4:] == -1).all()
    assert output.quantizer.nonfinite == 2 * 10 and output.quantizer.loss.isfinite()
    with pytest.warns(UserWarning, match="20 input vectors"):
        codec.quantizer.health()


def test_a_nan_spoils_its_own_recording_only() -> None:
    codec = fitted().float().train()
    wave = torch.randn(2, 1, 400) / 3
    clean = codec(wave).reconstruction
    wave[1, 0, 20] = torch.nan
    output = codec(wave)
    torch.testing.assert_close(output.reconstruction[0], clean[0])
    assert output.quantizer.nonfinite > 0 and output.quantizer.loss.isfinite()
    with pytest.warns(UserWarning, match="held NaN or infinity"):
        assert codec.quantizer.health()["nonfinite"] == output.quantizer.nonfinite
    with pytest.raises(ValueError, match="NaN"):
        codec.encode(wave)


# ---------------------------------------------------------------------- saving, and wrong arguments


test_wrong_sizes_are_named = refused(
    ({"num_heads": (3, 4)}, "do not divide the widths 8 and 12"),
    ({"num_heads": (2,)}, "expected one positive number less"),
    ({"channels": (8,)}, "at least 2 scales"),
    ({"num_frequencies": 30}, r"multiple of 3 \* 4"),
    ({"window_size": 3}, "expected an even number"),
    ({"window_length": 60}, "at most the 46 points"),
    ({"hop_length": 14}, "at most a third of window_length=40"),
    ({"hop_length": 5}, "a frame has 20 samples"),
    ({"depth": 0}, "depth=0"),
    by=lambda sizes: ESCEncoder(**SIZES | sizes),
)


test_wrong_inputs_are_named = refused(
    (lambda codec: codec.encoder(torch.zeros(1, 1, 41)), "multiple of the downsampling factor 40"),
    (lambda codec: codec.encoder(torch.zeros(1, 2, 40)), r"expected \(B, 1, T\)"),
    (lambda codec: codec.decoder(torch.zeros(1, 3, 40)), r"expected \(B, 64, frames\)"),
    (lambda codec: codec(torch.zeros(1, 1, 0)), "data has no samples"),
    (lambda codec: codec.decode(torch.zeros(1, 4, 3).long()), r"one of \[2, 4, 6\]"),
    (lambda codec: codec.decode(torch.zeros(1, 4, 6).long(), length=500), "length=500"),
    (lambda codec: codec.decode(torch.full((1, 4, 6), 16)), "expected -1"),
    (lambda codec: codec.streaming().__enter__(), "causal"),
    by=lambda call: call(build()),
)


def test_streams_that_do_not_fit_are_named() -> None:
    encoder, decoder = ESCEncoder(**SIZES), ESCDecoder(**SIZES)
    with pytest.raises(ValueError, match="CrossScaleQuantizer"):
        CrossScaleTokenizer(encoder, FSQ([8, 5], channel_dim=1), decoder, sample_rate=16000)
    for dims in ([64, 96], [64, 64, 96, 96]):
        with pytest.raises(ValueError, match=r"expected \[64, 64, 96\]"):
            CrossScaleTokenizer(encoder, CrossScaleQuantizer([product(d) for d in dims]), decoder, sample_rate=16000)
    with pytest.raises(ValueError, match="same latents at each scale"):
        CrossScaleTokenizer(
            encoder,
            CrossScaleQuantizer([product(64)]),
            ESCDecoder(**SIZES | {"channels": (8, 12, 24), "num_heads": (2, 4)}),
            sample_rate=16000,
        )
    with pytest.raises(ValueError, match="dropout=2"):
        CrossScaleQuantizer([product(64)], dropout=2)


def test_checkpointing_repeats_the_dropout_of_each_forward_and_the_reentrant_one_is_refused() -> None:
    waves, gradients = [sound(3, 1, 800, seed=seed) for seed in (1, 2)], []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        codec = fitted(dropout=0.9).train()
        for part in codec.modules():
            part.auto_step = False

        def loss(wave: Tensor, codec: CrossScaleTokenizer = codec) -> Tensor:
            output = codec(wave)
            return output.reconstruction.square().mean() + output.quantizer.loss

        run = partial(checkpoint, loss, use_reentrant=False) if checkpointed else loss
        sum(run(wave) for wave in waves).backward()
        gradients.append(torch.cat([value.grad.flatten() for value in codec.parameters() if value.grad is not None]))
    assert torch.equal(*gradients)
    with pytest.raises(RuntimeError, match="pass use_reentrant=False"):
        checkpoint(loss, waves[0].requires_grad_(), use_reentrant=True)
