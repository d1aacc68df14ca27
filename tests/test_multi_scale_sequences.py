"""Multi-scale quantizers of sequences of any length: blocks of the last scale, each as if it were alone."""

from functools import partial

import pytest
import torch
from torch import Tensor

from vqkit import BSQ, BitFlips, GroupedQuantizer, LinearResizing, MultiScaleQuantizer, Quantizer
from vqkit.bitstream import TokenCodec
from vqkit.bitstream.fingerprint import fingerprint

DIM, SCALES, BLOCK, ROW = 4, [1, 2, 5], 5, 8
stage = partial(Quantizer, "vq", dim=DIM, codebook_size=16)
sequences = partial(MultiScaleQuantizer, scales=SCALES, axes=1)
bits = partial(sequences, partial(BSQ, 70, dim=DIM), up=LinearResizing(), num_phis=0, losses=[], estimator=None)
BUILDS = {
    "shared": partial(sequences, stage),
    "own": partial(sequences, [partial(stage, codebook_size=size) for size in (4, 8, 16)]),
    "groups": partial(sequences, partial(GroupedQuantizer, partial(stage, dim=2), 2)),
    "bits": bits,
}
each = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)


def initialized(build=BUILDS["shared"], **options) -> MultiScaleQuantizer:
    torch.manual_seed(0)
    quantizer = build(**options)
    quantizer.initialize([torch.randn(64, 2 * BLOCK, DIM)])
    return quantizer.double()


def frames(batch: int = 3, blocks: int = 3) -> Tensor:
    return torch.randn(batch, blocks * BLOCK, DIM, dtype=torch.float64)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """But for sums of DIM codes, resized and convolved, which another batch size may add in another order."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@each
def test_each_block_is_quantized_and_decoded_as_if_it_were_alone(build) -> None:
    quantizer, x = initialized(build).eval(), frames()
    output = quantizer(x)
    alone = [quantizer(part) for part in x.split(BLOCK, 1)]
    assert torch.equal(output.indices, torch.cat([one.indices for one in alone], 1))
    assert_near(output.quantized, torch.cat([one.quantized for one in alone], 1))
    indices = quantizer.encode(x)
    assert torch.equal(indices, output.indices) and torch.equal(quantizer.decode(indices), output.quantized)


@each
def test_a_training_step_is_that_of_the_blocks_as_a_batch(build) -> None:
    one, other, x = initialized(build), initialized(build), frames()
    results = []
    for quantizer, given in ((one, x), (other, x.reshape(-1, BLOCK, DIM))):
        given = given.clone().requires_grad_()
        output = quantizer(given)
        (output.loss + output.quantized.square().sum()).backward()
        gradients = [parameter.grad for parameter in quantizer.parameters()]
        results.append([output.loss.detach(), given.grad.reshape(x.shape), *gradients])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@each
def test_any_number_of_scales_decodes_in_every_block(build) -> None:
    quantizer, x = initialized(build).eval(), frames()
    indices = quantizer.encode(x)
    for number, end in enumerate(quantizer.ends, start=1):
        alone = [quantizer.decode(part[:, :end]) for part in indices.split(ROW, 1)]
        assert_near(quantizer.decode(quantizer.prefix(indices, number)), torch.cat(alone, 1))
    assert torch.equal(quantizer.prefix(indices, 3), indices) and not quantizer.prefix(indices, 0).ge(0).any()


@each
def test_indices_go_to_levels_steps_and_grids_and_back(build) -> None:
    quantizer = initialized(build)
    indices = quantizer.encode(frames())
    rows = quantizer.interleave(indices)
    assert rows.shape[:3] == (3, 3, ROW) and torch.equal(quantizer.deinterleave(rows), indices)
    levels = quantizer.split_levels(indices)
    first = 0
    for level, size in zip(levels, SCALES, strict=True):
        assert torch.equal(level, rows[:, :, first : first + size].flatten(1, 2))
        first += size
    assert torch.equal(quantizer.join_levels(levels), indices)
    grids = quantizer.to_grids(indices)
    assert len(grids) == len(quantizer.level_sizes) and torch.equal(quantizer.from_grids(grids), indices)
    columns = quantizer.by_level(indices)
    width = quantizer.num_codebooks
    assert columns.shape == (3, 3 * ROW, 3 * width)
    assert [int((column >= 0).sum()) for column in columns.unbind(-1)] == [
        9 * size for size in SCALES for _ in range(width)
    ]
    assert torch.equal(columns.view(3, 3 * ROW, 3, width).amax(2).reshape(indices.shape), indices)
    assert quantizer.indices_per_step == tuple(size for size in SCALES for _ in range(width))


def test_files_hold_the_scales_and_those_of_other_blocks_are_refused() -> None:
    quantizer = initialized()
    indices = quantizer.encode(frames())
    packed = TokenCodec.of(quantizer).pack(indices)
    assert [level.shape for level in packed.header.levels] == [(3,), (6,), (15,)]
    assert torch.equal(TokenCodec.of(quantizer).unpack(packed.content).indices, indices)
    pair, double = (MultiScaleQuantizer(stage, scales, axes=1) for scales in ([1, 2], [2, 4]))
    double.load_state_dict(pair.state_dict())
    assert fingerprint(pair) != fingerprint(double)
    with pytest.raises(ValueError, match="was written by another tokenizer"):
        TokenCodec.of(double).unpack(TokenCodec.of(pair).pack(pair.encode(torch.randn(1, 4, DIM))).content)


def test_a_sample_drops_the_same_scales_in_all_its_blocks() -> None:
    quantizer, x = initialized(dropout=1.0), frames(60)
    output = quantizer(x)
    used = torch.stack([(level >= 0).all(1) for level in quantizer.split_levels(output.indices)], 1)
    assert torch.equal(used, torch.stack([(level >= 0).any(1) for level in quantizer.split_levels(output.indices)], 1))
    depths = used.sum(1)
    assert torch.equal(used, torch.arange(3) < depths.unsqueeze(1)) and depths.unique().tolist() == [1, 2, 3]
    assert_near(quantizer.eval().decode(output.indices), output.quantized)


def test_what_is_filled_up_and_masked_counts_nowhere() -> None:
    quantizer, x = initialized(), frames(2, 3)
    mask = torch.ones(2, 3 * BLOCK, dtype=torch.bool)
    mask[1, BLOCK:] = False
    output = quantizer(torch.where(mask.unsqueeze(-1), x, 1e30), mask)
    assert (output.indices[1, ROW:] == -1).all() and not output.quantized[1, BLOCK:].any()
    blocks = torch.cat([x[0], x[1, :BLOCK]]).view(4, BLOCK, DIM)  # the four that there are, as a batch
    expected = initialized()(blocks)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-12, atol=0)
    assert torch.equal(output.indices[output.indices >= 0], expected.indices.flatten())
    assert_near(quantizer.eval().decode(output.indices), output.quantized)


def test_scales_of_groups_are_groups_of_scales() -> None:
    """Without phi, which sees all channels."""
    plain = partial(sequences, num_phis=0)
    joined = initialized(partial(plain, partial(GroupedQuantizer, partial(stage, dim=2), 2))).eval()
    x, books = frames(), joined.stages[0].groups
    for number, channels in enumerate(x.split(2, -1)):
        alone = plain(partial(stage, dim=2)).double().eval()
        alone.stages[0].load_state_dict(books[number].state_dict())
        assert torch.equal(alone.encode(channels), joined.encode(x)[..., number])
        assert_near(alone(channels).quantized, joined(x).quantized.split(2, -1)[number])


def test_a_generator_reads_block_after_block() -> None:
    quantizer, x = initialized(bits), frames()
    indices, corrected = quantizer.self_corrected(x, BitFlips(0.0), step=0)
    inputs = quantizer.next_scale_inputs(indices)
    assert inputs.shape == (3, 3 * (ROW - 1), DIM)
    alone = [quantizer.next_scale_inputs(part) for part in indices.split(ROW, 1)]
    assert_near(inputs, torch.cat(alone, 1))
    assert torch.equal(indices, quantizer.encode(x))
    assert_near(corrected, quantizer.next_scale_inputs(indices, resizing=LinearResizing()))


@pytest.mark.parametrize("shape", [(0, 2 * BLOCK), (2, 0)])
def test_without_frames_there_are_no_indices(shape: tuple[int, int]) -> None:
    quantizer = initialized()
    x = torch.zeros(*shape, DIM, dtype=torch.float64).requires_grad_()
    output = quantizer(x)
    assert output.indices.shape == (shape[0], shape[1] // BLOCK * ROW) and output.loss.item() == 0
    assert quantizer.decode(output.indices).shape == x.shape
    assert quantizer.by_level(output.indices).shape == (*output.indices.shape, 3)


def test_what_is_no_whole_block_is_refused() -> None:
    quantizer = initialized()
    with pytest.raises(ValueError, match=r"x is a map of \(7,\) vectors: expected a multiple of \(5,\), the last of"):
        quantizer(frames()[:, :7])
    with pytest.raises(ValueError, match=r"x is a map of \(\) vectors: expected a multiple of \(5,\)"):
        quantizer(frames()[0])
    with pytest.raises(ValueError, match="n one of 1, 3, 8, or a multiple of 8"):
        quantizer.decode(torch.zeros(2, 9, dtype=torch.int64))
    for width in (3, 9):  # scales of one block decode, but stand for no time of a stream
        with pytest.raises(ValueError, match=r"\(2, \d\): expected \(B, L\), L a multiple of 8, those of a block"):
            quantizer.interleave(torch.zeros(2, width, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"num_levels=4: expected 0 ... 3, the levels to keep"):
        quantizer.prefix(torch.zeros(2, 8, dtype=torch.int64), 4)
