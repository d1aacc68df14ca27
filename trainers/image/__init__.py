"""Training of image tokenizers: task, data, objectives."""

from trainers.image.data import ImageFolderData as ImageFolderData
from trainers.image.objectives import AbsoluteError as AbsoluteError
from trainers.image.objectives import SquaredError as SquaredError
from trainers.image.task import ImageTokenizerTask as ImageTokenizerTask
