"""Multi-scale quantization against VAR (Tian et al. 2024), Infinity (Han et al. 2024) and VCQ, in float64."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit import (
    BSQ,
    LFQ,
    AreaResizing,
    BitFlips,
    CubicResizing,
    EMACodebook,
    LinearResizing,
    MultiScaleQuantizer,
    Quantizer,
    RandomRestart,
    Resizing,
)
from vqkit.quantizers.binary import BinaryQuantizer
from vqkit.quantizers.phi import scale_map
from vqkit.quantizers.resizing import matrices, resized

DIM = 6
SCALES = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]
ROUNDING = 1e-12
"""Sums of a few hundred numbers of about 1 in float64, each rounded by 1e-16."""


def var(**options) -> MultiScaleQuantizer:
    torch.manual_seed(0)
    stage = partial(Quantizer, "vq", dim=DIM, codebook_size=64)
    quantizer = MultiScaleQuantizer(stage, SCALES, channel_dim=1, **options).double()
    torch.nn.init.normal_(quantizer.stages[0].codebook.vectors)
    return quantizer


def images(batch: int = 2, size: int = 16) -> Tensor:
    return torch.randn(batch, DIM, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def published(quantizer: MultiScaleQuantizer, f: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Algorithm 1 with the release's scale map: the indices (B, n) and the sum (B, C, H, W) after each scale."""
    codes = quantizer.stages[0].codebook.vectors
    phis = [(one.weight, one.bias) for one in quantizer.phi.convolutions]
    height, width = f.shape[2:]
    rest, total, indices, sums = f.detach().clone(), torch.zeros_like(f), [], []
    for size, phi in zip(SCALES, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3], strict=True):
        rows = F.interpolate(rest, size=(size, size), mode="area").permute(0, 2, 3, 1).reshape(-1, DIM)
        nearest = (rows.unsqueeze(1) - codes.detach()).square().sum(-1).argmin(1)
        grid = codes[nearest].view(len(f), size, size, DIM).permute(0, 3, 1, 2)
        h = F.interpolate(grid, size=(height, width), mode="bicubic") if size < height else grid
        h = 0.5 * h + 0.5 * F.conv2d(h, *phis[phi], padding=1)
        total = total + h
        rest = rest - h.detach()
        indices.append(nearest.view(len(f), -1))
        sums.append(total)
    return indices, sums


# ---------------------------------------------------------------------- values and gradients


def test_indices_and_sums_are_those_of_algorithm_1() -> None:
    quantizer, f = var().eval(), images()
    indices, sums = published(quantizer, f)
    output = quantizer(f)
    assert torch.equal(output.indices, torch.cat(indices, 1))
    torch.testing.assert_close(output.quantized, sums[-1].detach(), rtol=0, atol=ROUNDING)
    for end, total in zip(quantizer.ends, sums, strict=True):
        prefix = quantizer.decode(output.indices[:, :end])
        torch.testing.assert_close(prefix, total, rtol=0, atol=ROUNDING)


def test_the_loss_is_the_mean_over_scales_of_both_distances_from_the_sum_so_far() -> None:
    """And its gradients: to f by the commitments alone, to codes and phi by the codebook losses alone."""
    quantizer, f = var(), images().requires_grad_()
    trained = [quantizer.stages[0].codebook.vectors, *quantizer.phi.parameters()]
    _, sums = published(quantizer, f)
    expected = sum(F.mse_loss(total, f.detach()) + 0.25 * F.mse_loss(total.detach(), f) for total in sums) / len(SCALES)
    output = quantizer(f)
    assert set(output.losses) == {"commitment", "codebook"}
    torch.testing.assert_close(output.loss, expected, rtol=ROUNDING, atol=0)
    found, wanted = (torch.autograd.grad(loss, [f, *trained]) for loss in (output.loss, expected))
    torch.testing.assert_close(found, wanted, rtol=0, atol=ROUNDING)
    pulls = sum(0.25 * 2 / f.numel() * (f - total) for total in sums) / len(SCALES)
    torch.testing.assert_close(found[0], pulls, rtol=0, atol=ROUNDING)


def test_the_gradient_goes_straight_through_the_sum() -> None:
    quantizer, f, upstream = var(), images().requires_grad_(), images(2).flip(0)
    quantized = quantizer(f).quantized
    assert torch.equal(torch.autograd.grad((quantized * upstream).sum(), [f])[0], upstream)
    assert torch.equal(quantized, quantizer.eval()(f).quantized)


def test_without_an_estimator_of_the_sum_decoder_and_finer_scales_reach_every_scale() -> None:
    """Nothing is detached: f-hat is f less what the last scale leaves over, by each stage's straight-through."""
    quantizer = var(estimator=None, num_phis=0, losses=[])
    f, upstream = images().requires_grad_(), images().flip(0)
    gradient = torch.autograd.grad((quantizer(f).quantized * upstream).sum(), [f])[0]
    left = f  # R <- R - up(down(R)), whose straight-through Jacobian is that of the same maps without quantization
    total = torch.zeros_like(f)
    for size in SCALES:
        h = F.interpolate(F.interpolate(left, size=(size, size), mode="area"), size=(16, 16), mode="bicubic")
        left, total = left - h, total + h
    expected = torch.autograd.grad((total * upstream).sum(), [f])[0]
    torch.testing.assert_close(gradient, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("scales", [1, 2, 3, 5, 9, 10])
def test_the_scale_map_is_the_released_one_where_no_two_ticks_are_as_near(scales: int) -> None:
    import numpy

    for phis in range(1, scales + 1):
        margin = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
        ticks = numpy.linspace(margin, 1 - margin, phis)
        for number, chosen in enumerate(scale_map(scales, phis)):
            distances = abs(ticks - number / max(scales - 1, 1))
            assert distances[chosen] <= distances.min() + 1e-12
    assert scale_map(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("resizing", "mode"), [(CubicResizing(), "bicubic"), (LinearResizing(), "bilinear"), (AreaResizing(), "area")]
)
@pytest.mark.parametrize(
    ("source", "target"), [((1, 1), (7, 16)), ((3, 5), (16, 13)), ((16, 13), (5, 6)), ((4, 9), (4, 1))]
)
def test_maps_are_resized_as_torch_resizes_images(resizing: Resizing, mode: str, source, target) -> None:
    maps = torch.randn(2, DIM, *source, dtype=torch.float64)
    expected = F.interpolate(maps, size=target, mode=mode)
    found = resized(maps.movedim(1, -1), matrices(resizing.weights, source, target, maps.dtype, maps.device)).movedim(
        -1, 1
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


# ---------------------------------------------------------------------- the generator


def test_the_inputs_of_the_next_scale_are_the_sums_so_far_at_its_size() -> None:
    quantizer, f = var().eval(), images()
    indices, sums = published(quantizer, f)
    expected = [
        F.interpolate(total, size=(size, size), mode="area").flatten(2).mT
        for total, size in zip(sums, SCALES[1:], strict=False)
    ]
    inputs = quantizer.next_scale_inputs(torch.cat(indices, 1))
    torch.testing.assert_close(inputs, torch.cat(expected, 1), rtol=0, atol=ROUNDING)
    for number in range(1, len(SCALES)):  # a sampler reads the last
        last = quantizer.next_scale_inputs(torch.cat(indices[:number], 1))[:, -(SCALES[number] ** 2) :]
        torch.testing.assert_close(last, expected[number - 1], rtol=0, atol=ROUNDING)


# ---------------------------------------------------------------------- Infinity


def infinity(stage: Callable[..., BinaryQuantizer] = BSQ, **options) -> MultiScaleQuantizer:
    options = {"up": LinearResizing(), "num_phis": 0, "losses": [], "channel_dim": 1} | options
    return MultiScaleQuantizer(partial(stage, DIM), SCALES, **options).double()


def bits_of(indices: Tensor) -> Tensor:
    """(...) -> (..., DIM), highest bit first."""
    return indices.unsqueeze(-1) >> torch.arange(DIM).flip(0) & 1


def test_bits_are_the_signs_of_what_the_scales_before_leave_over() -> None:
    quantizer, f = infinity().eval(), images()
    rest, total, indices = f, torch.zeros_like(f), []
    for size in SCALES:
        rows = F.interpolate(rest, size=(size, size), mode="area")
        code = torch.where(rows > 0, 1.0, -1.0).double() / DIM**0.5
        h = F.interpolate(code, size=(16, 16), mode="bilinear")
        rest, total = rest - h, total + h
        places = 2 ** torch.arange(DIM).flip(0)
        indices.append(((rows > 0).movedim(1, -1) * places).sum(-1).flatten(1))
    output = quantizer(f)
    assert torch.equal(output.indices, torch.cat(indices, 1))
    torch.testing.assert_close(output.quantized, total, rtol=0, atol=ROUNDING)


def test_self_correction_labels_what_the_disturbed_sum_leaves_over() -> None:
    """Algorithm 2: the bits that were turned over are found again from the inputs, scale by scale."""
    quantizer, f = infinity().eval(), images(16)
    labels, inputs = quantizer.self_corrected(f, BitFlips(0.8, num_scales=9), step=5)
    total, shares = torch.zeros_like(f), []
    starts = [0, *quantizer.ends]
    for number, size in enumerate(SCALES):
        rows = F.interpolate(f - total, size=(size, size), mode="area")
        code = torch.where(rows > 0, 1, -1)
        found = labels[:, starts[number] : starts[number + 1]]
        assert torch.equal(bits_of(found).mT.reshape(code.shape) * 2 - 1, code)
        if number == len(SCALES) - 1:
            break
        # The flips are not seen; the inputs of all later scales tell the sum, at its full size for the last one.
        turned = BitFlips(0.8)(quantizer.stages[0], found.view(16, size, size), draw=5 * 10 + number, seed=0)
        disturbed = bits_of(turned).movedim(-1, 1) * 2 - 1
        shares.append((disturbed != code).double().mean((1, 2, 3)))
        total = total + F.interpolate(disturbed.double() / DIM**0.5, size=(16, 16), mode="bilinear")
        following = SCALES[number + 1]
        expected = F.interpolate(total, size=(following, following), mode="bilinear").flatten(2).mT
        start = starts[number + 1] - 1
        torch.testing.assert_close(inputs[:, start : start + following**2], expected, rtol=0, atol=ROUNDING)
    # Of the 13 x 13 x 6 bits of a sample a share that is uniform in [0, 0.8]: one of 16 is small and one is large.
    assert shares[-1].min() < 0.2 and shares[-1].max() > 0.6 and shares[-1].max() < 0.85


def test_bits_are_turned_over_in_training_alone_and_the_indices_stay_those_that_were_chosen() -> None:
    for estimator in ({}, {"estimator": None}):
        quantizer, f = infinity(LFQ, flips=BitFlips(0.5), **estimator), images().requires_grad_()
        first, second = quantizer(f), quantizer(f)
        assert not torch.equal(first.quantized, second.quantized)
        assert torch.equal(first.indices[:, 0], quantizer.encode(f)[:, 0])
        first.quantized.sum().backward()
        assert f.grad.abs().sum() > 0
        quantizer.eval()
        assert torch.equal(quantizer(f).quantized, quantizer.decode(quantizer.encode(f)))


def test_no_flips_are_no_flips() -> None:
    quantizer, f = infinity().eval(), images()
    labels, inputs = quantizer.self_corrected(f, BitFlips(0.0), step=1)
    assert torch.equal(labels, quantizer.encode(f))
    expected = quantizer.next_scale_inputs(labels, resizing=LinearResizing())
    torch.testing.assert_close(inputs, expected, rtol=0, atol=ROUNDING)


# ---------------------------------------------------------------------- VCQ


def test_a_scale_chooses_the_nearest_of_the_first_codes_that_it_has() -> None:
    sizes = [1, 2, 4, 4, 8, 8, 16, 16, 32, 64]
    quantizer, f = var(level_sizes=sizes, num_phis=0, losses=[]).eval(), images()
    assert quantizer.level_sizes == tuple(sizes) and quantizer.codebook_sizes == (64,)
    codes, rest, indices = quantizer.stages[0].codebook.vectors, f, []
    for scale, size in zip(SCALES, sizes, strict=True):
        rows = F.interpolate(rest, size=(scale, scale), mode="area").permute(0, 2, 3, 1).reshape(-1, DIM)
        nearest = (rows.unsqueeze(1) - codes[:size]).square().sum(-1).argmin(1)
        grid = codes[nearest].view(2, scale, scale, DIM).permute(0, 3, 1, 2)
        rest = rest - F.interpolate(grid, size=(16, 16), mode="bicubic")
        indices.append(nearest.view(2, -1))
    found = quantizer.encode(f)
    assert torch.equal(found, torch.cat(indices, 1))
    broken = found.clone()
    broken[0, 2] = 2  # the second scale has two codes
    with pytest.raises(ValueError, match=r"indices lie in \d ... 2: expected -1 \(left out\) or 0 ... 1"):
        quantizer.decode(broken)


# ---------------------------------------------------------------------- one codebook for all scales


def test_a_shared_codebook_moves_by_the_vectors_of_all_scales_at_once() -> None:
    """As the moving average of one batch that holds them all: appendix A.1 of van den Oord et al. 2017."""
    torch.manual_seed(0)
    stage = partial(
        Quantizer, "ema", dim=DIM, codebook_size=8, codebook=partial(EMACodebook, usage_decay=0.5), maintenance=[]
    )
    quantizer = MultiScaleQuantizer(stage, [1, 2, 4], num_phis=0, losses=[], channel_dim=1).double()
    torch.nn.init.normal_(quantizer.stages[0].codebook.vectors)
    codes, usage = (getattr(quantizer.stages[0].codebook, name).clone() for name in ("vectors", "usage"))
    f = images(size=4)
    counts, sums, rest = torch.zeros(8).double(), torch.zeros(8, DIM).double(), f
    for size in (1, 2, 4):
        rows = F.interpolate(rest, size=(size, size), mode="area").permute(0, 2, 3, 1).reshape(-1, DIM)
        chosen = F.one_hot((rows.unsqueeze(1) - codes).square().sum(-1).argmin(1), 8).double()
        counts, sums = counts + chosen.sum(0), sums + chosen.mT @ rows
        grid = (chosen @ codes).view(2, size, size, DIM).permute(0, 3, 1, 2)
        rest = rest - F.interpolate(grid, size=(4, 4), mode="bicubic")
    quantizer(f)
    assert torch.equal(quantizer.stages[0].codebook.vectors, codes)  # nothing moves within the forward
    quantizer.step()
    expected = (0.5 * usage.unsqueeze(1) * codes + 0.5 * sums) / (0.5 * usage + 0.5 * counts).unsqueeze(1)
    torch.testing.assert_close(quantizer.stages[0].codebook.vectors, expected, rtol=0, atol=ROUNDING)
    assert quantizer.stages[0].codebook.steps == 1


def test_policies_of_a_shared_codebook_draw_from_the_vectors_of_all_scales() -> None:
    """Each of 7 codes that nothing chose becomes one of the batch's 7 vectors: 1, and 6 of the second scale."""
    restart, book = RandomRestart(every=1), partial(EMACodebook, usage_decay=0.0)
    stage = partial(Quantizer, "ema", dim=DIM, codebook_size=8, codebook=book, maintenance=[restart])
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(stage, [1, [2, 3]], num_phis=0, losses=[], channel_dim=1).double()
    codebook = quantizer.stages[0].codebook
    codebook.vectors.copy_(1e3 * torch.arange(8).unsqueeze(1))
    f = 1 + 0.1 * images(1, 16)[:, :, :2, :3]
    quantizer(f)
    quantizer.step()
    first = codebook.vectors[0].clone()
    quantizer(f)
    rest = (f - first.view(1, -1, 1, 1)).movedim(1, -1).reshape(-1, DIM)
    vectors = torch.cat([f.mean((2, 3)), rest])
    distances = torch.cdist(codebook.vectors, vectors)
    assert (distances[1:].min(0).values < ROUNDING).all()
