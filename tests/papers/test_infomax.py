"""DIMCO against its equations (Lee et al. 2019), in float64, and against the entropy losses that it contains."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.conftest import RankPair
from tests.papers.test_lfq import selection
from tests.refusals import refused
from vqkit import BitEntropy, Entropy, Selection, distributed
from vqkit.methods.infomax import code_scores, digit_dependence, infomax_loss, storage_bits


def problem(rows: int = 30, digits: int = 4, symbols: int = 3) -> tuple[Tensor, Tensor]:
    """Logits, to which gradients are compared (those to probabilities differ by what softmax takes away), and these."""
    logits = torch.randn(rows, digits, symbols, dtype=torch.float64).mul(2).requires_grad_()
    return logits, logits.softmax(-1)


def distributions(rows: int = 30) -> Tensor:
    return problem(rows)[1].detach()


def mutual_information(joint: Tensor) -> Tensor:
    """Of two variables with this joint distribution (a, b)."""
    return (joint * (joint / (joint.sum(1, keepdim=True) * joint.sum(0))).log()).sum()


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs, retain_graph=True)


def test_information_of_labels_is_that_of_each_digits_joint_distribution() -> None:
    logits, p = problem()
    labels = torch.arange(30) % 7 % 5  # classes of unequal size
    expected = p.new_zeros(())
    for digit in range(4):
        joint = torch.stack([p[labels == label, digit].sum(0) / 30 for label in range(5)])
        expected = expected - mutual_information(joint)
    loss = infomax_loss(p, labels, num_classes=6)  # a class that the batch lacks
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradients(loss, logits), gradients(expected, logits), rtol=0, atol=1e-13)
    assert -4 * math.log(3) < float(loss.detach()) < 0


def test_each_sample_as_its_own_label_is_the_form_without_labels() -> None:
    p = distributions()
    torch.testing.assert_close(infomax_loss(p, torch.arange(30), num_classes=30), infomax_loss(p), rtol=0, atol=1e-13)


@pytest.mark.parametrize("group_bits", [1, 3])
def test_without_labels_it_is_lfqs_entropy_loss(group_bits: int) -> None:
    """A digit is a group of bits: its symbols are their patterns."""
    z = (0.01 * torch.randn(40, 6, dtype=torch.float64) + 0.004).requires_grad_()
    bit = torch.stack([torch.sigmoid(-400 * z), torch.sigmoid(400 * z)], -1)  # 4 z / temperature
    groups = bit.unflatten(1, (-1, group_bits))
    patterns = itertools.product((0, 1), repeat=group_bits)
    p = torch.stack([math.prod(groups[:, :, i, b] for i, b in enumerate(pattern)) for pattern in patterns], -1)
    theirs = BitEntropy(group_bits=group_bits)(selection(z), z)
    ours = infomax_loss(p)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(ours, z), gradients(theirs, z), rtol=1e-9, atol=1e-12)


def test_without_labels_one_digit_is_a_codebooks_entropy_loss() -> None:
    z, codes = (torch.randn(rows, 5, dtype=torch.float64).requires_grad_() for rows in (40, 9))
    kept, indices = torch.ones(40, dtype=torch.bool), torch.zeros(40, dtype=torch.long)
    chosen = Selection(latents=z, z=z, codes=codes, indices=indices, selected=codes[indices], valid=kept)
    theirs = Entropy(temperature=0.5)(chosen, z)
    ours = infomax_loss((z @ codes.T / 0.5).softmax(-1)[:, None])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(ours, z, codes), gradients(theirs, z, codes), rtol=0, atol=1e-12)


def test_balanced_codes_of_27_classes_tell_the_class() -> None:
    """Independent digits: their information adds up to log2 27, and none of them says anything of another."""
    codes = torch.tensor(list(itertools.product(range(3), repeat=3)))
    p = torch.nn.functional.one_hot(codes, 3).double()
    bits = -infomax_loss(p, torch.arange(27), num_classes=27) / math.log(2)
    assert float(bits) == pytest.approx(math.log2(27), abs=1e-12)
    assert float(digit_dependence(p)) == pytest.approx(0, abs=1e-12)
    assert storage_bits(3, 3) == pytest.approx(math.log2(27))


def test_digits_that_repeat_one_another_count_again_and_dependence_takes_it_back() -> None:
    p = torch.eye(3, dtype=torch.float64)[:, None].expand(3, 2, 3)
    labels = torch.arange(3)
    assert float(infomax_loss(p, labels, num_classes=3)) == pytest.approx(-2 * math.log(3))
    assert float(infomax_loss(p, labels, num_classes=3) + digit_dependence(p)) == pytest.approx(-math.log(3))


def test_dependence_is_the_information_of_pairs_of_digits() -> None:
    logits, p = problem()
    pairs = itertools.combinations(range(4), 2)
    expected = sum(mutual_information(p[:, i].T @ p[:, j] / 30) for i, j in pairs)
    found = digit_dependence(p)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(found, logits), gradients(expected, logits), rtol=0, atol=1e-12)


def test_probabilities_of_zero_have_finite_gradients() -> None:
    p = torch.eye(4)[:, None].repeat(1, 2, 1).requires_grad_()
    (infomax_loss(p, torch.arange(4), num_classes=5) + infomax_loss(p) + digit_dependence(p)).backward()
    assert p.grad.isfinite().all()


def test_half_precision_is_computed_in_float32_and_a_batch_of_nothing_loses_nothing() -> None:
    assert infomax_loss(distributions().bfloat16()).dtype == torch.float32
    empty = distributions(0)
    labels = torch.zeros(0, dtype=torch.long)
    assert [float(loss) for loss in (infomax_loss(empty), infomax_loss(empty, labels, num_classes=3))] == [0, 0]
    assert float(digit_dependence(empty)) == 0


def test_autocast_rounds_nothing() -> None:
    p = distributions().float()
    labels = torch.arange(30) % 4

    def values() -> tuple[Tensor, ...]:
        return infomax_loss(p, labels, num_classes=4), infomax_loss(p), digit_dependence(p)

    plain = values()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(values(), plain, strict=True))


def test_scores_of_half_precision_are_added_in_float32() -> None:
    # Next to the first digit's 256 bfloat16 knows even numbers alone, and the digits behind it would say nothing.
    log_p = torch.cat([torch.full((1, 1, 2), -256.0), torch.tensor([-0.5, -0.75]).expand(1, 3, 2)], 1).bfloat16()
    codes = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1]])
    assert torch.equal(code_scores(log_p, codes), torch.tensor([[-257.5, -258.25]]))


def test_scores_are_the_log_probability_of_each_stored_code() -> None:
    p, codes = distributions(6), torch.randint(3, (11, 4), dtype=torch.uint8)
    of_pairs = [[math.prod(q[j][s] for j, s in enumerate(code)) for code in codes.tolist()] for q in p.tolist()]
    expected = torch.tensor(of_pairs, dtype=torch.float64).log()
    torch.testing.assert_close(code_scores(p.log(), codes), expected, rtol=0, atol=1e-12)


def losses_on_rank(rank: int) -> tuple[Tensor, Tensor]:
    rows = slice(0, 12) if rank == 0 else slice(12, 30)
    torch.manual_seed(5)
    logits, p = problem()
    labels = torch.arange(30) % 4
    loss = (
        infomax_loss(p[rows], labels[rows], num_classes=4) + 2 * infomax_loss(p[rows]) + 3 * digit_dependence(p[rows])
    )
    (gradient,) = gradients(loss, logits)
    return loss.detach(), distributed.all_reduce_sum(gradient) / 2


def test_ranks_have_the_loss_of_the_joined_batch(rank_pair: RankPair) -> None:
    torch.manual_seed(5)
    logits, p = problem()
    labels = torch.arange(30) % 4
    whole = infomax_loss(p, labels, num_classes=4) + 2 * infomax_loss(p) + 3 * digit_dependence(p)
    (gradient,) = gradients(whole, logits)
    for loss, theirs in rank_pair(losses_on_rank):
        torch.testing.assert_close(loss, whole.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(theirs, gradient, rtol=0, atol=1e-12)


test_what_cannot_be_meant_is_refused = refused(
    (lambda p: infomax_loss(p[0]), r"expected \(B, d, k\)"),
    (lambda p: infomax_loss(p, torch.zeros(30)), "num_classes=None with labels: expected both or neither"),
    (lambda p: infomax_loss(p, torch.zeros(30), num_classes=2), r"labels has shape .* expected \(30,\) int64"),
    (lambda p: infomax_loss(p, torch.full((30,), 2), num_classes=2), "expected values below 2"),
    (lambda p: infomax_loss(p, torch.arange(-1, 29), num_classes=29), r"labels holds -1: expected 0 \.\.\. 28"),
    (lambda p: infomax_loss(p, torch.zeros(30, dtype=torch.long), num_classes=0), "num_classes=0"),
    (lambda p: infomax_loss(p, num_classes=2), "num_classes=2 without labels"),
    (lambda p: digit_dependence(p.long()), "floating point"),
    (lambda p: code_scores(p, torch.zeros(5, 3, dtype=torch.long)), r"expected \(S, 4\) integers"),
    (lambda p: code_scores(p, torch.full((5, 4), 3)), r"holds 3 ... 3: expected 0 ... 2"),
    (lambda p: code_scores(p[0], torch.zeros(5, 4)), r"expected \(Q, d, k\)"),
    (lambda p: storage_bits(0, 2), "digits=0"),
    by=lambda call: call(distributions()),
)
