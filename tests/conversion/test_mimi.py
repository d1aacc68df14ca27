"""Mimi: random weights in both of its layouts against the code of transformers and of Kyutai, and use."""

import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conversion import moshi
from tests.conversion.files import added, changes_refused, planned, removed
from tests.trainers.tiny import LIGHTNING_REMARKS, Sounds, make_audio_task, make_trainer
from trainers.audio import WaveformL1
from trainers.run.origin import Origin
from vqkit import AudioTokenizer, convert
from vqkit.conversion import Mimi, TransformersMimi
from vqkit.conversion.converting import family_of
from vqkit.conversion.source import Source

pytestmark = LIGHTNING_REMARKS

ROUNDING = 1e-5
"""Some thirty layers in float32, each rounded by 6e-8 of sums of up to a hundred numbers of about 1, up to about 10."""
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_filters": 4,
    "upsampling_ratios": [3, 2],
    "num_residual_layers": 2,
    "codebook_size": 16,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 4,
    "upsample_groups": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "sliding_window": 5,
    "sampling_rate": 16000,
}
HOP = 2 * 3 * 2


def wave(latents: int = 20) -> Tensor:
    return 0.3 * torch.randn(2, 1, latents * HOP, generator=torch.Generator().manual_seed(0))


@cache
def upstream() -> Any:
    """The model of transformers with random weights, and codes among its latents; half of them were hardly used."""
    transformers = pytest.importorskip("transformers", reason='pip install -e ".[teachers]"')
    torch.manual_seed(0)
    model = transformers.MimiModel(transformers.MimiConfig(**SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
        latents, quantizer = model.encoder(wave()).latents, model.quantizer
        for branch in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
            rest = branch.input_proj(latents).mT.flatten(0, 1)
            for layer in branch.layers:
                book = layer.codebook
                book.cluster_usage.uniform_(0.1, 1)[::2] = 1e-7
                codes = rest[torch.randperm(len(rest))[: len(book.embed_sum)]]
                book.embed_sum.copy_(codes * book.cluster_usage.clamp(min=1e-5)[:, None])
                rest = rest - codes[torch.cdist(rest, codes).argmin(-1)]
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    upstream().save_pretrained(tmp_path / "published")
    return tmp_path / "published"


def kyutai(folder: Path) -> Path:
    save_file(moshi.weights(), folder / "tokenizer.safetensors")
    return folder / "tokenizer.safetensors"


def close(made: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(made, expected, rtol=0, atol=ROUNDING)


def test_it_computes_what_transformers_does_at_each_number_of_levels(saved, tmp_path) -> None:
    tokenizer = convert(saved, tmp_path / "converted")
    assert isinstance(tokenizer, AudioTokenizer) and tokenizer.sample_rate == 16000
    model, x = upstream(), wave()
    with torch.no_grad():
        indices = tokenizer.encode(x)
        close(tokenizer.encoder(x), model.encoder(x).latents)
        for levels in range(1, 5):
            codes = model.encode(x, num_quantizers=levels).audio_codes
            assert torch.equal(indices[..., :levels].movedim(-1, 1), codes)
            close(tokenizer.decode(indices[..., :levels]), model.decode(codes).audio_values)
    assert all(len(level.unique()) > 4 for level in indices.unbind(-1))


def test_it_computes_what_kyutais_code_does(tmp_path) -> None:
    tokenizer = convert(kyutai(tmp_path), tmp_path / "converted")
    codes, sound = moshi.answers()
    indices = tokenizer.encode(moshi.sound())
    assert torch.equal(indices, codes) and all(len(level.unique()) > 4 for level in indices.unbind(-1))
    close(tokenizer.decode(indices).detach(), sound)


@pytest.mark.slow
def test_names_of_other_versions_of_kyutais_code_are_known(tmp_path) -> None:
    expected = convert(kyutai(tmp_path), tmp_path / "converted").state_dict()
    renamed = {
        "in_proj_weight": "in_projs.0.weight",
        "out_proj.weight": "out_projs.0.weight",
        "._initialized": ".inited",
        "cluster_usage": "cluster_size",
        "embedding_sum": "embed_avg",
    }
    state = moshi.weights()
    for name, other in renamed.items():
        state = {entry.replace(name, other): value for entry, value in state.items()}
    assert not any("embedding_sum" in name for name in state)
    save_file(state, tmp_path / "other.safetensors")
    found = convert(tmp_path / "other.safetensors", tmp_path / "again").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_usage_is_taken_over_with_the_codes(tmp_path) -> None:
    tokenizer = convert(kyutai(tmp_path), tmp_path / "converted")
    state = moshi.weights()
    book = "quantizer.rvq_rest.vq.layers.2._codebook"
    usage = state[f"{book}.cluster_usage"]
    codebook = tokenizer.get_submodule("quantizer.branches.1.stages.2.codebook")
    assert torch.equal(codebook.usage, usage)
    assert torch.equal(codebook.vectors[0], state[f"{book}.embedding_sum"][0] / torch.tensor(1e-5))
    assert torch.equal(codebook.vectors[1], state[f"{book}.embedding_sum"][1] / usage[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_causal_conv": False}, "use_causal_conv=False: expected True"),
        ({"pad_mode": "reflect"}, "pad_mode='reflect': expected 'constant'"),
        ({"rope_parameters": {"rope_theta": 500.0}}, "rope_theta=500.0: expected 10000.0"),
        (
            {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}},
            "rope_type='linear': expected 'default'",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic': expected 'default'"),
        ({"sliding_window": None}, "sliding_window=None: expected a positive whole number"),
        ({"num_attention_heads": 3}, "num_heads=3 does not split 16 channels"),
    ],
)
def test_settings_of_another_model_are_refused(change, message: str, saved, tmp_path) -> None:
    config = saved / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ValueError, match=f"weights of Mimi .transformers.: .*{message}"):
        convert(saved, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


test_other_entries_are_refused_by_name = changes_refused(
    r"Mimi \(Kyutai\)",
    moshi.weights,
    (removed("decoder.model.0.conv.conv.bias"), r"'decoder.model.0.conv.conv.bias' is missing: expected shape \(16"),
    (removed("quantizer.rvq_rest.output_proj"), r"output_proj.weight' is missing: expected shape \(32, 8, 1\)"),
    (removed("encoder.model.4."), "its encoder has 4 convolutions and 1 residual blocks"),
    (removed("decoder_transformer.transformer.layers.0"), "is missing"),
    (
        lambda state: state.update({f"decoder.model.{place}.more": torch.ones(1) for place in range(100)}),
        "it has 100 entries 'decoder.model.{place}': expected at most 64",
    ),
    (
        added("quantizer.rvq_first.vq.layers.1._codebook.cluster_usage", 3),
        r"rvq_first.vq.layers.1._codebook.cluster_usage' of shape \(3,\) is unexpected",
    ),
    (
        added("quantizer.rvq_first.vq.layers.0._codebook.embed_avg", 16, 8),
        "layers.0._codebook.embed.*' is there under a second name too",
    ),
    (
        added("downsample.conv.conv.conv.weight", 32, 32, 6),
        r"'upsample.convtr.convtr.convtr.weight' has shape \(32, 1, 4\): expected \(32, 1, 6\)",
    ),
)


@pytest.mark.slow
def test_a_model_of_the_published_size_has_an_entry_for_each_weight() -> None:
    """On the meta device; the layout of the file is that of `save_pretrained`."""
    transformers = pytest.importorskip("transformers", reason='pip install -e ".[teachers]"')
    with torch.device("meta"):
        model = transformers.MimiModel(transformers.MimiConfig())
    tokenizer = planned(dict(flat(model.state_dict())))
    assert isinstance(tokenizer, AudioTokenizer)
    assert (tokenizer.frame_rate, tokenizer.quantizer.num_codebooks) == (12.5, 32)
    # Beside the filters, weight norm has a length for each output.
    assert sum(value.numel() for value in model.parameters()) == sum(
        value.numel() for name, value in tokenizer.named_parameters() if not name.endswith("weight.original0")
    )


def flat(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Entries under the names that transformers saves them by."""
    for name, value in state.items():
        side, _, inner = name.partition(".")
        if side == "quantizer":
            yield name, value
        else:
            yield inner.replace(f"{side}_seanet", side), value


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["Mimi (Kyutai)", "Mimi (transformers)"])
def test_converted_weights_encode_decode_stream_learn_and_are_saved_again(layout: str, tmp_path, request) -> None:
    file = kyutai(tmp_path) if "Kyutai" in layout else request.getfixturevalue("saved")
    convert(file, tmp_path / "converted")
    tokenizer = AudioTokenizer.from_pretrained(tmp_path / "converted")
    assert tokenizer.provenance == {"family": layout, "file": file.name if file.is_file() else "model.safetensors",
                                    "license": "cc-by-4.0"}  # fmt: skip
    x = wave()
    indices = tokenizer.encode(x)
    for levels in range(1, 5):
        assert tokenizer.decode(indices[..., :levels]).shape == x.shape
    with tokenizer.streaming() as stream:
        parts = [stream.encode(chunk) for chunk in x.split([HOP, 2 * HOP, 5 * HOP, 12 * HOP], -1)]
        pieces = [stream.decode(part) for part in parts]
    assert torch.equal(torch.cat(parts, 1), indices)
    close(torch.cat(pieces, -1), tokenizer.decode(indices).detach())
    sounds = partial(Sounds, 4, sample_rate=tokenizer.sample_rate)
    task = make_audio_task(
        AudioTokenizer.from_pretrained(tmp_path / "converted"), objectives=[WaveformL1(weight=1.0)], learning_rate=1e-2
    )
    Origin.of(str(tmp_path / "converted")).load(task)
    make_trainer(max_steps=20).fit(task, datamodule=sounds())
    task.tokenizer.eval().save_pretrained(tmp_path / "tuned")
    tuned = AudioTokenizer.from_pretrained(tmp_path / "tuned")
    assert tuned.provenance == tokenizer.provenance
    heard = sounds().sounds
    before, after = ((model(heard).reconstruction - heard).abs().mean() for model in (tokenizer, tuned))
    assert after < before / 2


def test_both_layouts_are_told_apart(saved, tmp_path) -> None:
    for state, family in ((moshi.weights(), Mimi), (load_file(saved / "model.safetensors"), TransformersMimi)):
        assert type(family_of(Source(Path("none"), state, {}, None))) is family
