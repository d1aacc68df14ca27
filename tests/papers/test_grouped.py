"""Grouped quantization against its identities, and FQGAN's factorized quantization (Bai et al. 2024), in float64."""

import copy
from functools import partial
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit import (
    Disentanglement,
    GroupedQuantizer,
    MeanOverMembers,
    PublishedDisentanglement,
    Quantizer,
    Reduction,
    ResidualQuantizer,
    SumOverMembers,
)

SMALL = partial(Quantizer, "vq", dim=3, codebook_size=7)
LARGE = partial(Quantizer, "ema", dim=5, codebook_size=20)
UNIT = partial(Quantizer, "vq", dim=8, codebook_size=32, normalize=True)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uneven(**options) -> GroupedQuantizer:
    """Groups of 3, 5 and 3 channels: 7 codes, 20 codes, and two levels of 7 codes."""
    quantizer = GroupedQuantizer([SMALL, LARGE, partial(ResidualQuantizer, SMALL, 2)], **options).double()
    for module in quantizer.modules():
        if isinstance(module, Quantizer):
            torch.nn.init.normal_(module.codebook.vectors)
    return quantizer


# ---------------------------------------------------------------------- values


def test_each_group_quantizes_its_own_channels() -> None:
    quantizer, z = uneven().eval(), random(4, 6, 11)
    output = quantizer(z)
    parts = [group(part) for group, part in zip(quantizer.groups, z.split([3, 5, 3], -1), strict=True)]
    assert torch.equal(output.quantized, torch.cat([part.quantized for part in parts], -1))
    assert torch.equal(output.indices[..., 0], parts[0].indices)
    assert torch.equal(output.indices[..., 1], parts[1].indices)
    assert torch.equal(output.indices[..., 2:], parts[2].indices)
    assert quantizer.codebook_sizes == (7, 20, 7, 7) and quantizer.codebook_size == 20
    assert torch.equal(quantizer.encode(z), output.indices) and torch.equal(
        quantizer.decode(output.indices), output.quantized
    )


def test_the_codes_are_the_product_of_the_books() -> None:
    """The nearest of all K_1 * K_2 joined vectors is the pair of nearest ones."""
    quantizer, z = GroupedQuantizer([SMALL, LARGE]).double(), random(50, 8)
    first, second = (group.codebook.vectors.detach() for group in quantizer.groups)
    product = torch.cat([first.repeat_interleave(20, 0), second.repeat(7, 1)], 1)
    joined = (z.unsqueeze(1) - product).square().sum(-1).argmin(1)
    assert torch.equal(quantizer.encode(z), torch.stack([joined // 20, joined % 20], 1))


@pytest.mark.parametrize(("reduction", "divisor"), [(MeanOverMembers(), 3), (SumOverMembers(), 1)])
def test_losses_and_gradients_are_those_of_the_groups(reduction: Reduction, divisor: int) -> None:
    """The mean, as of UniTok's codebooks, or the sum, as of FQGAN's branches."""
    quantizer, z = uneven(reduction=reduction), random(30, 11).requires_grad_()
    twin = copy.deepcopy(quantizer)
    y = z.detach().clone().requires_grad_()
    upstream = random(30, 11, seed=1)
    output = quantizer(z)
    (output.loss + (output.quantized * upstream).sum()).backward()
    parts = [group(part) for group, part in zip(twin.groups, y.split([3, 5, 3], -1), strict=True)]
    loss = sum(part.loss for part in parts) / divisor
    (loss + (torch.cat([part.quantized for part in parts], -1) * upstream).sum()).backward()
    torch.testing.assert_close(output.loss, loss, rtol=0, atol=1e-14)
    torch.testing.assert_close(z.grad, y.grad, rtol=0, atol=1e-14)
    for ours, theirs in zip(quantizer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-14)
    commitments = [part.losses["commitment"] for part in parts]
    torch.testing.assert_close(output.losses["commitment"], sum(commitments) / divisor, rtol=0, atol=1e-14)


def test_masks_and_left_out_groups() -> None:
    quantizer, z, mask = uneven().eval(), random(4, 6, 11), torch.rand(4, 6) < 0.5
    output = quantizer(z, mask)
    assert (output.indices[~mask] == -1).all() and (output.indices[mask] >= 0).all()
    torch.testing.assert_close(output.loss, quantizer(z[mask].unsqueeze(0)).loss)
    cut = output.indices.clone()
    cut[..., 1] = -1
    decoded = quantizer.decode(cut)
    assert not decoded[..., 3:8].any() and torch.equal(decoded[..., :3], output.quantized[..., :3])


@pytest.mark.parametrize(("levels", "channels"), [(1, 3), (2, 8)])
def test_channels_of_groups_behind_a_prefix_are_0(levels: int, channels: int) -> None:
    quantizer = uneven()
    indices = quantizer.encode(random(5, 11))
    decoded = quantizer.decode(indices[:, :levels])
    assert (
        torch.equal(decoded[:, :channels], quantizer.decode(indices)[:, :channels]) and not decoded[:, channels:].any()
    )


def test_each_level_has_its_own_range() -> None:
    quantizer = uneven()
    quantizer.decode(torch.tensor([[6, 19, 6, 6]]))
    for wrong in ([7, 0, 0, 0], [0, 20, 0, 0], [0, 0, 0, 7], [-2, 0, 0, 0]):
        with pytest.raises(ValueError, match="indices lie in"):
            quantizer.decode(torch.tensor([wrong]))


def test_initialize_fits_every_group_to_its_channels() -> None:
    scale = torch.tensor([1.0] * 3 + [10.0] * 5 + [100.0] * 3)
    data = torch.randn(2000, 11) * scale + 2 * scale
    quantizer = uneven().float()
    quantizer.initialize([data])
    error = (data - quantizer.decode(quantizer.encode(data)).detach()).square().split([3, 5, 3], -1)
    variance = data.var(0).split([3, 5, 3], -1)
    assert all(float(e.mean() / v.mean()) < 0.75 for e, v in zip(error, variance, strict=True))
    report = quantizer.health()
    assert report["group_1/scale_ratio"] == pytest.approx(1, abs=0.3) and "group_2/stage_1/underused" in report


def test_nested_in_a_residual_quantizer() -> None:
    pair = partial(GroupedQuantizer, partial(Quantizer, "ema", dim=3, codebook_size=16), 2)
    quantizer, data = ResidualQuantizer(pair, 3), torch.randn(500, 6)
    quantizer.initialize([data])
    indices = quantizer.eval().encode(data)
    assert indices.shape == (500, 6) and torch.equal(quantizer.decode(indices), quantizer(data).quantized)
    errors = [float((data - quantizer.decode(indices[:, : 2 * stages])).square().mean()) for stages in (1, 2, 3)]
    assert errors[0] > 1.2 * errors[1] > 1.4 * errors[2]


# ---------------------------------------------------------------------- FQGAN


def unit_codes(groups: int = 2, loss: type = Disentanglement, **options) -> GroupedQuantizer:
    quantizer = GroupedQuantizer(partial(UNIT, **options), groups, losses=[loss()]).double()
    for number, group in enumerate(quantizer.groups):
        with torch.no_grad():
            group.codebook.vectors.copy_(random(32, group.codebook_dim, seed=10 + number))
    return quantizer


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("loss", [Disentanglement, PublishedDisentanglement])
def test_disentanglement_and_its_gradients(loss: type, groups: int) -> None:
    """The mean over pairs of mean(<q_i, q_j>^2), and where its gradient goes in either form: published, q is normalized
    once more."""
    quantizer, z = unit_codes(groups, loss), random(40, 8 * groups).requires_grad_()
    y = z.detach().clone().requires_grad_()
    output = quantizer(z)
    output.losses["disentanglement"].backward()
    codes = [group.codebook.vectors.detach().clone().requires_grad_() for group in quantizer.groups]
    q = []
    for number, (e, part) in enumerate(zip(codes, y.split(8, -1), strict=True)):
        chosen, z_hat = F.normalize(e)[output.indices[:, number]], F.normalize(part)
        q.append(chosen if loss is Disentanglement else F.normalize(z_hat + (chosen - z_hat).detach()))
    pairs = list(combinations(q, 2))
    expected = sum((a * b).sum(1).square().mean() for a, b in pairs) / len(pairs)
    expected.backward()
    torch.testing.assert_close(output.losses["disentanglement"], expected, rtol=0, atol=1e-14)
    for group, e in zip(quantizer.groups, codes, strict=True):
        if loss is Disentanglement:
            torch.testing.assert_close(group.codebook.vectors.grad, e.grad, rtol=0, atol=1e-14)
            assert e.grad.any()
        else:
            assert group.codebook.vectors.grad is None
    if loss is Disentanglement:
        assert z.grad is None
    else:
        torch.testing.assert_close(z.grad, y.grad, rtol=0, atol=1e-14)
        assert z.grad.any()


def test_the_total_adds_a_tenth_of_it() -> None:
    output, plain = unit_codes().eval()(random(40, 16)), unit_codes()
    plain.losses = torch.nn.ModuleList()
    difference = output.loss - plain.eval()(random(40, 16)).loss
    torch.testing.assert_close(difference, 0.1 * output.losses["disentanglement"], rtol=0, atol=1e-14)


def test_masked_vectors_have_no_part_in_it() -> None:
    quantizer, z, mask = unit_codes(), random(40, 16), torch.arange(40) % 3 > 0
    whole = quantizer(z[mask]).losses["disentanglement"]
    masked = quantizer(z.unsqueeze(0), mask.unsqueeze(0)).losses["disentanglement"]
    torch.testing.assert_close(masked, whole, rtol=0, atol=1e-14)
    nothing = quantizer(z.unsqueeze(0), torch.zeros(1, 40, dtype=torch.bool))
    nothing.loss.backward()
    assert nothing.losses["disentanglement"] == 0


def test_codes_are_compared_in_the_code_space() -> None:
    """FQGAN projects each branch to 8 dimensions: the inner product is of the codes there, not of what comes out."""
    quantizer, z = unit_codes(dim=12, codebook_dim=8), random(40, 24)
    output = quantizer(z)
    first, second = (
        F.normalize(group.codebook.vectors)[output.indices[:, number]] for number, group in enumerate(quantizer.groups)
    )
    expected = (first * second).sum(1).square().mean()
    torch.testing.assert_close(output.losses["disentanglement"], expected, rtol=0, atol=1e-14)


def test_each_group_is_initialized_with_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    monkeypatch.setattr(Quantizer, "initialize", lambda self, latents, *, samples, seed: seeds.append(seed))
    GroupedQuantizer(partial(Quantizer, "vq", dim=2, codebook_size=4), 3).initialize([torch.randn(20, 6)], seed=5)
    assert seeds == [5, 6, 7]
