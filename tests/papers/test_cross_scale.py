"""ESC's equations (Gu, Diao 2024, arXiv 2404.19441, sec. 3), written out in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit import GroupedQuantizer, Quantizer, without_quantization
from vqkit.backbones.esc import ESCDecoder, ESCEncoder
from vqkit.tokenizers.cross_scale import CrossScaleQuantizer, CrossScaleTokenizer

SIZES = {
    "channels": (8, 12, 16),
    "num_heads": (2, 4),
    "num_frequencies": 24,
    "window_length": 40,
    "hop_length": 10,
}


def product(dim: int, groups: int = 2) -> partial[GroupedQuantizer]:
    one = partial(Quantizer, "factorized", dim=dim // groups, codebook_size=16, codebook_dim=4)
    return partial(GroupedQuantizer, one, groups)


def build(dropout: float = 0.0) -> CrossScaleTokenizer:
    encoder, decoder = ESCEncoder(**SIZES), ESCDecoder(**SIZES)
    dims = [encoder.dims[0], *encoder.dims]
    codec = CrossScaleTokenizer(
        encoder, CrossScaleQuantizer([product(dim) for dim in dims], dropout=dropout), decoder, sample_rate=16000
    ).double()
    for parameter in codec.quantizer.parameters():  # codes of all streams start alike, biases near 0
        nn.init.normal_(parameter, std=0.3)
    return codec


def published(stream: GroupedQuantizer, z: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One stream of (B, frames, dim): what it adds, its codes, and its losses of each sample (B,)."""
    added, codes, losses = [], [], []
    for group, part in zip(stream.groups, z.chunk(len(stream.groups), dim=-1), strict=True):
        e = group.codebook.vectors
        down = part @ group.project_in.weight.T + group.project_in.bias
        k = (F.normalize(down, dim=-1) @ F.normalize(e, dim=-1).T).argmax(-1)
        losses.append(((e[k] - down.detach()) ** 2).mean((1, 2)) + 0.25 * ((e[k].detach() - down) ** 2).mean((1, 2)))
        passed = down + (e[k] - down).detach()
        added.append(passed @ group.project_out.weight.T + group.project_out.bias)
        codes.append(k)
    keep = kept.view(-1, 1, 1)
    loss = torch.stack(losses).mean(0) * kept
    return torch.cat(added, -1) * keep, torch.where(keep, torch.stack(codes, -1), -1), loss


def walk(codec: CrossScaleTokenizer, wave: Tensor, used: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Stream 0 and 1 at the bottleneck, each later one before the next block, and the finest scale without."""
    coarse, fine = codec.encoder(wave)
    streams, blocks = codec.quantizer.streams, codec.decoder.blocks
    first, codes_0, loss_0 = published(streams[0], coarse.mT, used > 0)
    second, codes_1, loss_1 = published(streams[1], coarse.mT - first, used > 1)
    decoded = blocks[0]((first + second).mT)
    third, codes_2, loss_2 = published(streams[2], (fine - decoded).mT, used > 2)
    sound = codec.decoder.head(blocks[1](decoded + third.mT))
    return sound, torch.cat([codes_0, codes_1, codes_2], -1), (loss_0 + loss_1 + loss_2).mean()


@pytest.mark.parametrize("depths", [(3, 3, 3), (1, 3, 2)])
def test_the_walk_is_that_of_the_equations(depths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    codec = build()
    used = torch.tensor(depths)
    monkeypatch.setattr(CrossScaleQuantizer, "sample_depths", lambda self, step, batch_size: used)
    wave = torch.randn(3, 1, 240, dtype=torch.float64)
    sound, codes, loss = walk(codec, wave, used)
    direction = torch.randn_like(sound)
    parameters = list(codec.parameters())
    expected = torch.autograd.grad((sound * direction).sum() + loss, parameters)
    output = codec(wave)
    assert torch.equal(output.quantizer.indices, codes)
    torch.testing.assert_close(output.reconstruction, sound, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output.quantizer.loss, loss, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad((output.reconstruction * direction).sum() + output.quantizer.loss, parameters)
    for name, ours, theirs in zip(dict(codec.named_parameters()), found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def test_pretraining_passes_through_the_linear_maps_alone() -> None:
    """No codes, no losses, no dropout: each stream adds up(down(z))."""
    codec = build(dropout=1.0)
    wave = torch.randn(2, 1, 240, dtype=torch.float64)
    coarse, fine = codec.encoder(wave)

    def linear(stream: GroupedQuantizer, z: Tensor) -> Tensor:
        parts = zip(stream.groups, z.mT.chunk(len(stream.groups), dim=-1), strict=True)
        return torch.cat([group.project_out(group.project_in(part)) for group, part in parts], -1).mT

    streams, blocks = codec.quantizer.streams, codec.decoder.blocks
    first = linear(streams[0], coarse)
    decoded = blocks[0](first + linear(streams[1], coarse - first))
    sound = codec.decoder.head(blocks[1](decoded + linear(streams[2], fine - decoded)))
    with without_quantization(codec):
        output = codec(wave)
    torch.testing.assert_close(output.reconstruction, sound, rtol=1e-12, atol=1e-12)
    assert output.quantizer.loss == 0 and (output.quantizer.indices == -1).all()
    assert output.quantizer.indices.shape == (2, 6, 6)
    (output.reconstruction.sum() + output.quantizer.loss).backward()
    assert all(parameter.grad is not None for parameter in codec.parameters())


def test_the_loss_of_a_dropped_stream_is_zero_in_the_mean_over_samples() -> None:
    """Each sample's loss is the sum of those of its streams, whatever the others of its batch drew."""
    quantizer = CrossScaleQuantizer([product(8), product(8)])
    latents = torch.randn(2, 3, 8)
    alone = [[stream(sample[None]).loss for sample in latents] for stream in quantizer.streams]
    depths = torch.tensor([2, 1])
    made, nonfinite = zip(*(quantizer.quantize_stream(number, latents, depths) for number in range(2)), strict=True)
    joined = quantizer.join(list(made), nonfinite, latents.dtype)
    torch.testing.assert_close(joined.loss, (alone[0][0] + alone[0][1] + alone[1][0]) / 2)
    parts = [
        stream(sample[None]).losses
        for stream, sample in zip(
            (*quantizer.streams, quantizer.streams[0]), (latents[0], latents[0], latents[1]), strict=True
        )
    ]
    for name, loss in joined.losses.items():
        torch.testing.assert_close(loss, sum(part[name] for part in parts) / 2)


def test_frames_hold_their_patches_in_the_published_order() -> None:
    """(time, channel, frequency), frequency innermost; and the decoder undoes it."""
    from vqkit.backbones.esc import _to_frames, _to_map

    rows, steps, channels = 3, 8, 5
    x = torch.arange(rows * steps * channels).reshape(1, rows, steps, channels)
    frames = _to_frames(x, 2)
    assert frames.shape == (1, 2 * channels * rows, 4)
    for step, channel, row in ((0, 0, 1), (1, 3, 2), (1, 0, 0)):
        assert torch.equal(frames[0, (step * channels + channel) * rows + row], x[0, row, step::2, channel])
    assert torch.equal(_to_map(frames, rows, 2), x)
