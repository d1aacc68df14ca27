"""LeCAM's averages of logits are plain numbers of one process: a resumed run pulls towards zero, and every process
towards averages of its own.

Seen in: SEED-Voken (read: attributes of an object that is no module, made of `logits.mean().item()`).
Avoided since 0.2.0: the averages are a buffer of the adversary, summed over all ranks once an optimizer step.
"""

import torch
from torch import Tensor, nn

from tests.regressions.faults import both
from trainers.core import Adversary, LeCAM
from trainers.image import NoNorm, PatchGAN


class InOneProcess(LeCAM):
    """Keeps them in an attribute."""

    def __init__(self, **arguments: float) -> None:
        super().__init__(**arguments)
        averages = self.averages
        del self.averages
        self.averages = averages


def adversary(kind: type[LeCAM]) -> Adversary:
    torch.manual_seed(0)
    return Adversary([PatchGAN(num_layers=1, channels=2, norm=NoNorm())], regularizers=[kind(weight=1.0)])


def loss(judge: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    real, fake = torch.rand(2, 2, 3, 8, 8, generator=generator)
    found = judge(real, fake).discriminator
    judge.fold()
    return found


def check(kind: type[LeCAM]) -> None:
    whole, resumed = adversary(kind), adversary(kind)
    loss(whole)
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(loss(whole), loss(resumed))


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(check, sound=[LeCAM], faulty=[InOneProcess])
