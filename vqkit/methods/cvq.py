"""CVQ-VAE: at every step each code moves towards a feature of the batch, further the less the code is used.

Source: Zheng, Vedaldi 2023, "Online Clustered Codebook" (arXiv:2307.15139).
"""

import math

import torch
from torch import Tensor

from vqkit.functional import unit
from vqkit.methods.anchors import Anchor, ClosestAnchor, at_least_one, pieces
from vqkit.parts import Parts
from vqkit.parts.codebooks import Codebook
from vqkit.parts.estimators import StraightThrough, straight_through
from vqkit.parts.losses import CodebookLoss, Commitment, Loss
from vqkit.parts.maintenance import Maintenance
from vqkit.parts.selection import Search, Selection


class OnlineClusteredCodebook(Codebook):
    """K trainable codes that count as unused until they are chosen: the first steps move all others to features.

    `usage` starts at 0, not at 1; `initialize` sets it as in `Codebook`.

    Source: arXiv:2307.15139, whose running average usage starts at 0.
    """

    def __init__(self, codebook_size: int, dim: int, *, usage_decay: float = 0.99, seed: int = 0) -> None:
        super().__init__(codebook_size, dim, usage_decay=usage_decay, seed=seed)
        self.usage.zero_()


class ClusterReinit(Maintenance):
    """Moves each code towards an anchor among the features, further the less it is used: e <- (1 - alpha) e + alpha a.

    alpha_k = exp(-10 K p_k / (1 - gamma) - 1e-3), with p_k the share of code k in the running usage and gamma the
    codebook's `usage_decay`. With gamma = 0.99 a code of fair share (K p_k = 1) does not move, one of a thousandth of
    it is replaced nearly whole; about 1 % of fair share divides the two. Usage itself is left alone, so that a code
    keeps moving until it is used. An update sends K x D numbers between ranks.

    Args:
        anchor: which feature.
        every: optimizer steps between updates; at least 1, which is the paper's.

    Source: arXiv:2307.15139, the running average usage and the reinitialization rule (constants 10, 1e-3, 0.99).
    Differs: the codes move before the search of the next batch, by its features; in the paper after the search, by the
    features of the batch that was quantized with the old codes, whose gradients then meet the new ones. Shares are of
    the usage recorded so far: the paper's start at 0 and take some hundred steps to add up to 1, in which used codes
    move as well. After `initialize` they start from the clusters it found; without it, see `OnlineClusteredCodebook`
    (a codebook whose usage starts uniform loses some 600 steps, until the unused have decayed). All ranks choose among
    the features of all (the released code lets them drift apart). The trainer resets the moments that an optimizer
    keeps for the rows (`Codebook.rewritten`).

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, anchor: Anchor = ClosestAnchor(), *, every: int = 1) -> None:  # noqa: B008 - no state
        super().__init__()
        if every < 1:
            raise ValueError(f"every={every}: expected a number of steps, at least 1")
        self.anchor = anchor
        self.every = every

    def refresh(self, codebook: Codebook, z: Tensor, valid: Tensor) -> None:
        """Move all codes, most of them by next to nothing."""
        usage, vectors = codebook.usage, codebook.vectors.detach()
        shares = usage / usage.sum().clamp(min=torch.finfo(usage.dtype).tiny)
        anchors, found = self.anchor(vectors, z.detach(), valid, seed=codebook.seed, step=codebook.steps)
        codebook.overwrite(
            torch.arange(len(usage), device=usage.device),
            anchors,
            share=reinitialization(shares, usage_decay=codebook.usage_decay) * found,
            usage=usage.clone(),
        )


class Contrastive(Loss):
    """Separates the codes: each becomes more similar to the features nearest to it than to those farthest from it.

    For each code, with cosines s_1 >= ... >= s_N to the features: the cross-entropy of the mean of the first
    max(1, N // K) against the last N // 2, all divided by the temperature; then the mean over codes. Features are
    constants, so the gradient reaches the codes alone. N counts valid vectors; without one the term is 0. Nothing of
    size K x N is held; all similarities are sorted, though, which takes far longer than a search.

    Over ranks each term is that of the rank's own batch, and gradients are averaged as those of any loss: not the term
    of the joined batch, whose ranking would need all features everywhere.

    Args:
        weight: factor in the total.
        temperature: positive.

    Source: arXiv:2307.15139, the optional contrastive term, temperature 0.07.
    Differs: gradients see the codes that were searched (in the released code those after reinitialization).

    Raises:
        ValueError: an argument is out of its range.
    """

    name = "contrastive"
    trains_codebook = True
    attracts_codes = True
    compares_with_all_codes = True

    def __init__(self, weight: float = 1.0, *, temperature: float = 0.07) -> None:
        super().__init__(weight)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature}: expected a positive number, 0.07 in the paper")
        self.temperature = temperature

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """The mean cross-entropy over codes."""
        assert selection.codes is not None  # only quantizers with a codebook take losses that train one
        codes = unit(selection.codes)
        value, gradient = _contrast(codes.detach(), unit(selection.z.detach()), selection.valid, self.temperature)
        return straight_through(value, (codes * gradient).sum())


def reinitialization(shares: Tensor, *, usage_decay: float = 0.99) -> Tensor:
    """alpha, the share of its anchor that a code takes on, from its share (K,) of all usage: 0.999 for unused codes."""
    return torch.exp(-10 * len(shares) * shares / (1 - usage_decay) - 1e-3)


def cvq() -> Parts:
    """Plain VQ searched by angle, mse(sg z, e) + 0.25 mse(z, sg e), whose unused codes move to features."""
    return Parts(
        codebook=OnlineClusteredCodebook,
        search=Search("cosine"),
        estimator=StraightThrough(),
        losses=(Commitment(0.25), CodebookLoss(1.0)),
        maintenance=(ClusterReinit(),),
    )


@torch.no_grad()
def _contrast(codes: Tensor, features: Tensor, valid: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The term and its gradient to the unit codes (K, D), formed together: a backward would sort everything again."""
    features, valid = at_least_one(features, valid)
    size, count = len(codes), valid.sum()
    place = torch.arange(len(features), device=codes.device)
    positive = place < (count // size).clamp(min=1).minimum(count)
    negative = (place >= count - count // 2) & (place < count)
    mean = positive.to(codes.dtype) / positive.sum().clamp(min=1)
    values: list[Tensor] = []
    gradients: list[Tensor] = []
    for numbers in pieces(size, len(features), codes.device):
        cosines = torch.where(valid, codes[numbers] @ features.mT, -torch.inf)
        ranked, order = cosines.sort(dim=1, descending=True, stable=True)
        ranked = torch.where(place < count, ranked, 0) / temperature
        attracted = (ranked * mean).sum(1, keepdim=True)
        logits = torch.cat([attracted, torch.where(negative, ranked, -torch.inf)], dim=1)
        values.append(torch.logsumexp(logits, dim=1) - attracted.squeeze(1))
        chances = logits.softmax(dim=1)
        pulls = chances[:, 1:] + (chances[:, :1] - 1) * mean
        gradients.append(torch.zeros_like(pulls).scatter(1, order, pulls) @ features)
    return torch.cat(values).mean(), torch.cat(gradients) / (size * temperature)
