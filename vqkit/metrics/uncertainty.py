"""Whether an input is inside of what a quantizer was trained on: distances of its latents from the codebooks.

    >>> uncertainty = CodebookUncertainty(tokenizer.quantizer).fit(latents_of_training_data)
    >>> inside, outside = (uncertainty.samples(tokenizer.encoder(x)).free_energy for x in (known, unknown))
    >>> auroc(inside, outside)

Source: DAB, Apostolopoulou, Eysenbach, Nielsen, Dubrawski 2024, "A Rate-Distortion View of Uncertainty Quantification"
(https://arxiv.org/abs/2406.10775): a codebook of what was seen, and the distance from it.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor

from vqkit.kernels import nearest
from vqkit.kernels.bounds import result_dtype
from vqkit.kernels.softmax_rows import check_logits, check_vector, prepare, softmax_blocks
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.output import Quantized
from vqkit.runtime import autocast_disabled


class CodebookDistance(NamedTuple):
    """How far vectors lie from a codebook; larger is less known.

    Attributes:
        minimum: the distance D_k of the nearest code.
        soft: sum_k p_k D_k, with p_k in proportion to prior_k exp(-tau D_k).
        free_energy: -log sum_k prior_k exp(-tau D_k), in nats.
    """

    minimum: Tensor
    soft: Tensor
    free_energy: Tensor


@torch.no_grad()
def codebook_distance(z: Tensor, codes: Tensor, *, tau: float, prior: Tensor | None = None) -> CodebookDistance:
    """Squared distances D_k = |z - c_k|^2 of vectors from a codebook: the least, a soft mean, and the free energy.

    The free energy is the least value of KL(p || prior) + tau <p, D> over distributions p on the codes, and `soft` is
    <p, D> where it is attained. For one code it is tau D. Up to a constant it is minus the log-density of a mixture of
    Gaussians around the codes, of variance 1 / (2 tau) in each dimension. Nothing of size N x K is held.

    Args:
        z: (..., D) finite vectors, floating point.
        codes: (K, D) finite code vectors.
        tau: positive, in units of one over a squared distance.
        prior: (K,) of the codes, such as their counts: at least 0, with a positive sum, by which it is divided. Codes
            of prior 0 are left out, of `minimum` too. None: all alike.

    Returns:
        `CodebookDistance` of (...) each: float32, float64 where an input is, without gradient. `minimum` and `soft` are
        squared distances.

    Raises:
        ValueError: a shape, dtype, device, tau or the prior is wrong.

    Source: Apostolopoulou et al. 2024 (https://arxiv.org/abs/2406.10775): p(k | x), the uncertainty sum_k p(k | x) D_k,
    and the objective that p minimises.
    Differs: there D_k is the divergence of Gaussians with covariances that are learned with the network. Here it is the
    squared distance, which every codebook has. Whether DAB's results carry over is not known;
    docs/other_uses.md has ours.
    """
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau={tau}: expected a positive number, such as D / (2 mean squared error)")
    rows = z.detach().reshape(-1, z.shape[-1]) if z.ndim > 1 else z.detach()
    check_logits(rows, codes, 1 / tau)
    dtype = result_dtype(z, codes)
    rows = rows.to(dtype)
    codes, log_prior = _with_prior(codes.detach().to(dtype), prior)
    least = nearest(rows, codes, return_scores=True).scores
    assert least is not None  # they were asked for
    # -tau D_k + log prior_k, less a number for each row, as a product with codes that have one more entry.
    middle = codes.mean(0)
    centred = codes - middle
    bias = log_prior / tau - centred.square().sum(1)
    queries = torch.cat([2 * (rows - middle), torch.ones_like(rows[:, :1])], 1)
    everything = torch.ones_like(rows[:, 0], dtype=torch.bool)
    soft, energy = torch.empty_like(least), torch.empty_like(least)
    for block in softmax_blocks(prepare(queries, torch.cat([centred, bias[:, None]], 1), 1 / tau, everything)):
        part, logits, probabilities = block
        likeliest, evidence = logits.argmax(1), block.log_normalizer()
        # Of the likeliest code exactly; of the others how far their logits lie below its.
        distance = (rows[part] - codes[likeliest]).square().sum(1)
        energy[part] = tau * distance - log_prior[likeliest] - evidence
        below = (logits * probabilities).sum(1)
        with autocast_disabled(z.device):
            usual = probabilities @ log_prior
        soft[part] = distance + (usual - log_prior[likeliest] - below) / tau
    return CodebookDistance(*(values.view(z.shape[:-1]) for values in (least, soft, energy)))


def _with_prior(codes: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor]:
    """The codes that may be chosen, and the logarithm of the prior of each."""
    if prior is None:
        return codes, codes.new_zeros(len(codes)) - torch.log(codes.new_tensor(float(len(codes))))
    check_vector("prior", prior, len(codes), codes.device)
    shares = prior.to(codes.dtype)
    if not ((shares >= 0) & shares.isfinite()).all() or not shares.sum() > 0:
        raise ValueError("prior: expected finite numbers of at least 0, one of them positive, such as counts of codes")
    kept = shares > 0
    return codes[kept], (shares[kept] / shares.sum()).log()


class CodebookUncertainty:
    """Distances from all codebooks of a quantizer, with the prior and the scale of its training data.

    `fit` counts how often each code is the nearest, and takes tau = D / (2 mean squared distance) of each level: that
    of the Gaussians around the codes under which this error is likeliest. Levels are added, each by its own tau, so
    that the scores are in nats. Vectors are those that the search compares: behind projections, of unit length where
    the quantizer normalizes, residuals in a later stage, and for keys queries. Their distance is the Euclidean one,
    also where the search goes by inner product or angle ("ibq", "gumbel", "coda", "cvq"), and so may choose another
    code.

    Args:
        quantizer: with a stored codebook at every level; composites of such too. It is left as it is.

    Attributes:
        taus: of each level, after `fit`.
        priors: (K,) of each level, after `fit`: n_k + 1.
    """

    def __init__(self, quantizer: BaseQuantizer) -> None:
        self.quantizer = quantizer
        self.taus: list[float] = []
        self.priors: list[Tensor] = []

    @torch.no_grad()
    def fit(self, latents: Iterable[Tensor]) -> Self:
        """Read the scale of distances and the usage of codes from data inside of the training distribution.

        Args:
            latents: tensors in the layout of `quantizer.forward`.

        Raises:
            ValueError: there is no finite vector, every vector is a code, or a level stores no codebook.
        """
        counts: list[Tensor] = []
        errors: list[float] = []
        dims: list[int] = []
        for x in latents:
            for level, (made, z, codes) in enumerate(self._levels(x, None)):
                if level == len(counts):
                    counts.append(torch.zeros(len(codes), dtype=torch.int64, device=codes.device))
                    errors.append(0.0)
                    dims.append(codes.shape[1])
                rows = z[made.valid.flatten()]
                found = nearest(rows, codes, return_scores=True)
                assert found.scores is not None
                counts[level] += found.indices.bincount(minlength=len(codes))
                errors[level] += float(found.scores.double().sum())
        if not counts or not all(int(count.sum()) for count in counts):
            raise ValueError("latents: expected at least one finite vector of each level to fit, got none")
        if not all(errors):
            raise ValueError("latents: every vector of a level is one of its codes, so that no scale can be fitted")
        totals = [int(count.sum()) for count in counts]
        self.taus = [dim * total / (2 * error) for dim, total, error in zip(dims, totals, errors, strict=True)]
        self.priors = [count + 1 for count in counts]
        return self

    def tokens(self, x: Tensor, mask: Tensor | None = None) -> list[CodebookDistance]:
        """Of each level the distances of each token, times tau: (B, *S) of the level's own grid; NaN where not valid.

        Args:
            x: as for `quantizer.forward`.
            mask: as for `quantizer.forward`.

        Raises:
            RuntimeError: before `fit`.
            ValueError: as for `quantizer.forward`.
        """
        if not self.taus:
            raise RuntimeError("CodebookUncertainty has no scale yet: call fit(latents) of training data first")
        found = []
        for (made, z, codes), tau, prior in zip(self._levels(x, mask), self.taus, self.priors, strict=True):
            least, soft, energy = codebook_distance(z, codes, tau=tau, prior=prior)
            scores = (tau * least, tau * soft, energy)
            shaped = (score.view(made.valid.shape).masked_fill(~made.valid, torch.nan) for score in scores)
            found.append(CodebookDistance(*shaped))
        return found

    def samples(self, x: Tensor, mask: Tensor | None = None) -> CodebookDistance:
        """Of each sample the mean over its valid tokens, added over levels: (B,); NaN for a sample that has none in a
        level, such as a book of a `MixtureQuantizer` that no cell of it keeps.

        Args:
            x: as for `quantizer.forward`.
            mask: as for `quantizer.forward`.
        """
        levels = self.tokens(x, mask)
        means = [torch.stack([scores.flatten(1).nanmean(1) for scores in level]) for level in levels]
        return CodebookDistance(*torch.stack(means).sum(0))

    @torch.no_grad()
    def _levels(self, x: Tensor, mask: Tensor | None) -> Iterator[tuple[Quantized, Tensor, Tensor]]:
        """Of each level what was made, the vectors that were compared (N, D), and with which codes (K, D)."""
        latents, valid, _ = self.quantizer.open(x, mask)
        with autocast_disabled(latents.device):
            made = self.quantizer.quantize(latents, valid)  # without gradients nothing is drawn or counted
        for leaf in made.leaves():
            if leaf.selection is None or leaf.selection.codes is None:
                raise ValueError(
                    f"{type(self.quantizer).__name__} has a level that does not choose one of stored codes, from which "
                    "vectors would have a distance: FSQ, LFQ and BSQ know every vector of their range, TopKQuantizer "
                    "and PursuitQuantizer add several codes"
                )
            yield leaf, *leaf.selection.compared()


def auroc(inside: Tensor, outside: Tensor) -> float:
    """How well a score tells two sets apart: the share of pairs in which the one outside has more; ties count a half.

    It is the area under the ROC curve, exactly: counted in integers and divided once. 0.5 is chance, and below 0.5 the
    score tells them apart the other way round.

    Args:
        inside: (N,) scores of what should have little.
        outside: (M,) scores of what should have much.

    Raises:
        ValueError: a set is empty, or a score is NaN.
    """
    for name, scores in (("inside", inside), ("outside", outside)):
        if scores.ndim != 1 or not len(scores) or scores.isnan().any():
            raise ValueError(f"{name} has shape {tuple(scores.shape)}: expected (N,) scores, N >= 1, none of them NaN")
    kinds, kind = torch.cat([inside, outside]).unique(return_inverse=True)  # sorted
    own, others = (part.bincount(minlength=len(kinds)) for part in kind.split([len(inside), len(outside)]))
    smaller = own.cumsum(0) - own
    return int((others * (2 * smaller + own)).sum()) / (2 * len(inside) * len(outside))
