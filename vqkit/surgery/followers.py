"""What was made with a codebook, and follows when it is cut: optimizers, token shards, language models, tokenizers."""

import copy
import os

import torch
from torch import Tensor
from torch.optim import Optimizer

from vqkit import distributed
from vqkit.precision import widened
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.quantizer import Quantizer
from vqkit.surgery.maps import CodeMap
from vqkit.surgery.results import Surgery
from vqkit.tokenizers.tokenizer import Tokenizer
from vqkit.tokens.manifests import read_manifests
from vqkit.tokens.reader import TokenShards
from vqkit.tokens.writer import TokenShardWriter


def with_quantizer(tokenizer: Tokenizer, quantizer: BaseQuantizer) -> Tokenizer:
    """A copy of a tokenizer with another quantizer, such as `Surgery.quantizer`, to be trained on or saved.

    Args:
        tokenizer: stays as it was.
        quantizer: of the same `dim` and `channel_dim`; it is not copied.

    Raises:
        ValueError: the sizes differ.
    """
    old = tokenizer.quantizer
    if (old.dim, old.channel_dim, old.moments) != (quantizer.dim, quantizer.channel_dim, quantizer.moments):
        raise ValueError(
            f"quantizer has dim={quantizer.dim} and channel_dim={quantizer.channel_dim}: expected {old.dim} and "
            f"{old.channel_dim}, those of the latents"
        )
    other = copy.deepcopy(tokenizer, {id(old): quantizer})
    other.record(quantizer=quantizer)
    return other


@torch.no_grad()
def carry_optimizer(optimizer: Optimizer, before: BaseQuantizer, surgery: Surgery) -> None:
    """Let an optimizer train the new quantizer's parameters in the places of the old one's, and keep its moments.

    Moments of codes that became one are averaged by usage, those of a code that was split are copied.

    Args:
        optimizer: of which parameters and state are replaced; parameters that it does not hold are left out.
        before: the quantizer that was cut.
        surgery: what it became.
    """
    rows: dict[int, tuple[CodeMap, Tensor]] = {}
    codebooks = (part.codebook for part in before.modules() if isinstance(part, Quantizer))  # by level
    for part, code_map in zip(codebooks, surgery.maps, strict=True):
        for name in part.per_code:
            rows[id(getattr(part, name))] = code_map, part.usage
    for name, old in before.named_parameters():
        new = surgery.quantizer.get_parameter(name)
        for group in optimizer.param_groups:
            group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
        for key, value in (state := optimizer.state.pop(old, {})).items():
            if id(old) in rows and isinstance(value, Tensor) and value.shape[:1] == old.shape[:1]:  # or one for a row
                code_map, usage = rows[id(old)]
                state[key] = code_map.average(value, usage)
        if state:
            optimizer.state[new] = state


def carry_shards(
    directory: str | os.PathLike[str], target: str | os.PathLike[str], surgery: Surgery, *, tokenizer: str = ""
) -> None:
    """Write token shards again with the indices of the new quantizer, without the data that they were made of.

    Ranks share the samples out among them.

    Args:
        directory: of shards that the old quantizer wrote.
        target: another directory, empty or left by an interrupted call.
        surgery: what became of the quantizer.
        tokenizer: where that with the new quantizer is saved, for the manifest.

    Raises:
        ValueError: another quantizer wrote the shards, or `target` holds others.
    """
    shards = TokenShards(directory)
    if shards.codebook_hash != surgery.codebook_hash:
        raise ValueError(
            f"{directory} has codebook_hash={shards.codebook_hash!r}: expected {surgery.codebook_hash!r}, that of the "
            "quantizer that was cut; cut the quantizer that wrote these tokens"
        )
    manifest = next(iter(read_manifests(shards.directory).values()))
    said = {"data_hash": manifest["data_hash"], "class_names": shards.class_names, "tokenizer": tokenizer}
    with TokenShardWriter(target, surgery.quantizer, **said) as writer:
        for number in range(distributed.rank(), len(shards), distributed.world_size()):
            if shards.names[number] in writer.done:
                continue
            sample = shards[number]
            labels = [sample["label"]] if "label" in sample else None
            extents = sample["extent"][None] if "extent" in sample else None
            writer.add(surgery.remap(sample["indices"][None]), [sample["name"]], labels=labels, extents=extents)


def carry_embedding(weight: Tensor, code_map: CodeMap, *, usage: Tensor | None = None, first: int = 0) -> Tensor:
    """The embedding of a language model for the new codes.

    Args:
        weight: (V, D) of which rows `first` ... `first + K - 1` are those of the codes; others stay.
        code_map: what became of the codes.
        usage: (K,) how much each code counts in the mean of those that became one; None counts all alike.
        first: of the rows; the offset of a level in a flat vocabulary.

    Returns:
        (V - K + K', D)

    Raises:
        ValueError: `weight` has too few rows, or `usage` is not that of the old codes.
    """
    size = len(code_map.new)
    if usage is not None and usage.shape != (size,):
        raise ValueError(f"usage has shape {tuple(usage.shape)}: expected ({size},), a count for each old code")
    if not 0 <= first <= len(weight) - size:
        raise ValueError(f"weight has {len(weight)} rows: expected {first} + {size} at least, first and the codes")
    before, rows, behind = weight.detach().split([first, size, len(weight) - first - size])
    return torch.cat([before, code_map.average(rows, usage), behind])


def carry_head(
    weight: Tensor,
    bias: Tensor | None,
    code_map: CodeMap,
    *,
    usage: Tensor | None = None,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """The output layer of a language model for the new codes: weights as `carry_embedding`, and a bias.

    The bias of a new code is the logarithm of the summed exponentials of those that became it, so that it has their
    probability, exactly where their weights are equal; codes of one origin share its probability.

    Args:
        weight: (V, D) of logits `weight @ hidden + bias`.
        bias: (V,); None is 0 everywhere.
        code_map: see `carry_embedding`.
        usage: see `carry_embedding`.
        first: see `carry_embedding`.

    Returns:
        weight (V - K + K', D) and bias (V - K + K',)

    Raises:
        ValueError: as for `carry_embedding`, or `bias` is not as long as `weight`.
    """
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}: expected ({len(weight)},), one for each row of weight")
    new_weight = carry_embedding(weight, code_map, usage=usage, first=first)
    old = widened(weight.new_zeros(len(weight)) if bias is None else bias.detach())
    before, own, behind = old.split([first, len(code_map.new), len(old) - first - len(code_map.new)])
    peak = own.max()
    new_bias = torch.cat([before, peak + code_map.count((own - peak).exp()).log(), behind])
    return new_weight, new_bias.to(weight.dtype)
