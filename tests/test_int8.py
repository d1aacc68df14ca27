"""Codebooks of 8 bits: what they round, what a file of them weighs, and what is told of the change."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.test_baking import BuildsItsOwn, Fixed
from vqkit import FSQ, BaseQuantizer, GroupedQuantizer, Quantizer, ResidualQuantizer, Tokenizer, TopKQuantizer, bake
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.deployment.int8 import code_change, codebook_bytes, to_int8
from vqkit.parts.int8 import Int8Codebook, RowScaledInt8Codebook

KINDS = pytest.mark.parametrize("kind", [Int8Codebook, RowScaledInt8Codebook])
ema = partial(Quantizer, "ema", dim=8, codebook_size=32)


def example(seed: int = 0) -> Tensor:
    return torch.randn(500, 8, generator=torch.Generator().manual_seed(seed))


def initialized(build=ema) -> BaseQuantizer:
    quantizer = build().eval()
    quantizer.initialize([example()])
    return quantizer


@KINDS
def test_an_entry_changes_by_half_a_step_at_most(kind: type[Int8Codebook]) -> None:
    quantizer = initialized()
    vectors = quantizer.codebook.vectors
    vectors[3] *= 1e-4
    vectors[5] = 0
    codebook = to_int8(quantizer, codebook=kind).codebook
    steps = (vectors.abs().amax(1, keepdim=True) if kind is RowScaledInt8Codebook else vectors.abs().amax()) / 127
    # Half a step, and one rounding of the quotient and one of the product.
    assert ((codebook() - vectors).abs() <= steps / 2 + 2.0**-22 * vectors.abs()).all()
    assert codebook.levels.dtype == torch.int8 and codebook.levels.abs().max() == 127
    assert (codebook()[3] == 0).all() == (kind is Int8Codebook)
    assert torch.equal(codebook.usage, quantizer.codebook.usage)


BUILDS = {
    "ema": ema,
    "simvq": partial(Quantizer, "simvq", dim=8, codebook_size=32),
    "unit codes": partial(Quantizer, "factorized", dim=8, codebook_size=32, codebook_dim=4),
    "residual": partial(ResidualQuantizer, ema, 3),
    "groups": partial(GroupedQuantizer, [partial(ema, dim=4), partial(ResidualQuantizer, partial(ema, dim=4), 2)]),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_it_can_be_saved_loaded_and_baked(build, tmp_path: Path) -> None:
    quantizer = initialized(build)
    stored = to_int8(quantizer, codebook=RowScaledInt8Codebook)
    x = example(1)
    indices = stored.encode(x)
    stored.save_pretrained(tmp_path)
    for copy in (BaseQuantizer.from_pretrained(tmp_path), bake(stored)):
        assert torch.equal(copy.encode(x), indices)
        assert torch.equal(copy.decode(indices), stored.decode(indices))
    assert all(type(book) is RowScaledInt8Codebook for book in books(stored))
    assert not any(isinstance(book, Int8Codebook) for book in books(quantizer))


def books(module: nn.Module) -> list[nn.Module]:
    return [part.codebook for part in module.modules() if isinstance(part, Quantizer)]


def test_a_file_is_smaller_by_what_is_told(tmp_path: Path) -> None:
    sizes = {"dim": 32, "channels": 32, "num_res_blocks": 1}
    quantizer = partial(Quantizer, "ema", dim=32, codebook_size=512, channel_dim=1)
    tokenizer = Tokenizer(ConvEncoder2d(**sizes), quantizer(), ConvDecoder2d(**sizes)).eval()
    tokenizer.quantizer.codebook.vectors.normal_()
    stored = to_int8(tokenizer)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    for name, module in (("before", tokenizer), ("after", stored)):
        module.save_pretrained(tmp_path / name)
    assert torch.equal(Tokenizer.from_pretrained(tmp_path / "after").encode(images), stored.encode(images))
    before, after = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("before", "after"))
    change = code_change(tokenizer.quantizer, stored.quantizer, [tokenizer.encoder(images)])
    # Vectors, running sums, counts and pending counts before; levels, one scale and counts after; counters in both.
    assert change.bytes_before == 512 * (2 * 32 * 4 + 2 * 4) + 24
    assert change.bytes_after == 512 * (32 + 4) + 4 + 24
    assert abs((before - after) - (change.bytes_before - change.bytes_after)) < 1000  # the header


@KINDS
def test_the_report_counts_indices_and_errors(kind: type[Int8Codebook]) -> None:
    quantizer = initialized(partial(ResidualQuantizer, partial(ema, codebook_size=64), 2))
    stored = to_int8(quantizer, codebook=kind)
    x = example(2)
    x[7] = torch.nan
    change = code_change(quantizer, stored, x.split(200))
    kept = torch.arange(500) != 7
    before, after = quantizer.encode(x)[kept], stored.encode(x)[kept]
    shares = (before != after).double().mean(0)
    assert change.changed == tuple(shares.tolist()) and 0 < shares.max() < 0.2
    for found, indices, part in (
        (change.distortion_before, before, quantizer),
        (change.distortion_after, after, stored),
    ):
        assert found == pytest.approx(float((x[kept] - part.decode(indices)).double().square().mean()))
    assert "of the indices changed; mean squared error" in str(change)
    assert codebook_bytes(stored) < codebook_bytes(quantizer) / 4


def test_double_precision_and_tables_of_their_own() -> None:
    quantizer = initialized().double()
    codebook = to_int8(quantizer).codebook
    assert codebook().dtype == torch.float64 and codebook.levels.dtype == torch.int8
    trained = Quantizer("vq", dim=8, codebook_size=16, codebook=RowScaledInt8Codebook, losses=[])
    trained.initialize([example()])
    assert trained.codebook().abs().max() > 0 and not list(trained.parameters())
    smaller = trained.codebook.with_rows(torch.tensor([1, 1, 4]), lambda counts: counts[:3])
    assert torch.equal(smaller(), trained.codebook()[[1, 1, 4]])


@KINDS
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_codes_that_are_not_finite_are_refused(kind: type[Int8Codebook], broken: float) -> None:
    quantizer = initialized()
    quantizer.codebook.vectors[5, 2] = broken
    message = f"1 of 32 codes hold NaN or infinity, the first of them code 5: {kind.__name__} cannot"
    with pytest.raises(ValueError, match=message):
        to_int8(quantizer, codebook=kind)


def test_what_stores_no_plain_table_is_refused() -> None:
    top_k = partial(TopKQuantizer, 4, 8, 2)
    for module, name in ((top_k(), "TopKQuantizer"), (GroupedQuantizer([top_k, partial(ema, dim=4)]), "groups.0")):
        with pytest.raises(ValueError, match=f"^{name}: TopKQuantizer builds its codebook itself"):
            to_int8(module)
    with pytest.raises(ValueError, match="FSQ stores no codebook"):
        to_int8(FSQ([4, 4]))
    with pytest.raises(ValueError, match="CascadedTable searches one table and reads another"):
        to_int8(Quantizer("cascaded", dim=4, codebook_size=8))
    for module in (BuildsItsOwn("ema", 4), Fixed(4)):
        with pytest.raises(ValueError, match="EMACodebook where the configuration does not reach"):
            to_int8(module)
    with pytest.raises(ValueError, match=r"level_sizes are \(32,\) and \(16,\): expected the same"):
        code_change(ema(), ema(codebook_size=16), [example()])
    with pytest.raises(ValueError, match="latents: expected at least one finite vector"):
        code_change(ema(), ema(), [])
