"""The training step of any modality: objectives, adversary, balancer, optimizer."""

from trainers.core.adversary import AdversarialLoss as AdversarialLoss
from trainers.core.adversary import Adversary as Adversary
from trainers.core.adversary import AdversaryOutput as AdversaryOutput
from trainers.core.adversary import FeatureMatching as FeatureMatching
from trainers.core.adversary import Hinge as Hinge
from trainers.core.adversary import LeastSquares as LeastSquares
from trainers.core.adversary import RelativeFeatureMatching as RelativeFeatureMatching
from trainers.core.balancer import LossBalancer as LossBalancer
from trainers.core.discriminator import Discriminator as Discriminator
from trainers.core.discriminator import DiscriminatorOutput as DiscriminatorOutput
from trainers.core.objective import Objective as Objective
from trainers.core.schedules import Constant as Constant
from trainers.core.schedules import Cosine as Cosine
from trainers.core.schedules import EntropyAnnealing as EntropyAnnealing
from trainers.core.schedules import Linear as Linear
from trainers.core.schedules import Schedule as Schedule
from trainers.core.schedules import StepDrops as StepDrops
from trainers.core.task import TokenizerTask as TokenizerTask
