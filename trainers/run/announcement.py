"""What a command is about to do, in lines for a person."""

import itertools
from collections.abc import Iterator, Sequence

from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from trainers.core.task import TokenizerTask
from trainers.run.run import Run
from vqkit import AudioTokenizer


def announcement(command: str, task: TokenizerTask, data: LightningDataModule, run: Run) -> Iterator[str]:
    """The model and its place, the data, and the weights that the command starts from.

    Args:
        command: fit, validate, test or predict.
        task: with the model.
        data: that have a line to say if they have `describe`, and `describe_prediction` for predict.
        run: of the command.

    Raises:
        ValueError: the data cannot be used, or tokens are asked of a model that has none.
    """
    tokenizer = task.tokenizer
    parts = {name: part.parameters() for name, part in task.parts().items()}
    sizes = {name: sum(parameter.numel() for parameter in part) for name, part in parts.items()}
    listed = ", ".join(f"{name} {size / 1e6:.2f} M" for name, size in sizes.items())
    if command == TrainerFn.PREDICTING:
        tokenizer.quantizer.check_has_codes("predict")
    books = tokenizer.quantizer.book_sizes
    codes = f"{codes_in_words(books)} codes" if books else f"{tokenizer.quantizer.dim} continuous channels"
    if isinstance(tokenizer, AudioTokenizer):
        codes += f" at {tokenizer.frame_rate:.4g} frames a second, {tokenizer.kbps:.3g} kbit/s"
    frozen = f"; frozen: {', '.join(task.frozen)}" if task.frozen else ""
    head_start = task.adversary.head_start_steps if task.adversary and command == TrainerFn.FITTING else 0
    alone = f"; discriminators learn alone for {head_start} steps" if head_start else ""
    yield f"{command} in {run.folder}: {listed} parameters, {codes}{frozen}{alone}"
    describe = "describe_prediction" if command == TrainerFn.PREDICTING else "describe"
    if hasattr(data, describe):  # a data module of one's own need not have it
        yield getattr(data, describe)()
    if run.origin:
        yield f"starting from {run.origin}"
    if run.progress:
        verb = "resuming from" if command == TrainerFn.FITTING else "weights of"
        yield f"{verb} {run.checkpoint}, step {run.progress.step} of run {run.weights_run or 'unknown'}"


def codes_in_words(sizes: Sequence[int]) -> str:
    """The sizes of the codebooks, in the order of the levels, those that repeat in one: 4096 + 3 x 1024."""
    counted = [(size, len(list(equal))) for size, equal in itertools.groupby(sizes)]
    return " + ".join(f"{count} x {size}" if count > 1 else str(size) for size, count in counted)
