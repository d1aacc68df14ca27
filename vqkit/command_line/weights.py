"""Published weights and saved tokenizers in lines for people, and families by what a user would write in Python."""

import ast
import inspect
import math
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

import torch

from vqkit.backbones.protocol import properties_of
from vqkit.conversion.converting import FAMILIES, family_of
from vqkit.conversion.family import Family
from vqkit.conversion.licenses import UNKNOWN, is_non_commercial
from vqkit.conversion.source import WEIGHTS_NAMES, read_source
from vqkit.saving.files import read_json
from vqkit.saving.pretrained import CONFIG_NAME, FORMAT
from vqkit.tokenizers.tokenizer import Tokenizer

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""Of files of weights."""


def family_named(text: str) -> Family:
    """The family that a call in Python would make.

    Args:
        text: the name of a class of `vqkit.conversion`, with arguments where it takes some: "LlamaGenVQ",
            "VARAutoencoder(scales=[1, 2, 4])". Arguments are numbers, words, lists; nothing is run.

    Raises:
        ValueError: there is no such family, or it does not take such arguments.
    """
    known = {family.__name__: family for family in FAMILIES}
    name = text.partition("(")[0].strip()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{text!r} names no family{hint}: expected one of {', '.join(known)}")
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Name):
            return known[name]()
        assert isinstance(call, ast.Call)
        values = [ast.literal_eval(argument) for argument in call.args]
        return known[name](*values, **{str(item.arg): ast.literal_eval(item.value) for item in call.keywords})
    except (AssertionError, SyntaxError, TypeError, ValueError) as error:
        takes = ", ".join(inspect.signature(known[name]).parameters) or "no arguments"
        raise ValueError(f"{text!r} cannot be made: {error}; {name} takes {takes}") from error


def are_weights(path: Path) -> bool:
    """Whether a path is that of published weights or of a saved tokenizer, and not of indices."""
    if path.is_dir():
        return any((path / name).is_file() for name in (CONFIG_NAME, *WEIGHTS_NAMES))
    return path.is_file() and path.suffix.lower() in SUFFIXES


def weights_description(path: Path, family: Family | None = None) -> list[str]:
    """Family, license and sizes, in lines; nothing is built but on the meta device.

    Args:
        path: a file of published weights, a folder of diffusers, or one of `save_pretrained`.
        family: of published weights; None finds it out.

    Raises:
        ValueError: the weights are refused, as by `convert`.
    """
    config = path / CONFIG_NAME
    if config.is_file() and read_json(config).get("format") == FORMAT:
        tokenizer = Tokenizer.from_pretrained(path)
        told: Mapping[str, str] = tokenizer.provenance or {}
        return [*(f"{name:<12}{text}" for name, text in told.items()), *sizes(tokenizer)]
    source = read_source(path)
    family = family or family_of(source)
    _, tokenizer, _ = family.plan(source)
    terms = source.license or family.license or UNKNOWN
    asks = ", which has to be accepted (--accept-license)" if is_non_commercial(terms) else ""
    left_out = [f"left_out    {', '.join(found)}"] if (found := family.left_out(source)) else []
    return [f"family      {family.name} ({type(family).__name__})", f"license     {terms}{asks}", *left_out,
            *sizes(tokenizer)]  # fmt: skip


def sizes(tokenizer: Tokenizer) -> list[str]:
    """Codes and parameters of a tokenizer, in lines."""
    quantizer, factor = tokenizer.quantizer, properties_of(tokenizer.encoder).downsampling_factor
    levels = ", ".join(f"{count} of {size:,} codes" for size, count in Counter(quantizer.level_sizes).items())
    lines = [f"levels      {levels or 'none, its latents are continuous'}"]
    if factor is not None:
        lines.append(f"factor      {factor}")
    parts = {name: sum(map(torch.Tensor.numel, part.parameters())) for name, part in tokenizer.named_children()}
    shares = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in parts.items())
    lines.append(f"parameters  {math.fsum(parts.values()) / 1e6:.2f} M: {shares}")
    return lines
