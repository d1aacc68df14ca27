import json
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainers.tiny import make_image_task
from vqkit import (
    FSQ,
    BaseQuantizer,
    EMACodebook,
    Quantizer,
    RandomRestart,
    ResidualQuantizer,
    Tokenizer,
    TokenizerOutput,
    UnscaledRotationTrick,
    runtime,
)
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.saving.config import Configured

SMALL: dict[str, Any] = {"dim": 4, "channels": 8, "channel_multipliers": (1,), "num_res_blocks": 1, "patch_size": 4}

QUANTIZERS: dict[str, Callable[[], BaseQuantizer]] = {
    "vq": lambda: Quantizer("vq", dim=4, codebook_size=16, channel_dim=1, estimator=UnscaledRotationTrick()),
    "ema": lambda: Quantizer(
        "ema",
        dim=4,
        codebook_size=16,
        codebook_dim=3,
        channel_dim=1,
        codebook=partial(EMACodebook, usage_decay=0.9),
        maintenance=[RandomRestart(every=2)],
    ),
    "simvq": lambda: Quantizer("simvq", dim=4, codebook_size=16, channel_dim=1),
    "fsq": lambda: FSQ([3, 4], dim=4, channel_dim=1),
    "residual": lambda: ResidualQuantizer(
        partial(Quantizer, "ema", dim=4, codebook_size=8), num_stages=2, channel_dim=1, dropout=0.5
    ),
}


def build(name: str = "vq", *, shaken: bool = True, **options: Any) -> Tokenizer:
    torch.manual_seed(0)
    options = SMALL | {"norm_groups": 4} | options
    tokenizer = Tokenizer(ConvEncoder2d(**options), QUANTIZERS[name](), ConvDecoder2d(**options))
    if shaken:  # convolutions that start at zero would hide what they do
        for parameter in [*tokenizer.encoder.parameters(), *tokenizer.decoder.parameters()]:
            nn.init.normal_(parameter, std=0.2)
    tokenizer.initialize([torch.rand(4, 3, 32, 32) * 2 - 1])
    return tokenizer


def images(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", QUANTIZERS)
def test_forward_equals_decoded_indices_in_eval(name: str) -> None:
    tokenizer = build(name).eval()
    with torch.no_grad():
        output = tokenizer(images())
        indices = tokenizer.encode(images())
        assert isinstance(output, TokenizerOutput)
        assert indices.shape[:3] == (2, 4, 6)
        assert indices.dtype == torch.int64
        assert len(indices.unique()) > 1
        assert torch.equal(indices, output.quantizer.indices)
        assert torch.equal(tokenizer.decode(indices), output.reconstruction)
        assert output.reconstruction.shape == images().shape


@pytest.mark.parametrize("name", QUANTIZERS)
def test_saved_and_loaded_it_gives_the_same_indices_and_images(name: str, tmp_path: Path) -> None:
    tokenizer = build(name)
    for _ in range(3):  # pending statistics and counters are part of the state
        output = tokenizer(images())
        (output.reconstruction.square().mean() + output.quantizer.loss).backward()
    tokenizer.eval().save_pretrained(tmp_path)
    restored = Tokenizer.from_pretrained(tmp_path)
    assert torch.equal(restored.encode(images()), tokenizer.encode(images()))
    assert torch.equal(restored(images()).reconstruction, tokenizer(images()).reconstruction)
    restored.train(), tokenizer.train()
    restored(images()), tokenizer(images())
    for key, value in tokenizer.state_dict().items():
        assert torch.equal(restored.state_dict()[key], value), key


@pytest.mark.parametrize("name", QUANTIZERS)
def test_gradients_reach_every_part(name: str) -> None:
    tokenizer = build(name)
    output = tokenizer(images())
    (output.reconstruction.square().mean() + output.quantizer.loss).backward()
    for part in (tokenizer.encoder, tokenizer.decoder):
        assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in part.parameters())


def test_encoding_builds_no_graph_and_decoding_does() -> None:
    tokenizer = build()
    assert tokenizer.decode(tokenizer.encode(images().requires_grad_())).requires_grad


@pytest.mark.parametrize("name", ["vq", "residual"])
def test_autocast_agrees_with_itself_and_keeps_indices_in_full_precision(name: str) -> None:
    tokenizer = build(name).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = tokenizer(images())
        assert torch.equal(tokenizer.encode(images()), output.quantizer.indices)
        assert torch.equal(tokenizer.decode(output.quantizer.indices), output.reconstruction)
    assert output.quantizer.loss.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_floating_types_decode_and_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    tokenizer = build("ema").to(dtype).eval()
    indices = tokenizer.encode(images().to(dtype))
    decoded = tokenizer.decode(indices)
    assert decoded.dtype == dtype
    tokenizer.save_pretrained(tmp_path)
    restored = Tokenizer.from_pretrained(tmp_path)
    assert [value.dtype for value in restored.state_dict().values()] == [
        value.dtype for value in tokenizer.state_dict().values()
    ]
    assert torch.equal(restored.decode(restored.encode(images().to(dtype))), decoded)


def test_export_of_the_whole() -> None:
    tokenizer = build().eval()
    program = torch.export.export(tokenizer, (images(),))
    expected, actual = tokenizer(images()), program.module()(images())
    torch.testing.assert_close(actual.reconstruction, expected.reconstruction)
    assert torch.equal(actual.quantizer.indices, expected.quantizer.indices)


class Loader:
    """Endless batches in a given form; counts what was read."""

    def __init__(self, form: Callable[[Tensor], Any] = lambda batch: batch) -> None:
        self.form = form
        self.read = 0

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(2)
        while True:
            self.read += 1
            yield self.form(torch.rand(4, 3, 32, 32, generator=generator) * 2 - 1)


@pytest.mark.parametrize(
    "form",
    [
        lambda batch: (batch, ["names"]),
        lambda batch: [batch],
        lambda batch: {"__key__": ["a"], "image": batch, "label": torch.zeros(4)},
    ],
)
def test_initialize_takes_batches_of_any_form_and_no_more_than_needed(form: Callable[[Tensor], Any]) -> None:
    plain, formed = build(), build()
    loader = Loader(form)
    plain.initialize(Loader(), samples=600, seed=3)
    formed.initialize(loader, samples=600, seed=3)
    assert loader.read == 3  # of 4 x 8 x 8 latents
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), formed.parameters(), strict=True))
    formed.initialize(Loader(form), samples=600, seed=4)
    assert not torch.equal(plain.quantizer.codebook(), formed.quantizer.codebook())


def test_initialize_runs_the_encoder_in_eval_without_graph_and_restores_every_mode() -> None:
    tokenizer = build(dropout=0.9)
    norm = next(module for module in tokenizer.encoder.modules() if isinstance(module, nn.GroupNorm))
    norm.eval()  # as a user freezes a layer
    seen = []
    tokenizer.encoder.register_forward_hook(
        lambda module, args, output: seen.append((module.training, output.requires_grad))
    )
    before = {name: module.training for name, module in tokenizer.named_modules()}
    tokenizer.initialize(Loader(), samples=300)
    assert seen == [(False, False)] * 2
    assert {name: module.training for name, module in tokenizer.named_modules()} == before
    with pytest.raises(ValueError, match=r"batch of type dict without a tensor"):
        tokenizer.initialize([{"image": "path.png"}])
    assert {name: module.training for name, module in tokenizer.named_modules()} == before


def test_parts_that_do_not_fit_are_refused() -> None:
    encoder, decoder = ConvEncoder2d(**SMALL | {"channels": 32}), ConvDecoder2d(**SMALL | {"channels": 32})
    with pytest.raises(ValueError, match=r"encoder\.dim=4 and quantizer\.dim=5: .* same dim"):
        Tokenizer(encoder, Quantizer(dim=5, codebook_size=8, channel_dim=1), decoder)
    with pytest.raises(ValueError, match=r"decoder\.dim=6 and quantizer\.dim=4"):
        other = ConvDecoder2d(**SMALL | {"channels": 32, "dim": 6})
        Tokenizer(encoder, Quantizer(dim=4, codebook_size=8, channel_dim=1), other)
    with pytest.raises(ValueError, match=r"encoder\.channel_dim=1 and quantizer\.channel_dim=-1"):
        Tokenizer(encoder, Quantizer(dim=4, codebook_size=8), decoder)


# ---- the range of values


def pixels(seed: int, *, least: int = 0) -> Tensor:
    """A batch of 8 bits, none of them below `least`."""
    return torch.randint(least, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(seed)).float()


RANGES: dict[str, tuple[tuple[float, float], Callable[[int], Tensor], bool]] = {
    "[0, 1] for [-1, 1]": ((-1, 1), lambda seed: pixels(seed) / 255, True),
    "0 ... 255 for [-1, 1]": ((-1, 1), pixels, True),
    "[-1, 1] for [0, 1]": ((0, 1), lambda seed: pixels(seed) / 127.5 - 1, True),
    "0 ... 255 for [0, 1]": ((0, 1), pixels, True),
    "as expected": ((-1, 1), lambda seed: pixels(seed) / 127.5 - 1, False),
    "as expected, [0, 1]": ((0, 1), lambda seed: pixels(seed) / 255, False),
    "normalized to unit variance": ((-1, 1), lambda seed: (pixels(seed) / 255 - 0.45) / 0.22, False),
    "bright pictures": ((-1, 1), lambda seed: pixels(seed, least=128) / 127.5 - 1, False),
    "grey": ((-1, 1), lambda seed: torch.zeros(1, 3, 16, 16), False),
}


@pytest.mark.parametrize("call", ["forward", "encode", "initialize"])
@pytest.mark.parametrize("name", RANGES)
def test_values_of_another_range_are_warned_of_once_and_others_never(name: str, call: str) -> None:
    value_range, batch, warned = RANGES[name]
    tokenizer = build("fsq")
    tokenizer = Tokenizer(tokenizer.encoder, tokenizer.quantizer, tokenizer.decoder, value_range=value_range)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(20):
            data = batch(seed)
            tokenizer.initialize([data]) if call == "initialize" else getattr(tokenizer, call)(data)
    messages = [str(warning.message) for warning in caught if "expects" in str(warning.message)]
    assert len(messages) == warned
    assert all(warning.filename == __file__ for warning in caught)
    assert not messages or f"expects [{value_range[0]}, {value_range[1]}]" in messages[0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_integers_are_refused_with_the_conversion(dtype: torch.dtype) -> None:
    tokenizer, data = build(), images().to(dtype)
    for call in (tokenizer, tokenizer.encode, lambda data: tokenizer.initialize([data])):
        with pytest.raises(ValueError, match=r"expected floating point in \[-1, 1\] .*data / 255 \* 2 -1"):
            call(data)


def test_the_range_is_saved_and_files_without_it_have_that_of_before(tmp_path: Path) -> None:
    whole = build()
    assert whole.value_range == (-1, 1)
    Tokenizer(whole.encoder, whole.quantizer, whole.decoder, value_range=(0, 255)).save_pretrained(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).value_range == (0, 255)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["init_args"]["value_range"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Tokenizer.from_pretrained(tmp_path).value_range == (-1, 1)
    for wrong in ((1, -1), (0, torch.inf), (0,)):
        with pytest.raises(ValueError, match=r"value_range=.* expected \(least, greatest\)"):
            Tokenizer(whole.encoder, whole.quantizer, whole.decoder, value_range=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"tokenizer\.value_range=\(0, 255\): expected \[-1, 1\]"):
        make_image_task(Tokenizer(whole.encoder, whole.quantizer, whole.decoder, value_range=(0, 255)))


def test_values_are_looked_at_in_the_first_batches_only_and_where_that_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []
    aminmax = Tensor.aminmax
    monkeypatch.setattr(Tensor, "aminmax", lambda self: looks.append(1) or aminmax(self))
    tokenizer = build("fsq")
    looks.clear()
    torch.export.export(tokenizer.eval(), (images(),))
    torch.func.vmap(tokenizer.quantizer.encode)(torch.randn(2, 1, 4, 3))
    monkeypatch.setattr(runtime, "READ_WITHOUT_WAITING", ())
    tokenizer(images())
    assert not looks  # a graph, or a device that would be waited for
    for _ in range(30):
        tokenizer.encode(images())
    assert len(looks) < 20
    any_data = Tokenizer(tokenizer.encoder, tokenizer.quantizer, tokenizer.decoder, value_range=None)
    looks.clear()
    any_data(images() * 1e4)
    assert not looks
    tokenizer = build("fsq")
    tokenizer.encode(images() / 0)  # infinite values are counted elsewhere, and say nothing of a scale


# ---- parts of one's own


class AudioEncoder(Configured, nn.Conv1d):
    """A part as a user would write it."""

    def __init__(self, dim: int, *, hop: int) -> None:
        super().__init__(1, dim, hop, stride=hop)


class AudioDecoder(Configured, nn.ConvTranspose1d):
    def __init__(self, dim: int, *, hop: int) -> None:
        super().__init__(dim, 1, hop, stride=hop)


def test_audio_with_parts_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantizer = Quantizer("ema", dim=4, codebook_size=8, channel_dim=1)
    tokenizer = Tokenizer(AudioEncoder(4, hop=16), quantizer, AudioDecoder(4, hop=16)).eval()
    audio = torch.randn(2, 1, 160)
    tokenizer.initialize([audio])
    indices = tokenizer.encode(audio)
    assert indices.shape == (2, 10)
    assert tokenizer.decode(indices).shape == audio.shape
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"refused.*allow="):
        Tokenizer.from_pretrained(tmp_path)
    restored = Tokenizer.from_pretrained(tmp_path, allow=("vqkit", __name__))
    assert torch.equal(restored.encode(audio), indices)


def test_parts_without_a_configuration_are_named_when_saving(tmp_path: Path) -> None:
    quantizer = Quantizer(dim=4, codebook_size=8, channel_dim=1)
    tokenizer = Tokenizer(nn.Conv2d(3, 4, 4, stride=4), quantizer, nn.ConvTranspose2d(4, 3, 4, stride=4))
    with pytest.raises(ValueError, match=r"argument 'encoder' cannot be written .*Conv2d.*from vqkit\.Configured"):
        tokenizer.save_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_tokenizer_of_any_dtype_takes_float32_and_gives_its_own(dtype: torch.dtype) -> None:
    tokenizer = build("ema").to(dtype)
    output = tokenizer(images())
    output.reconstruction.float().square().mean().backward()
    assert output.reconstruction.dtype == dtype
    assert all(value.grad.isfinite().all() for value in tokenizer.decoder.parameters())
    tokenizer.eval()
    indices = tokenizer.encode(images())
    assert torch.equal(indices, tokenizer.encode(images().to(dtype))) and tokenizer.decode(indices).dtype == dtype
    assert tokenizer.quantizer.dtype == torch.promote_types(dtype, torch.float32)


def test_data_that_are_no_tensor_are_refused_with_words() -> None:
    tokenizer = build("ema")
    with pytest.raises(ValueError, match=r"data is a numpy.ndarray: .* use torch.as_tensor\(data\)"):
        tokenizer.encode(torch.zeros(1, 3, 16, 16).numpy())
