"""Training of tokenizers of plain vectors and of series: task, data, objectives, measures."""

from trainers.vectors.data import VectorData as VectorData
from trainers.vectors.objectives import CosineDistance as CosineDistance
from trainers.vectors.objectives import SquaredError as SquaredError
from trainers.vectors.task import VectorTokenizerTask as VectorTokenizerTask
