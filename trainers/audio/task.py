"""Training of audio tokenizers (neural codecs)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trainers.audio.figures import write_spectrograms
from trainers.audio.files import write_sounds
from trainers.audio.metrics import MEASURES, QUICK, AudioMetrics, protocol
from trainers.audio.objectives.stereo import SumAndDifference
from trainers.core.task import TokenizerTask
from vqkit import AudioTokenizer


class AudioTokenizerTask(TokenizerTask):
    """Trains a tokenizer of waveforms (a neural codec), and measures what it does to sound.

    Batches are dictionaries with `audio` (B, C, T) in [-1, 1], and for evaluation `lengths`, the samples of each before
    it was filled up to T (T if there are none), and `name`, a list of file names. Other arguments are those of
    `TokenizerTask`.

    Args:
        tokenizer: a codec.
        validation_measures: names of `trainers.audio.metrics.MEASURES`; QUICK ones by default.
        test_measures: the same for the test split; all by default.

    Raises:
        ValueError: a measure is unknown; in `setup` if the data, an objective or a discriminator have another sample
            rate than the tokenizer, or the data another number of channels.
    """

    tokenizer: AudioTokenizer

    def __init__(
        self,
        tokenizer: AudioTokenizer,
        *,
        validation_measures: Sequence[str] = QUICK,
        test_measures: Sequence[str] = tuple(MEASURES),
        betas: tuple[float, float] = (0.8, 0.99),
        **arguments: Any,
    ) -> None:
        super().__init__(tokenizer, betas=betas, **arguments)
        self.measures = {"validation": validation_measures, "test": test_measures}
        for split in self.measures:
            self.new_metrics(split)  # unknown measures are found out here, not after the first epoch

    def setup(self, stage: str) -> None:
        """Refuse data that the tokenizer was not made for."""
        super().setup(stage)
        for title, part in self._hearers():
            for name in ("sample_rate", "frame_rate"):
                own = getattr(self.tokenizer, name)
                given = getattr(part, name, own)
                if given != own:
                    raise ValueError(
                        f"{title} has {name}={given}, but the tokenizer has {own}: its bands or frames would lie "
                        "elsewhere; give both the same"
                    )
        data = getattr(self.trainer, "datamodule", None)
        for name, where in (("sample_rate", "tokenizer.sample_rate"), ("channels", "in_channels and out_channels")):
            mine, given = getattr(self.tokenizer, name), getattr(data, name, None)
            if given is not None and given != mine:
                raise ValueError(
                    f"data.{name}={given}, but the tokenizer has {name}={mine}: set data.{name}={mine} "
                    f"(recordings are converted), or build the tokenizer for {given} ({where})"
                )

    def _hearers(self) -> Iterator[tuple[str, nn.Module]]:
        """What may have been made for a rate, and how to call it."""
        for objective in (*self.terms, *self.latent_terms):
            yield f"objective {objective.name!r}", objective
            if isinstance(objective, SumAndDifference):
                yield f"objective {objective.name!r}", objective.objective
        for judge in () if self.adversary is None else self.adversary.discriminators:
            yield f"discriminator {type(judge).__name__}", judge

    @property
    def monitor(self) -> str:
        """STOI, or the first other measure of validation of which more is better."""
        rising = [name for name in ("stoi", "estoi", "si_sdr", *MEASURES) if not name.endswith("_distance")]
        metrics = self.new_metrics("validation")
        taken = {measure.name for measure in metrics.measures}
        found = [name for name in rising if name in taken]
        if not found:
            reasons = f" ({'; '.join(metrics.unavailable.values())})" if metrics.unavailable else ""
            raise ValueError(
                f"validation_measures={list(self.measures['validation'])}{reasons}: the best checkpoint needs one of "
                f"{', '.join(dict.fromkeys(rising))}; add one, or set best_checkpoint.monitor"
            )
        return f"validation/{found[0]}"

    def inputs(self, batch: dict[str, Any]) -> Tensor:
        """The waveforms (B, C, T)."""
        return batch["audio"]

    def evaluation_inputs(self, batch: dict[str, Any]) -> Iterator[Tensor]:
        """Each utterance by itself, in its own length."""
        waves = self.inputs(batch)
        for wave, length in zip(waves, batch.get("lengths", [waves.shape[-1]] * len(waves)), strict=True):
            yield wave[None, :, :length]

    # ------------------------------------------------------------------ measuring

    def new_metrics(self, split: str) -> AudioMetrics:
        """The measures of the split, for this tokenizer's sample rate."""
        quantizer = self.tokenizer.quantizer
        return AudioMetrics(
            quantizer.level_sizes,
            books=quantizer.level_books,
            sample_rate=self.tokenizer.sample_rate,
            frame_rate=self.tokenizer.level_rates,
            measures=self.measures[split],
        )

    def protocol(self, figures: Mapping[str, float], **circumstances: Any) -> dict[str, Any]:
        """How the figures were measured."""
        rate, measures = self.tokenizer.sample_rate, self.measures["test"]
        return protocol(dict(figures), sample_rate=rate, measures=measures, **circumstances)

    def write_examples(
        self, folder: Path, originals: Sequence[Tensor], reconstructions: Sequence[Tensor]
    ) -> list[Path]:
        """Pairs of sounds in `samples/`, and `reconstructions.png` with the spectrograms of the first three."""
        rate = self.tokenizer.sample_rate
        picture = write_spectrograms(folder / "reconstructions.png", originals[:3], reconstructions[:3], rate)
        return [picture, *write_sounds(folder / "samples", originals, reconstructions, rate)]
