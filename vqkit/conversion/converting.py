"""From a file of published weights to a folder that `from_pretrained` opens."""

import os
import re
from pathlib import Path

from vqkit.conversion.diffusers_vq import DiffusersVQModel
from vqkit.conversion.family import Family
from vqkit.conversion.fqgan import FQGAN
from vqkit.conversion.ibq import SeedVokenIBQ
from vqkit.conversion.llamagen import LlamaGenVQ
from vqkit.conversion.maskgit import MaskGITVQGAN
from vqkit.conversion.open_magvit2 import OpenMAGVIT2
from vqkit.conversion.simvq import SimVQImage
from vqkit.conversion.source import Source, read_source
from vqkit.conversion.taming import TamingGumbelVQGAN, TamingVQGAN
from vqkit.conversion.var import VARAutoencoder
from vqkit.saving.pretrained import check_replaceable
from vqkit.tokenizers.tokenizer import Tokenizer

FAMILIES: tuple[type[Family], ...] = (
    DiffusersVQModel,
    FQGAN,
    LlamaGenVQ,
    VARAutoencoder,
    OpenMAGVIT2,
    SimVQImage,
    SeedVokenIBQ,
    MaskGITVQGAN,
    TamingGumbelVQGAN,
    TamingVQGAN,
)
"""The first whose telltale is there: key trees of later ones are parts of those before them."""

UNKNOWN = "unknown"


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    family: Family | None = None,
    license: str | None = None,
    accept_license: str | None = None,
) -> Tokenizer:
    """Read published weights, check them, and save the tokenizer that computes the same.

    Nothing of the file is run (`docs/security.md`), and every entry is accounted for. The license is written to
    `config.json`, under `provenance`, and is kept where the tokenizer is saved again.

    Args:
        source: a file of weights, `.safetensors` or of `torch.save`, or a folder of diffusers.
        destination: the folder to write; see `save_pretrained`.
        family: whose weights they are; None finds it out by the names of the entries.
        license: of the weights; None takes that of the model card (`README.md`) beside them, else the family's.
        accept_license: the license once more, needed where it forbids commercial use.

    Returns:
        The tokenizer, in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or hostile, is of no known family or of several, its entries are not those of
            the family, its license has to be accepted, or the destination holds something else than a saved model;
            nothing is written then.
        TypeError: `family` is not a family, such as `LlamaGenVQ()`.
    """
    if family is not None and not isinstance(family, Family):
        raise TypeError(f"family={family!r}: expected a family of vqkit.conversion, such as LlamaGenVQ()")
    check_replaceable(Path(destination))
    found = read_source(Path(source))
    family = _family_of(found) if family is None else family
    terms = license or found.license or family.license or UNKNOWN
    if _is_non_commercial(terms) and accept_license != terms:
        raise ValueError(
            f"{found.file}: its license {terms!r} forbids commercial use; if you keep to it, give "
            f"accept_license={terms!r}"
        )
    tokenizer = family.read(found).eval()
    left_out = [start for start in family.unused if any(name.startswith(start) for name in found.state)]
    tokenizer.provenance = {"family": family.name, "file": found.file.name, "license": terms}
    if left_out:
        tokenizer.provenance |= {"left_out": ", ".join(left_out)}
    tokenizer.save_pretrained(destination)
    return tokenizer


def _family_of(source: Source) -> Family:
    for family in FAMILIES:
        if family.recognizes(source):
            return family()
    known = "; ".join(f"{family.name} ({family.telltale})" for family in FAMILIES)
    shown = ", ".join(map(repr, sorted(source.state)[:4]))
    raise ValueError(f"{source.file} is of no known family: it holds {shown}; expected an entry of {known}")


def _is_non_commercial(terms: str) -> bool:
    meant = r"(?<![a-z])nc(?![a-z])|non[-_ ]?commercial|research|academic"
    return re.search(meant, terms, flags=re.IGNORECASE) is not None
