"""Modules whose weights PyTorch's `fully_shard` has spread over two ranks."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from tests.test_audio_tokenizer import make_codec
from tests.test_esc import build as build_esc
from vqkit import MixtureQuantizer, Quantizer, RandomRestart, ResidualQuantizer, Tokenizer, bake, codebook_hash
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.quantizers.base import BaseQuantizer

SIZES = {"dim": 8, "codebook_size": 33}  # an uneven share
QUANTIZERS = {
    "vq": partial(Quantizer, "vq", channel_dim=1, **SIZES),
    "ema": partial(Quantizer, "ema", channel_dim=1, codebook_dim=4, **SIZES),
    "simvq": partial(Quantizer, "simvq", channel_dim=1, **SIZES),
    "residual": partial(ResidualQuantizer, partial(Quantizer, "vq", **SIZES), 2, channel_dim=1),
    "mixture": partial(MixtureQuantizer, partial(Quantizer, "vq", **SIZES), 2, dim=8, channel_dim=1),
}

CODECS = {"codec": make_codec, "esc": build_esc}


def build(name: str) -> tuple[Tokenizer, Tensor]:
    torch.manual_seed(0)
    sizes = {"dim": 8, "channels": 8, "channel_multipliers": (1, 1), "norm_groups": 4}
    tokenizer = Tokenizer(ConvEncoder2d(**sizes), QUANTIZERS[name](), ConvDecoder2d(**sizes)).double()
    return tokenizer, torch.rand(4, 3, 16, 16, dtype=torch.float64) * 2 - 1


def train(tokenizer: Tokenizer, images: Tensor) -> None:
    optimizer = torch.optim.SGD(tokenizer.parameters(), lr=0.1)
    for _ in range(3):
        output = tokenizer(images)
        ((output.reconstruction - images).square().mean() + output.quantizer.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        tokenizer.quantizer.step()


def read(tokenizer: Tokenizer, images: Tensor) -> dict[str, object]:
    """What is read outside of `forward`."""
    indices = tokenizer.encode(images)
    return {
        "indices": indices,
        "images": tokenizer.decode(indices).detach(),
        "vectors": tokenizer.quantizer.decode(indices).detach(),
        "latents": tokenizer.quantizer.encode(torch.linspace(-1, 1, 8, dtype=torch.float64)[None, :, None]),
        **{key: value for key, value in tokenizer.quantizer.health().items() if "scale" not in key},  # of a rank's own
    }


def on_rank(rank: int, name: str, parts: bool, state: dict[str, Tensor], folder: Path) -> list[object]:
    tokenizer, images = build(name)
    tokenizer.load_state_dict(state)
    for part in (tokenizer.encoder, tokenizer.quantizer, tokenizer.decoder) if parts else ():
        fully_shard(part)
    fully_shard(tokenizer)
    share = images[2 * rank :][:2]
    before = read(tokenizer, images)
    train(tokenizer, share)
    after = read(tokenizer, images)
    for call, run in {
        "initialize": lambda: tokenizer.initialize([images]),
        "initialize of the quantizer": lambda: tokenizer.quantizer.initialize([images]),
        "bake": lambda: bake(tokenizer),
    }.items():
        with pytest.raises(ValueError, match=f"{call.split()[0]}: the weights of this .* are spread over ranks; "):
            run()
    train(tokenizer, share)
    tokenizer.save_pretrained(folder)
    return [before, after, codebook_hash(tokenizer.quantizer)]


@pytest.mark.slow
@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_sharded_tokenizers_train_and_tell_as_whole_ones(name: str, parts: bool, rank_pair, tmp_path: Path) -> None:
    tokenizer, images = build(name)
    tokenizer.initialize([images])
    ranks = rank_pair(on_rank, name, parts, tokenizer.state_dict(), tmp_path)
    for number in range(2):
        expected = read(tokenizer, images)
        for rank in ranks:
            assert rank[number].keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(rank[number][key], value, rtol=1e-9, atol=1e-9, msg=key)
        train(tokenizer, images)
    saved = Tokenizer.from_pretrained(tmp_path)
    assert type(saved) is Tokenizer and [codebook_hash(saved.quantizer)] * 2 == [rank[2] for rank in ranks]
    for key, value in tokenizer.state_dict().items():
        torch.testing.assert_close(saved.state_dict()[key], value, rtol=1e-9, atol=1e-9, msg=key)


def restarts_on_rank(rank: int) -> None:
    quantizer: BaseQuantizer = Quantizer("vq", maintenance=[RandomRestart()], **SIZES)
    fully_shard(quantizer)
    with pytest.raises(
        ValueError, match=r"maintenance: .* are spread over ranks; what the policies write would be lost"
    ):
        quantizer(torch.randn(4, 8))


@pytest.mark.slow
def test_policies_that_write_sharded_codes_are_refused(rank_pair) -> None:
    rank_pair(restarts_on_rank)


def codecs_on_rank(rank: int, state: dict[str, dict[str, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for name, make in CODECS.items():
        codec = make().double()
        codec.load_state_dict(state[name])
        fully_shard(codec)
        wave = torch.linspace(-1, 1, 3000, dtype=torch.float64)[None, None]
        codec(wave).reconstruction.square().mean().backward()
        indices = codec.eval().encode(wave)
        found[name] = (indices, codec.decode(indices).detach())
    model = torch.nn.Sequential(make())
    fully_shard(model)
    with pytest.raises(
        ValueError, match=r"encode and decode: .* spread over ranks; give it to fully_shard by itself, too"
    ):
        model[0].encode(wave)
    return found


@pytest.mark.slow
def test_sharded_codecs_encode_and_decode(rank_pair) -> None:
    codecs = {name: make().double().eval() for name, make in CODECS.items()}
    wave = torch.linspace(-1, 1, 3000, dtype=torch.float64)[None, None]
    for found in rank_pair(codecs_on_rank, {name: codec.state_dict() for name, codec in codecs.items()}):
        for name, (indices, decoded) in found.items():
            assert torch.equal(indices, codecs[name].encode(wave))
            torch.testing.assert_close(decoded, codecs[name].decode(indices).detach(), rtol=1e-9, atol=1e-9)
