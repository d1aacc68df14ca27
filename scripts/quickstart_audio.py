"""The first run of a codec: train one on the speech in assets/, and measure it on speech it never heard.

    python scripts/quickstart_audio.py  # about a minute of training on two CPU cores, then one of measuring

It runs `python -m trainers fit --config configs/audio/quickstart.yaml`, then compares the codec with k-means of MDCT
frames at the same bitrate and with Opus (and Codec2 and Speex, where they are installed) at the nearest and at that of
the coded tokens, whatever the outcome, and leaves everything in `runs/quickstart-audio/`.
"""

import os

from compare_audio import measured
from first_run import ROOT, quickstart_parser, report, train

from trainers.audio.comparison import table, verdict
from trainers.audio.metrics import MEASURES
from vqkit.saving.files import write_json

FOLDERS = ROOT / "assets/audio/train", ROOT / "assets/audio/eval"
CONFIG = ROOT / "configs/audio/quickstart.yaml"
SHOWN = ["si_sdr", "stoi", "estoi", "pesq", "mel_distance", "stft_distance"]
"""What a first run waits for; `scripts/compare_audio.py` measures everything."""


def main() -> None:
    parser = quickstart_parser(__doc__, max_minutes=5.0)
    parser.add_argument("--kmeans-frames", type=int, default=40_000, help="training frames of the k-means baselines")
    parser.add_argument("--measures", nargs="+", default=SHOWN, choices=list(MEASURES), help="what is measured")
    arguments = parser.parse_args()
    folder = arguments.runs / "quickstart-audio"
    training = train(CONFIG, folder, FOLDERS, arguments, repeats=8, shortcut="make quickstart-audio")
    print("measuring on speech it never heard, and fitting k-means of MDCT frames beside it ...", flush=True)
    record = measured(
        folder,
        FOLDERS,
        training,
        measures=arguments.measures,
        kmeans_frames=arguments.kmeans_frames,
        split="assets/audio/eval, whole utterances: "
        + ", ".join(path.stem for path in sorted(FOLDERS[1].glob("*.flac"))),
    )
    write_json(folder / "metrics.json", record)
    print("\n" + table(record, record["baselines"]))
    print("\n" + verdict(record, record["baselines"]))
    report(
        training,
        folder,
        CONFIG,
        f"{record['utterances']:.0f} utterances",
        listen_to_it=f"{os.path.relpath(folder)}/samples/ (originals and reconstructions)",
        swap_the_quantizer="... --quantizer simvq  (or vq, ema, ibq, rotation: docs/quantizers.md)",
        stream_measure_other_recipes="docs/audio.md, configs/audio/",
    )


if __name__ == "__main__":
    main()
