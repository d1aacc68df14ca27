"""FQGAN: one encoder, a transformer and a codebook for each branch, and one decoder."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from vqkit.backbones.factorized import FactorizedEncoder2d, TransformerAdapter2d
from vqkit.conversion.family import Entry, named_entries
from vqkit.conversion.llamagen import LlamaGenVQ
from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import VQGANFamily, check_blocks, layers_entries, number_of
from vqkit.parts.losses import CodebookLoss, Commitment, Entropy
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.disentanglement import PublishedDisentanglement
from vqkit.quantizers.grouped import GroupedQuantizer
from vqkit.quantizers.quantizer import Quantizer
from vqkit.quantizers.reduction import SumOverMembers


class Branch(NamedTuple):
    """Names of what a branch has.

    Attributes:
        name: behind which its convolutions, norm and table have their place.
        adapter: its transformer.
    """

    name: str
    adapter: str


DUAL = (Branch("vis", "encoder.visual_head.0"), Branch("sem", "encoder.semantic_head.0"))
TRIPLE = (
    Branch("vis", "encoder.visual_head.0"),
    Branch("sem_mid", "encoder.semantic_head_mid.0"),
    Branch("sem_high", "encoder.semantic_head_high.0"),
)
"""In the order in which the decoder reads their codes."""

ADAPTER_HEADS = 8
"""Of the attention in adapters, of which weights say nothing."""
BLOCK = {
    "attention_norm.": "ln_1.",
    "attention.query_key_value.": "attn.in_proj_",
    "attention.output.": "attn.out_proj.",
    "mlp.0.": "ln_2.",
    "mlp.1.": "mlp.c_fc.",
    "mlp.3.": "mlp.c_proj.",
}
"""Names of what is in a block of a transformer, ours and theirs."""


class FQGAN(VQGANFamily):
    """FQGAN with two or three codebooks, f16 and f8; the levels of its indices are visual, then semantic ones.

    Convolutions have the names of LlamaGen's tokenizer. What predicts the features of CLIP and DINOv2 in training is
    left out. Adapters know one size of pictures; the entries of their positions say which.

    Source: Bai et al. 2024 (https://arxiv.org/abs/2411.16681) and its released code.
    """

    name = "FQGAN"
    telltale = "quantize_vis.embedding.weight"
    unused = (
        *(f"quantize_{name}.codebook_used" for name in ("vis", "sem", "sem_mid", "sem_high")),
        *("feat_pred_head.", "mid_sem_feat_pred.", "high_sem_feat_pred."),
    )
    license = "cc-by-nc-4.0"
    encoder = replace(LlamaGenVQ.encoder, latent="quant_conv_vis")
    decoder = LlamaGenVQ.decoder

    def build_encoder(self, source: Source, **sizes: Any) -> nn.Module:
        """See `VQGANFamily`."""
        branches = branches_of(source)
        dims = [source.shape(f"quant_conv_{branch.name}.weight", 4)[0] for branch in branches]
        places = source.shape(f"{branches[0].adapter}.positional_embedding", 2)[0]
        if (side := math.isqrt(places)) ** 2 != places:
            raise ValueError(f"its adapters have {places} positions: expected those of a square")
        depth = number_of(lambda n: source.has_below(f"{branches[0].adapter}.transformer.{n}"))
        check_blocks(source, *({"depth": depth} for _ in branches), entries=2 * len(BLOCK))
        del sizes["dim"], sizes["latent_kernel_size"]
        return FactorizedEncoder2d(
            branch_dims=dims,
            image_size=side * 2 ** (len(sizes["channel_multipliers"]) - 1),
            adapter_depth=depth,
            adapter_heads=ADAPTER_HEADS,
            **sizes,
        )

    def build_quantizer(self, source: Source) -> BaseQuantizer:
        """Codes on the unit sphere, with the losses of the released scripts; see `VQGANFamily`."""
        losses = [CodebookLoss(), Commitment(0.25), Entropy(0.03, metric="euclidean")]
        group = partial(Quantizer, "vq", normalize=True, losses=losses)
        sizes = [source.shape(_table(branch), 2) for branch in branches_of(source)]
        return GroupedQuantizer(
            [partial(group, codebook_size=size, dim=dim) for size, dim in sizes],
            losses=[PublishedDisentanglement()],
            reduction=SumOverMembers(),
            channel_dim=1,
        )

    def encoder_entries(self, source: Source, encoder: nn.Module) -> Iterator[Entry]:
        """See `VQGANFamily`."""
        assert isinstance(encoder, FactorizedEncoder2d)
        names, shortcut, attention = self.encoder, self.encoder.shortcut, self.attention_names(source)
        trunk = self.trunk_order(encoder.recorded_arguments())
        yield from layers_entries("encoder.layers", encoder.layers, trunk, shortcut, attention)
        for number, ((name, adapter), branch) in enumerate(zip(branches_of(source), encoder.branches, strict=True)):
            assert isinstance(branch, nn.Sequential)
            target = f"encoder.branches.{number}"
            yield from _adapter_entries(f"{target}.0", branch[0], adapter)
            yield from layers_entries(
                target, branch[1:], (f"{names.norm}_{name}", f"{names.last}_{name}", f"quant_conv_{name}")
            )

    def quantizer_entries(self, source: Source, quantizer: BaseQuantizer) -> Iterator[Entry]:
        """See `VQGANFamily`."""
        assert isinstance(quantizer, GroupedQuantizer)
        for number, (branch, group) in enumerate(zip(branches_of(source), quantizer.groups, strict=True)):
            shape = (group.codebook_size, group.dim)
            yield Entry(f"quantizer.groups.{number}.codebook.vectors", {_table(branch): shape})


def branches_of(source: Source) -> tuple[Branch, ...]:
    """The branches of two codebooks, or of three where there is the table of one that only these have."""
    return TRIPLE if any(_table(branch) in source for branch in TRIPLE[1:]) else DUAL


def _table(branch: Branch) -> str:
    return f"quantize_{branch.name}.embedding.weight"


def _adapter_entries(target: str, adapter: nn.Module, name: str) -> Iterator[Entry]:
    """What each weight of the adapter `target` is taken from, which is published below `name`."""
    assert isinstance(adapter, TransformerAdapter2d)
    table = adapter.get_parameter("positions.table")
    height, width, channels = table.shape
    yield Entry(f"{target}.positions.table", {f"{name}.positional_embedding": (height * width, channels)})
    yield from named_entries(f"{target}.blocks", adapter.blocks, name, transformer_parts(len(adapter.blocks) - 2))


def transformer_parts(depth: int) -> dict[str, str]:
    """Names of a norm, so many blocks and another norm, ours and theirs."""
    blocks = {
        f"{1 + block}.{ours}": f"transformer.{block}.{theirs}"
        for block in range(depth)
        for ours, theirs in BLOCK.items()
    }
    return {"0.": "ln_pre.", **blocks, f"{1 + depth}.": "ln_post."}
