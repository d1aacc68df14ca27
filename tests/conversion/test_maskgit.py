"""MaskGIT's encoder and decoder, and files that are not those of its weights."""

from functools import partial

import torch
from torch import nn

from tests.conversion.files import added, changes_refused, filled, refuses_change, removed
from tests.conversion.maskgit import MaskGIT
from tests.test_image_backbones import build as build_kind
from vqkit.conversion import MaskGITVQGAN

build = partial(build_kind, "maskgit")


def test_a_new_model_passes_its_input_through_blocks_between_widths() -> None:
    encoder, decoder = build(channel_multipliers=(1, 2))
    first, second = (encoder(images) for images in (torch.zeros(1, 3, 4, 4), torch.randn(1, 3, 4, 4)))
    assert (first - second).abs().max() > 1e-3
    assert (decoder(first) - decoder(second)).abs().max() > 1e-4


def test_the_last_layer_makes_the_pictures() -> None:
    _, decoder = build()
    output = decoder.get_submodule(decoder.output_layer)
    nn.init.zeros_(output.weight)
    nn.init.constant_(output.bias, 0.75)
    assert torch.equal(decoder(torch.randn(1, 6, 2, 2)), torch.full((1, 3, 32, 32), 0.5))


test_entries_that_are_not_those_of_the_family_are_named = changes_refused(
    "VQGAN of MaskGIT",
    lambda: filled(MaskGIT).state,
    (removed("encoder.mid.1.conv2.weight"), r"entry 'encoder.mid.1.conv2.weight' is missing: expected shape \(64,"),
    (removed("quantize.embedding.weight"), "entry 'quantize.embedding.weight' is missing: expected a tensor of 2"),
    (removed("decoder.conv_out.weight"), "entry 'decoder.conv_out.weight' is missing: expected a tensor of 4 axes"),
    (added("encoder.conv_in.bias", 32), r"entry 'encoder.conv_in.bias' of shape \(32,\) is unexpected"),
    (added("encoder.down.1.block.0.nin_shortcut.weight", 64, 32, 1, 1), r"\(64, 32, 1, 1\): expected \(64, 64, 1"),
    (added("decoder.conv_in.weight", 64, 7, 3, 3), r"has shape \(64, 7, 3, 3\): expected \(64, 5, 3, 3\)"),
    (added("decoder.conv_out.bias", 3, dtype=torch.int64), "holds torch.int64: expected floating point"),
)


def test_a_decoder_without_levels_is_refused(tmp_path) -> None:
    message = r"there is no entry below 'decoder\.up\.0': expected the level"
    change = removed(r"decoder\.up\.")
    refuses_change("VQGAN of MaskGIT", filled(MaskGIT).state, change, message, tmp_path, family=MaskGITVQGAN())
