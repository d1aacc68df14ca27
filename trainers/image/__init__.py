"""Training of image tokenizers: task, data, objectives."""

from trainers.image.data import ImageFolderData as ImageFolderData
from trainers.image.objectives import L1 as L1
from trainers.image.objectives import L2 as L2
from trainers.image.task import ImageTokenizerTask as ImageTokenizerTask
