"""Training of tokenizers of vectors: RQ-VAE for semantic IDs, chunks of actions, series of sensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from trainers.core.task import TokenizerTask
from trainers.vectors.figures import write_curves
from trainers.vectors.kmeans import install, writable_stages
from trainers.vectors.metrics import VectorMetrics, protocol
from vqkit import ResidualQuantizer
from vqkit.clustering import KMeans, residual_kmeans
from vqkit.distributed import from_first_rank, gather_rows
from vqkit.quantizers.initialization import collect_vectors, enough_samples
from vqkit.tokenizers.vectors import VectorTokenizer

SCALING_SAMPLES = 2**17
"""Samples of which mean and scale are taken, over all ranks, or those of a pass, whichever is less."""


class VectorTokenizerTask(TokenizerTask):
    """Trains a tokenizer of vectors (B, C) or of series (B, C, T), and measures what IDs keep of items.

    Batches are dictionaries with `vectors`, and for prediction `name`, a list of ids as text. Before training the
    tokenizer's scaling is fitted to training data, unless its weights come from elsewhere. Objectives compare scaled
    vectors. Other arguments are those of `TokenizerTask`.

    Args:
        tokenizer: of vectors or series.
        clustering: what a residual quantizer starts from, `vqkit.clustering.balanced_kmeans` or a function like it;
            None is the quantizer's own start, k-means.

    Raises:
        ValueError: there is a `clustering` and the quantizer is not residual, or has no stored codes; in `setup` if the
            data have another number of channels than the tokenizer.
    """

    tokenizer: VectorTokenizer

    def __init__(
        self,
        tokenizer: VectorTokenizer,
        *,
        clustering: Callable[..., KMeans] | None = None,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        **arguments: Any,
    ) -> None:
        super().__init__(tokenizer, learning_rate=learning_rate, betas=betas, **arguments)
        if clustering is not None and not isinstance(tokenizer.quantizer, ResidualQuantizer):
            raise ValueError(
                f"clustering with a {type(tokenizer.quantizer).__name__}: expected a ResidualQuantizer, whose levels "
                "are clustered one after the other; leave clustering out"
            )
        if clustering is not None and isinstance(tokenizer.quantizer, ResidualQuantizer):
            writable_stages(tokenizer.quantizer)
        self.clustering = clustering

    monitor = "validation/explained"

    def setup(self, stage: str) -> None:
        """Refuse data that the tokenizer was not made for."""
        super().setup(stage)
        channels = getattr(getattr(self.trainer, "datamodule", None), "channels", self.tokenizer.channels)
        if channels != self.tokenizer.channels:
            flags = ("encoder.in_channels", "decoder.out_channels", "scaling.dim")
            words = " ".join(f"--model.tokenizer.{flag} {channels}" for flag in flags)
            raise ValueError(
                f"the data hold vectors of {channels} dimensions, and the tokenizer is for {self.tokenizer.channels}: "
                f"give {words}, or other data"
            )

    def on_fit_start(self) -> None:
        """Fit the scaling, then as every task."""
        if self.trainer.ckpt_path is None and not bool(self.tokenizer.scaling.is_fitted):
            self.tokenizer.scaling.fit(self._scaling_inputs())
        super().on_fit_start()

    def _scaling_inputs(self) -> Iterator[Tensor]:
        data: Any = getattr(self.trainer, "datamodule", None)
        loader = data.initialization_dataloader()
        batches = max(1, SCALING_SAMPLES // (loader.batch_size * self.trainer.world_size))
        for batch in islice(loader, batches):
            yield self.inputs(self.transfer_batch_to_device(batch, self.device, 0))

    def _initialize_quantizer(self) -> None:
        quantizer = self.tokenizer.quantizer
        if self.clustering is None or not isinstance(quantizer, ResidualQuantizer):
            super()._initialize_quantizer()
            return
        wanted = enough_samples(max(quantizer.codebook_sizes), self.initialization_samples)
        latents = map(self.tokenizer.latents, self._initialization_inputs())
        own, batch = collect_vectors(quantizer, latents, wanted)
        rows = gather_rows(own)
        codebooks = residual_kmeans(rows, quantizer.codebook_sizes, cluster=self.clustering, seed=self.seed)
        shown = batch * self.trainer.world_size
        install(quantizer, [from_first_rank(centers) for centers in codebooks], vectors_per_step=shown)
        self.quantizer_initialized_at = self.trainer.global_step

    def inputs(self, batch: dict[str, Any]) -> Tensor:
        """The vectors (B, C), or series (B, C, T)."""
        return batch["vectors"]

    def reconstruction_loss(self, inputs: Tensor, reconstruction: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """That of scaled vectors; see `TokenizerTask`."""
        scaling = self.tokenizer.scaling
        return super().reconstruction_loss(scaling(inputs), scaling(reconstruction))

    # ------------------------------------------------------------------ measuring

    def new_metrics(self, split: str) -> VectorMetrics:
        """The figures of a split, which are the same for all."""
        quantizer = self.tokenizer.quantizer
        return VectorMetrics(quantizer.level_sizes, books=quantizer.level_books, scaling=self.tokenizer.scaling)

    def protocol(self, figures: Mapping[str, float], **circumstances: Any) -> dict[str, Any]:
        """How the figures were measured."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "evaluation_hash"):  # a data module of one's own need not have it
            circumstances["vectors_sha256"] = data.evaluation_hash()
        return protocol(dict(figures), **circumstances)

    def write_examples(
        self, folder: Path, originals: Sequence[Tensor], reconstructions: Sequence[Tensor]
    ) -> list[Path]:
        """`reconstructions.png`: curves of the vectors, those of the originals paler."""
        return [write_curves(folder / "reconstructions.png", originals, reconstructions)]
