"""Training of audio tokenizers (neural codecs)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainers.audio.figures import write_spectrograms
from trainers.audio.files import write_sounds
from trainers.audio.metrics import MEASURES, QUICK, AudioMetrics, protocol
from trainers.core import Adversary, LossBalancer, Objective
from trainers.core.task import TokenizerTask
from vqkit import AudioTokenizer

DISCRIMINATORS = "discriminators"
"""Name of the optimizer's group, and of the part in logs."""


class AudioTokenizerTask(TokenizerTask):
    """Trains a tokenizer of waveforms by objectives and, where wanted, against discriminators.

    One forward of the generator, one backward and one optimizer for all: the discriminators' loss is added to the
    generator's, and neither sends a gradient to the other's parameters (`Adversary`). So the count of steps,
    accumulation of gradients, precision, data parallelism and checkpoints are those of any other training. Gradients of
    generator and discriminators are clipped apart (`trainer.gradient_clip_val` holds for each).

    Batches are dictionaries with `audio` (B, C, T) in [-1, 1], and for evaluation `lengths`, the samples of each before
    it was filled up to T (T if there are none), and `name`, a list of file names.

    Args:
        tokenizer: a codec.
        objectives: reconstruction terms; the first is shown while training.
        adversary: discriminators, their loss and the weights of what the generator gets from them. Until step
            `adversary.start_step` they do not run, and their parameters stay as they are to the last bit.
        balancer: makes the weights of objectives and adversarial terms shares of the gradient that the decoder gets,
            whatever the scale of each term; None sums them. The quantizer's loss stays outside.
        pretraining_steps: optimizer steps without quantization; see `TokenizerTask`.
        validation_measures: names of `trainers.audio.metrics.MEASURES`; QUICK ones by default.
        test_measures: the same for the test split; all by default.
        learning_rate: peak of the schedule; discriminators may have another one, on the same curve.
        final_learning_rate_ratio: end of the cosine as a share of the peak, in [0, 1]; 1 keeps the peak.
        warmup_steps: optimizer steps of linear warm-up.
        weight_decay: of the generator's matrices and kernels; codebooks, gains, biases, norms and discriminators have
            none.
        betas: of AdamW.
        initialization_samples: vectors from which the quantizer is initialized before training; None lets it decide.
        seed: of the initialization.

    Raises:
        ValueError: an argument is out of its range, or names differ where they must not; in `setup` if the data have
            another sample rate or another number of channels.
    """

    tokenizer: AudioTokenizer

    def __init__(
        self,
        tokenizer: AudioTokenizer,
        *,
        objectives: list[Objective],
        adversary: Adversary | None = None,
        balancer: LossBalancer | None = None,
        pretraining_steps: int = 0,
        validation_measures: Sequence[str] = QUICK,
        test_measures: Sequence[str] = tuple(MEASURES),
        learning_rate: float = 3e-4,
        final_learning_rate_ratio: float = 0.05,
        warmup_steps: int = 100,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.8, 0.99),
        initialization_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            tokenizer,
            objectives=objectives,
            learning_rate=learning_rate,
            final_learning_rate_ratio=final_learning_rate_ratio,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            betas=betas,
            initialization_samples=initialization_samples,
            seed=seed,
            pretraining_steps=pretraining_steps,
        )
        self.adversary = adversary
        self.balancer = balancer
        self.measures = {"validation": validation_measures, "test": test_measures}
        for split in self.measures:
            self.new_metrics(split)  # unknown measures are found out here, not after the first epoch

    def setup(self, stage: str) -> None:
        """Refuse data that the tokenizer was not made for."""
        for objective in self.objectives:
            given = getattr(objective, "sample_rate", self.tokenizer.sample_rate)
            if given != self.tokenizer.sample_rate:
                raise ValueError(
                    f"objective {objective.name!r} has sample_rate={given}, but the tokenizer has "
                    f"{self.tokenizer.sample_rate}: its bands would lie elsewhere; give both the same"
                )
        if self.balancer is not None and self.trainer.precision == "16-mixed":
            raise ValueError(
                "precision=16-mixed with a balancer: it differentiates each term without the loss scale, and the "
                "discriminators' gradients underflow in float16; use bf16-mixed or 32-true"
            )
        data = self.trainer.datamodule
        for name, where in (("sample_rate", "tokenizer.sample_rate"), ("channels", "in_channels and out_channels")):
            mine, given = getattr(self.tokenizer, name), getattr(data, name, None)
            if given is not None and given != mine:
                raise ValueError(
                    f"data.{name}={given}, but the tokenizer has {name}={mine}: set data.{name}={mine} "
                    f"(recordings are converted), or build the tokenizer for {given} ({where})"
                )

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

    # ------------------------------------------------------------------ the step

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The common step; the first objective is shown."""
        step = super().training_step(batch, batch_idx)
        first = self.objectives[0].name
        self.log(first, step["terms"][first].detach(), prog_bar=True, logger=False)
        return step

    def reconstruction_loss(self, inputs: Tensor, reconstruction: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Objectives and adversarial terms, summed or balanced, and the discriminators' own loss."""
        # Once for all terms, so that low precision ends here, also where the balancer differentiates.
        reconstruction = reconstruction.to(torch.promote_types(reconstruction.dtype, torch.float32))
        terms = {objective.name: objective(inputs, reconstruction) for objective in self.objectives}
        weights = {objective.name: objective.weight for objective in self.objectives}
        if self.adversary is None:
            return self._joined(terms, weights, reconstruction), terms
        if not self.adversary.active(self.global_step):
            return self._joined(terms, weights, reconstruction) + self.adversary.idle(), terms
        output = self.adversary(inputs, reconstruction)
        adversarial = self.adversary.weights(self.global_step)
        self.log_dict({f"train/{name}": figure for name, figure in output.figures.items()})
        if self.balancer is None and reconstruction.requires_grad and self.logs_this_step:
            theirs = _gradient_norm_at(reconstruction, output.generator, adversarial)
            self.log("train/adversarial_gradient_ratio", theirs / _gradient_norm_at(reconstruction, terms, weights))
        terms, weights = terms | output.generator, weights | adversarial
        total = self._joined(terms, weights, reconstruction) + output.discriminator
        return total, terms | {"discriminator_loss": output.discriminator}

    def _joined(self, terms: dict[str, Tensor], weights: dict[str, float], reconstruction: Tensor) -> Tensor:
        if self.balancer is not None:
            return self.balancer(terms, weights, reconstruction)
        return _weighted_sum(terms, weights)

    # ------------------------------------------------------------------ the optimizer

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Those of the tokenizer, and one of the discriminators with their own learning rate and betas."""
        groups = super().parameter_groups()
        if self.adversary is None:
            return groups
        return [
            *groups,
            {
                "name": DISCRIMINATORS,
                "params": list(self.adversary.parameters()),
                "lr": self.adversary.learning_rate or self.learning_rate,
                "betas": self.adversary.betas,
                "weight_decay": 0.0,
            },
        ]

    def idle_parameters(self) -> Iterable[nn.Parameter]:
        """Codebooks during pre-training, and discriminators before they start."""
        yield from super().idle_parameters()
        if self.adversary is not None and not self.adversary.active(self.global_step):
            yield from self.adversary.parameters()

    def trained_parts(self) -> dict[str, nn.Module]:
        """The parts of the tokenizer, and the discriminators."""
        return super().trained_parts() | ({DISCRIMINATORS: self.adversary} if self.adversary is not None else {})

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of generator and discriminators apart: neither may shrink the other's step."""
        if gradient_clip_algorithm == "value" or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for theirs in (False, True):
            groups = [group for group in optimizer.param_groups if (group["name"] == DISCRIMINATORS) == theirs]
            parameters = [parameter for group in groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    # ------------------------------------------------------------------ measuring

    def new_metrics(self, split: str) -> AudioMetrics:
        """The measures of the split, for this tokenizer's sample rate."""
        return AudioMetrics(
            self.tokenizer.quantizer.codebook_sizes,
            sample_rate=self.tokenizer.sample_rate,
            frame_rate=self.tokenizer.frame_rate,
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


def _weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def _gradient_norm_at(reconstruction: Tensor, terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Length of the gradient that reaches the reconstruction from the weighted terms."""
    (gradient,) = torch.autograd.grad(_weighted_sum(terms, weights), reconstruction, retain_graph=True)
    return gradient.norm()
