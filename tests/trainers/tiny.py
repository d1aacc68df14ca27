"""A tokenizer, data and a trainer small enough for tests of single parts."""

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from vqkit import Quantizer, Tokenizer
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d

BACKBONE = {
    "dim": 8,
    "channels": 8,
    "channel_multipliers": (1,),
    "num_res_blocks": 1,
    "patch_size": 4,
    "norm_groups": 4,
}

LIGHTNING_REMARKS = [
    pytest.mark.filterwarnings(f"ignore:.*{remark}")
    for remark in ("does not have many workers", "is deprecated, use `isinstance")
]
"""What Lightning says about small runs, and about its own use of torch."""


def make_tokenizer(quantizer=None):
    quantizer = quantizer or Quantizer("ema", dim=8, codebook_size=16, channel_dim=1)
    torch.manual_seed(0)
    return Tokenizer(ConvEncoder2d(**BACKBONE), quantizer, ConvDecoder2d(**BACKBONE))


class Images(LightningDataModule):
    """Sixteen images, in order, to train and to validate."""

    resolution = 16

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size
        self.images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def train_dataloader(self):
        return DataLoader([{"image": image} for image in self.images], batch_size=self.batch_size)

    def val_dataloader(self):
        return self.train_dataloader()

    def test_dataloader(self):
        return self.train_dataloader()

    def initialization_dataloader(self):
        return self.train_dataloader()


def make_trainer(**arguments):
    options = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**(options | arguments))
