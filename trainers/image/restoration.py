"""Training of tokenizers that draw more than they were given: super-resolution, inpainting."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trainers.image.degradation import Degradation
from trainers.image.task import ImageTokenizerTask
from vqkit import Tokenizer
from vqkit.tokenizers.tokenizer import TokenizerOutput


class RestorationTask(ImageTokenizerTask):
    """Trains and measures a tokenizer that encodes a degraded picture and shall draw the original.

    Everything else is that of `ImageTokenizerTask`: objectives, adversary and measures compare with the original, and
    penalties on what is decoded see it (`TaughtVectors`). With `freeze: [decoder, quantizer.books]` and `--init_from`
    the encoder learns to find the codes that the decoder knows already. Prediction encodes pictures as they are.

    Args:
        tokenizer: of images.
        degradation: what is done to them before they are encoded.

    Source: stage 3 of AdaCode, Liu et al. 2023 (arXiv:2306.06513).
    """

    def __init__(self, tokenizer: Tokenizer, *, degradation: Degradation, **arguments: Any) -> None:
        super().__init__(tokenizer, **arguments)
        self.degradation = degradation

    def reconstruct(self, inputs: Tensor) -> TokenizerOutput:
        """The tokenizer's output for degraded pictures."""
        return super().reconstruct(self.degradation(inputs))

    def protocol(self, figures: Mapping[str, float], **circumstances: Any) -> dict[str, Any]:
        """See `ImageTokenizerTask`; with what was done to the pictures."""
        return super().protocol(figures, degradation=repr(self.degradation), **circumstances)
