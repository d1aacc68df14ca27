"""Many small books for each token against the equations of their papers, in float64: MGVQ."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit import (
    BaseQuantizer,
    ClusterReinit,
    Codebook,
    NestedGroupedQuantizer,
    ProbabilisticAnchor,
    Quantizer,
)

CLOSE = partial(torch.testing.assert_close, rtol=0, atol=1e-13)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def unit_books(z: Tensor, books: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of unit length in consecutive channels of z (N, G D): indices (N, G), value, commitment and codebook loss
    of each vector and book (N, G)."""
    parts = F.normalize(torch.stack(z.chunk(len(books), -1), 1), dim=-1)
    codes = F.normalize(torch.stack(books), dim=-1)
    indices = torch.einsum("ngd,gkd->ngk", parts, codes).argmax(-1)
    chosen = torch.stack([book[index] for book, index in zip(codes, indices.unbind(1), strict=True)], 1)
    value = (parts + (chosen - parts).detach()).flatten(1)
    commitment = (parts - chosen.detach()).square().mean(-1)
    return indices, value, commitment, (chosen - parts.detach()).square().mean(-1)


def with_random_books(quantizer: BaseQuantizer) -> BaseQuantizer:
    """In float64, each codebook another one: those that a factory builds are equal."""
    for part in quantizer.double().modules():
        if isinstance(part, Codebook):
            torch.nn.init.normal_(part.vectors)
    return quantizer


MGVQ_BOOK = partial(
    Quantizer, "cvq", dim=8, normalize=True, maintenance=[ClusterReinit(ProbabilisticAnchor("euclidean"))]
)
MGVQ = partial(NestedGroupedQuantizer, partial(MGVQ_BOOK, codebook_size=32), 4)


def test_mgvq_leaves_the_last_groups_out_as_one_number_decides() -> None:
    """Group i is 0 where u < p_i: a sample keeps 1, 2, 3, 4 groups with chances 0.2, 0.1, 0.1, 0.6."""
    quantizer = MGVQ()
    kept = torch.cat([quantizer(torch.randn(128, 2, 32)).indices >= 0 for _ in range(16)])
    depth = kept.sum(-1)
    assert torch.equal(kept, torch.arange(4) < depth.unsqueeze(-1)) and (depth == depth[:, :1]).all()
    expected = torch.tensor([0.2, 0.1, 0.1, 0.6])
    share = torch.bincount(depth[:, 0], minlength=5)[1:] / len(depth)
    assert ((share - expected).abs() < 4.5 * (expected * (1 - expected) / len(depth)).sqrt()).all()


@pytest.mark.parametrize("training", [True, False])
def test_mgvq_values_losses_and_gradients(training: bool) -> None:
    quantizer = with_random_books(MGVQ()).train(training)
    z, upstream = random(17, 3, 32).requires_grad_(), random(17, 3, 32)
    output = quantizer(z)  # unused codes moved to features before the search
    kept, own = output.indices >= 0, [group.codebook.vectors for group in quantizer.groups]
    assert kept.all() == (not training) and kept[..., 0].all()
    books = [book.detach().clone().requires_grad_() for book in own]
    x = z.detach().clone().requires_grad_()
    indices, value, commitment, codebook = unit_books(x.flatten(0, 1), books)
    rows = kept.flatten(0, 1)
    assert torch.equal(output.indices.flatten(0, 1), torch.where(rows, indices, -1))
    value = value * rows.repeat_interleave(8, 1)
    loss = (rows * (0.25 * commitment + codebook)).mean(0).mean()
    CLOSE(output.quantized.flatten(0, 1), value)
    CLOSE(output.loss, loss)
    ours = torch.autograd.grad(output.loss + (output.quantized * upstream).sum(), [z, *own])
    theirs = torch.autograd.grad(loss + (value * upstream.flatten(0, 1)).sum(), [x, *books])
    for one, other in zip(ours, theirs, strict=True):
        CLOSE(one, other)


def test_mgvq_decodes_the_first_groups() -> None:
    """`groups_to_use` of its code: the channels of the others are 0."""
    quantizer = MGVQ().double().eval()
    indices = quantizer.encode(random(5, 32))
    whole = quantizer.decode(indices)
    for groups in range(1, 5):
        part = quantizer.decode(indices[:, :groups])
        assert torch.equal(part[:, : 8 * groups], whole[:, : 8 * groups]) and not part[:, 8 * groups :].any()
        cut = torch.where(torch.arange(4) < groups, indices, -1)
        assert torch.equal(quantizer.decode(cut), part)
