"""A code that was rewritten starts with fresh moments; the others keep theirs."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.trainers.tiny import LIGHTNING_REMARKS, Images, Spy, make_image_task, make_tokenizer, make_trainer
from trainers.core import task as task_module
from trainers.core.moments import forget_rewritten_rows
from vqkit import Codebook, GroupedQuantizer, Maintenance, Quantizer, ResidualQuantizer

pytestmark = LIGHTNING_REMARKS

K, D, RESTARTED, FADED = 6, 4, 3, 5
OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=0.1),
    "adamw": partial(torch.optim.AdamW, lr=0.1, betas=(0.9, 0.95), weight_decay=0.0),
    "amsgrad": partial(torch.optim.AdamW, lr=0.1, amsgrad=True, weight_decay=0.0),
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
}


def gradients(steps: int) -> list[Tensor]:
    return [torch.randn(K, D, generator=torch.Generator().manual_seed(step)) + 1 for step in range(steps)]


def rewrite(codebook: Codebook) -> None:
    share = torch.tensor([1.0, 0.25])
    codebook.overwrite(torch.tensor([RESTARTED, FADED]), torch.zeros(2, D), share=share, usage=torch.ones(2))


def last_step(make, *, forget: bool, fresh: int | None = None) -> Tensor:
    """How far each code moves in the step after the rewriting; `fresh` had no gradient until then."""
    codebook = Codebook(K, D)
    optimizer = make([codebook.vectors])
    *earlier, last = gradients(9)
    for gradient in earlier:
        codebook.vectors.grad = gradient.clone()
        if fresh is not None:
            codebook.vectors.grad[fresh] = 0
        optimizer.step()
    rewrite(codebook)
    before = codebook.vectors.detach().clone()
    codebook.vectors.grad = last.clone()
    if forget:
        forget_rewritten_rows(codebook, optimizer)
        assert not codebook.rewritten.any()
    optimizer.step()
    return codebook.vectors.detach() - before


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_restarted_row_moves_as_one_without_a_past(make) -> None:
    moved, stale = last_step(make, forget=True), last_step(make, forget=False)
    fresh = last_step(make, forget=False, fresh=RESTARTED)
    torch.testing.assert_close(moved[RESTARTED], fresh[RESTARTED])
    assert (stale[RESTARTED] - fresh[RESTARTED]).norm() > 0.1 * fresh[RESTARTED].norm()
    others = [code for code in range(K) if code not in (RESTARTED, FADED)]
    torch.testing.assert_close(moved[others], stale[others])


def test_the_bias_correction_is_that_of_the_whole_tensor() -> None:
    moved, last = last_step(OPTIMIZERS["adamw"], forget=True)[RESTARTED], gradients(9)[-1][RESTARTED]
    length = 0.1 * (0.1 / (1 - 0.9**9)) / math.sqrt(0.05 / (1 - 0.95**9))
    torch.testing.assert_close(moved, -length * last.sign(), rtol=1e-5, atol=1e-6)


def test_a_row_that_was_rewritten_in_part_forgets_in_part() -> None:
    codebook = Codebook(K, D)
    optimizer = torch.optim.AdamW([codebook.vectors])
    codebook.vectors.grad = gradients(1)[0]
    optimizer.step()
    state = {name: value.clone() for name, value in optimizer.state[codebook.vectors].items()}
    rewrite(codebook)
    forget_rewritten_rows(codebook, optimizer)
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(optimizer.state[codebook.vectors][name][FADED], 0.75 * state[name][FADED])
        assert not optimizer.state[codebook.vectors][name][RESTARTED].any()
    assert optimizer.state[codebook.vectors]["step"] == 1


def test_codebooks_inside_composites_are_found_and_others_left_alone() -> None:
    stage = partial(Quantizer, "vq", dim=D, codebook_size=K)
    quantizer = GroupedQuantizer(
        [partial(ResidualQuantizer, stage, 2), stage, partial(Quantizer, "ema", dim=D, codebook_size=K)]
    )
    books = [module for module in quantizer.modules() if isinstance(module, Codebook)]
    optimizer = torch.optim.SGD([*books[0].parameters(), *books[2].parameters()], lr=0.1, momentum=0.9)
    for book in (books[0], books[2]):
        book.vectors.grad = torch.ones(K, D)
    optimizer.step()
    for book in books:
        rewrite(book)
    forget_rewritten_rows(quantizer, optimizer)
    assert [bool(book.rewritten.any()) for book in books] == [False, True, False, True]
    for book in (books[0], books[2]):
        momentum = optimizer.state[book.vectors]["momentum_buffer"]
        assert not momentum[RESTARTED].any() and (momentum[0] == 1).all()


class RewriteAll(Maintenance):
    """Every code is new at every step."""

    def refresh(self, codebook: Codebook, z: Tensor, valid: Tensor) -> None:
        codebook.overwrite(torch.arange(K), codebook.vectors + 0.1, share=torch.ones(K), usage=torch.ones(K))


def train(accumulate: int) -> tuple[Tensor, Tensor]:
    """The first moment after the last step, and what it is without a past."""
    quantizer = Quantizer("vq", dim=8, codebook_size=K, channel_dim=1, maintenance=[RewriteAll()])
    task, gradients = make_image_task(make_tokenizer(quantizer)), []
    spy = Spy(lambda *_: gradients.append(quantizer.codebook.vectors.grad.clone()))
    trainer = make_trainer(max_steps=4, accumulate_grad_batches=accumulate, callbacks=[spy])
    trainer.fit(task, datamodule=Images(2))
    moment = trainer.optimizers[0].state[quantizer.codebook.vectors]["exp_avg"]
    return moment, (1 - task.betas[0]) * gradients[-1]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer_forgets_at_the_optimizer_boundary(accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    moment, expected = train(accumulate)
    assert moment.any()
    torch.testing.assert_close(moment, expected)
    monkeypatch.setattr(task_module, "forget_rewritten_rows", lambda *_: None)
    moment, expected = train(accumulate)
    assert (moment - expected).norm() > 0.1 * expected.norm()


def test_what_is_rewritten_twice_before_a_step_adds_up() -> None:
    codebook = Codebook(K, D)
    for share in (0.5, 0.5):
        codebook.overwrite(torch.tensor([2]), torch.zeros(1, D), share=torch.tensor([share]), usage=torch.ones(1))
    assert codebook.rewritten.tolist() == [0, 0, 0.75, 0, 0, 0]
