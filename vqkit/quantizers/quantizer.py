"""The quantizer with a stored codebook: five parts, and the five steps that put them together."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.functional import unit
from vqkit.kernels import Metric
from vqkit.methods import METHODS, Method
from vqkit.parts.codebooks import Codebook
from vqkit.parts.compatibility import check_compatible
from vqkit.parts.estimators import Estimator, StraightThrough
from vqkit.parts.losses import Loss
from vqkit.parts.maintenance import Maintenance
from vqkit.parts.selection import Noise, Search, Selection
from vqkit.quantizers.base import WATCHED_STEP, WATCHED_VECTORS, BaseQuantizer, VectorQuantizer
from vqkit.quantizers.initialization import collect_vectors, enough_samples
from vqkit.runtime import ForwardNumbers, uncompiled
from vqkit.sharding import refuse_sharded, with_whole_weights

WATCHED_AT = 100
"""The step at which a training forward asks `health` by itself, and waits for the device this once."""
HEALTHY_SCALE = (0.1, 3.0)
"""Ratio of code to latent spread outside which codebooks were seen to collapse, whatever the method."""


class Quantizer(VectorQuantizer):
    """A published method by name, with any of its parts replaced.

        >>> quantizer = Quantizer("ema", dim=64, codebook_size=1024, channel_dim=1)
        >>> quantizer.initialize([features])  # once, before training
        >>> output = quantizer(features)  # (B, 64, H, W); output.indices is (B, H, W)
        >>> loss = reconstruction_loss + output.loss

    Args:
        method: one of `vqkit.methods.METHODS`; sets the default of every part. `docs/quantizers.md` compares them.
        dim: size of the input's channel axis.
        codebook_size: K.
        codebook_dim: D of the codes; None means `dim`, or what the method is about (8 for "factorized").
        channel_dim: see `BaseQuantizer`.
        normalize: put vectors and codes on the unit sphere for everything: search, losses and the value passed on
            (LlamaGen's convention). To compare by angle but pass on unscaled codes, use `Search("cosine")` instead.
        codebook: from (codebook_size, codebook_dim) to a codebook, such as
            `functools.partial(EMACodebook, usage_decay=0.9)`.
        search: which code is chosen.
        estimator: how gradients pass.
        losses: what is penalised; replaces the method's list.
        maintenance: what happens to unused codes; replaces the method's list, [] for none.
        auto_step: fold statistics in at each training forward. Set it False when gradients are accumulated and call
            `step()` at the optimizer boundary: the codebook is then that of one batch of all the micro-batches.

    None for a part means the method's.

    A codebook that learns from statistics learns in training mode whatever `requires_grad` says; `eval()` freezes it.
    Under activation checkpointing (not the reentrant one, which is refused), run the backward of a forward before the
    next forward, or set `auto_step=False`: the recomputation must find the codes that the forward found.

    Raises:
        IncompatibleParts: parts that cannot work together.
        ValueError: an unknown method, or a size that is not positive.
    """

    codebook: Codebook
    estimator: Estimator
    maintenance: Iterable[Maintenance]

    def __init_subclass__(cls) -> None:
        """A subclass that chooses in another way has no short way to its indices, unless it writes one."""
        super().__init_subclass__()
        if "choose" in vars(cls):
            for name in {"assign", "nearest_metric"} - vars(cls).keys():
                setattr(cls, name, vars(BaseQuantizer)[name])

    def __init__(
        self,
        method: Method = "vq",
        *,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        channel_dim: int = -1,
        normalize: bool = False,
        codebook: Callable[[int, int], Codebook] | None = None,
        search: Search | None = None,
        estimator: Estimator | None = None,
        losses: Sequence[Loss] | None = None,
        maintenance: Sequence[Maintenance] | None = None,
        auto_step: bool = True,
    ) -> None:
        if method not in METHODS:
            near = difflib.get_close_matches(str(method).lower(), METHODS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"method={method!r}: expected one of {', '.join(map(repr, METHODS))}{hint}")
        parts = METHODS[method]()
        super().__init__(
            dim,
            codebook_dim=parts.codebook_dim if codebook_dim is None else codebook_dim,
            channel_dim=channel_dim,
            losses=parts.losses if losses is None else losses,
        )
        if isinstance(maintenance, nn.Module):
            raise ValueError(f"maintenance={maintenance}: expected a list, [{maintenance}]")
        self.method = method
        self.normalize = normalize
        self.codebook_size = codebook_size
        self.codebook = (codebook or parts.codebook)(codebook_size, self.codebook_dim)
        self.search = search or parts.search
        self.estimator = estimator or parts.estimator
        policies = parts.maintenance if maintenance is None else maintenance
        self.maintenance = nn.ModuleList(policies)  # type: ignore[assignment]  # it forgets its element type
        self.auto_step = auto_step
        self.prefix: int | None = None  # how many codes are searched, the first ones; set by a composite that calls it
        self.call_number = 0  # of those that such a composite makes in one forward, each with noise of its own
        self._noise_steps = ForwardNumbers()
        if (self.codebook.codebook_size, self.codebook.dim) != (codebook_size, self.codebook_dim):
            raise ValueError(
                f"codebook built {self.codebook.codebook_size} codes of dimension {self.codebook.dim}: expected "
                f"codebook_size={codebook_size} of dimension {self.codebook_dim}; a factory must use the sizes that it "
                "is given"
            )
        check_compatible(self.codebook, self.search, self.estimator, list(self.losses), list(self.maintenance))

    @classmethod
    def default_parts(cls, method: Any = "vq", *_: Any, **arguments: Any) -> Sequence[type]:
        """Those of the method; see `Configured`."""
        if not isinstance(method, str) or method not in METHODS:
            return ()
        parts = METHODS[method]()
        objects = (parts.search, parts.estimator, *parts.losses, *parts.maintenance)
        return *(part for part in [parts.codebook] if isinstance(part, type)), *map(type, objects)

    # ------------------------------------------------------------------ the five steps

    def choose(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        """Refresh, search, estimate: see `docs/architecture.md` for the order and its reasons."""
        z = unit(latents) if self.normalize else latents
        if self.learning:
            self.refresh(z, valid)
        codes, searched = self._codes()
        uses_noise = self.search.uses_noise or self.estimator.uses_noise
        noise = self._noise(z) if uses_noise and self.stochastic else None
        attention = self.codebook.attention
        queries = self.codebook.queries(z) if attention else z
        if self.search.sees_batch and self.stochastic:
            nearest = self.search.choose_together(queries, searched, valid)
        else:
            nearest = self.search(queries, searched, noise)
        selection = Selection(
            latents=latents,
            z=z,
            codes=codes,
            indices=torch.where(valid, nearest, -1),
            selected=nn.functional.embedding(nearest, codes),
            valid=valid,
            noise=noise,
            matched=nn.functional.embedding(nearest, searched) if self.codebook.cascaded else None,
            queries=queries if attention else None,
            keys=searched if attention else None,
        )
        estimated = self.estimator(selection) if torch.is_grad_enabled() else selection.selected
        return estimated, selection

    def code_vectors(self) -> Tensor:
        """The codes (K, D) as they are passed on and decoded."""
        codes = self.codebook()
        return unit(codes) if self.normalize else codes

    def code_lookup(self, indices: Tensor) -> Tensor:
        """Code vectors (..., D) of `indices` (...), all of which are in range."""
        codes = self.codebook()
        return nn.functional.embedding(indices, unit(codes) if self.normalize else codes)

    def assign(self, latents: Tensor, valid: Tensor) -> Tensor:
        """The search alone; see `BaseQuantizer`."""
        if self.passes_through:
            return super().assign(latents, valid)
        rows = self.project_in(latents.reshape(-1, self.dim))
        z = unit(rows) if self.normalize else rows
        found = self.search(self.codebook.queries(z) if self.codebook.attention else z, self._codes()[1])
        return torch.where(valid, found.reshape(valid.shape), -1)

    def _codes(self) -> tuple[Tensor, Tensor]:
        """The codes (K, D) that are read, and those that are searched; the first `prefix` of them."""
        vectors = self.codebook()
        codes = searched = unit(vectors) if self.normalize else vectors
        if self.codebook.attention:  # keys have their own norm
            searched = self.codebook.search_vectors(vectors)
        elif self.codebook.cascaded:
            searched = self.codebook.search_vectors(vectors)
            searched = unit(searched) if self.normalize else searched
        return codes[: self.prefix], searched[: self.prefix]

    def _noise(self, z: Tensor) -> Noise:
        step = self._noise_steps.find(z, self.codebook.noise_step)
        seed = (self.codebook.seed + 1_000_003 * self.call_number) % 2**62
        return Noise.of_step(seed, step, len(z), z.device)

    @property
    def nearest_metric(self) -> Metric | None:
        """The metric of the search, unless there is a projection, a normalisation, a second table, a search of another
        kind, or none for the time of `without_quantization`.
        """
        plain = self.search.finds_nearest and not self.passes_through
        plain &= not (self.has_projection or self.normalize or self.codebook.cascaded or self.codebook.attention)
        return self.search.metric if plain else None

    @property
    def decoding(self) -> str:
        """What decides about vectors and is in no state, for `vqkit.bitstream.fingerprint`."""
        return "normalize" if self.normalize else ""

    def level_tables(self) -> list[Tensor | None]:
        """The codebook, where it is stored; see `BaseQuantizer`."""
        return [None if self.codebook.rows == "derived" else self.codebook().detach()]

    def nearest_codes(self) -> Tensor:
        """The codes (K, dim)."""
        return self.code_vectors()

    @uncompiled  # the step counters are Python numbers: a compiler would specialise anew at every step
    @torch.no_grad()
    def refresh(self, z: Tensor, valid: Tensor) -> None:
        """Fold in the statistics of the batch before, and let the policies rewrite codes.

        Again in the same forward, as by a composite that chooses from one codebook several times, it only notes the
        spread of `z`.

        Args:
            z: (N, D) the vectors of this batch in the code space, anchors of what is rewritten.
            valid: (N,) bool, which of them count.
        """
        if list(self.maintenance) and isinstance(self.codebook.vectors, nn.Parameter):
            fix = "what the policies write would be lost: use EMACodebook, whose codes stay whole, or maintenance=[]"
            refuse_sharded(self.codebook, "maintenance", fix)
        some = slice(None, None, WATCHED_STEP if len(z) > WATCHED_VECTORS else 1)
        self.latent_spread.copy_(spread(z[some], valid[some]))
        if self.auto_step:
            self.codebook.step()
        codebook = self.codebook
        if codebook.refreshed_at < codebook.steps:
            codebook.refreshed_at = codebook.steps
            if codebook.steps == WATCHED_AT:
                self.health()
            for policy in self.maintenance:
                if codebook.steps % policy.every == 0:
                    policy.refresh(codebook, z, valid)

    def step(self) -> None:
        """Fold the statistics gathered since the last step into the codebook."""
        self.codebook.step()

    def strip_training(self) -> None:
        """A table, straight-through gradients, no losses, no maintenance; see `BaseQuantizer`."""
        super().strip_training()
        if self.recorded_arguments().keys() >= {"codebook", "estimator", "maintenance"}:
            self.codebook = self.codebook.table()
            self.estimator = StraightThrough()
            self.maintenance = nn.ModuleList()  # type: ignore[assignment]
            self.record(codebook=self.codebook.factory(), estimator=self.estimator, maintenance=[])

    # ------------------------------------------------------------------ before and beside training

    @torch.no_grad()
    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Fit the codebook to data, by default to `enough_samples`: k-means centres, or for derived codes their mean
        and covariance. Warns where there are fewer different vectors than codes of k-means. See `BaseQuantizer`.
        """
        rows, rows_per_batch = collect_vectors(self, latents, enough_samples(self.codebook_size, samples))
        with torch.autocast(rows.device.type, enabled=False):
            z = self.project_in(rows)
            z = distributed.gather_rows(unit(z) if self.normalize else z)
            vectors_per_step = int(distributed.all_reduce_sum(torch.tensor(rows_per_batch, device=z.device)))
            self.codebook.initialize(z, vectors_per_step=vectors_per_step, seed=seed)
            self._check_samples(z)
        self.latent_spread.copy_(spread(z))
        self.health()

    def _check_samples(self, z: Tensor) -> None:
        """Warn where k-means had fewer vectors than it had to find codes."""
        if self.codebook.rows != "derived" and not bool(self.codebook.usage.all()):
            distinct = len(z.unique(dim=0))
            if distinct < self.codebook_size:
                self.warn_once(
                    "samples",
                    f"initialize got {len(z)} vectors, {distinct} of them different, for {self.codebook_size} codes: "
                    "the other codes are copies of these, a little beside them; give it more latents, some 64 for each "
                    "code",
                )

    @with_whole_weights
    def health(self) -> dict[str, float]:
        """`scale_ratio` of the codes' spread to the latents', and the share of `underused` codes; see `BaseQuantizer`.

        In the spread of the codes each counts as much as its running `usage`: the variance of latents is that of the
        codes in their places plus the mean squared error, so that codes which are means of latents have a ratio of at
        most 1. Without usage there is no such bound: k-means puts K codes at a density of about p^(D / (D + 2)) (Zador
        1982), wider than that of the latents, p, and much so where a few of them are loud. Usage starts uniform, so
        that codes which nothing chooses count at first.

        A code is underused when its running `usage` is below a tenth of the mean. Usage starts uniform, so that a code
        that nothing ever chose counts after some 230 steps (at a decay of 0.99). `CodebookUsage` counts the `dead`
        ones: those that nothing chose since its last `reset`.
        """
        codebook = self.codebook
        latent_spread = float(self.latent_spread)
        codes = float(spread(self.code_vectors().detach(), codebook.usage))
        ratio = codes / latent_spread if latent_spread else float("nan")
        underused = float((codebook.usage < 0.1 * codebook.usage.mean()).float().mean())
        low, high = HEALTHY_SCALE
        if self.codebook_size > 1 and not low <= ratio <= high and latent_spread:
            self.warn_once(
                "scale",
                f"the codes spread {ratio:.3g} times as far as the latents (healthy: {low} to {high}); a mismatch of "
                "scale collapses a codebook whatever the method: call initialize(latents) before training, or "
                "normalise the latents",
            )
        return super().health() | {"scale_ratio": ratio, "underused": underused}

    def extra_repr(self) -> str:
        """The method and the layout."""
        return f"method={self.method!r}, dim={self.dim}, channel_dim={self.channel_dim}, normalize={self.normalize}"


def spread(vectors: Tensor, weight: Tensor | None = None) -> Tensor:
    """Root mean square distance of a set of vectors from their mean, per dimension: the scale of a cloud of points.

    Args:
        vectors: (N, D).
        weight: (N,) how much each counts, 0 or more, or bool, which of them do; None for all alike.

    Returns:
        scalar (): sqrt(mean over dimensions of the variance over those that count); 0 where fewer than two do.
    """
    weight = (vectors.new_ones(len(vectors)) if weight is None else weight.to(vectors.dtype)).unsqueeze(-1)
    total = weight.sum().clamp(min=torch.finfo(vectors.dtype).tiny)
    mean = (vectors * weight).sum(0) / total
    return (((vectors - mean).square() * weight).sum(0) / total).mean().sqrt()
