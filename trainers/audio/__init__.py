"""Training of neural audio codecs: task, data, objectives, discriminators."""

from trainers.audio.corpora import Corpus as Corpus
from trainers.audio.data import AudioFolderData as AudioFolderData
from trainers.audio.discriminators.features import FeatureDiscriminator as FeatureDiscriminator
from trainers.audio.discriminators.multi_band import MultiBandSTFTDiscriminator as MultiBandSTFTDiscriminator
from trainers.audio.discriminators.multi_period import MultiPeriodDiscriminator as MultiPeriodDiscriminator
from trainers.audio.discriminators.multi_scale import MultiScaleDiscriminator as MultiScaleDiscriminator
from trainers.audio.discriminators.multi_scale_cqt import (
    MultiScaleSubBandCQTDiscriminator as MultiScaleSubBandCQTDiscriminator,
)
from trainers.audio.discriminators.multi_scale_stft import MultiScaleSTFTDiscriminator as MultiScaleSTFTDiscriminator
from trainers.audio.networks.teacher import SpeechTeacher as SpeechTeacher
from trainers.audio.objectives.distillation import ChannelCosine as ChannelCosine
from trainers.audio.objectives.distillation import FeatureDistance as FeatureDistance
from trainers.audio.objectives.distillation import FeatureDistillation as FeatureDistillation
from trainers.audio.objectives.distillation import FeatureL2 as FeatureL2
from trainers.audio.objectives.distillation import FeatureReconstruction as FeatureReconstruction
from trainers.audio.objectives.distillation import FrameCosine as FrameCosine
from trainers.audio.objectives.envelopes import EnvelopeCorrelation as EnvelopeCorrelation
from trainers.audio.objectives.loudness import LoudnessDifference as LoudnessDifference
from trainers.audio.objectives.spectral import ComplexSTFT as ComplexSTFT
from trainers.audio.objectives.spectral import LinearAndLogMel as LinearAndLogMel
from trainers.audio.objectives.spectral import MultiResolutionMel as MultiResolutionMel
from trainers.audio.objectives.spectral import MultiResolutionSTFT as MultiResolutionSTFT
from trainers.audio.objectives.stereo import SumAndDifference as SumAndDifference
from trainers.audio.objectives.waveform import NegativeSISDR as NegativeSISDR
from trainers.audio.objectives.waveform import WaveformL1 as WaveformL1
from trainers.audio.objectives.waveform import WaveformL2 as WaveformL2
from trainers.audio.task import AudioTokenizerTask as AudioTokenizerTask
from trainers.audio.transforms import LoudnessNormalization as LoudnessNormalization
from trainers.audio.transforms import PhaseShift as PhaseShift
from trainers.audio.transforms import PolarityFlip as PolarityFlip
from trainers.audio.transforms import SegmentTransform as SegmentTransform
from vqkit.media.channels import ChannelMean as ChannelMean
from vqkit.media.channels import Downmix as Downmix
from vqkit.media.channels import LoudestChannel as LoudestChannel
from vqkit.media.channels import OneChannel as OneChannel
