"""A codebook behind a layer: what the network computes with it, with other codes, and after it is gone."""

import copy
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.refusals import refused
from vqkit import (
    FSQ,
    GaussianBottleneck,
    GroupedQuantizer,
    PursuitQuantizer,
    Quantizer,
    ResidualQuantizer,
    Search,
    TopKQuantizer,
)
from vqkit.inspect import attach

WIDTH = 6


class Pair(nn.Module):
    """A layer that gives more than a tensor, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return self.linear(x), "weights"


class Network(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()), Pair()])
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks[1](self.blocks[0](x))[0])


QUANTIZERS = {
    "top k": partial(TopKQuantizer, WIDTH, 16, 3),
    "one code": partial(Quantizer, "vq", dim=WIDTH, codebook_size=16),
    "heads": partial(GroupedQuantizer, partial(TopKQuantizer, WIDTH // 2, 8, 2), 2),
    "stages": partial(ResidualQuantizer, partial(Quantizer, dim=WIDTH, codebook_size=8), 2),
    "no codebook": partial(FSQ, [3] * WIDTH),
}
each = pytest.mark.parametrize("name", QUANTIZERS)
paths = pytest.mark.parametrize("path", ["blocks.0", "blocks.0.1", "blocks.1", "blocks.1.linear"])


def example(seed: int = 1) -> Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed))


def quantizer_of(name: str = "top k"):
    quantizer = QUANTIZERS[name]().eval()
    quantizer.initialize([torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(2))])
    return quantizer


@each
@paths
def test_the_network_goes_on_with_codes_and_is_bit_for_bit_itself_without_them(name: str, path: str) -> None:
    network, x = Network(), example()
    before, keys, hooks = network(x), list(network.state_dict()), copy.copy(network.get_submodule(path)._forward_hooks)
    given = []
    watch = network.head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    attachment = attach(network, path, quantizer_of(name))
    changed = network(x)
    assert not torch.equal(changed, before) and list(network.state_dict()) == keys
    if path.startswith("blocks.1"):
        assert torch.equal(given[0], attachment.quantizer.decode(attachment.indices))
    attachment.remove()
    attachment.remove()
    watch.remove()
    assert torch.equal(network(x), before) and network.get_submodule(path)._forward_hooks == hooks


@each
def test_its_own_codes_change_nothing_and_others_what_they_stand_for(name: str) -> None:
    network, x = Network(), example()
    with attach(network, "blocks.1", quantizer_of(name)) as attachment:
        usual, own = network(x), attachment.indices
        with attachment.overwrite(own):
            assert torch.equal(network(x), usual)
        theirs = own.flip(1)
        with attachment.overwrite(theirs):
            assert torch.equal(network(x), network.head(attachment.quantizer.decode(theirs)))
            assert torch.equal(attachment.output.indices, own)
        where = torch.zeros(2, 5, dtype=torch.bool)
        where[1, 3] = True
        with attachment.overwrite(theirs, where):
            some = network(x)
        changed = (some != usual).any(-1)
        assert not changed[~where].any()
        assert torch.equal(network(x), usual) and torch.equal(attachment.indices, own)


def test_one_code_may_be_given_for_all_places() -> None:
    network, x = Network(), example()
    with attach(network, "blocks.1", quantizer_of("one code")) as attachment, attachment.overwrite(torch.tensor(3)):
        assert torch.equal(network(x), network.head(attachment.quantizer.decode(torch.full((2, 5), 3))))


def test_ablation_takes_away_what_the_code_gave_and_nothing_else() -> None:
    quantizer = quantizer_of().double()
    network, x = Network().double(), example().double()
    with attach(network, "blocks.1.linear", quantizer) as attachment:
        network(x)
        counts = attachment.indices.flatten().bincount(minlength=16)
        code = int(((counts > 0) & (counts < 10)).nonzero()[0])  # some of the ten tokens have it
        had = (attachment.indices == code).sum(-1, keepdim=True)
        whole = attachment.output.quantized
        with attachment.ablate([code]):
            network(x)
        lost = whole - quantizer.decode(attachment.indices)
        # Sums of three codes: a rounding of each, of numbers about 1.
        torch.testing.assert_close(lost, had * quantizer.codebook()[code] / 3, rtol=0, atol=16 * 2**-52)


def test_interventions_add_up_and_one_level_is_enough() -> None:
    network, x = Network(), example()
    with attach(network, "blocks.1", quantizer_of("stages")) as attachment:
        network(x)
        own = attachment.indices
        code = int(own[0, 0, 1])
        with attachment.ablate([code], level=1):
            network(x)
            second = torch.where(own[..., 1] == code, -1, own[..., 1])
            assert torch.equal(attachment.indices, torch.stack([own[..., 0], second], dim=-1))
            with attachment.ablate(range(8), level=0):
                network(x)
                assert (attachment.indices[..., 0] == -1).all() and torch.equal(attachment.indices[..., 1], second)


def test_an_ablated_atom_takes_no_coefficients_of_others_along() -> None:
    quantizer = PursuitQuantizer(WIDTH, 8, 2, levels=16).eval()
    x = example()
    with attach(nn.Sequential(nn.Identity()), "0", quantizer) as attachment:
        quantizer.ranges.fill_(8.0)  # coefficients have levels around the middle, 7 and 8
        own = quantizer.encode(x)
        assert (own[..., 1::2] == 7).any() and (own[..., ::2] == 7).any()
        with attachment.ablate([7]):
            attachment._quantized(x)
        atoms = torch.where(own[..., ::2] == 7, -1, own[..., ::2])
        assert torch.equal(attachment.indices[..., ::2], atoms)
        assert torch.equal(attachment.indices[..., 1::2], own[..., 1::2])
        with pytest.raises(ValueError, match=r"codes=\[8\]: expected numbers from 0 to 7"):
            attachment.ablate([8]).__enter__()


def test_parts_with_names_keep_them() -> None:
    class Parts(NamedTuple):
        states: Tensor
        weights: str

    class Named(nn.Module):
        def forward(self, x: Tensor) -> Parts:
            return Parts(x, "weights")

    quantizer = quantizer_of()
    with attach(network := nn.Sequential(Named()), "0", quantizer):
        given = network(example())
    assert type(given) is Parts and torch.equal(given.states, quantizer(example()).quantized)


def test_two_networks_and_two_layers_know_nothing_of_each_other() -> None:
    networks, x = [Network(0), Network(1)], example()
    attachments = [attach(network, "blocks.0", quantizer_of()) for network in networks]
    second = attach(networks[0], "blocks.1", quantizer_of("one code"))
    first, other = networks[0](x), networks[1](x)
    kept = attachments[0].indices
    with attachments[0].ablate(range(16)):
        assert not torch.equal(networks[0](x), first) and torch.equal(networks[1](x), other)
    networks[1](2 * x)
    networks[0](x)
    assert torch.equal(attachments[0].indices, kept) and second.indices.shape == (2, 5)
    attachments[0].remove()
    assert torch.equal(networks[1](x), other)


def test_a_copy_of_the_network_has_a_codebook_of_its_own() -> None:
    network, x = Network(), example()
    attachment = attach(network, "blocks.0", quantizer_of())
    other, before = copy.deepcopy(network), network(x)
    attachment.quantizer.codebook.vectors.requires_grad_(False).zero_()
    assert torch.equal(other(x), before) and not torch.equal(network(x), before)


def test_codes_learn_behind_a_frozen_network() -> None:
    network, x = Network().requires_grad_(False), example()
    quantizer = quantizer_of().train()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-2)
    with attach(network, "blocks.0", quantizer) as attachment:
        losses = []
        for _ in range(60):
            network(x)
            optimizer.zero_grad()
            attachment.output.loss.backward()
            optimizer.step()
            losses.append(float(attachment.output.loss.detach()))
    assert losses[-1] < losses[0] / 2
    assert float(quantizer.codebook.usage.sum()) > 0 and quantizer.codebook.steps == 59


test_what_cannot_be_is_refused = refused(
    (lambda n: attach(n, "blocks.7", quantizer_of()), r"path='blocks.7': Network has no such layer.*'blocks.1'"),
    (lambda n: attach(n, "head", GaussianBottleneck(2)), "attach"),
    (lambda n: attach(nn.Sequential(n, q := quantizer_of()), "0", q), "quantizer is a part of Sequential"),
    (lambda n: attach(n, "blocks.0", quantizer_of()).ablate([16]).__enter__(), "expected numbers from 0 to 15"),
    (lambda n: attach(n, "blocks.0", quantizer_of()).ablate([1], level=3).__enter__(), "level=3: expected 0 to 2"),
    (lambda n: attach(n, "blocks.0", quantizer_of()).overwrite(torch.tensor(16)).__enter__(), "indices lie in"),
    (
        lambda n: attach(n, "blocks.0", quantizer_of()).overwrite(torch.tensor(1), torch.ones(5)).__enter__(),
        "expected torch.bool",
    ),
    by=lambda make: make(Network()),
)


def test_shapes_that_do_not_fit_are_refused_in_the_forward() -> None:
    network = Network()
    with attach(network, "blocks.0", quantizer_of()) as attachment:
        too_many = torch.zeros(4, 5, 3, dtype=torch.int64)
        refused = pytest.raises(ValueError, match=r"indices of the intervention on 'blocks.0' has shape \(4, 5, 3\)")
        with attachment.overwrite(too_many), refused:
            network(example())
        where = torch.ones(2, 3, 5, dtype=torch.bool)
        with attachment.overwrite(torch.tensor(1), where), pytest.raises(ValueError, match="where of the interv"):
            network(example())


def test_a_layer_that_gives_no_tensor_is_named() -> None:
    class Words(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"x": x}

    network = nn.Sequential(Words())
    with attach(network, "0", quantizer_of()), pytest.raises(ValueError, match="the layer '0' gives dict"):
        network(example())


# ------------------------------------------------------------------ the quantizer of codebook features


def test_one_code_by_distance_is_vector_quantization() -> None:
    codes = torch.randn(16, WIDTH, dtype=torch.float64)
    ours = TopKQuantizer(WIDTH, 16, 1, search=Search("euclidean")).double()
    theirs = Quantizer("vq", dim=WIDTH, codebook_size=16).double()
    for quantizer in (ours, theirs):
        torch.nn.init.zeros_(quantizer.codebook.vectors).requires_grad_(False).copy_(codes)
    x = example().double()
    assert torch.equal(ours(x).quantized, theirs(x).quantized)
    assert torch.equal(ours.encode(x).squeeze(-1), theirs.encode(x))
    assert torch.equal(ours(x).loss, theirs(x).losses["codebook"])


def test_all_codes_give_their_mean_whatever_the_vector() -> None:
    quantizer = TopKQuantizer(WIDTH, 16, 16).double()
    found = quantizer(example().double()).quantized
    mean = quantizer.codebook().detach().mean(0).expand_as(found)
    torch.testing.assert_close(found, mean, rtol=0, atol=16 * 2**-52 * float(mean.abs().max() + 1))


@pytest.mark.parametrize("search", [None, Search("euclidean")])
def test_the_published_equations(search: Search | None) -> None:
    """Scores <LN(x), C / |C|> or -|x - C|, the k best, their mean; mse to the codes, the task's gradient to both."""
    quantizer = TopKQuantizer(WIDTH, 16, 3, **({} if search is None else {"search": search})).double()
    codes = quantizer.codebook.vectors
    x = example().double().requires_grad_()
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    scores = -torch.cdist(x, codes) if search else normed @ (codes / codes.norm(dim=1, keepdim=True)).T
    best = scores.topk(3, dim=-1).indices
    output = quantizer(x)
    assert torch.equal(output.indices, best)
    mean = codes[best].mean(-2)
    torch.testing.assert_close(output.quantized, mean, rtol=0, atol=8 * 2**-52)
    torch.testing.assert_close(output.loss, (x - mean).square().mean())
    task = torch.randn_like(x)
    to_x, to_codes = torch.autograd.grad((output.quantized * task).sum() + output.loss, [x, codes])
    assert torch.equal(to_x, task)
    expected = torch.autograd.grad((mean * task).sum() + (x.detach() - mean).square().mean(), codes)[0]
    torch.testing.assert_close(to_codes, expected)


def test_usage_counts_each_of_the_codes_of_a_token() -> None:
    quantizer = TopKQuantizer(WIDTH, 16, 3)
    output = quantizer(example())
    assert torch.equal(quantizer.codebook.pending_counts.long(), output.indices.flatten().bincount(minlength=16))


@pytest.mark.parametrize("k", [0, 17])
def test_more_codes_than_there_are(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k}: expected 1 to codebook_size=16"):
        TopKQuantizer(WIDTH, 16, k)


def test_one_dimension_has_no_direction() -> None:
    with pytest.raises(ValueError, match=r"dim=1: LayerNormSearch sees 0 .* Search\('euclidean'\)"):
        TopKQuantizer(1, 16, 2)
    quantizer = TopKQuantizer(1, 16, 2, search=Search("euclidean"))
    assert len(quantizer.encode(torch.linspace(-1, 1, 9)[:, None]).unique()) > 2


def test_heads_have_a_codebook_each_whose_levels_share_it() -> None:
    heads = quantizer_of("heads")
    assert heads.level_books == (0, 0, 1, 1) and heads.book_sizes == (8, 8)
    assert quantizer_of("stages").level_books == (0, 1)
