"""CVQ against its equations (Zheng, Vedaldi 2023), in float64; constants are those of the paper."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import RankPair
from vqkit import (
    Anchor,
    ClosestAnchor,
    ClusterReinit,
    Codebook,
    Contrastive,
    ProbabilisticAnchor,
    Quantizer,
    RandomAnchor,
    Selection,
)
from vqkit.methods.cvq import reinitialization

K, D, N = 12, 5, 40
ANCHORS = {
    "closest": ClosestAnchor(),
    "closest, euclidean": ClosestAnchor("euclidean"),
    "random": RandomAnchor(),
    "probabilistic": ProbabilisticAnchor(),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def book(size: int = K, *, seed: int = 0) -> Codebook:
    codebook = Codebook(size, D).double()
    with torch.no_grad():
        codebook.vectors.copy_(random(size, D, seed=seed))
    # From unused to twice the fair share, in no order.
    codebook.usage.copy_(10 ** torch.linspace(-5, 1, size, dtype=torch.float64).roll(size // 3))
    codebook.usage[size // 2] = 0
    return codebook


def alpha(usage: Tensor) -> Tensor:
    share = usage / usage.sum()
    return torch.exp(-10 * len(usage) * share / (1 - 0.99) - 1e-3)


def refresh(policy: ClusterReinit, codebook: Codebook, z: Tensor, valid: Tensor | None = None) -> Tensor:
    policy.refresh(codebook, z, torch.ones(len(z), dtype=torch.bool) if valid is None else valid)
    return codebook.vectors.detach().clone()


def taken(anchors: Tensor, z: Tensor) -> Tensor:
    """(K, N) bool: which feature each anchor is."""
    return (anchors.unsqueeze(1) == z).all(-1)


# ---------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("share_of_fair", "after"),
    [
        (0, (0.999, 0.999, 0.999)),
        (0.001, (0.989, 0.908, 0.530)),
        (0.01, (0.904, 0.384, 0.0018)),
        (0.1, (0.368, 7e-5, 0)),
    ],
)
def test_alpha_is_that_of_the_sheet(share_of_fair: float, after: tuple[float, ...]) -> None:
    """Usage n_k / N = f / K for 1, 10 and 100 steps, from 0."""
    for steps, expected in zip((1, 10, 100), after, strict=True):
        shares = torch.full((64,), share_of_fair / 64 * (1 - 0.99**steps), dtype=torch.float64)
        value = float(reinitialization(shares)[0])
        assert value == pytest.approx(expected, abs=5e-4 if expected > 1e-3 else 5e-5)
    assert float(reinitialization(torch.full((64,), 0.01 / 64, dtype=torch.float64))[0]) == pytest.approx(
        4.5e-5, rel=0.01
    )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_update_on_given_usage_codes_and_features(metric: str) -> None:
    codebook, z = book(), random(N, D, seed=1)
    before, usage = codebook.vectors.detach().clone(), codebook.usage.clone()
    similarity = F.normalize(before) @ F.normalize(z).T if metric == "cosine" else -torch.cdist(before, z)
    a, weight = z[similarity.argmax(1)], alpha(usage)[:, None]
    after = refresh(ClusterReinit(ClosestAnchor(metric)), codebook, z)
    torch.testing.assert_close(after, (1 - weight) * before + weight * a, rtol=0, atol=1e-14)
    assert torch.equal(codebook.usage, usage)
    torch.testing.assert_close(codebook.rewritten, alpha(usage), rtol=0, atol=1e-14)
    assert float(weight.min()) < 1e-300 and float(weight.max()) == pytest.approx(0.999, abs=1e-5)


@pytest.mark.parametrize("anchor", [RandomAnchor(), ProbabilisticAnchor()], ids=["random", "probabilistic"])
def test_the_update_with_drawn_anchors_takes_features(anchor: Anchor) -> None:
    codebook, z = book(), random(N, D, seed=1)
    before, weight = codebook.vectors.detach().clone(), alpha(codebook.usage)[:, None]
    anchors, found = anchor(before, z, torch.ones(N, dtype=torch.bool), seed=0, step=0)
    assert found.all() and taken(anchors, z).any(1).all()
    after = refresh(ClusterReinit(anchor), codebook, z)
    torch.testing.assert_close(after, (1 - weight) * before + weight * anchors, rtol=0, atol=1e-14)


@pytest.mark.parametrize("anchor", ANCHORS.values(), ids=ANCHORS)
def test_codes_of_fair_share_stay(anchor: Anchor) -> None:
    codebook = book()
    codebook.usage.fill_(3.0)
    before = codebook.vectors.detach().clone()
    after = refresh(ClusterReinit(anchor), codebook, random(N, D, seed=1))
    assert ((after - before).norm(dim=1) < 1e-4 * before.norm(dim=1)).all()


def test_permuting_the_codes_permutes_everything() -> None:
    order = torch.randperm(K, generator=torch.Generator().manual_seed(1))
    plain, permuted, z = book(), book(), random(N, D, seed=1)
    with torch.no_grad():
        permuted.vectors.copy_(plain.vectors[order])
    permuted.usage.copy_(plain.usage[order])
    assert torch.equal(refresh(ClusterReinit(), plain, z)[order], refresh(ClusterReinit(), permuted, z))


@pytest.mark.parametrize("anchor", ANCHORS.values(), ids=ANCHORS)
def test_vectors_that_do_not_count_are_no_anchors(anchor: Anchor) -> None:
    z, valid = random(N, D, seed=1), torch.arange(N) % 3 == 0
    poisoned = torch.where(valid[:, None], z, torch.nan)
    anchors, found = anchor(book().vectors.detach(), poisoned, valid, seed=0, step=3)
    assert found.all() and taken(anchors, z[valid]).any(1).all()


@pytest.mark.parametrize("rows", [0, N])
@pytest.mark.parametrize("anchor", ANCHORS.values(), ids=ANCHORS)
def test_a_batch_without_a_vector_changes_nothing(anchor: Anchor, rows: int) -> None:
    codebook = book()
    before = codebook.vectors.detach().clone()
    after = refresh(ClusterReinit(anchor), codebook, random(rows, D).fill_(torch.nan), torch.zeros(rows).bool())
    assert torch.equal(after, before) and not codebook.rewritten.any()


# ---------------------------------------------------------------------- the anchors


def test_probabilities_are_the_softmax_of_the_similarity() -> None:
    size, z = 4000, random(6, D, seed=2)
    codes = random(1, D, seed=3).expand(size, D).contiguous()
    for metric, logits in (
        ("cosine", (F.normalize(codes[:1]) @ F.normalize(z).T)[0]),
        ("euclidean", -torch.cdist(codes[:1], z)[0].square()),
    ):
        anchors, _ = ProbabilisticAnchor(metric)(codes, z, torch.ones(6, dtype=torch.bool), seed=0, step=5)
        share = taken(anchors, z).double().mean(0)
        p = logits.softmax(0)
        assert (share - p).abs().le(4 * (p * (1 - p) / size).sqrt()).all(), (share, p)


def test_random_anchors_are_distinct_and_every_code_has_its_turn() -> None:
    z, valid = random(5, D, seed=2), torch.ones(5, dtype=torch.bool)
    turns, given = torch.zeros(K), torch.zeros(5)
    for step in range(240):
        anchors, found = RandomAnchor()(book().vectors.detach(), z, valid, seed=0, step=step)
        assert int(found.sum()) == 5 and len(anchors[found].unique(dim=0)) == 5
        turns += found
        given += taken(anchors[found][:1], z)[0]
    assert (turns - 100).abs().max() < 4 * math.sqrt(240 * 5 / 12 * 7 / 12)
    assert (given - 48).abs().max() < 4 * math.sqrt(240 * 0.2 * 0.8)


def test_other_steps_draw_other_anchors() -> None:
    for anchor in (RandomAnchor(), ProbabilisticAnchor()):
        codes, z, valid = book().vectors.detach(), random(N, D, seed=1), torch.ones(N, dtype=torch.bool)
        first, again, other = (anchor(codes, z, valid, seed=0, step=step)[0] for step in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)


# ---------------------------------------------------------------------- ranks

SPLITS = {"even": (20, 40), "ragged": (31, 35), "an empty rank": (0, 25), "masked": (20, 40)}


def batch(split: str) -> tuple[Tensor, Tensor]:
    z, valid = random(SPLITS[split][1], D, seed=4), torch.ones(SPLITS[split][1], dtype=torch.bool)
    if split == "masked":
        valid[:20] = False
        valid[25] = False
    return torch.where(valid[:, None], z, torch.nan), valid


def refresh_on_rank(rank: int) -> dict[str, Tensor]:
    results = {}
    for split, (cut, _) in SPLITS.items():
        z, valid = batch(split)
        part = slice(None, cut) if rank == 0 else slice(cut, None)
        for name, anchor in ANCHORS.items():
            codebook = book()
            codebook.steps = 7
            results[f"{split}, {name}"] = refresh(ClusterReinit(anchor), codebook, z[part], valid[part])
    return results


def test_two_ranks_equal_one_process(rank_pair: RankPair) -> None:
    first, second = rank_pair(refresh_on_rank)
    for split in SPLITS:
        for name, anchor in ANCHORS.items():
            codebook = book()
            codebook.steps = 7
            alone = refresh(ClusterReinit(anchor), codebook, *batch(split))
            both = first[f"{split}, {name}"], second[f"{split}, {name}"]
            assert torch.equal(both[0], alone) and torch.equal(both[1], alone), (split, name)


# ---------------------------------------------------------------------- the method


def test_a_step_of_the_method() -> None:
    """Codes move before the search; loss and gradients are those of plain VQ on the moved codes, found by angle."""
    quantizer, z = Quantizer("cvq", dim=D, codebook_size=K).double(), random(N, D, seed=1).requires_grad_()
    quantizer.codebook.load_state_dict(book().state_dict())
    quantizer.codebook.steps = 1
    before, weight = book().vectors.detach(), alpha(book().usage)[:, None]
    closest = z.detach()[(F.normalize(before) @ F.normalize(z.detach()).T).argmax(1)]
    e = ((1 - weight) * before + weight * closest).requires_grad_()
    upstream, y = random(N, D, seed=5), z.detach().clone().requires_grad_()
    output = quantizer(z)
    (output.loss + (output.quantized * upstream).sum()).backward()
    chosen = (F.normalize(y) @ F.normalize(e).T).argmax(1)
    loss = F.mse_loss(e[chosen], y.detach()) + 0.25 * F.mse_loss(y, e[chosen].detach())
    (loss + ((y + (e[chosen] - y).detach()) * upstream).sum()).backward()
    assert torch.equal(output.indices, chosen)
    torch.testing.assert_close(output.quantized, e[chosen], rtol=0, atol=1e-14)
    torch.testing.assert_close(output.loss, loss, rtol=0, atol=1e-14)
    torch.testing.assert_close(z.grad, y.grad, rtol=0, atol=1e-14)
    torch.testing.assert_close(quantizer.codebook.vectors.grad, e.grad, rtol=0, atol=1e-14)


def test_running_usage_follows_the_batch() -> None:
    quantizer, z = Quantizer("cvq", dim=D, codebook_size=K).double(), random(N, D, seed=1)
    assert not quantizer.codebook.usage.any()
    output = quantizer(z)
    quantizer.step()
    counts = torch.bincount(output.indices, minlength=K).double()
    torch.testing.assert_close(quantizer.codebook.usage / N, 0.01 * counts / N, rtol=0, atol=1e-14)


def test_the_first_steps_draw_every_unused_code_to_a_feature() -> None:
    """As in the paper, whose running usage starts at 0: codes that start far from all features come to be used."""
    quantizer = Quantizer("cvq", dim=D, codebook_size=64)
    for _ in range(60):
        quantizer(torch.randn(256, D) + 5)
        quantizer.step()
    assert len(quantizer.encode(torch.randn(2048, D) + 5).unique()) > 55
    uniform = Quantizer("cvq", dim=D, codebook_size=64)
    uniform.codebook.usage.fill_(1)
    for _ in range(60):
        uniform(torch.randn(256, D) + 5)
        uniform.step()
    assert len(uniform.encode(torch.randn(2048, D) + 5).unique()) < 30


# ---------------------------------------------------------------------- the contrastive term


def contrastive(codes: Tensor, z: Tensor) -> Tensor:
    ranked = (F.normalize(codes) @ F.normalize(z).T).sort(dim=1).values
    count = z.shape[0]
    positive = ranked[:, -max(1, count // len(codes)) :].mean(1, keepdim=True)
    negative = ranked[:, : count // 2]
    logits = torch.cat([positive, negative], 1) / 0.07
    return F.cross_entropy(logits, torch.zeros(len(codes), dtype=torch.int64))


def selected(z: Tensor, codes: Tensor, valid: Tensor) -> Selection:
    indices = valid.long() - 1
    return Selection(latents=z, z=z, codes=codes, indices=indices, selected=codes[:1].expand(len(z), -1), valid=valid)


@pytest.mark.parametrize("rows", [N, 3 * K - 1, 5, 1])
def test_the_contrastive_term_and_its_gradient(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqkit.methods.anchors._PIECE", 2 * rows)
    codes, z = random(K, D).requires_grad_(), random(rows, D, seed=1).requires_grad_()
    e = codes.detach().clone().requires_grad_()
    loss = Contrastive()(selected(z, codes, torch.ones(rows, dtype=torch.bool)), z)
    expected = contrastive(e, z.detach())
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(codes.grad, e.grad, rtol=0, atol=1e-12)
    assert z.grad is None


@pytest.mark.parametrize("usage_decay", [0.9, 0.999])
def test_alpha_counts_in_the_memory_of_the_running_usage(usage_decay: float) -> None:
    codebook = Codebook(K, D, usage_decay=usage_decay).double()
    codebook.usage.copy_(10 ** torch.linspace(-4, 1, K, dtype=torch.float64))
    before, z = codebook.vectors.detach().clone(), random(N, D, seed=1)
    anchors, _ = ClosestAnchor()(before, z, torch.ones(N, dtype=torch.bool), seed=0, step=0)
    share = codebook.usage / codebook.usage.sum()
    weight = torch.exp(-10 * K * share / (1 - usage_decay) - 1e-3).unsqueeze(1)
    after = refresh(ClusterReinit(), codebook, z)
    torch.testing.assert_close(after, (1 - weight) * before + weight * anchors, rtol=0, atol=1e-12)
