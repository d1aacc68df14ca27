"""`--quantizer`: what takes the place of a quantizer, what is kept, what is refused, what the document says of it."""

import math
import re

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from tests.refusals import refused
from tests.trainers.conftest import ROOT, examples_of
from trainers.run.bases import read_config
from trainers.run.swap import WORDS, nearest_levels, swapped
from vqkit import FSQ, BaseQuantizer, PowerOfTwoLengths, Quantizer, SumOverMembers
from vqkit.parts.estimators import Estimator

PARSER = ArgumentParser(exit_on_error=False)
PARSER.add_subclass_arguments(BaseQuantizer, "quantizer")


def parsed(node):
    return PARSER.parse_object({"quantizer": node}).as_dict()["quantizer"]


def node_of(config):
    content = read_config(ROOT / "configs" / f"{config}.yaml")
    overlay = content.get("model.init_args.tokenizer.init_args.quantizer")
    return parsed(overlay or content["model"]["init_args"]["tokenizer"]["init_args"]["quantizer"])


def built(node):
    with torch.device("meta"):
        return PARSER.instantiate(PARSER.parse_object({"quantizer": node}))["quantizer"]


def without_codebooks(node):
    """What is left of a configuration when a swap has said that it drops the codebooks' own settings."""
    if isinstance(node, list):
        return [without_codebooks(item) for item in node]
    if isinstance(node, dict):
        return {key: None if key == "codebook" else without_codebooks(value) for key, value in node.items()}
    return node


REVERSIBLE = ("image/quickstart", "audio/quickstart", "audio/speech", "quantizers/residual")
SWAPS = [(config, word) for config in ("image/quickstart", "audio/speech") for word in WORDS]
SWAPS += [("audio/quickstart", word) for word in ("cascaded", "simvq", "fsq")]
SWAPS += [("quantizers/residual", word) for word in ("cascaded", "simvq", "fsq")]
SWAPS += [("audio/esc_16khz", "simvq"), ("audio/esc_16khz", "fsq"), ("audio/mimi_24khz", "fsq")]
SWAPS += [("quantizers/snac", word) for word in ("ema", "fsq")]


def usually(config, word):
    """Words of each kind in pictures, every configuration with one word at least."""
    kinds = ("vq", "ema", "simvq", "ibq", "coda", "cascaded", "gumbel", "lfq", "bsq")
    return word == "fsq" or (config == "image/quickstart" and word in kinds) or (config, word) == SHARED


SHARED = ("audio/quickstart", "cascaded")
SLOW_SWAPS = {pair for pair in SWAPS if not usually(*pair) or pair[0] == "audio/esc_16khz"}


@pytest.mark.parametrize(
    ("config", "word"), [pytest.param(*pair, marks=[pytest.mark.slow] * (pair in SLOW_SWAPS)) for pair in SWAPS]
)
def test_a_swap_keeps_sizes_and_layout_and_can_be_repeated_and_undone(config, word):
    node = node_of(config)
    made, lines = swapped(node, word)
    again = parsed(made)
    assert swapped(again, word) == (again, [])
    if WORDS[word].quantizer is Quantizer and config in REVERSIBLE:
        told = any("without its codebook" in line for line in lines)
        assert parsed(swapped(again, "ema")[0]) == (without_codebooks(node) if told else node)
    if (config, word) == ("quantizers/residual", "cascaded"):
        with pytest.raises(ValueError, match="what a cascaded codebook leaves over"):
            built(again)
        return
    old, new = built(node), built(again)
    assert (new.dim, new.channel_dim, new.num_codebooks) == (old.dim, old.channel_dim, old.num_codebooks)
    for before, after in zip(old.codebook_sizes, new.codebook_sizes, strict=True):
        assert after == before or (f"{word}: levels" in lines[0] and f"{after} codes for {before}" in lines[0])
    leaves = [found for found in new.modules() if type(found) in {known.quantizer for known in WORDS.values()}]
    assert leaves and all(type(leaf) is WORDS[word].quantizer for leaf in leaves)
    assert all(leaf.method == WORDS[word].method for leaf in leaves if isinstance(leaf, Quantizer))


def documented(word):
    (node,) = [next(iter(yaml.safe_load(block).values())) for block in examples_of("quantizers") if word in block]
    return node


def test_a_reduction_stays_as_the_document_has_it():
    node = documented("reduction")
    for made in (node, swapped(parsed(node), "simvq")[0]):
        assert isinstance(built(made).reduction, SumOverMembers)


def test_the_tokens_of_a_prefix_quantizer_are_swapped_as_the_document_has_it():
    node = documented("PrefixQuantizer")
    before, after = (built(made) for made in (node, swapped(parsed(node), "fsq")[0]))
    assert before.mask_token is not None and isinstance(before.lengths, PowerOfTwoLengths)
    assert type(before.quantizer) is Quantizer and type(after.quantizer) is FSQ
    assert (after.dim, after.channel_dim, type(after.lengths)) == (before.dim, before.channel_dim, PowerOfTwoLengths)


@pytest.mark.parametrize("codes", [5, 16, 512, 1000, 1024, 2048, 16384, 65536, 2**20])
def test_levels_are_the_nearest(codes):
    levels = nearest_levels(codes)
    assert all(5 <= level <= 8 for level in levels)
    # A level of 8 in place of 7 is the smallest step up that there always is.
    assert abs(math.log(math.prod(levels) / codes)) < math.log(8 / 5)
    assert nearest_levels(FSQ(levels).codebook_size) == sorted(levels, reverse=True)


def test_what_the_configuration_chose_is_dropped_and_said():
    made, lines = swapped(node_of("audio/dac_16khz"), "ema")
    assert lines == [
        "ema: in place of factorized, without its codebook_dim and losses",
        "ema: residual stages with vqkit.StraightThrough",
    ]
    assert "codebook_dim" not in made["init_args"]["stage"]["init_args"]
    grid = {"class_path": "vqkit.FSQ", "init_args": {"levels": [8, 8], "dim": None, "channel_dim": 1}}
    assert swapped([grid], "lfq") == (
        [{"class_path": "vqkit.LFQ", "init_args": {"bits": 6, "dim": 2, "channel_dim": 1}}],
        ["lfq: 6 bits, 64 codes for 64, in place of FSQ"],
    )


class Own(BaseQuantizer):
    """A class of which the swap knows nothing."""


test_what_cannot_be_swapped_is_refused = refused(
    (({"class_path": "torch.nn.Linear", "init_args": {"dim": 3}}, "ema"), "there is no vector quantizer"),
    (({"class_path": f"{__name__}.Own", "init_args": {}}, "ema"), "Own: its number of codes is not known"),
    (({"class_path": "vqkit.BSQ", "init_args": {"bits": 40, "dim": 8}}, "vq"), "BSQ has 1099511627776 codes"),
    (({}, "simqv"), "expected one of vq, .*did you mean 'simvq'"),
    by=lambda case: swapped(*case),
)


@pytest.mark.parametrize("word", ["vq", "nsvq", "ibq", "fsq", "lfq", "bsq"])
@pytest.mark.parametrize("overlay", ["var", "infinity"])
def test_the_stage_of_all_scales_is_swapped(overlay, word):
    """And what the new one has no use for is left out: prefixes of a codebook, flips of bits."""
    node = node_of(f"quantizers/{overlay}")
    if overlay == "var":
        node["init_args"]["level_sizes"] = [2, 4, 8, 16, 32, 64, 128, 256, 512, 4096]
    else:  # 2^32 codes have no table
        node["init_args"]["stage"]["init_args"]["bits"] = 16
    made, _ = swapped(node, word)
    quantizer = built(made)
    assert type(quantizer.stages[0]) is WORDS[word].quantizer and quantizer.ends[-1] == 680
    assert (quantizer.prefixes is None) == (overlay == "infinity" or word in ("fsq", "lfq", "bsq"))
    assert (quantizer.flips is not None) == (overlay == "infinity" and word in ("lfq", "bsq"))
    assert swapped(parsed(made), word) == (parsed(made), [])


def test_losses_between_groups_refuse_what_they_do_not_fit():
    made, _ = swapped(node_of("quantizers/fqgan"), "ema")
    with pytest.raises(ValueError, match="Disentanglement sends a gradient"):
        built(made)


def test_the_document_has_every_word():
    text = (ROOT / "docs/quantizers.md").read_text()
    table = text.partition("| `--quantizer` |")[2].partition("\n\n")[0]
    rows = [row.split("|") for row in table.splitlines()[2:]]
    said = {word: row[3] for row in rows for word in re.findall(r"`(\w+)`", row[1])}
    assert said.keys() == WORDS.keys()
    for word, cell in said.items():
        estimator: type[Estimator] | None = WORDS[word].over_the_sum
        if word == "cascaded":
            assert "refused" in cell
        else:
            assert (f"`{estimator.__name__}` over the sum" if estimator else "each stage its own") in cell, word
