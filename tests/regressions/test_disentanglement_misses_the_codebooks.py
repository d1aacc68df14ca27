"""The penalty that shall make two codebooks say different things is computed on straight-through outputs, in which the
codes are constants: it never reaches a codebook.

Seen in: FQGAN (measured: the gradient of its disentanglement term to both codebooks is None).
Avoided since 0.1.0: `Disentanglement` looks the codes up with their gradient; the form of the released code is a part
of its own, `PublishedDisentanglement`.
"""

from functools import partial

import torch

from tests.regressions.faults import both
from vqkit import Disentanglement, GroupedQuantizer, GroupLoss, PublishedDisentanglement, Quantizer


def check(loss: type[GroupLoss]) -> None:
    group = partial(Quantizer, "vq", dim=8, codebook_size=16, normalize=True)
    quantizer = GroupedQuantizer(group, 2, losses=[loss()])
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    for part in quantizer.groups:
        torch.nn.init.normal_(part.codebook.vectors)
    x, values = torch.randn(256, 16), []
    for _ in range(30):
        optimizer.zero_grad()
        value = quantizer(x).losses["disentanglement"]
        if value.requires_grad:
            value.backward()
        optimizer.step()
        values.append(value.detach())
    assert all(part.codebook.vectors.grad is not None for part in quantizer.groups), "no gradient to a codebook"
    assert values[-1] < 0.5 * values[0]


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[Disentanglement], faulty=[PublishedDisentanglement], message="no gradient"
)
