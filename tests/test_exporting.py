"""ONNX Runtime, from the written file, gives the codes and the vectors of eager."""

import builtins
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.contract.cases import CASES, Case
from tests.contract.test_contract import initialized
from tests.few import few
from tests.test_audio_tokenizer import RATES, SCALES, make_codec
from tests.test_image_backbones import shake
from vqkit import (
    BSQ,
    FSQ,
    LFQ,
    BaseQuantizer,
    CenteredFSQ,
    Decode,
    Encode,
    GroupedQuantizer,
    Quantizer,
    ResidualQuantizer,
    Search,
    Tokenizer,
    export_onnx,
)
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.backbones.magvit2 import MAGVIT2Decoder, MAGVIT2Encoder
from vqkit.deployment.onnx import _nearest, _of_two_steps, _residual_nearest
from vqkit.kernels import nearest, residual_nearest

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZES = {"dim": 8, "codebook_size": 64}
QUANTIZERS: dict[str, Callable[[], BaseQuantizer]] = {
    "vq": partial(Quantizer, "vq", **SIZES),
    "simvq": partial(Quantizer, "simvq", **SIZES),
    "ibq": partial(Quantizer, "ibq", **SIZES),
    "cosine": partial(Quantizer, "vq", search=Search("cosine"), **SIZES),
    "normalized": partial(Quantizer, "vq", normalize=True, **SIZES),
    "factorized": partial(Quantizer, "vq", codebook_dim=4, **SIZES),
    "residual": partial(ResidualQuantizer, partial(Quantizer, "vq", **SIZES), 3),
    "residual projected": partial(
        ResidualQuantizer, partial(Quantizer, "vq", codebook_dim=4, **SIZES), 2, estimator=None
    ),
    "fsq": partial(FSQ, [8, 5, 5], dim=8),
    "centered fsq": partial(CenteredFSQ, [8, 5, 5, 5, 4, 3, 2, 2]),
    "lfq": partial(LFQ, 40, dim=8),
    "bsq": partial(BSQ, 8),
    "bsq of two levels": partial(BSQ, 70, dim=8),
    # Sums of more than 53 bits, which ONNX Runtime would round.
    "lfq of 62 bits": partial(LFQ, 62, dim=8),
    "fsq of 60 bits": partial(FSQ, [8] * 20, dim=8),
    "fvq": partial(Quantizer, "fvq", **SIZES),
    "coda": partial(Quantizer, "coda", **SIZES),
    "cascaded": partial(Quantizer, "cascaded", **SIZES),
    "grouped": partial(GroupedQuantizer, partial(Quantizer, "seeded", dim=4, codebook_size=32), 2),
}


class File:
    """A written file, run by ONNX Runtime on the CPU."""

    def __init__(self, module: Encode | Decode, example: Tensor, path: Path, **options: bool) -> None:
        export_onnx(module, example, path, **options)
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (self.input,), (self.output,) = self.session.get_inputs(), self.session.get_outputs()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {self.input.name: x.detach().numpy()})[0])


def fitted(name: str) -> tuple[BaseQuantizer, tuple[Tensor, Tensor]]:
    """A quantizer, and batches at the origin and at 100 times their spread; half of the codes lie at each."""
    quantizer = QUANTIZERS[name]()
    batches = torch.randn(40, 10, 8), torch.randn(40, 10, 8) + 100
    quantizer.initialize([torch.cat(batches)], samples=800)
    return quantizer.eval(), batches


@pytest.mark.parametrize("name", few([*QUANTIZERS], "vq"))
def test_codes_of_eager(name: str, tmp_path: Path) -> None:
    quantizer, batches = fitted(name)
    encode = File(Encode(quantizer), batches[0][:3], tmp_path / "encode.onnx")
    for x in batches:
        assert torch.equal(encode(x), quantizer.encode(x))


@pytest.mark.slow
def test_a_zero_code_of_a_search_by_angle_is_one_among_others(tmp_path: Path) -> None:
    quantizer = QUANTIZERS["cosine"]().eval()
    x = torch.randn(2, 30, 8)
    with torch.no_grad():
        quantizer.codebook.vectors[3] = 0.0
    expected = quantizer.encode(x)
    assert len(expected.unique()) > 1
    encode = File(Encode(quantizer), x, tmp_path / "encode.onnx")
    assert torch.equal(encode(x), expected)


# What the others decode with is among these.
@pytest.mark.parametrize(
    "name", few(["vq", "simvq", "normalized", "residual projected", "fsq", "bsq of two levels"], "simvq", "fsq")
)
def test_vectors_of_eager(name: str, tmp_path: Path) -> None:
    quantizer, batches = fitted(name)
    decode = File(Decode(quantizer), quantizer.encode(batches[0][:3]), tmp_path / "decode.onnx")
    for x in batches:
        indices = quantizer.encode(x)
        indices[0, 0] = -1
        # Relative to 100: simvq's codes and projected ones are sums of such terms, which runtimes add in their order.
        torch.testing.assert_close(decode(indices), quantizer.decode(indices).detach(), rtol=0, atol=1e-6 * 100)
        if name in ("vq", "normalized"):
            torch.testing.assert_close(decode(indices), quantizer.decode(indices).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_case_of_the_contract(case: Case, tmp_path: Path) -> None:
    quantizer = initialized(case).eval()
    x = case.example(5)
    indices = File(Encode(quantizer), x, tmp_path / "encode.onnx", dynamic=not case.spatial)(x)
    assert torch.equal(indices, quantizer.encode(x))
    vectors = File(Decode(quantizer), indices, tmp_path / "decode.onnx", dynamic=not case.spatial)(indices)
    torch.testing.assert_close(vectors, quantizer.decode(indices).detach(), rtol=1e-5, atol=1e-5)


@pytest.fixture
def tokenizer() -> tuple[Tokenizer, Tensor]:
    encoder, decoder = torch.nn.Conv2d(3, 8, 4, stride=4), torch.nn.ConvTranspose2d(8, 3, 4, stride=4)
    tokenizer = Tokenizer(encoder, Quantizer("vq", channel_dim=1, **SIZES), decoder)
    images = torch.rand(6, 3, 16, 24) * 2 - 1
    tokenizer.initialize([images], samples=64)
    return tokenizer.eval(), images


@pytest.mark.slow
def test_a_tokenizer_encodes_any_number_and_size_of_images_even_if_the_example_was_one(
    tokenizer, tmp_path: Path
) -> None:
    tokenizer, images = tokenizer
    encode = File(Encode(tokenizer), images[:1], tmp_path / "encode.onnx")
    for number in (1, 6):
        for x in (images[:number], images[:number, :, :12, :8]):
            assert torch.equal(encode(x), tokenizer.encode(x))


LONG = pytest.mark.long
"""Of those with two or more forms alike, the one that takes longer."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["image", *(pytest.param(kind, marks=LONG) for kind in ("magvit2", "audio", "rates", "scales"))]
)
def test_files_take_other_sizes_than_the_example(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if kind in ("image", "magvit2"):
        sizes = {"dim": 8, "channels": 8, "channel_multipliers": (1, 1), "norm_groups": 4, "num_res_blocks": 2}
        encoder, decoder = {"image": (ConvEncoder2d, ConvDecoder2d), "magvit2": (MAGVIT2Encoder, MAGVIT2Decoder)}[kind]
        tokenizer = Tokenizer(encoder(**sizes), Quantizer("vq", channel_dim=1, **SIZES), decoder(**sizes))
        shake(tokenizer.decoder)
        shapes = (2, 3, 16, 24), (1, 3, 32, 8), (3, 3, 8, 64)
    else:
        tokenizer = make_codec(levels={"audio": 3, "rates": RATES, "scales": SCALES}[kind])
        hop = tokenizer.downsampling_factor
        shapes = (2, 1, 12 * hop), (1, 1, 19 * hop - 3), (3, 1, 2 * hop + 1)
    example, *others = (torch.rand(shape) * 2 - 1 for shape in shapes)
    tokenizer.eval()
    encode = File(Encode(tokenizer), example, tmp_path / "encode.onnx")
    decode = File(Decode(tokenizer), tokenizer.encode(example), tmp_path / "decode.onnx")
    assert not capfd.readouterr().err  # torch remarks on axes that cannot be dynamic, such as that of one channel
    for x in others:
        indices = tokenizer.encode(x)
        assert torch.equal(encode(x), indices)
        torch.testing.assert_close(decode(indices), tokenizer.decode(indices).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stages", [SCALES, RATES])
def test_an_example_of_one_step_is_traced_as_two(stages: list[int]) -> None:
    tokenizer = make_codec(levels=stages).eval()
    quantizer, step = tokenizer.quantizer, tokenizer.frames_per_step
    one, two = (torch.randn(1, 8, steps * step) for steps in (1, 2))
    assert torch.equal(_of_two_steps(Encode(quantizer), one), torch.cat([one, one], 2))
    indices = quantizer.encode(one)
    rows = quantizer.interleave(_of_two_steps(Decode(quantizer), indices))
    assert torch.equal(rows, torch.cat(2 * [quantizer.interleave(indices)], 1))
    samples = step * tokenizer.downsampling_factor
    for length, traced in ((samples // 3, samples // 3 * 4), (samples, 2 * samples), (samples + 1, samples + 1)):
        assert _of_two_steps(Encode(tokenizer), torch.zeros(1, 1, length)).shape[2] == traced
    assert _of_two_steps(Encode(quantizer), two) is two
    prefix = torch.zeros(1, 1, dtype=torch.int64)
    assert _of_two_steps(Decode(quantizer), prefix) is prefix


@pytest.mark.slow
@pytest.mark.parametrize("stages", [SCALES, pytest.param(RATES, marks=LONG)])
def test_an_example_of_one_step_leaves_the_length_open(stages: list[int], tmp_path: Path) -> None:
    """Scales of one block, or the steps of all rates: files of latents and of sound take two and three."""
    tokenizer = make_codec(levels=stages).eval()
    quantizer, step = tokenizer.quantizer, tokenizer.frames_per_step
    latents = [torch.randn(2, 8, number * step).movedim(1, quantizer.channel_dim) for number in (1, 2, 3)]
    encode = File(Encode(quantizer), latents[0], tmp_path / "encode.onnx")
    decode = File(Decode(quantizer), quantizer.encode(latents[0]), tmp_path / "decode.onnx")
    for x in latents:
        indices = quantizer.encode(x)
        assert torch.equal(encode(x), indices)
        # Sums of one code for each of at most four levels, of size 1, in the order of a runtime: 4 * 2^-24 each.
        torch.testing.assert_close(decode(indices), quantizer.decode(indices).detach(), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [pytest.param(SCALES, marks=LONG), RATES])
def test_sound_of_less_than_one_step_leaves_the_length_open(stages: list[int], tmp_path: Path) -> None:
    tokenizer = make_codec(levels=stages).eval()
    step = tokenizer.frames_per_step * tokenizer.downsampling_factor
    encode = File(Encode(tokenizer), torch.rand(1, 1, step // 3) * 2 - 1, tmp_path / "encode.onnx")
    for samples in (step, 2 * step + 3, 4 * step):
        sound = torch.rand(1, 1, samples) * 2 - 1
        assert torch.equal(encode(sound), tokenizer.encode(sound))


def test_a_tokenizer_decodes_a_fixed_batch_and_its_file_says_nothing_of_this_machine(tokenizer, tmp_path: Path) -> None:
    tokenizer, images = tokenizer
    indices, path = tokenizer.encode(images), tmp_path / "decode.onnx"
    decode = File(Decode(tokenizer), indices, path, dynamic=False)
    assert (decode.input.name, decode.input.shape) == ("indices", [6, 4, 6])
    torch.testing.assert_close(decode(indices), tokenizer.decode(indices).detach(), rtol=0, atol=1e-6)
    assert str(Path(__file__).parents[1]).encode() not in path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["decode.onnx"]


@pytest.mark.parametrize("metric", ["euclidean", "dot", "cosine"])
def test_lowered_search_has_the_ties_masks_and_order_of_the_operator(metric) -> None:
    """Codes on a grid tie often, and there are copies and zeros among them."""
    codes = torch.randint(-1, 2, (2, 40, 3)).float()
    rows = torch.randint(-2, 3, (2, 300, 3)).float()
    valid = torch.rand(2, 40) < 0.8
    for k, mask in ((1, None), (1, valid), (3, None), (3, valid)):
        expected = nearest(rows, codes, metric=metric, k=k, valid=mask).indices.view(2, 300, k)
        assert torch.equal(_nearest(rows, codes, mask, metric, k, "exact"), expected)
    expected = residual_nearest(rows[0], [codes[0], codes[1] / 2], metric=metric).indices
    assert torch.equal(_residual_nearest(rows[0], [codes[0], codes[1] / 2], metric), expected)


def test_lowered_search_is_exact_far_from_the_origin() -> None:
    codes, rows = torch.randn(512, 8) + 1000, torch.randn(2000, 8) + 1000
    expected = nearest(rows, codes).indices
    assert torch.equal(_nearest(rows[None], codes[None], None, "euclidean", 1, "exact")[0, :, 0], expected)
    in_float32 = (0.5 * codes.square().sum(1) - rows @ codes.T).argmin(1)
    assert (in_float32 != expected).float().mean() > 0.1


def test_mistakes_are_named(tmp_path: Path, monkeypatch) -> None:
    quantizer = Quantizer("vq", **SIZES)
    with pytest.raises(ValueError, match=r"training mode: expected eval mode; call .eval\(\)"):
        export_onnx(Encode(quantizer), torch.randn(2, 8), tmp_path / "a.onnx")
    with pytest.raises(FileNotFoundError, match="is not a folder: create it first"):
        export_onnx(Encode(quantizer.eval()), torch.randn(2, 8), tmp_path / "missing" / "a.onnx")
    original = builtins.__import__

    def without_onnxscript(name: str, *arguments, **keywords):
        if name == "onnxscript":
            raise ModuleNotFoundError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_onnxscript)
    with pytest.raises(ImportError, match=r"pip install \"vqkit\[export\]\""):
        export_onnx(Encode(quantizer), torch.randn(2, 8), tmp_path / "a.onnx")


@pytest.mark.slow
def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "encode.onnx"
    path.write_text("before")

    def fail(*_) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("vqkit.saving.files.os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        export_onnx(Encode(Quantizer("vq", **SIZES).eval()), torch.randn(2, 8), path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
