"""Training of a decoder by a teacher's codes: stage 1 of TiTok."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from trainers.core.objective import Objective
from trainers.image.networks.teacher import Teacher
from trainers.image.objectives.teacher import CodePrediction
from trainers.image.task import ImageTokenizerTask
from vqkit import Tokenizer, without_quantization
from vqkit.backbones.latent_tokens import CodeHead, LatentTokenDecoder
from vqkit.tokenizers.tokenizer import TokenizerOutput, in_dtype_of

FROM_THE_TEACHER = ("decoder.head.codes", "decoder.head.pixels")
"""Parts of the tokenizer that are the teacher's, and stay so."""


class CodePredictionTask(ImageTokenizerTask):
    """Trains a tokenizer whose decoder predicts the codes of a teacher; pictures are drawn in evaluation alone.

    A training step runs encoder, quantizer and decoder up to the logits, and the teacher's encoder. Code vectors and
    decoder of the teacher are copied into the head of the tokenizer, frozen. So the tokenizer is whole: it is measured
    by what it draws, and stage 2 is an `ImageTokenizerTask` that starts from it (`--init_from`) with `freeze: [encoder,
    quantizer]`. Other arguments are those of `ImageTokenizerTask`, without objectives, adversary and balancer.

    Args:
        tokenizer: with a `LatentTokenDecoder` of a `CodeHead`.
        teacher: folder of a saved tokenizer of pictures with one code for each patch; see `Teacher`. It is needed in
            training and wherever the task is built, and is in no checkpoint.
        freeze: see `TokenizerTask`, beside what the teacher gives.

    Raises:
        ValueError: the decoder has no such head, there is no such teacher, or it does not fit the head; when training
            starts, if weights that were loaded have the codes of another teacher.

    Source: Yu et al. 2024 (TiTok, arXiv:2406.07550), sec. 3.3.
    """

    def __init__(self, tokenizer: Tokenizer, *, teacher: str, freeze: Sequence[str] = (), **arguments: Any) -> None:
        head = head_of(tokenizer)
        if given := [name for name in ("adversary", "balancer") if arguments.get(name) is not None]:
            raise ValueError(
                f"{' and '.join(given)}: expected none, since no pictures are drawn in training; use them in stage 2, "
                "by trainers.image.ImageTokenizerTask"
            )
        shown = Teacher(teacher)
        if None not in (shown.patch_size, head.downsampling_factor) and shown.patch_size != head.downsampling_factor:
            raise ValueError(
                f"teacher={teacher!r} has a code for {shown.patch_size} x {shown.patch_size} pixels: expected "
                f"{head.downsampling_factor}, the patch_size of the tokenizer's decoder"
            )
        shown.give(head.codes, head.pixels)
        objectives: list[Objective] = [CodePrediction(shown)]
        super().__init__(tokenizer, objectives=objectives, freeze=[*FROM_THE_TEACHER, *freeze], **arguments)

    def on_train_start(self) -> None:
        """Refuse weights, of a checkpoint or of `--init_from`, that were trained by another teacher."""
        super().on_train_start()
        self.objective.teacher.check_given(head_of(self.tokenizer).codes)

    @property
    def objective(self) -> CodePrediction:
        """The only one."""
        (objective,) = self.objectives
        assert isinstance(objective, CodePrediction)
        return objective

    def reconstruct(self, inputs: Tensor) -> TokenizerOutput:
        """The tokenizer's output; in training with logits (B, K, h, w) in the place of pictures."""
        if not self.training:
            return super().reconstruct(inputs)
        encoder, decoder = self.tokenizer.encoder, self.tokenizer.decoder
        assert isinstance(decoder, LatentTokenDecoder)
        with without_quantization(self.tokenizer) if self.pretraining else nullcontext():
            output = self.tokenizer.quantizer(encoder(in_dtype_of(encoder, inputs)))
        tokens = decoder.patch_tokens(in_dtype_of(decoder, output.quantized))
        return TokenizerOutput(head_of(self.tokenizer).logits(tokens), output)

    def training_figures(self, inputs: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """See `ImageTokenizerTask`: the share of the codes that are predicted."""
        return {"code_accuracy": self.objective.accuracy(inputs, reconstruction)}


def head_of(tokenizer: Tokenizer) -> CodeHead:
    """The part of a tokenizer that predicts codes.

    Raises:
        ValueError: there is none.
    """
    head = getattr(tokenizer.decoder, "head", None)
    if not isinstance(tokenizer.decoder, LatentTokenDecoder) or not isinstance(head, CodeHead):
        raise ValueError(
            f"tokenizer.decoder={type(tokenizer.decoder).__name__} with head={type(head).__name__} predicts no codes: "
            "expected LatentTokenDecoder with head=CodeHead, of vqkit.backbones.latent_tokens"
        )
    return head
