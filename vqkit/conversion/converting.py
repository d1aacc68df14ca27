"""From a file of published weights to a folder that `from_pretrained` opens."""

import os
from pathlib import Path

from vqkit.conversion.dac import DAC, TransformersDAC
from vqkit.conversion.diffusers_vq import DiffusersVQModel
from vqkit.conversion.encodec import EnCodec
from vqkit.conversion.family import Family
from vqkit.conversion.fqgan import FQGAN
from vqkit.conversion.ibq import SeedVokenIBQ
from vqkit.conversion.licenses import UNKNOWN, check_accepted
from vqkit.conversion.llamagen import LlamaGenVQ
from vqkit.conversion.maskgit import MaskGITVQGAN
from vqkit.conversion.mimi import Mimi, TransformersMimi
from vqkit.conversion.open_magvit2 import OpenMAGVIT2
from vqkit.conversion.published import Fetched, published
from vqkit.conversion.simvq import SimVQImage
from vqkit.conversion.snac import SNAC
from vqkit.conversion.source import Source, read_source
from vqkit.conversion.taming import TamingGumbelVQGAN, TamingVQGAN
from vqkit.conversion.titok import TATiTok, TiTok
from vqkit.conversion.var import VARAutoencoder
from vqkit.conversion.wavtokenizer import TransformersWavTokenizer, WavTokenizer
from vqkit.saving.pretrained import check_replaceable
from vqkit.tokenizers.tokenizer import Tokenizer

FAMILIES: tuple[type[Family], ...] = (
    DiffusersVQModel,
    FQGAN,
    TATiTok,
    TiTok,
    LlamaGenVQ,
    VARAutoencoder,
    OpenMAGVIT2,
    SimVQImage,
    SeedVokenIBQ,
    MaskGITVQGAN,
    EnCodec,
    Mimi,
    TransformersMimi,
    TamingGumbelVQGAN,
    TamingVQGAN,
    TransformersDAC,
    DAC,
    SNAC,
    WavTokenizer,
    TransformersWavTokenizer,
)
"""The first whose telltale is there: key trees of later ones are parts of those before them."""


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    family: Family | None = None,
    license: str | None = None,
    accept_license: str | None = None,
) -> Tokenizer:
    """Read published weights, check them, and save the tokenizer that computes the same.

    Nothing of the file is run (`docs/security.md`), and every entry is accounted for. Whose weights they are and their
    license are written to `config.json`, under `provenance`, and kept where the tokenizer is saved again.

    Args:
        source: a file of weights, `.safetensors` or of `torch.save`, or a folder of diffusers or of huggingface_hub;
            where there is none, a name of published weights on the hub, such as
            "FoundationVision/LlamaGen/vq_ds16_c2i.pt" (`docs/weights.md`), which are fetched into the cache of
            huggingface_hub.
        destination: the folder to write; see `save_pretrained`.
        family: whose weights they are; None finds it out by the names of the entries.
        license: of the weights; None takes that of the model card (`README.md`) beside them, else the family's. Of
            weights on the hub: that of the card, else of our table.
        accept_license: the license once more, needed where it forbids commercial use.

    Returns:
        The tokenizer, in eval mode.

    Raises:
        FileNotFoundError: there is no such file, and no such name; or the hub cannot be reached.
        ValueError: the file is damaged or hostile, is of no known family or of several, its entries are not those of
            the family, its license has to be accepted, the name is that of several files, or the destination holds
            something else than a saved model; nothing is written then.
        TypeError: `family` is not a family, such as `LlamaGenVQ()`.
        ImportError: a name is given, and huggingface_hub is not installed.
    """
    if family is not None and not isinstance(family, Family):
        raise TypeError(f"family={family!r}: expected a family of vqkit.conversion, such as LlamaGenVQ()")
    check_replaceable(Path(destination))
    path = Path(source)
    if not path.exists():
        fetched = published(os.fspath(source)).fetch(license=license, accept_license=accept_license)
        return save_fetched(fetched, destination, family=family)
    found = read_source(path)
    family = family_of(found) if family is None else family
    terms = license or found.license or family.license or UNKNOWN
    check_accepted(terms, accept_license, found.file)
    return _save(found, family, destination, license=terms)


def save_fetched(fetched: Fetched, destination: str | os.PathLike[str], *, family: Family | None = None) -> Tokenizer:
    """`convert` for weights that were fetched by their name, and whose license was looked at.

    Args:
        fetched: the weights.
        destination: the folder to write.
        family: None for that of the table.
    """
    weights = fetched.weights
    origin = {"license": fetched.license, "published": weights.name, "revision": fetched.commit}
    return _save(read_source(fetched.file), family or weights.family, destination, **origin)


def family_of(source: Source) -> Family:
    """The family whose names the entries have.

    Raises:
        ValueError: there is none, or several have them.
    """
    for family in FAMILIES:
        if family.recognizes(source):
            return family()
    known = "; ".join(f"{family.name} ({family.telltale})" for family in FAMILIES)
    shown = ", ".join(map(repr, sorted(source.state)[:4]))
    raise ValueError(f"{source.file} is of no known family: it holds {shown}; expected an entry of {known}")


def _save(found: Source, family: Family, destination: str | os.PathLike[str], **origin: str) -> Tokenizer:
    tokenizer = family.read(found).eval()
    tokenizer.provenance = {"family": family.name, "file": found.file.name, **origin}
    if left_out := family.left_out(found):
        tokenizer.provenance |= {"left_out": ", ".join(left_out)}
    tokenizer.save_pretrained(destination)
    return tokenizer
