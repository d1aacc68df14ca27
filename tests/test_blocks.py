"""Running a module block by block gives what one run gives, for every context, hop and cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vqkit.tokenizers.chunking import run_in_blocks


def pieces_of(sequence, lengths, dim=-1):
    """`sequence` cut at the given lengths, over and over."""
    start, number = 0, 0
    while start < sequence.shape[dim]:
        length = min(lengths[number % len(lengths)], sequence.shape[dim] - start)
        yield sequence.narrow(dim, start, length)
        start, number = start + length, number + 1


@settings(max_examples=60, deadline=None)
@given(
    left=st.integers(0, 9),
    right=st.integers(0, 9),
    hop=st.integers(1, 5),
    block=st.integers(1, 7),
    length=st.integers(1, 60),
    cuts=st.lists(st.integers(1, 17), min_size=1, max_size=4),
)
def test_blocks_leave_no_trace(left, right, hop, block, length, cuts):
    torch.manual_seed(length)
    kernel = left + hop + right
    convolution = nn.Conv1d(1, 2, kernel, stride=hop).double()

    def run(x):
        return convolution(nn.functional.pad(x, (left, right)))

    sequence = torch.randn(2, 1, length, dtype=torch.float64)
    joined = run(nn.functional.pad(sequence, (0, -length % hop)))
    seen = []

    def counted(x):
        seen.append(x.shape[-1])
        return run(x)

    outputs = run_in_blocks(
        pieces_of(sequence, cuts), counted, context=(left, right), hop_length=hop, hops_per_block=block
    )
    torch.testing.assert_close(torch.cat(list(outputs), dim=-1), joined)
    most = block + -(-left // hop) + -(-right // hop)
    assert max(seen) <= most * hop


def test_expansion_along_another_axis():
    torch.manual_seed(0)
    convolution = nn.ConvTranspose1d(3, 1, 12, stride=4, padding=4).double()
    frames = torch.randn(2, 25, 3, dtype=torch.float64)

    def run(x):
        return convolution(x.movedim(1, 2))

    outputs = run_in_blocks(
        pieces_of(frames, [1, 6], dim=1), run, context=(1, 1), hops_per_block=3, dim=1, out_per_hop=4
    )
    torch.testing.assert_close(torch.cat(list(outputs), dim=-1), run(frames))


def test_too_little_context_shows():
    """The check above can fail: one sample of context less, and the edges of blocks are seen."""
    torch.manual_seed(0)
    convolution = nn.Conv1d(1, 1, 7, padding=3).double()
    sequence = torch.randn(1, 1, 40, dtype=torch.float64)
    outputs = run_in_blocks([sequence], convolution, context=(2, 3), hops_per_block=8)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(torch.cat(list(outputs), dim=-1), convolution(sequence))


def test_nothing_gives_nothing():
    assert list(run_in_blocks([], lambda x: x, context=(1, 1))) == []
