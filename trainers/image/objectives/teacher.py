"""What is learned from another tokenizer: its codes, or the vectors that its decoder reads."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.core.objective import LatentObjective
from trainers.image.networks.teacher import SavedTokenizer, Teacher
from trainers.image.objectives.objective import ImageObjective
from vqkit.runtime import autocast_disabled


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


class TaughtVectors(LatentObjective):
    """Makes the quantized vectors those that a teacher has of the original: share |v - t|^2 + |G - G'|^2, both means.

    G = V V^T / P is the Gram matrix of the vectors V (D, P) at P positions, by which textures are compared wherever
    they are, and t, G' are the teacher's. So an encoder learns to say of a degraded picture (`RestorationTask`) what
    the teacher says of the whole one; its decoder, which stays, draws the rest.

    Source: AdaCode, Liu et al. 2023 (arXiv:2306.06513), the loss behind the quantizer in its third stage, 0.25 and 1.
    Differs: its further losses, of the vectors in front of the quantizer to the codes of the original, and between the
    pictures of a batch, are left out. How it scales G we have not read.

    Args:
        teacher: folder of a saved tokenizer, such as `tokenizer` of a run. It is needed in training and wherever the
            task is built, and is in no checkpoint.
        share: factor of the first term, at least 0.
        weight: factor of the sum in the total.
        name: under which the sum is logged.

    Raises:
        ValueError: there is no such tokenizer, or `share` is negative; in `forward` if its vectors have another shape.
    """

    def __init__(self, teacher: str, *, share: float = 0.25, weight: float = 1.0, name: str = "taught_vectors") -> None:
        super().__init__(weight=weight, name=name)
        if not share >= 0:
            raise ValueError(f"share={share}: expected a factor of at least 0")
        self.teacher = SavedTokenizer(teacher)
        self.share = share

    def penalty(self, reference: Tensor, quantized: Tensor) -> Tensor:
        """See `LatentObjective`."""
        expected = self.teacher.vectors(reference).to(quantized.dtype)
        if expected.shape != quantized.shape:
            raise ValueError(
                f"quantized vectors have shape {tuple(quantized.shape)}: expected {tuple(expected.shape)}, that of "
                f"{self.teacher!r}"
            )
        with autocast_disabled(quantized.device):
            found, wanted = gram_matrices(quantized), gram_matrices(expected)
            return self.share * F.mse_loss(quantized, expected) + F.mse_loss(found, wanted)


def gram_matrices(vectors: Tensor) -> Tensor:
    """(B, D, *S) -> (B, D, D): V V^T / P of each sample."""
    flat = vectors.flatten(2)
    return flat @ flat.mT / flat.shape[-1]
