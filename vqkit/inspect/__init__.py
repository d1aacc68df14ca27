"""Looking into networks: codebooks behind their layers, what codes stand for, and what happens if they are others."""

from vqkit.inspect.attach import Attachment as Attachment
from vqkit.inspect.attach import attach as attach
from vqkit.inspect.occurrences import Occurrence as Occurrence
from vqkit.inspect.occurrences import sample_occurrences as sample_occurrences
from vqkit.inspect.statistics import CodeQuality as CodeQuality
from vqkit.inspect.statistics import CodeStatistics as CodeStatistics
