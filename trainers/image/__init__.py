"""Training of image tokenizers: task, data, objectives."""

from trainers.image.data import ImageFolderData as ImageFolderData
from trainers.image.networks.efficientnet import EfficientNetLite0 as EfficientNetLite0
from trainers.image.networks.libraries import TimmNetwork as TimmNetwork
from trainers.image.networks.libraries import TorchvisionNetwork as TorchvisionNetwork
from trainers.image.networks.network import FrozenNetwork as FrozenNetwork
from trainers.image.networks.resizing import BicubicResize as BicubicResize
from trainers.image.networks.resizing import BilinearResize as BilinearResize
from trainers.image.networks.shift_tolerant import ShiftTolerantAlexNet as ShiftTolerantAlexNet
from trainers.image.networks.shift_tolerant import ShiftTolerantVGG16 as ShiftTolerantVGG16
from trainers.image.networks.weights import HubWeights as HubWeights
from trainers.image.networks.weights import PackagedWeights as PackagedWeights
from trainers.image.networks.weights import RandomWeights as RandomWeights
from trainers.image.networks.weights import Weights as Weights
from trainers.image.networks.weights import WeightsFile as WeightsFile
from trainers.image.objectives.features import FeatureDistance as FeatureDistance
from trainers.image.objectives.features import GramDistance as GramDistance
from trainers.image.objectives.lpips import LPIPS as LPIPS
from trainers.image.objectives.lpips import VGG16LPIPS as VGG16LPIPS
from trainers.image.objectives.lpips import VGG16STLPIPS as VGG16STLPIPS
from trainers.image.objectives.lpips import AlexNetLPIPS as AlexNetLPIPS
from trainers.image.objectives.lpips import AlexNetSTLPIPS as AlexNetSTLPIPS
from trainers.image.objectives.pixels import L1 as L1
from trainers.image.objectives.pixels import L2 as L2
from trainers.image.objectives.pixels import LogitLaplace as LogitLaplace
from trainers.image.objectives.variance import LearnedVariance as LearnedVariance
from trainers.image.task import ImageTokenizerTask as ImageTokenizerTask
