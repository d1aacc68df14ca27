"""What a codec is trained to: distances of waveforms, adversaries, and the balance between them."""

from trainers.objectives.adversarial import AdversarialLoss as AdversarialLoss
from trainers.objectives.adversarial import Adversary as Adversary
from trainers.objectives.adversarial import AdversaryOutput as AdversaryOutput
from trainers.objectives.adversarial import FeatureMatching as FeatureMatching
from trainers.objectives.adversarial import Hinge as Hinge
from trainers.objectives.adversarial import LeastSquares as LeastSquares
from trainers.objectives.adversarial import RelativeFeatureMatching as RelativeFeatureMatching
from trainers.objectives.balancer import LossBalancer as LossBalancer
from trainers.objectives.base import Objective as Objective
from trainers.objectives.spectral import ComplexSTFT as ComplexSTFT
from trainers.objectives.spectral import LinearAndLogMel as LinearAndLogMel
from trainers.objectives.spectral import MultiResolutionMel as MultiResolutionMel
from trainers.objectives.spectral import MultiResolutionSTFT as MultiResolutionSTFT
from trainers.objectives.waveform import NegativeSISDR as NegativeSISDR
from trainers.objectives.waveform import WaveformL1 as WaveformL1
from trainers.objectives.waveform import WaveformL2 as WaveformL2
