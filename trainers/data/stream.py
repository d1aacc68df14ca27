"""What data modules of all kinds share: a training stream that a checkpoint continues, and what is left out of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar

import lightning

from trainers.data.checks import check_fraction, check_least
from trainers.data.sampler import EvaluationLoader, TrainingLoader
from vqkit import distributed


class StreamData(lightning.LightningDataModule, ABC):
    """Samples under a root, divided, and an endless training stream that a checkpoint continues exactly.

    Args:
        root: File or folder of the samples.
        validation_root: That of the validation; None divides `root` by each sample's content.
        predict_root: That of what is predicted; None is `root`.
        batch_size: Samples in a training batch on one rank.
        num_workers: Processes that load; 0 loads in the training process, which is best when all files fit the cache.
        validation_fraction: Share of what is under `root` that validates, in (0, 1).
        repeats: How often an epoch goes over the training samples, so that one of few is worth its validation.
        seed: Seed of order and samples.

    Raises:
        ValueError: An argument is out of range.
    """

    noun: ClassVar[str]  # what one file is called, or one sample where files hold many

    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        root: str,
        *,
        validation_root: str | None = None,
        predict_root: str | None = None,
        batch_size: int = 16,
        num_workers: int = 2,
        validation_fraction: float = 0.1,
        repeats: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        least = {"batch_size": (batch_size, 1), "repeats": (repeats, 1), "num_workers": (num_workers, 0)}
        check_least(least | {"seed": (seed, 0)})
        check_fraction("validation_fraction", validation_fraction)
        self.root = Path(root).expanduser()
        self.validation_root = None if validation_root is None else Path(validation_root).expanduser()
        self.predict_root = self.root if predict_root is None else Path(predict_root).expanduser()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.validation_fraction = validation_fraction
        self.repeats = repeats
        self.seed = seed
        self._training: TrainingLoader | None = None
        self._predicted: Callable[[], Collection[str]] = tuple

    @abstractmethod
    def initialization_dataloader(self) -> TrainingLoader:
        """A training stream of its own, for `Tokenizer.initialize`: reading it does not move the training stream."""

    def start_stream(self, validation: int) -> None:
        """Puts the training stream at its start.

        Args:
            validation: How many samples validate.

        Raises:
            ValueError: There are too few samples for the batches, or for the ranks.
        """
        self._training = self.initialization_dataloader()
        world_size = distributed.world_size()
        if len(self._training) == 0:
            raise ValueError(
                f"{self._training.samples} training samples do not fill a batch of {self.batch_size} on each of "
                f"{world_size} rank(s). Lower batch_size, raise repeats (now {self.repeats}), or add "
                f"{self.noun}s to {self.root}."
            )
        if validation < world_size:
            raise ValueError(
                f"{validation} validation {self.noun}(s) cannot be divided among {world_size} ranks. Add "
                f"{self.noun}s, raise validation_fraction, or use fewer devices."
            )

    def train_dataloader(self) -> TrainingLoader:
        """The training stream; always the same object, so that its place is not lost when Lightning asks again."""
        if self._training is None:
            raise RuntimeError('Call setup("fit") before train_dataloader(); the Trainer does.')
        return self._training

    @abstractmethod
    def val_dataloader(self) -> EvaluationLoader:
        """What validates, each once, in order."""

    def test_dataloader(self) -> EvaluationLoader:
        """What validates again: it was never trained on."""
        return self.val_dataloader()

    def leave_out_predicted(self, names: Callable[[], Collection[str]]) -> None:
        """Leaves samples out of prediction, because their tokens are already written.

        Args:
            names: gives their names, the same on every rank; asked when the loader is made, after the weights are
                loaded.
        """
        self._predicted = names

    def state_dict(self) -> dict[str, Any]:
        """The place of the training stream.

        Lightning restores a loader's state only inside an unfinished epoch; a data module's always.
        """
        return {} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts the training stream where the checkpoint was written; without effect outside `fit`."""
        if self._training is not None and state_dict:
            self._training.load_state_dict(state_dict)
