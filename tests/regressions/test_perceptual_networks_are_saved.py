"""Every checkpoint holds the perceptual network, hundreds of megabytes that never change: a tokenizer cannot be loaded
without it, and training mode switches its dropout on.

Seen in: taming-transformers 3ba01b2 (the state dict has LPIPS under `loss.perceptual_loss`; read). SEED-Voken filters
it out as it saves.
Avoided since 0.2.0: to what holds it a frozen network is no module.
"""

from torch import nn

from tests.regressions.faults import both
from tests.trainers.tiny import make_frozen, make_image_task
from trainers.image import L2, FeatureDistance, FrozenNetwork


class Registered(nn.Module):
    """The same network as a part of the objective."""

    def __init__(self, network: FrozenNetwork) -> None:
        super().__init__()
        self.network = network._held[0].network


def plain(network: FrozenNetwork) -> nn.Module:
    return network


def check(held) -> None:
    objective = FeatureDistance(make_frozen())
    objective.network = held(objective.network)
    saved, alone = (make_image_task(objectives=objectives) for objectives in ([L2(), objective], [L2()]))
    assert saved.state_dict().keys() == alone.state_dict().keys()
    saved.train()
    assert not any(isinstance(part, nn.Dropout) and part.training for part in saved.objectives.modules())


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(check, sound=[plain], faulty=[Registered])
