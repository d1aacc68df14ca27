"""A tokenizer, data and a trainer small enough for tests of single parts."""

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.plugins.environments import ClusterEnvironment
from torch import nn
from torch.utils.data import DataLoader

from trainers.audio import (
    AudioTokenizerTask,
    MultiPeriodDiscriminator,
    MultiResolutionMel,
    MultiScaleSTFTDiscriminator,
    WaveformL1,
)
from trainers.core import R1, Adversary, BalancedConsistency, LeCAM, UnclippedHinge
from trainers.image import (
    L1,
    L2,
    BilinearResize,
    DiffAugment,
    FrozenNetwork,
    GroupNorm,
    ImageTokenizerTask,
    PatchGAN,
    RandomWeights,
    Translation,
)
from vqkit import AudioTokenizer, Quantizer, Tokenizer
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.saving.weights import load_state, no_download

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


def make_image_task(tokenizer=None, **arguments):
    options = {"objectives": [L1(weight=0.5), L2()], "initialization_samples": 256}
    return ImageTokenizerTask(tokenizer or make_tokenizer(), **(options | arguments))


def make_network():
    """In-place activations, batch norm and dropout: what a frozen network must not be hurt by."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(8),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def make_frozen(weights=None, layers=(), **arguments):
    def build(state):
        return make_network() if state is None else load_state(make_network(), state)

    options = {"normalization": ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)), "resize": BilinearResize(16)} | arguments
    return FrozenNetwork(build, weights=weights or RandomWeights(), download=no_download, layers=layers, **options)


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


CODEC = {"dim": 8, "channels": 4, "strides": (2, 4), "dilations": (1,), "patch_size": 2}


def make_codec(quantizer=None, **arguments):
    quantizer = quantizer or Quantizer("ema", dim=8, codebook_size=16, channel_dim=1)
    torch.manual_seed(0)
    encoder, decoder = ConvEncoder1d(**CODEC), ConvDecoder1d(**CODEC)
    return AudioTokenizer(encoder, quantizer, decoder, **({"sample_rate": 16000} | arguments))


def make_adversary(**arguments):
    torch.manual_seed(1)
    discriminators = [
        MultiPeriodDiscriminator(periods=[2, 3], channels=2),
        MultiScaleSTFTDiscriminator(window_lengths=[64], channels=2),
    ]
    return Adversary(discriminators, **arguments)


def make_image_adversary(**arguments):
    """With an augmentation and every regularizer."""
    torch.manual_seed(1)
    consistency = BalancedConsistency(DiffAugment([Translation()], seed=1))
    options = {
        "loss": UnclippedHinge(),
        "weight": 0.8,
        "feature_matching": 0.0,
        "augmentation": DiffAugment(),
        "regularizers": [LeCAM(weight=0.1, decay=0.5), R1(weight=1.0, every_n_turns=2), consistency],
        "betas": (0.5, 0.9),
    }
    return Adversary([PatchGAN(num_layers=1, channels=4, norm=GroupNorm(2))], **(options | arguments))


def make_audio_task(tokenizer=None, **arguments):
    mel = MultiResolutionMel(16000, weight=1.0, window_lengths=[64, 128], mel_bins=[5, 10])
    options = {
        "objectives": [mel, WaveformL1(weight=1.0)],
        "validation_measures": ["si_sdr"],
        "test_measures": ["si_sdr", "mel_distance"],
        "initialization_samples": 256,
        "warmup_steps": 2,
        "learning_rate": 1e-3,
    }
    return AudioTokenizerTask(tokenizer or make_codec(), **(options | arguments))


class Sounds(LightningDataModule):
    """Sixteen waveforms of 20 ms, in order, to train; to validate and to test three of them, one by one."""

    sample_rate = 16000
    channels = 1

    def __init__(self, batch_size, *, channels=1, sample_rate=16000):
        super().__init__()
        self.batch_size, self.channels, self.sample_rate = batch_size, channels, sample_rate
        time = torch.arange(320) / 16000
        pitch = torch.linspace(100, 2000, 16 * channels).reshape(16, channels, 1)
        noise = torch.randn(16, channels, 320, generator=torch.Generator().manual_seed(2))
        self.sounds = 0.5 * torch.sin(2 * torch.pi * pitch * time) + 0.02 * noise

    def _loader(self, sounds, batch_size):
        samples = [{"audio": sound, "name": str(number)} for number, sound in enumerate(sounds)]
        return DataLoader(samples, batch_size=batch_size)

    def train_dataloader(self):
        return self._loader(self.sounds, self.batch_size)

    def val_dataloader(self):
        # Utterances of other lengths than the segments, and no whole number of frames.
        return self._loader([sound[:, : 150 + 50 * number] for number, sound in enumerate(self.sounds[:3])], 1)

    def test_dataloader(self):
        return self.val_dataloader()

    def initialization_dataloader(self):
        return self.train_dataloader()


def state_of(module):
    """Copies of the tensors of its state."""
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


def assert_equal(found, expected, name=""):
    """To the last bit: tensors, other values, and dictionaries of them."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key, value in expected.items():
            assert_equal(found[key], value, f"{name} {key}")
    else:
        assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected, name


class Spy(Callback):
    """Calls a function after every batch."""

    def __init__(self, look):
        self.look = look

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.look(trainer, pl_module, outputs)


def saving(path, *, at):
    """Saves a checkpoint after a step."""

    def save(trainer, *_):
        if trainer.global_step == at and not path.exists():
            trainer.save_checkpoint(path)

    return Spy(save)


class Started(ClusterEnvironment):
    """The process group of the fixture, which is there already."""

    creates_processes_externally = True
    main_address, main_port = "localhost", 0

    def __init__(self, rank, world):
        self.rank, self.world = rank, world

    @staticmethod
    def detect():
        return True

    def world_size(self):
        return self.world

    def set_world_size(self, size):
        assert size == self.world

    def global_rank(self):
        return self.rank

    def set_global_rank(self, rank):
        assert rank == self.rank

    def local_rank(self):
        return self.rank

    def node_rank(self):
        return 0


def fit_on_rank(rank, world, task, data, **arguments):
    """The state after training in float64 on this rank's share of each of the two batches of 8."""
    data.batch_size = 8 // world
    name = "images" if isinstance(data, Images) else "sounds"
    setattr(data, name, getattr(data, name).unflatten(0, (2, world, -1))[:, rank].flatten(0, 1))
    devices = {"devices": world, "strategy": "ddp", "plugins": [Started(rank, world)]} if world > 1 else {}
    options = {"max_steps": 2, "precision": "64-true", "use_distributed_sampler": False} | devices
    make_trainer(**(options | arguments)).fit(task, datamodule=data)
    return state_of(task)


def assert_two_ranks_are_one(fit, rank_pair, *, rtol, atol):
    """They end with equal states, which are that of one process with the joined batches."""
    alone = fit(0, 1)
    first, second = rank_pair(fit, 2)
    assert_equal(second, first)
    torch.testing.assert_close(first, alone, rtol=rtol, atol=atol)
