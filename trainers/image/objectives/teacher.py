"""What a decoder says of the codes of another tokenizer."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.image.networks.teacher import Teacher
from trainers.image.objectives.objective import ImageObjective


class CodePrediction(ImageObjective):
    """The cross entropy -log p(c) of a teacher's codes c under predicted logits, in nats, averaged over the patches.

    In the place of reconstructions it takes logits (B, K, h, w), as `CodePredictionTask` gives them.

    Source: Yu et al. 2024 (TiTok, arXiv:2406.07550), sec. 3.3, the proxy codes of stage 1.

    Args:
        teacher: whose codes they are.
        weight: factor of the term in the total.
        name: under which the term is logged.

    Raises:
        ValueError: in `forward` if the logits are not those of the teacher's codes.
    """

    def __init__(self, teacher: Teacher, *, weight: float = 1.0, name: str = "code_prediction") -> None:
        super().__init__(weight=weight, name=name)
        self.teacher = teacher

    def check(self, reference: Tensor, reconstruction: Tensor) -> None:
        """See `Objective`."""
        if reference.ndim != 4 or reconstruction.ndim != 4 or len(reference) != len(reconstruction):
            raise ValueError(
                f"reference has shape {tuple(reference.shape)} and logits {tuple(reconstruction.shape)}: expected "
                "images (batch, channels, height, width) and logits (batch, codes, rows, columns)"
            )

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of images and logits (B, K, h, w), a scalar."""
        return F.cross_entropy(reconstruction, self.codes(reference, reconstruction))

    @torch.no_grad()
    def accuracy(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """The share of the codes, a scalar, that have the largest logit."""
        return (reconstruction.argmax(1) == self.codes(reference, reconstruction)).float().mean()

    def codes(self, reference: Tensor, logits: Tensor) -> Tensor:
        """The teacher's codes (B, h, w) of images.

        Raises:
            ValueError: there are logits of other codes or for another grid.
        """
        codes = self.teacher(reference)
        expected = (len(codes), self.teacher.codebook_size, *codes.shape[1:])
        if logits.shape != expected:
            raise ValueError(
                f"logits have shape {tuple(logits.shape)}: expected {expected}, those of the codes of {self.teacher!r}"
            )
        return codes
