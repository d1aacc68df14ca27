"""Training of image tokenizers: task, data, objectives, discriminators."""

from trainers.image.data import ImageFolderData as ImageFolderData
from trainers.image.discriminators.augmentation import Color as Color
from trainers.image.discriminators.augmentation import Cutout as Cutout
from trainers.image.discriminators.augmentation import DiffAugment as DiffAugment
from trainers.image.discriminators.augmentation import Transformation as Transformation
from trainers.image.discriminators.augmentation import Translation as Translation
from trainers.image.discriminators.blur_patchgan import BlurPatchGAN as BlurPatchGAN
from trainers.image.discriminators.normalization import BatchNorm as BatchNorm
from trainers.image.discriminators.normalization import GroupNorm as GroupNorm
from trainers.image.discriminators.normalization import NoNorm as NoNorm
from trainers.image.discriminators.patchgan import PatchGAN as PatchGAN
from trainers.image.discriminators.stylegan import BlurResidualDiscriminator as BlurResidualDiscriminator
from trainers.image.discriminators.stylegan import StyleGAN2Discriminator as StyleGAN2Discriminator
from trainers.image.objectives import L1 as L1
from trainers.image.objectives import L2 as L2
from trainers.image.task import ImageTokenizerTask as ImageTokenizerTask
