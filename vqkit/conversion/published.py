"""Published weights that have a name here: where they are on the hub, whose they are, and who says so.

In the table is what the authors' own documentation, the hub's listing of the repository, or a library that loads it
names. Where its source names the repository alone, the file is that which the library fetches from it.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from vqkit.conversion.dac import TransformersDAC
from vqkit.conversion.diffusers_vq import DiffusersVQModel
from vqkit.conversion.encodec import EnCodec
from vqkit.conversion.family import Family
from vqkit.conversion.fqgan import FQGAN
from vqkit.conversion.ibq import SeedVokenIBQ
from vqkit.conversion.licenses import MODEL_CARD, check_accepted, is_non_commercial, license_of
from vqkit.conversion.llamagen import LlamaGenVQ
from vqkit.conversion.maskgit import MaskGITVQGAN
from vqkit.conversion.mimi import Mimi, TransformersMimi
from vqkit.conversion.open_magvit2 import OpenMAGVIT2
from vqkit.conversion.simvq import SimVQImage
from vqkit.conversion.snac import SNAC
from vqkit.conversion.titok import TATiTok, TiTok
from vqkit.conversion.var import VARAutoencoder
from vqkit.conversion.wavtokenizer import WavTokenizer
from vqkit.saving.hub import snapshot
from vqkit.saving.pretrained import CONFIG_NAME, WEIGHTS_NAME


@dataclass(frozen=True)
class PublishedWeights:
    """A file of weights on the hub.

    Attributes:
        repository: `"user/name"`.
        path: of the file in it.
        family: whose weights they are.
        license: as the card or the authors' repository has it; the stricter one where they differ.
        source: where the name of the file is confirmed.
    """

    repository: str
    path: str
    family: Family
    license: str
    source: str

    @property
    def name(self) -> str:
        """What a user types."""
        return f"{self.repository}/{self.path}"

    def fetch(
        self, *, revision: str | None = None, license: str | None = None, accept_license: str | None = None
    ) -> "Fetched":
        """Fetch the file into the cache of the hub's client, after a look at its license.

        Args:
            revision: branch, tag or commit; None means the default branch.
            license: of the weights; None takes that of the model card, or of the table where it is stricter.
            accept_license: see `convert`.

        Raises:
            FileNotFoundError: the hub cannot be reached, or has no such file any more.
            ValueError: the license has to be accepted, or the file leads out of the cache.
            ImportError: huggingface_hub is not installed.
        """
        asked = f"{self.name} is no file in {Path.cwd()}"
        card = snapshot(self.repository, [MODEL_CARD], revision=revision, asked=asked)
        stated = None if is_non_commercial(self.license) else license_of(card / MODEL_CARD)
        terms = license or stated or self.license
        check_accepted(terms, accept_license, self.name)
        beside = Path(self.path).with_name(CONFIG_NAME).as_posix()
        folder = snapshot(self.repository, [self.path, beside], revision=card.name, asked=asked)
        file, home = folder / self.path, folder.parents[1]
        if not file.is_file():
            raise FileNotFoundError(
                f"{self.repository} has no {self.path} at {folder.name}: it was there when this vqkit was written; "
                "give a revision of that time to from_pretrained"
            )
        for found in (file, folder / beside):
            if not found.resolve().is_relative_to(home.resolve()):
                raise ValueError(
                    f"{found} leads to {found.resolve()}, out of the cache: delete {home}, and fetch it again"
                )
        return Fetched(self, file, terms, folder.name, home)


class Fetched(NamedTuple):
    """Weights in the cache of the hub's client.

    Attributes:
        weights: which.
        file: where they are.
        license: of theirs, which was accepted where it has to be.
        commit: that they are of.
        home: folder of their repository in the cache.
    """

    weights: PublishedWeights
    file: Path
    license: str
    commit: str
    home: Path


LLAMAGEN = "github.com/FoundationVision/LlamaGen, README"
FQGAN_FILES = "github.com/showlab/FQGAN, README"
IBQ = "github.com/TencentARC/SEED-Voken, docs/IBQ.md"
MAGVIT2 = "github.com/TencentARC/SEED-Voken, docs/Open-MAGVIT2.md"
TITOK = "github.com/bytedance/1d-tokenizer, README_{}.md"
SNAC_CODE = "github.com/hubertsiuzdak/snac, README and snac/snac.py"
CANDLE = "github.com/huggingface/candle, candle-examples/examples/{}/main.rs"
MOSHI = "github.com/kyutai-labs/moshi, README and moshi/moshi/models/loaders.py"
WAVTOKENIZER = "github.com/jishengpeng/WavTokenizer, README"
WAVTOKENIZER_FILES = (
    "github.com/huggingface/transformers, src/transformers/models/wavtokenizer/convert_wavtokenizer_checkpoint.py"
)
LISTED = "huggingface.co/{}, its list of files"
TRANSFORMERS_TESTS = "github.com/huggingface/transformers, tests/models/{0}/test_modeling_{0}.py"

_TABLE: tuple[tuple[str, str, Family, str, str], ...] = (
    ("FoundationVision/LlamaGen", "vq_ds16_c2i.pt", LlamaGenVQ(), "mit", LLAMAGEN),
    ("FoundationVision/LlamaGen", "vq_ds8_c2i.pt", LlamaGenVQ(), "mit", LLAMAGEN),
    ("peizesun/llamagen_t2i", "vq_ds16_t2i.pt", LlamaGenVQ(), "mit", "github.com/TencentARC/TokLIP, README"),
    *(
        (f"TencentARC/IBQ-Tokenizer-{size}", f"imagenet256_{size}.ckpt", SeedVokenIBQ(), "apache-2.0", IBQ)
        for size in (1024, 8192, 16384, 262144)
    ),
    *(
        (f"TencentARC/IBQ-Tokenizer-{size}-Pretrain", f"IBQ_pretrain_{size}.ckpt", SeedVokenIBQ(), "apache-2.0", IBQ)
        for size in (16384, 262144)
    ),
    *(
        (f"TencentARC/Open-MAGVIT2-Tokenizer-{name}", file, OpenMAGVIT2(), "apache-2.0", MAGVIT2)
        for name, file in (
            ("256-resolution", "imagenet_256_L.ckpt"),
            ("128-resolution", "imagenet_128_L.ckpt"),
            ("16384-Pretrain", "pretrain256_16384.ckpt"),
            ("262144-Pretrain", "pretrain256_262144.ckpt"),
        )
    ),
    *(
        ("youngsheen/SimVQ", f"vq_log/{name}/epoch=49-step=250250.ckpt", SimVQImage(), "mit", source)
        for name, source in (
            ("simvq_262k", "github.com/youngsheen/SimVQ, README"),
            ("simvq_1k", LISTED.format("youngsheen/SimVQ")),
        )
    ),
    (
        "FoundationVision/var",
        "vae_ch160v4096z32.pth",
        VARAutoencoder(),
        "mit",
        "github.com/FoundationVision/VAR, README",
    ),
    *(
        ("ZechenBai/FQGAN", f"fqgan_{name}.pt", FQGAN(), "cc-by-nc-4.0", FQGAN_FILES)
        for name in ("dual_ds16", "triple_ds16", "dual_ds8", "triple_ds8")
    ),
    (
        "fun-research/TiTok",
        "maskgit-vqgan-imagenet-f16-256.bin",
        MaskGITVQGAN(),
        "apache-2.0",
        TITOK.format("TiTok"),
    ),
    ("fun-research/TiTok", "tokenizer_titok_l32.bin", TiTok(), "apache-2.0", TITOK.format("TiTok")),
    *(
        (f"yucornetto/tokenizer_titok_{name}_imagenet", WEIGHTS_NAME, TiTok(), "apache-2.0", TITOK.format("TiTok"))
        for name in ("l32", "b64", "s128", "bl64_vq8k", "bl128_vq8k", "sl256_vq8k")
    ),
    *(
        (f"turkeyju/tokenizer_tatitok_{name}_vq", WEIGHTS_NAME, TATiTok(), "apache-2.0", TITOK.format("TA-TiTok"))
        for name in ("bl32", "bl64", "bl128")
    ),
    *(
        (
            repository,
            f"vqvae/diffusion_pytorch_model.{ending}",
            DiffusersVQModel(),
            license,
            LISTED.format(repository),
        )
        for repository, ending, license in (
            ("amused/amused-256", "safetensors", "openrail++"),
            ("amused/amused-512", "safetensors", "openrail++"),
            ("MeissonFlow/Meissonic", "safetensors", "apache-2.0"),
            ("CompVis/ldm-celebahq-256", "bin", "apache-2.0"),
        )
    ),
    *(
        (f"descript/dac_{rate}khz", WEIGHTS_NAME, TransformersDAC(), "mit", TRANSFORMERS_TESTS.format("dac"))
        for rate in (16, 24, 44)
    ),
    *((f"hubertsiuzdak/snac_{rate}khz", "pytorch_model.bin", SNAC(), "mit", SNAC_CODE) for rate in (24, 32, 44)),
    *(
        (f"facebook/encodec_{rate}khz", WEIGHTS_NAME, EnCodec(), "mit", TRANSFORMERS_TESTS.format("encodec"))
        for rate in (24, 48)
    ),
    ("kyutai/mimi", WEIGHTS_NAME, TransformersMimi(), "cc-by-4.0", CANDLE.format("mimi")),
    *(
        (repository, "tokenizer-e351c8d8-checkpoint125.safetensors", Mimi(), "cc-by-4.0", MOSHI)
        for repository in ("kyutai/moshiko-pytorch-bf16", "kyutai/moshika-pytorch-bf16")
    ),
    *(
        ("novateur/WavTokenizer", f"WavTokenizer_small_{hop}_24k_4096.ckpt", WavTokenizer(), "mit", WAVTOKENIZER)
        for hop in (600, 320)
    ),
    *(
        (f"novateur/WavTokenizer-{name}", file, WavTokenizer(), "mit", WAVTOKENIZER_FILES)
        for name, file in (
            ("medium-speech-75token", "wavtokenizer_medium_speech_320_24k.ckpt"),
            ("medium-speech-75token", "wavtokenizer_medium_speech_320_24k_v2.ckpt"),
            ("large-unify-40token", "wavtokenizer_large_unify_600_24k.ckpt"),
            ("large-speech-75token", "wavtokenizer_large_speech_320_v2.ckpt"),
        )
    ),
)

PUBLISHED = tuple(PublishedWeights(*row) for row in _TABLE)
"""In the order of `docs/weights.md`."""


def find(name: str) -> PublishedWeights | None:
    """The published weights of a name; None where it is none.

    Args:
        name: of the repository and the file, or of the repository alone where the table has one file of it.

    Raises:
        ValueError: the repository has several; the message names them.
    """
    for weights in PUBLISHED:
        if weights.name == name:
            return weights
    inside = [weights for weights in PUBLISHED if weights.repository == name]
    if len(inside) > 1:
        names = ", ".join(weights.name for weights in inside)
        raise ValueError(f"{name!r} has several files of weights: give one of {names}")
    return inside[0] if inside else None


def published(name: str) -> PublishedWeights:
    """The published weights of a name.

    Raises:
        FileNotFoundError: there are none of it; the message says what to type.
        ValueError: see `find`.
    """
    if (found := find(name)) is not None:
        return found
    if not re.match(r"\w[\w.-]*/\w", name):
        raise FileNotFoundError(
            f"source={name!r}: there is no such file or folder; expected one, or a name of docs/weights.md"
        )
    names = [weights.name for weights in PUBLISHED]
    near = get_close_matches(name, names, n=1)
    raise FileNotFoundError(
        f"source={name!r}: there is no such file or folder, and it is no name of published weights"
        + (f" (did you mean {near[0]!r}?)" if near else "")
        + f"; those are {', '.join(names)}. Fetch another one yourself (hf download USER/REPOSITORY FILE --local-dir "
        "FOLDER), and give its path"
    )
