"""The example script at a tiny size, and every snippet of docs/migrating.md."""

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

import vqkit
import vqkit.kernels
from vqkit import (
    FSQ,
    BitEntropy,
    CenteredFSQ,
    CodebookLoss,
    Commitment,
    MSBFirstLFQ,
    Quantizer,
    ResidualQuantizer,
    RotationTrick,
)

ROOT = Path(__file__).resolve().parents[1]
MIGRATING = ROOT / "docs" / "migrating.md"


def load_example(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two small pictures with some structure, and a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        wave = torch.sin(torch.arange(3 * 48 * 64).view(48, 64, 3) / (7 + 5 * number)) * 100 + 128
        noise = torch.randint(-20, 20, wave.shape)
        pixels = (wave + noise).to(torch.uint8)
        Image.frombytes("RGB", (64, 48), bytes(pixels.flatten().tolist())).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


# ---------------------------------------------------------------------- examples/plain_pytorch.py


def tiny_autoencoder(pictures: Path, *more: str) -> list[str]:
    words = ["--images", str(pictures), "--evaluation", str(pictures), "--batch-size", "4", "--crop", "32"]
    return [*words, "--codebook-size", "16", *more]


def test_plain_pytorch_learns_and_saves(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    example = load_example("plain_pytorch")
    before = example.main(tiny_autoencoder(pictures, "--steps", "1"))
    after = example.main(tiny_autoencoder(pictures, "--steps", "25", "--output", str(tmp_path / "saved")))
    assert after["psnr"] > before["psnr"] + 1
    assert after["bits_per_pixel"] == 4 / 64
    assert 0 < after["usage"] <= 1 and 1 <= after["perplexity"] <= 16
    printed = capsys.readouterr().out
    for word in ("loss", "PSNR", "usage", "perplexity", "health", "scale_ratio"):
        assert word in printed
    loaded = Quantizer.from_pretrained(tmp_path / "saved")
    assert loaded.codebook_size == 16 and loaded.channel_dim == 1


def test_plain_pytorch_says_what_is_wrong(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    example = load_example("plain_pytorch")
    with pytest.raises(SystemExit):
        example.main(tiny_autoencoder(pictures, "--crop", "36"))
    assert "multiple of 8" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        example.main(tiny_autoencoder(pictures, "--crop", "512"))
    assert "has only 48 pixels" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="holds no picture"):
        example.load_images(tmp_path / "empty")


def test_psnr_is_that_of_bytes() -> None:
    example = load_example("plain_pytorch")
    image = torch.zeros(1, 3, 8, 8)
    assert example.psnr(image, image + 2 / 127.5) == pytest.approx(
        20 * torch.log10(torch.tensor(255 / 2)).item(), abs=1e-4
    )


# ---------------------------------------------------------------------- docs/migrating.md


def snippets() -> list[tuple[str, str]]:
    """(language, code) of each block: "python" is ours, "py" is the other library's."""
    return re.findall(r"^```(python|py)\n(.*?)^```$", MIGRATING.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(blocks: list[str]) -> None:
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(MIGRATING), "exec"), names)


@pytest.mark.filterwarnings("ignore:.*initialize got")
def test_our_snippets_run() -> None:
    blocks = [code for language, code in snippets() if language == "python"]
    assert len(blocks) > 10
    run(blocks)


@pytest.mark.filterwarnings("ignore:.*initialize got")
def test_all_snippets_run_together() -> None:
    pytest.importorskip("vector_quantize_pytorch")
    blocks = snippets()
    assert sum(language == "py" for language, _ in blocks) > 10
    run([code for _, code in blocks])


def test_what_is_said_to_be_missing_is_missing() -> None:
    missing = MIGRATING.read_text(encoding="utf-8").partition("## What vqkit does not have")[2]
    for name in ("EvoLFQ", "ResidualLFQ", "LatentQuantize", "FSP", "HierarchicalVQ", "BinaryMapper"):
        assert f"`{name}`" in missing and not hasattr(vqkit, name)


def migration_rows(kind: str) -> list[tuple[list[str], list[str], str]]:
    """Classes, names and counterpart of each row of the tables whose second column is "argument" or "method"."""
    tables = MIGRATING.read_text(encoding="utf-8").partition("## Every argument")[2].partition("\n## ")[0]
    tables = tables.partition("**Methods**")[0 if kind == "argument" else 2]
    rows = [line.split(" | ") for line in tables.splitlines() if line.startswith("| `")]
    return [(*(re.findall(r"`([^`]+)`", cell) for cell in row[:2]), row[2].removesuffix(" |")) for row in rows]


@pytest.mark.parametrize("kind", ["argument", "method"])
def test_counterparts_exist(kind: str) -> None:
    """`Quantizer(dim)` names a class and its arguments, `Quantizer.step` what it has; else the row says why not."""
    for _, names, cell in migration_rows(kind):
        spans = re.findall(r"`((?:vqkit\.|torch\.nn\.|[A-Z])[\w.]*)(?:\(([\w, ]+)\))?`", cell)
        assert cell.startswith("none, because ") or spans, names
        for path, arguments in spans:
            head, *rest = path.split(".")
            found = {"vqkit": vqkit, "torch": torch}.get(head) or getattr(vqkit, head)
            for name in rest:
                found = getattr(found, name)
            for argument in filter(None, arguments.split(", ")):
                assert argument in inspect.signature(found).parameters, f"{path}({argument})"


class TestFactsAboutTheOtherLibrary:
    """What the document says about it, against what is installed."""

    @pytest.fixture(autouse=True)
    def peer(self) -> ModuleType:
        return pytest.importorskip("vector_quantize_pytorch")

    def test_every_argument_has_a_row(self, peer: ModuleType) -> None:
        """Once, and nothing is listed that is not there."""
        marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        there = {
            (name + suffix, marks.get(parameter.kind, "") + parameter.name)
            for name, found in vars(peer).items()
            if inspect.isclass(found)
            for suffix, function in (("", found.__init__), (".forward", found.forward))
            for parameter in list(inspect.signature(function).parameters.values())[1:]
        }
        listed = [(of, name) for classes, names, _ in migration_rows("argument") for of in classes for name in names]
        assert len(listed) > 200 and sorted(listed) == sorted(there)

    def test_every_method_is_there(self, peer: ModuleType) -> None:
        rows = migration_rows("method")
        assert rows and all(
            hasattr(getattr(peer, of), name) for classes, names, _ in rows for of in classes for name in names
        )

    def test_defaults(self, peer: ModuleType) -> None:
        defaults = {name: value.default for name, value in inspect.signature(peer.VectorQuantize).parameters.items()}
        assert (defaults["decay"], defaults["commitment_weight"], defaults["threshold_ema_dead_code"]) == (0.8, 1.0, 0)
        assert peer.VectorQuantize(dim=4, codebook_size=8).rotation_trick
        assert not peer.VectorQuantize(dim=1, codebook_size=8).rotation_trick
        assert (
            peer.SimVQ(dim=4, codebook_size=8).rotation_trick
            and peer.SimVQ(dim=4, codebook_size=8).code_transform.bias is None
        )
        with pytest.raises(AssertionError, match="preserve_symmetry"):
            peer.FSQ([2, 4])
        assert peer.FSQ([4, 4])(torch.randn(1, 3, 2))[1].dtype == torch.int32

    def test_loss_is_0_in_eval_and_kmeans_runs_there(self, peer: ModuleType) -> None:
        vq = peer.VectorQuantize(dim=4, codebook_size=8, kmeans_init=True).eval()
        assert not vq.codebook.any()
        assert vq(torch.randn(1, 32, 4))[2] == 0
        assert vq.codebook.any()

    def test_learnable_codebook_is_two_losses_of_weight_1(self, peer: ModuleType) -> None:
        theirs = peer.VectorQuantize(
            dim=4, codebook_size=8, learnable_codebook=True, ema_update=False, rotation_trick=False
        )
        ours = Quantizer("vq", dim=4, codebook_size=8, losses=[Commitment(1.0), CodebookLoss(1.0)])
        with torch.no_grad():
            ours.codebook.vectors.copy_(theirs.codebook)
        x = torch.randn(2, 32, 4)
        gradients = []
        for module, codes in ((theirs, theirs._codebook.embed), (ours, ours.codebook.vectors)):
            z = x.clone().requires_grad_()
            output = module(z)
            loss = output[2] if module is theirs else output.loss
            loss.backward()
            gradients.append((z.grad, codes.grad.view(8, 4), loss.detach()))
        torch.testing.assert_close(gradients[0][0], gradients[1][0])
        torch.testing.assert_close(gradients[0][1], gradients[1][1])
        torch.testing.assert_close(2 * gradients[0][2], gradients[1][2])

    def test_rotation_trick_is_ours_with_rotate(self, peer: ModuleType) -> None:
        theirs = peer.VectorQuantize(
            dim=4, codebook_size=8, learnable_codebook=True, ema_update=False, rotation_trick=True
        )
        ours = Quantizer("vq", dim=4, codebook_size=8, estimator=RotationTrick(180.0))
        with torch.no_grad():
            theirs.codebook = torch.randn(8, 4)
            ours.codebook.vectors.copy_(theirs.codebook)
        x, upstream = torch.randn(2, 1, 32, 4)
        gradients = []
        for module in (theirs, ours):
            z = x.clone().requires_grad_()
            output = module(z)
            quantized = output[0] if module is theirs else output.quantized
            (gradient,) = torch.autograd.grad(quantized, z, upstream)
            gradients.append(gradient)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)

    def test_residual_gradient_and_losses(self, peer: ModuleType) -> None:
        theirs = peer.ResidualVQ(dim=4, num_quantizers=4, codebook_size=8, rotation_trick=False)
        z = torch.randn(1, 16, 4, requires_grad=True)
        quantized, indices, losses = theirs(z)
        (gradient,) = torch.autograd.grad(quantized.sum(), z)
        torch.testing.assert_close(gradient, torch.full_like(z, 4.0))
        assert indices.shape == (1, 16, 4) and losses.shape == (4,)
        with pytest.raises(AssertionError, match="quantize dropout"):
            theirs.get_output_from_indices(indices[..., :2])
        ours = ResidualQuantizer(lambda: Quantizer("ema", dim=4, codebook_size=8), 4)
        (gradient,) = torch.autograd.grad(ours(z).quantized.sum(), z)
        torch.testing.assert_close(gradient, torch.ones_like(z))

    def test_fsq_differs_near_boundaries_only(self, peer: ModuleType) -> None:
        x = torch.randn(1, 20_000, 4)
        different = (peer.FSQ([8, 5, 5, 5])(x)[1] != FSQ([8, 5, 5, 5])(x).indices).double().mean()
        assert 0 < different < 0.02
        ours = CenteredFSQ([8, 5, 5, 5])(x)
        quantized, indices = peer.FSQ([8, 5, 5, 5])(x)
        assert torch.equal(ours.indices, indices) and torch.equal(ours.quantized, quantized)

    def test_lfq_has_the_same_indices_and_entropy(self, peer: ModuleType) -> None:
        x = torch.randn(2, 200, 10)
        theirs = peer.LFQ(codebook_size=2**10, dim=10)
        (_, indices, _), parts = theirs(x, return_loss_breakdown=True)
        ours = MSBFirstLFQ(10, losses=[BitEntropy(0.1, group_bits=10)])(x)
        assert torch.equal(ours.indices, indices)
        expected = parts.per_sample_entropy - parts.batch_entropy
        torch.testing.assert_close(ours.losses["entropy"], expected, rtol=1e-3, atol=1e-3)

    def test_directional_reparam_has_another_variance(self, peer: ModuleType) -> None:
        defaults = inspect.signature(peer.VectorQuantize).parameters
        assert defaults["directional_reparam_variance"].default == 5e-3

    def test_restart_threshold_is_a_count(self, peer: ModuleType) -> None:
        vq = peer.VectorQuantize(dim=4, codebook_size=8, threshold_ema_dead_code=2, rotation_trick=False)
        vq(torch.randn(1, 8, 4))  # 8 vectors for 8 codes: none can have a running count of 2
        assert (vq._codebook.cluster_size == 2).float().mean() > 0.8
