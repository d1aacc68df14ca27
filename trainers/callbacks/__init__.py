"""What happens around the training step: reports, averages, checkpoints and token shards."""

from trainers.callbacks.checkpoints import BestCheckpoint as BestCheckpoint
from trainers.callbacks.checkpoints import LastCheckpoint as LastCheckpoint
from trainers.callbacks.checkpoints import SaveTokenizer as SaveTokenizer
from trainers.callbacks.progress import StepProgress as StepProgress
from trainers.callbacks.reconstructions import Reconstructions as Reconstructions
from trainers.callbacks.report import CodebookReport as CodebookReport
from trainers.callbacks.tokens import TokenWriter as TokenWriter
from trainers.callbacks.tracking import Tracking as Tracking
from trainers.callbacks.validation import ValidationSchedule as ValidationSchedule
from trainers.callbacks.weights import WeightEMA as WeightEMA
