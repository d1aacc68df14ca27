"""The variance of the likelihood is a parameter that no optimizer has: it stays where it began, and the reconstruction
is weighted as if there were none.

Seen in: latent-diffusion a506df5 (`logvar` of the loss is a parameter, and `configure_optimizers` takes encoder,
decoder and convolutions alone; read).
Avoided since 0.2.0: what objectives train has a group of its own in the optimizer.
"""

from tests.regressions.faults import both
from tests.trainers.tiny import LIGHTNING_REMARKS, Images, make_tokenizer, make_trainer
from trainers.core.optimization import parameter_groups
from trainers.image import L1, ImageTokenizerTask, LearnedVariance

pytestmark = LIGHTNING_REMARKS


class TokenizerAlone(ImageTokenizerTask):
    """Optimizes what it was told to train, and no more."""

    def parameter_groups(self) -> list[dict]:
        return parameter_groups(self.tokenizer, weight_decay=self.weight_decay)


def check(kind: type[ImageTokenizerTask]) -> None:
    objective = LearnedVariance([L1()])
    task = kind(make_tokenizer(), objectives=[objective], initialization_samples=256)
    make_trainer(max_steps=2).fit(task, datamodule=Images(8))
    assert objective.log_variance != 0


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[ImageTokenizerTask], faulty=[TokenizerAlone]
)
