"""FVQ's bridge against its equations (Chang et al. 2025), written out with other operations, in float64."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit import BridgedCodebook, Quantizer

SIZES = {"patch_size": 2, "width": 12, "heads": 3}


def build(codebook_size: int = 36, dim: int = 5, **options) -> Quantizer:
    codebook = partial(BridgedCodebook, **{**SIZES, **options})
    return Quantizer("fvq", dim=dim, codebook_size=codebook_size, codebook=codebook).double()


def awake(quantizer: Quantizer) -> Quantizer:
    """With a last layer that is not zero."""
    nn.init.normal_(quantizer.codebook.projector.recover.weight, std=0.3)
    nn.init.normal_(quantizer.codebook.base)
    return quantizer


def norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()


def oracle(codebook: BridgedCodebook, base: Tensor) -> Tensor:
    """Convolution over the image of indices, attention head by head with an explicit softmax, inverse of unfold."""
    bridge, p = codebook.projector, codebook.patch_size
    rows, columns = bridge.grid
    image = base.T.reshape(1, -1, rows, columns)
    kernel = bridge.compress.weight.reshape(codebook.width, p, p, codebook.dim).permute(0, 3, 1, 2)
    tokens = F.conv2d(image, kernel, bridge.compress.bias, stride=p)[0].flatten(1).T
    for block in bridge.blocks:
        joined = norm(tokens) @ block.query_key_value.weight.T + block.query_key_value.bias
        query, key, value = joined.chunk(3, dim=-1)
        heads = []
        for number in range(codebook.heads):
            part = slice(number * codebook.width // codebook.heads, (number + 1) * codebook.width // codebook.heads)
            scores = query[:, part] @ key[:, part].T / math.sqrt(codebook.width / codebook.heads)
            heads.append(scores.softmax(-1) @ value[:, part])
        tokens = tokens + torch.cat(heads, -1) @ block.attention_out.weight.T + block.attention_out.bias
        hidden = norm(tokens) @ block.expand.weight.T + block.expand.bias
        inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3) if codebook.tanh_gelu else None
        hidden = 0.5 * hidden * (1 + (torch.erf(hidden / math.sqrt(2)) if inner is None else torch.tanh(inner)))
        tokens = tokens + hidden @ block.contract.weight.T + block.contract.bias
    patches = norm(tokens) @ bridge.recover.weight.T + bridge.recover.bias
    columns_of_pixels = patches.reshape(-1, p * p, codebook.dim).permute(2, 1, 0).reshape(1, codebook.dim * p * p, -1)
    return F.fold(columns_of_pixels, (rows, columns), p, stride=p)[0].flatten(1).T


@pytest.mark.parametrize("tanh_gelu", [True, False])
def test_values_losses_and_gradients(tanh_gelu: bool) -> None:
    quantizer = awake(build(tanh_gelu=tanh_gelu))
    codebook = quantizer.codebook
    z = torch.randn(30, 5, dtype=torch.float64, requires_grad=True)
    y, upstream = z.detach().clone().requires_grad_(), torch.randn(30, 5, dtype=torch.float64)
    output = quantizer(z)
    (output.loss + (output.quantized * upstream).sum()).backward()
    gradients = {name: value.grad.clone() for name, value in quantizer.named_parameters()}
    quantizer.zero_grad()

    codes = oracle(codebook, codebook.base)
    chosen = codes[torch.cdist(y.detach(), codes.detach()).argmin(1)]
    loss = F.mse_loss(chosen, y.detach()) + 0.25 * F.mse_loss(y, chosen.detach())
    (loss + ((y + (chosen - y).detach()) * upstream).sum()).backward()
    torch.testing.assert_close(output.quantized, chosen, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.loss, loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(z.grad, y.grad, rtol=0, atol=1e-12)
    for name, value in quantizer.named_parameters():
        torch.testing.assert_close(gradients[name], value.grad, rtol=0, atol=1e-12)


def test_every_code_is_zero_at_the_start() -> None:
    quantizer = Quantizer("fvq", dim=8, codebook_size=64)
    output = quantizer(torch.randn(100, 8))
    assert not quantizer.codebook().any() and not output.quantized.any() and not output.indices.any()
    base = quantizer.codebook.base.detach()
    assert 0.9 / 64 < float(base.abs().max()) <= 1 / 64 and abs(float(base.mean())) < 0.1 / 64


def test_the_base_gets_a_gradient_from_the_second_backward_on() -> None:
    quantizer = build()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    reached = []
    for _ in range(2):
        optimizer.zero_grad()
        quantizer(torch.randn(40, 5, dtype=torch.float64)).loss.backward()
        reached.append({name for name, value in quantizer.named_parameters() if value.grad.abs().sum() > 0})
        optimizer.step()
    assert reached[0] == {"codebook.projector.recover.weight", "codebook.projector.recover.bias"}
    assert "codebook.base" in reached[1]


@pytest.mark.parametrize(("patch_size", "millions"), [(4, 3.15), (8, 9.46)])
def test_size_l_has_the_published_number_of_parameters(patch_size: int, millions: float) -> None:
    """At 256 dimensions. The figures count the bridge without the base (K, 256), so they do not depend on K."""
    codebook = BridgedCodebook(256, 256, patch_size=patch_size)
    count = sum(value.numel() for value in codebook.projector.parameters())
    assert round(count / 1e6, 2) == millions
    assert sum(value.numel() for value in codebook.parameters()) == count + 256 * 256


def test_rows_of_a_patch_cannot_be_exchanged() -> None:
    """The codes are not a set of functions of single rows; with the weights exchanged as well they are the same."""
    codebook = awake(build()).codebook
    bridge, permutation = codebook.projector, torch.tensor([2, 0, 3, 1])
    before = codebook().detach()
    with torch.no_grad():
        patches = bridge.to_patches(codebook.base).unflatten(1, (4, 5))[:, permutation].flatten(1)
        codebook.base.copy_(bridge.from_patches(patches))
        exchanged = codebook()
        assert torch.cdist(before, exchanged).min(1).values.max() > 0.1
        for layer, axis in ((bridge.compress, 1), (bridge.recover, 0)):
            weight = layer.weight.unflatten(axis, (4, 5)).index_select(axis, permutation).flatten(axis, axis + 1)
            layer.weight.copy_(weight)
        bridge.recover.bias.copy_(bridge.recover.bias.reshape(4, 5)[permutation].flatten())
        expected = bridge.from_patches(bridge.to_patches(before).unflatten(1, (4, 5))[:, permutation].flatten(1))
        torch.testing.assert_close(codebook(), expected, rtol=0, atol=1e-12)


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.mean(0), rows.T.cov(correction=0)


@pytest.mark.parametrize(
    ("codebook_size", "options"),
    [(144, {}), (8, {"patch_size": 2}), (16, {"patch_size": 4}), (64, {"width": 4, "heads": 2}), (64, {"blocks": 0})],
)
def test_initialize_matches_mean_and_covariance(codebook_size: int, options: dict) -> None:
    """With many patches, with fewer than the codes have dimensions, with one, and with narrow tokens."""
    quantizer = build(codebook_size, **options)
    samples = torch.randn(2000, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 3
    quantizer.initialize([samples])
    codes = quantizer.codebook().detach()
    torch.testing.assert_close(moments(codes), moments(samples), rtol=0, atol=1e-6)
    assert len(codes.unique(dim=0)) == codebook_size


def test_initialize_matches_each_position_of_a_patch() -> None:
    quantizer = build(400)
    samples = torch.randn(2000, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 3
    quantizer.initialize([samples])
    bridge = quantizer.codebook.projector
    for position in bridge.to_patches(quantizer.codebook().detach()).split(5, dim=1):
        torch.testing.assert_close(moments(position), moments(samples), rtol=0, atol=1e-6)


def test_initialize_survives_training() -> None:
    """At +-1/K one step of Adam is larger than the base: the codes would be strewn anew at the first step."""
    quantizer = Quantizer("fvq", dim=8, codebook_size=256)
    data = torch.randn(4096, 8)
    quantizer.initialize([data])
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-4)
    before = float(quantizer(data).loss.detach())
    for _ in range(5):
        optimizer.zero_grad()
        loss = quantizer(data).loss
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < before
    assert len(quantizer.encode(data).unique()) > 240


@pytest.mark.parametrize(("codebook_size", "grid"), [(16384, (128, 128)), (32, (4, 8)), (80, (4, 20)), (96, (8, 12))])
def test_the_grid_is_nearest_to_a_square(codebook_size: int, grid: tuple[int, int]) -> None:
    codebook = BridgedCodebook(codebook_size, 2, width=4)
    assert codebook.projector.grid == grid and f"grid={grid[0]} x {grid[1]}" in repr(codebook)


@pytest.mark.parametrize(
    ("codebook_size", "options", "message"),
    [
        (1000, {}, r"codebook_size=1000: expected a multiple of patch_size\^2 = 16.*; 992 or 1008 is nearest"),
        (9, {}, r"codebook_size=9.*; 16 is nearest, or choose another patch_size"),
        (64, {"patch_size": 0}, "patch_size=0: expected at least 1"),
        (64, {"width": 0}, "width=0: expected at least 1"),
        (64, {"blocks": -1}, "blocks=-1: expected at least 0"),
        (64, {"mlp_ratio": 0}, "mlp_ratio=0: expected at least 1"),
    ],
)
def test_wrong_sizes_are_refused_with_words(codebook_size: int, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BridgedCodebook(codebook_size, 4, **options)
