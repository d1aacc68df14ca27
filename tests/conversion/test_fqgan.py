"""FQGAN's encoder, and files that are not those of its weights."""

import pytest
import torch
from torch import nn

from tests.conversion.files import added, changes_refused, filled, refuses, refuses_change, removed
from tests.conversion.fqgan import FQGANDual, FQGANTriple
from tests.refusals import refused
from vqkit import convert
from vqkit.backbones.factorized import FactorizedEncoder2d
from vqkit.backbones.positions import InterpolatedPositions
from vqkit.saving.config import from_config, to_config

SMALL = {
    "image_size": 8,
    "branch_dims": (2, 3),
    "channels": 8,
    "norm_groups": 4,
    "num_res_blocks": 1,
    "channel_multipliers": (1, 2),
    "latent_channels": 6,
    "adapter_depth": 2,
    "adapter_heads": 2,
}


def build(**options) -> FactorizedEncoder2d:
    torch.manual_seed(0)
    return FactorizedEncoder2d(**SMALL | options)


def test_each_branch_gives_its_own_channels_and_trains_what_they_share() -> None:
    encoder = build(attention_factors=(2,))
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    latents = encoder(torch.randn(2, 3, 8, 8))
    assert latents.shape == (2, 5, 4, 4) and encoder.dim == 5 and encoder.downsampling_factor == 2
    latents[:, :2].square().sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in encoder.layers.parameters())
    assert all(bool(parameter.grad.any()) for parameter in encoder.branches[0].parameters())
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in encoder.branches[1].parameters())


def test_positions_decide_which_sizes_there_are() -> None:
    with pytest.raises(ValueError, match="a grid of 4 x 8 patches: positions were learned for 4 x 4"):
        build()(torch.zeros(1, 3, 8, 16))
    other = build(positions=InterpolatedPositions)
    other.load_state_dict(build().state_dict())
    assert other(torch.zeros(1, 3, 8, 16)).shape == (1, 5, 4, 8)


def test_the_configuration_builds_it_again() -> None:
    encoder = build(positions=InterpolatedPositions)
    again = from_config(to_config(encoder))
    again.load_state_dict(encoder.state_dict())
    images = torch.randn(1, 3, 8, 16)
    assert torch.equal(again(images), encoder(images))


test_bad_sizes_are_refused = refused(
    ({"branch_dims": ()}, r"branch_dims=\(\): expected a positive number for each branch"),
    ({"branch_dims": (8, 0)}, r"branch_dims=\(8, 0\): expected a positive number for each branch"),
    ({"image_size": 9}, "image_size=9: expected a multiple of the factor 2"),
    ({"adapter_depth": 0}, "adapter_depth=0: expected a positive number"),
    ({"adapter_heads": 3}, "num_heads=3: expected a divisor of the width 16"),
    ({"latent_channels": 0}, "latent_channels=0: expected a positive number"),
    ({"attention_factors": (4,)}, r"4 is no factor of a level \[1, 2\]"),
    ({"norm_groups": 3}, "norm_groups=3 does not divide the width 8"),
    by=lambda options: build(**options),
)


F16 = {"multipliers": (1, 1, 2, 2, 4), "attention_levels": (4,)}
F8 = {"multipliers": (1, 2, 2, 4), "attention_levels": (3,)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "levels", "megabytes"),
    [(FQGANDual, F16, 602), (FQGANDual, F8, 602), (FQGANTriple, F16, 638), (FQGANTriple, F8, 639)],
)
def test_the_published_files_are_as_large_as_these_trees(cls, levels, megabytes) -> None:
    """Sizes as the hub lists them, of ZechenBai/FQGAN; a file has some hundred kilobytes beside its numbers."""
    sizes = {"channels": 128, "num_res_blocks": 2, "latent_channels": 256, "dim": 8, "codebook_size": 16384}
    model = cls(**sizes, **levels, adapter_depth=6, device="meta")
    model(torch.empty(1, 3, 256, 256, device="meta"))
    assert -0.7 < sum(value.nbytes for value in model.state.values()) / 1e6 - megabytes < 0.5


HEAD = "encoder.semantic_head.0"


test_entries_that_are_not_those_of_the_family_are_named = changes_refused(
    "FQGAN",
    lambda: filled(FQGANDual).state,
    (removed(f"{HEAD}.transformer.1.attn.in_proj_bias"), r"in_proj_bias' is missing: expected shape \(192,\)"),
    (removed(f"{HEAD}.ln_post.weight"), r"ln_post.weight' is missing: expected shape \(64,\)"),
    (removed("quantize_sem.embedding.weight"), "'quantize_sem.embedding.weight' is missing: expected a tensor of 2"),
    (removed("quant_conv_sem.weight"), "'quant_conv_sem.weight' is missing: expected a tensor of 4 axes"),
    (removed("encoder.conv_out_vis.bias"), r"'encoder.conv_out_vis.bias' is missing: expected shape \(6,\)"),
    (added("encoder.norm_out.weight", 64), r"'encoder.norm_out.weight' of shape \(64,\) is unexpected"),
    (added("encoder.visual_head.0.positional_embedding", 63, 64), "its adapters have 63 positions: expected those"),
    (added(f"{HEAD}.positional_embedding", 16, 64), r"has shape \(16, 64\): expected \(64, 64\)"),
    (added("post_quant_conv.weight", 6, 5, 1, 1), "encoder.dim=10 and quantizer.dim=10|decoder.dim=5"),
    (added("decoder.conv_out.bias", 3, dtype=torch.int64), "holds torch.int64: expected floating point"),
    license="mit",
)


def test_names_of_more_layers_than_entries_are_refused_before_they_are_built(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("vqkit.conversion.fqgan.FactorizedEncoder2d", None)
    state = dict(filled(FQGANDual).state)
    state |= {f"encoder.visual_head.0.transformer.{n}.more": torch.zeros(1) for n in range(30)}
    refuses(state, "its names are those of 60 blocks: expected at most one for 12 of its ", tmp_path, license="mit")


def test_three_books_without_one_of_them_are_refused_by_its_name(tmp_path) -> None:
    change, message = removed("quantize_sem_mid.embedding.weight"), r"'quantize_sem_mid\.embedding\.weight' is missing"
    refuses_change("FQGAN", filled(FQGANTriple).state, change, message, tmp_path, license="mit")


def test_its_license_has_to_be_accepted_and_predictors_are_told_as_left_out(tmp_path) -> None:
    torch.save(filled(FQGANDual).state, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"its license 'cc-by-nc-4\.0' forbids commercial use"):
        convert(tmp_path / "weights.pt", tmp_path / "converted")
    told = convert(tmp_path / "weights.pt", tmp_path / "converted", accept_license="cc-by-nc-4.0").provenance
    assert told is not None and told["license"] == "cc-by-nc-4.0"
    assert told["left_out"] == "quantize_vis.codebook_used, quantize_sem.codebook_used, feat_pred_head."
