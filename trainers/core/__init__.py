"""The training step of any modality: objectives, adversary, balancer, optimizer."""

from trainers.core.adversary import AdversarialLoss as AdversarialLoss
from trainers.core.adversary import Adversary as Adversary
from trainers.core.adversary import AdversaryOutput as AdversaryOutput
from trainers.core.adversary import FeatureMatching as FeatureMatching
from trainers.core.adversary import Hinge as Hinge
from trainers.core.adversary import HingeNonSaturating as HingeNonSaturating
from trainers.core.adversary import LeastSquares as LeastSquares
from trainers.core.adversary import NonSaturating as NonSaturating
from trainers.core.adversary import RelativeFeatureMatching as RelativeFeatureMatching
from trainers.core.adversary import UnclippedHinge as UnclippedHinge
from trainers.core.balancer import AdaptiveWeight as AdaptiveWeight
from trainers.core.balancer import Balancer as Balancer
from trainers.core.balancer import LossBalancer as LossBalancer
from trainers.core.discriminator import Discriminator as Discriminator
from trainers.core.discriminator import DiscriminatorOutput as DiscriminatorOutput
from trainers.core.objective import Objective as Objective
from trainers.core.regularization import R1 as R1
from trainers.core.regularization import Augmentation as Augmentation
from trainers.core.regularization import BalancedConsistency as BalancedConsistency
from trainers.core.regularization import LeCAM as LeCAM
from trainers.core.regularization import Regularizer as Regularizer
from trainers.core.regularization import Turn as Turn
from trainers.core.task import TokenizerTask as TokenizerTask
