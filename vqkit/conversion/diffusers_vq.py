"""`VQModel` of the package diffusers, as `save_pretrained` writes it and hubs hold it."""

from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import NORM_GROUPS, AttentionNames, LayerNames, VQGANFamily
from vqkit.tokenizers.tokenizer import Tokenizer

SETTINGS = {"act_fn": "silu", "norm_type": "group", "_class_name": "VQModel"}
"""Entries of `config.json` that weights do not show, and the values that are meant here."""


class DiffusersVQModel(VQGANFamily):
    """VQModel of diffusers; its license differs from model to model.

    Norms have the groups that `config.json` says, 32 without one. Attention may have its layers under the names of
    before diffusers 0.16. Models with norms that see the latents (`norm_type: spatial`, MOVQ) are refused.

    Source: Rombach et al. 2021 (https://arxiv.org/abs/2112.10752); the package diffusers.
    """

    name = "VQModel of diffusers"
    telltale = "encoder.down_blocks.0.resnets.0.conv1.weight"
    encoder = LayerNames(
        residual="encoder.down_blocks.{level}.resnets.{block}",
        attention="encoder.down_blocks.{level}.attentions.{block}",
        resample="encoder.down_blocks.{level}.downsamplers.0.conv",
        middle=("encoder.mid_block.resnets.0", "encoder.mid_block.attentions.0", "encoder.mid_block.resnets.1"),
        first="encoder.conv_in",
        norm="encoder.conv_norm_out",
        last="encoder.conv_out",
        latent="quant_conv",
        shortcut="conv_shortcut",
    )
    decoder = LayerNames(
        residual="decoder.up_blocks.{place}.resnets.{block}",
        attention="decoder.up_blocks.{place}.attentions.{block}",
        resample="decoder.up_blocks.{place}.upsamplers.0.conv",
        middle=("decoder.mid_block.resnets.0", "decoder.mid_block.attentions.0", "decoder.mid_block.resnets.1"),
        first="decoder.conv_in",
        norm="decoder.conv_norm_out",
        last="decoder.conv_out",
        latent="post_quant_conv",
        shortcut="conv_shortcut",
    )
    attentions = (
        AttentionNames("group_norm", ("to_q", "to_k", "to_v"), "to_out.0", axes=2),
        AttentionNames("group_norm", ("query", "key", "value"), "proj_attn", axes=2),
    )

    def build(self, source: Source) -> Tokenizer:
        """See `Family`."""
        source.check_config(SETTINGS)
        return super().build(source)

    def norm_groups(self, source: Source) -> int:
        """See `VQGANFamily`."""
        return source.number("norm_num_groups", NORM_GROUPS)
