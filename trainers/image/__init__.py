"""Training of image tokenizers: task, data, objectives."""

from trainers.image.data import ImageFolderData as ImageFolderData
from trainers.image.objectives.pixels import L1 as L1
from trainers.image.objectives.pixels import L2 as L2
from trainers.image.objectives.pixels import LogitLaplace as LogitLaplace
from trainers.image.objectives.variance import LearnedVariance as LearnedVariance
from trainers.image.task import ImageTokenizerTask as ImageTokenizerTask
