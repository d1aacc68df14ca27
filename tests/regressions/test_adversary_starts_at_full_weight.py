"""The moment at which untrained discriminators join wrecks the codec: what they say is noise, and it counts in full.

Seen in: reports to taming-transformers#44, snac#27, audiocraft#281, stable-audio-tools#132 and AcademiCodec#27.
Avoided since 0.1.0: `Adversary(ramp_steps=...)` raises the weights of its terms from the start step on, while the
discriminators learn at full rate; with `LossBalancer` they are shares of a gradient of fixed length.
"""

from itertools import pairwise

import torch

from tests.regressions.faults import both
from trainers.audio import MultiScaleSTFTDiscriminator
from trainers.core import Adversary, LossBalancer

START, RAMP = 20, 50


class AtOnce(Adversary):
    """Counts in full from its first step on."""

    def weights(self, step: int) -> dict[str, float]:
        share = float(step >= self.start_step)
        return {"adversarial": share * self.weight, "feature_matching": share * self.feature_matching}


def adversary(kind: type[Adversary]) -> Adversary:
    discriminator = MultiScaleSTFTDiscriminator(window_lengths=[64], channels=2)
    return kind([discriminator], weight=3.0, start_step=START, ramp_steps=RAMP)


def check(kind: type[Adversary]) -> None:
    shares = [adversary(kind).weights(step)["adversarial"] / 3 for step in range(START + 2 * RAMP)]
    assert max(shares[:START]) == 0 and shares[-1] == 1
    assert max(after - before for before, after in pairwise(shares)) < 1.1 / RAMP


def test_the_balancer_bounds_what_a_wild_discriminator_does() -> None:
    reference, reconstruction = torch.randn(2, 1, 2, 800)
    reconstruction = reconstruction[None].reshape(2, 1, 800).requires_grad_()
    reference = reference.reshape(2, 1, 800)
    wild = adversary(Adversary)
    with torch.no_grad():
        for parameter in wild.parameters():
            parameter.mul_(10)
    terms = {"l1": (reconstruction - reference).abs().mean(), **wild(reference, reconstruction).generator}
    weights = {"l1": 1.0, **wild.weights(START + RAMP)}
    LossBalancer()(terms, weights, reconstruction).backward()
    assert terms["adversarial"] > 1e3
    assert reconstruction.grad.flatten(1).norm(dim=1).sum() <= 1.001


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(check, sound=[Adversary], faulty=[AtOnce])
