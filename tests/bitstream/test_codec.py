"""Any quantizer's indices as a file and back; damaged and hostile files."""

import hashlib
import math
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.contract.cases import CASES, Case, each
from tests.few import few
from tests.kernels.graphs import with_threads
from tests.refusals import refused
from tests.saving.test_format_1 import FORMAT_1, load
from vqkit import (
    BSQ,
    FSQ,
    LFQ,
    BaseQuantizer,
    BridgedCodebook,
    Codebook,
    GaussianBottleneck,
    LinearResizing,
    MixtureQuantizer,
    MultiRateQuantizer,
    MultiScaleQuantizer,
    Quantizer,
    ResidualQuantizer,
    Tokenizer,
    bake,
)
from vqkit.bitstream import (
    CODERS,
    CodebookMean,
    NearestNeighbour,
    Packed,
    Picture,
    Sound,
    TokenCodec,
    inspect,
)
from vqkit.bitstream.container import write_header
from vqkit.bitstream.fingerprint import fingerprint

KEY = bytes(range(16))
HASHES = {"fixed width": "1a5919a44b41f3f8", "mixed radix": "ce9ddf0dba97a553", "counts": "a593076d9e37d0fc"}
"""Of LZMA, whose encoder is the system's, a file is below."""
stage = partial(Quantizer, dim=4, codebook_size=16)


def indices_of(*shape: int, size: int = 16, low: int = 0) -> Tensor:
    return torch.randint(low, size, shape, generator=torch.Generator().manual_seed(0))


@each(
    CASES, {}, "vq", "residual", "grouped", "multi_scale", "multi_rate", "snac", "bsq_wide", "lfq_projected", "prefix"
)
def test_every_quantizer(case: Case) -> None:
    quantizer = case.build().eval()
    indices = quantizer.encode(case.example())
    codec = TokenCodec.of(quantizer)
    packed = codec.pack(indices)
    found = codec.unpack(packed.content)
    assert torch.equal(found.indices, indices)
    assert not found.missing
    assert torch.equal(quantizer.decode(found.indices), quantizer.decode(indices))
    assert [level.size for level in inspect(packed.content).levels] == list(quantizer.grid_sizes)
    for table, size in zip(quantizer.level_tables(), quantizer.grid_sizes, strict=True):
        assert table is None or len(table) == size


@each(CASES, {}, "residual", "multi_scale", "multi_rate", "nested_groups")
def test_indices_that_were_left_out(case: Case) -> None:
    quantizer = case.build().eval()
    indices = quantizer.encode(case.example())
    left_out = torch.rand(indices.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    if isinstance(quantizer, MixtureQuantizer):  # where whole cells alone are
        left_out = left_out[..., :1].expand_as(indices)
    indices[left_out] = -1
    codec = TokenCodec.of(quantizer)
    assert torch.equal(codec.unpack(codec.pack(indices).content).indices, indices)


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 1000, 16384, 2**18, 2**20, 2**20 + 1, 2**36, 2**63])
@pytest.mark.parametrize("shape", [(7,), (0,), (1, 50), (3, 4, 5), (2, 0, 3), (0, 4), (1, 2, 3, 4), (1, 1)])
def test_all_sizes_and_shapes(size: int, shape: tuple[int, ...]) -> None:
    codec = TokenCodec([size], fingerprint=KEY)
    for indices in (indices_of(*shape, size=min(size, 2**62)), torch.full(shape, size - 1)):
        for coder in ("auto", "fixed width"):
            packed = codec.pack(indices, coder=coder, packet_cells=8)
            assert torch.equal(codec.unpack(packed.content).indices, indices)
            if size == 1 or not indices.numel():
                assert packed.payload_bytes == 0


def test_first_levels() -> None:
    quantizer = ResidualQuantizer(stage, 3).eval()
    indices = quantizer.encode(torch.randn(2, 5, 4))[..., :2]
    codec = TokenCodec.of(quantizer)
    assert torch.equal(codec.unpack(codec.pack(indices).content).indices, indices)


@pytest.mark.parametrize("extent", [None, Picture(480, 640), Sound(2**40, 44100)])
def test_header_needs_no_model(extent: Picture | Sound | None) -> None:
    codec = TokenCodec([16, 8], fingerprint=KEY)
    packed = codec.pack(indices_of(1, 20, 30, 2, size=8), extent=extent)
    header = inspect(packed.content)
    assert header == packed.header
    assert header.extent == extent
    assert header.fingerprint == KEY
    assert [(level.size, level.shape) for level in header.levels] == [(16, (20, 30)), (8, (20, 30))]
    assert codec.unpack(packed.content).extent == extent


def test_what_a_file_takes() -> None:
    codec = TokenCodec([16], fingerprint=KEY)
    indices = torch.tensor([[0, 0, 1, 1, 2, 2, 3, 3] * 8])  # two bits an index by their counts
    packed = codec.pack(indices)
    assert packed.cells == 64
    assert packed.nominal_bits == 64 * 4
    assert packed.zero_order_bits == 64 * 2
    assert packed.coded_bits == 8 * len(packed.content) == 8 * (packed.header_bytes + packed.payload_bytes)
    assert sum(packed.coders.values()) == packed.payload_bytes
    assert packed.payload_bytes == min(codec.pack(indices, coder=name).payload_bytes for name in CODERS)


# ------------------------------------------------------------------ what is refused


def file_of_three() -> tuple[TokenCodec, Tensor, Packed]:
    """Three levels in packets of two rows."""
    codec = TokenCodec([16, 16, 300], fingerprint=KEY)
    indices = indices_of(1, 6, 5, 3)
    return codec, indices, codec.pack(indices, packet_cells=10, extent=Picture(24, 20), coder="fixed width")


def test_any_changed_byte_is_found() -> None:
    codec, _, packed = file_of_three()
    for place in range(len(packed.content)):
        for flip in (1, 128, 255):
            damaged = bytearray(packed.content)
            damaged[place] ^= flip
            with pytest.raises(ValueError, match=r"^(has|begins|was|is|asks) "):
                codec.unpack(bytes(damaged))


def test_cut_and_longer_files_are_refused() -> None:
    codec, _, packed = file_of_three()
    for length in range(len(packed.content)):
        with pytest.raises(ValueError, match=r"cut off|begins with"):
            codec.unpack(packed.content[:length])
    with pytest.raises(ValueError, match="cut off, or was added to"):
        codec.unpack(packed.content + b"x", partial=True)


def test_what_is_damaged_is_named_and_the_rest_is_there() -> None:
    codec, indices, packed = file_of_three()
    damaged = bytearray(packed.content)
    damaged[packed.header.offsets()[4]] ^= 1  # of three packets a level: rows 2 and 3 of the second
    with pytest.raises(ValueError, match=r"^is damaged: level 1, sample 0, rows 2 to 3: its checksum"):
        codec.unpack(bytes(damaged))
    found = codec.unpack(bytes(damaged), partial=True)
    expected = indices.clone()
    expected[:, 2:4, :, 1] = -1
    assert torch.equal(found.indices, expected)
    assert [str(missing) for missing in found.missing] == [
        "level 1, sample 0, rows 2 to 3: its checksum is not that of its bytes"
    ]


def test_what_is_left_of_a_cut_file() -> None:
    """Coarse levels come first."""
    codec, indices, packed = file_of_three()
    cut = packed.content[: packed.header.offsets()[5] + 1]
    found = codec.unpack(cut, partial=True)
    expected = indices.clone()
    expected[:, 4:, :, 1] = expected[..., 2] = -1
    assert torch.equal(found.indices, expected)
    assert len(found.missing) == 4


def test_concealment() -> None:
    codec, indices, packed = file_of_three()
    damaged = bytearray(packed.content)
    for packet in (1, 3, 6, 7, 8):
        damaged[packed.header.offsets()[packet]] ^= 1
    tables = [torch.arange(16.0).reshape(16, 1), torch.arange(16.0).reshape(16, 1) ** 2, torch.zeros(300, 1)]
    near = codec.unpack(bytes(damaged), partial=True, conceal=NearestNeighbour()).indices
    mean = codec.unpack(bytes(damaged), partial=True, conceal=CodebookMean(tables)).indices
    expected = indices.clone()
    expected[:, 2, :, 0], expected[:, 3, :, 0] = indices[:, 1, :, 0], indices[:, 4, :, 0]
    expected[:, :2, :, 1] = indices[:, 2:3, :, 1]
    expected[..., 2] = -1  # nothing is near
    assert torch.equal(near, expected)
    expected = indices.clone()
    expected[:, 2:4, :, 0] = 7  # of 0 ... 15 the mean is 7.5
    expected[:, :2, :, 1] = 9  # of the squares it is 77.5, which 81 is nearest to
    expected[..., 2] = 0
    assert torch.equal(mean, expected)
    with pytest.raises(ValueError, match="partial=True"):
        codec.unpack(bytes(damaged), conceal=NearestNeighbour())
    assert torch.equal(codec.unpack(packed.content, partial=True, conceal=NearestNeighbour()).indices, indices)
    with pytest.raises(ValueError, match=r"indices lie in .*99"):
        codec.unpack(bytes(damaged), partial=True, conceal=lambda values, *_: torch.full_like(values, 99))


def test_the_mean_of_a_quantizer() -> None:
    codes = [CodebookMean.of(quantizer).codes for quantizer in (ResidualQuantizer(stage, 2), stage())]
    assert [len(levels) for levels in codes] == [2, 1]
    assert CodebookMean([torch.tensor([[math.nan], [0.0], [2.0], [3.0], [math.inf]])]).codes == [2]  # nearest to 5/3
    with pytest.raises(ValueError, match="level 0, whose codes are not stored"):
        CodebookMean.of(Quantizer("simvq", dim=4, codebook_size=16))


def test_hostile_headers() -> None:
    """No memory is taken for what they promise."""
    codec = TokenCodec([16], fingerprint=KEY)
    packed = codec.pack(torch.zeros(1, 100, dtype=torch.int64))
    (level,) = packed.header.levels
    for shape, batch in [((2**60,), 1), ((2**31, 2**31), 1), ((100,), 2**60), ((0, 2**62), 1), ((0,), 2**62)]:
        header = replace(packed.header, levels=(replace(level, shape=shape),), batch=batch, packet_cells=2**62)
        with pytest.raises(ValueError, match=r"asks for \d+ indices|ends too early|too many in its header"):
            codec.unpack(write_header(header) + packed.content[packed.header.start :])
    one = TokenCodec([1], fingerprint=KEY)
    header = replace(packed.header, levels=(replace(level, size=1, shape=(2**40,)),), packets=())
    with pytest.raises(ValueError, match="asks for 1099511627776 indices"):
        one.unpack(write_header(header))
    with pytest.raises(ValueError, match="asks for 100 indices"):
        codec.unpack(packed.content, most_cells=99)
    assert codec.unpack(packed.content, most_cells=100).indices.shape == (1, 100)


def test_shapes_of_another_quantizer_are_refused() -> None:
    """Each level is in order by itself, and together they are none of its indices."""
    for name in ("multi_rate", "residual", "multi_scale"):
        quantizer = CASES[name].build().eval()
        codec = TokenCodec.of(quantizer)
        packed = codec.pack(quantizer.encode(CASES[name].example()), coder="fixed width")
        first, *others = packed.header.levels
        levels = (replace(first, shape=(7,)), *others)
        hostile = replace(packed.header, levels=levels)
        with pytest.raises(ValueError, match="which this quantizer does not have"):
            codec.unpack(write_header(hostile) + packed.content[packed.header.start :], partial=True)


def test_groups_of_bits_beyond_the_codes_are_refused() -> None:
    wide, narrow = TokenCodec([2**40], fingerprint=KEY), TokenCodec([2**40 - 5], fingerprint=KEY)
    packed = wide.pack(torch.full((1, 3), 2**40 - 1))
    (level,) = packed.header.levels
    content = write_header(replace(packed.header, levels=(replace(level, size=2**40 - 5),)))
    with pytest.raises(ValueError, match="beyond its 1099511627771 codes at level 0"):
        narrow.unpack(content + packed.content[packed.header.start :])


def test_a_packet_that_reads_as_something_else_is_found() -> None:
    """As by a coder with a fault: checksums of bytes cannot know."""
    codec = TokenCodec([16], fingerprint=KEY)
    packed, other = (codec.pack(torch.full((1, 9), value), coder="fixed width") for value in (3, 4))
    head = write_header(replace(packed.header, packets=other.header.packets))
    with pytest.raises(ValueError, match="gives other indices than were written"):
        codec.unpack(head + other.content[other.header.start :])


def unpack_reworded(change: Callable[[bytearray], None]) -> None:
    """Reads a file with another header, whose checksum is right."""
    codec, _, packed = file_of_three()
    head = bytearray(packed.content[: packed.header.start - 4])
    change(head)
    codec.unpack(bytes(head) + struct.pack("<I", zlib.crc32(head)) + packed.content[packed.header.start :])


test_other_headers = refused(
    (lambda head: head.__setitem__(0, 0), "begins with"),
    (lambda head: head.__setitem__(3, 2), "has format version 2: expected 1"),
    (lambda head: head.__setitem__(4, 99), "was written by another tokenizer"),
    (lambda head: head.__setitem__(25, 9), "has an extent of kind 9"),
    (lambda head: head.__setitem__(31, 32), "has a level 0 of kind 32"),
    (lambda head: head.extend(b"x"), "cut off or damaged"),
    by=unpack_reworded,
)


def test_wrong_arguments() -> None:
    codec = TokenCodec([16, 8], fingerprint=KEY)
    for wrong, message in [
        (indices_of(1, 4, 3), "levels"),
        (indices_of(1, 4, 2) + 16, "indices lie in"),
        (torch.zeros(1, 4, 2), "expected integers"),
        (torch.zeros(2, dtype=torch.int64), r"expected \(B, ...\)"),
        (indices_of(*[1] * 17, 2), "15 axes at most"),
        (indices_of(1, 4, 2).to(torch.uint16), r"give indices.long\(\)"),
        (torch.tensor(3), r"has no axes: expected \(B, ...\)"),
        ([[1, 2]], "expected a torch.Tensor"),
    ]:
        with pytest.raises(ValueError, match=message):
            codec.pack(wrong)
    with pytest.raises(ValueError, match="coder='zip': expected 'auto' or one of 'fixed width'"):
        codec.pack(indices_of(1, 4, 2, size=8), coder="zip")
    for extent in (Picture(-1, 2), Sound(2**63, 8000), Picture(1.5, 2)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"extent has \w+=\S+: expected a whole number"):
            codec.pack(indices_of(1, 4, 2, size=8), extent=extent)
    for packet_cells in (0, 2**63, 8.0):
        with pytest.raises(ValueError, match=f"packet_cells={packet_cells}: expected a whole number"):
            codec.pack(indices_of(1, 4, 2, size=8), packet_cells=packet_cells)
    with pytest.raises(ValueError, match="module is a Linear: expected a quantizer"):
        TokenCodec.of(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="GaussianBottleneck"):
        TokenCodec.of(GaussianBottleneck(4))
    with pytest.raises(ValueError, match=r"has levels of \[16, 8\] codes: expected \[16, 9\]"):
        TokenCodec([16, 9], fingerprint=KEY).unpack(codec.pack(indices_of(1, 4, 2, size=8)).content)
    twice, short, wrong_type = torch.zeros(16, dtype=torch.int64), torch.arange(9), torch.arange(16.0)
    for sizes, key, orders in [
        *[([], KEY, None), ([0], KEY, None), ([16.0], KEY, None), ([16], b"", None), ([16], KEY, [])],
        *(([16], KEY, [order]) for order in (twice, short, wrong_type)),
    ]:
        with pytest.raises(ValueError, match="expected"):
            TokenCodec(sizes, fingerprint=key, orders=orders)
    damaged = codec.pack(indices_of(1, 4, 2, size=8)).content[:-1]
    for filled, message in [(torch.zeros(3).long(), r"gave \(3,\)"), (torch.ones(4), "expected integers")]:
        with pytest.raises(ValueError, match=message):
            codec.unpack(damaged, partial=True, conceal=lambda *_, filled=filled: filled)


def test_another_default_device() -> None:
    codec, indices = TokenCodec.of(stage()), indices_of(2, 30)
    with torch.device("meta"):
        assert torch.equal(codec.unpack(codec.pack(indices).content).indices, indices)
        content = codec.pack(indices, coder="fixed width").content[:-1]
        found = codec.unpack(content, partial=True, conceal=NearestNeighbour()).indices
    assert torch.equal(found[0], indices[0])


# ------------------------------------------------------------------ whose indices they are


def test_fingerprints_differ_by_what_an_index_means() -> None:
    def seeded(seed: int) -> BaseQuantizer:
        return Quantizer("vq", dim=4, codebook_size=16, codebook=partial(Codebook, seed=seed))

    others = [seeded(0), seeded(1), FSQ([4, 4]), FSQ([2, 8]), LFQ(4), BSQ(4), ResidualQuantizer(stage, 1)]
    others += [MultiRateQuantizer(stage, [2, 1]), MultiRateQuantizer(stage, [4, 1])]
    assert len({fingerprint(other) for other in others}) == len(others)


scales = partial(MultiScaleQuantizer, stage, [1, 2, 4], channel_dim=1)
bridged = partial(stage, "fvq", codebook_size=64)  # four patches, so that there is something to attend to


@pytest.mark.parametrize(
    ("build", "other", "shape"),
    [
        (stage, partial(stage, normalize=True), (1, 9, 4)),
        (scales, partial(scales, up=LinearResizing()), (1, 4, 4, 4)),
        (scales, partial(scales, phi_ratio=0.25), (1, 4, 4, 4)),
        (bridged, partial(bridged, codebook=partial(BridgedCodebook, heads=2)), (1, 9, 4)),
        (bridged, partial(bridged, codebook=partial(BridgedCodebook, tanh_gelu=False)), (1, 9, 4)),
    ],
)
def test_fingerprints_differ_by_arguments_that_decode(
    build: Callable[[], BaseQuantizer], other: Callable[[], BaseQuantizer], shape: tuple[int, ...]
) -> None:
    one, two = build().eval(), other().eval()
    torch.manual_seed(0)
    for parameter in one.parameters():  # FVQ's bridge starts at zero
        torch.nn.init.normal_(parameter)
    two.load_state_dict(one.state_dict())
    indices = one.encode(torch.randn(shape))
    assert not torch.equal(one.decode(indices), two.decode(indices))
    assert fingerprint(one) != fingerprint(two)


@pytest.mark.parametrize("name", few(["residual", "bsq_wide", "fsq", "simvq", "audio", "cross_scale"], "fsq", "simvq"))
def test_fingerprints_outlive_types_and_training(name: str) -> None:
    module = load(FORMAT_1 / name)
    expected = fingerprint(module)
    assert fingerprint(load(FORMAT_1 / name).double()) == expected
    assert fingerprint(load(FORMAT_1 / name).bfloat16()) == expected
    if name != "simvq":
        assert fingerprint(bake(module)) == expected
    other = load(FORMAT_1 / name).train()
    for parameter in other.parameters():
        parameter.requires_grad_(False)
    assert fingerprint(other) == expected


def test_fingerprints_are_for_good() -> None:
    """Files of today shall be read tomorrow: a change here needs a new version of the format."""
    assert {name: fingerprint(load(FORMAT_1 / name)).hex() for name in ("fsq", "residual", "image")} == {
        "fsq": "a4fcc96f2d483c59cc1c7689baf4114d",
        "residual": "3891a835ad599ceb384615246b0a2d80",
        "image": "0500ba59d48010ec43cbe328a17a9091",
    }


def test_a_grid_belongs_to_its_decoder() -> None:
    """Two tokenizers with FSQ have the same codes, and their files mean different pictures."""

    def tokenizer(seed: int) -> Tokenizer:
        torch.manual_seed(seed)
        return Tokenizer(torch.nn.Conv2d(3, 2, 1), FSQ([4, 4], channel_dim=1), torch.nn.Conv2d(2, 3, 1))

    assert fingerprint(tokenizer(0)) == fingerprint(tokenizer(0)) == fingerprint(tokenizer(0).bfloat16())
    assert fingerprint(tokenizer(0)) != fingerprint(tokenizer(1))


@pytest.mark.parametrize("coder", HASHES)
def test_files_are_the_same_bytes_for_good(coder: str) -> None:
    """Whatever the process and its threads: numbers that integers make, and the hash of their file."""
    places = torch.arange(2 * 12 * 17).reshape(1, 12, 17, 2)
    indices = places * places % 1009 % torch.tensor([16, 1000])
    codec = TokenCodec([16, 1000], fingerprint=KEY)
    for content in with_threads([1, 2], lambda: codec.pack(indices, coder=coder).content):
        assert hashlib.sha256(content).hexdigest()[:16] == HASHES[coder]


def test_a_file_with_lzma_is_read_for_good() -> None:
    content = bytes.fromhex(
        "56514b01000102030405060708090a0b0c0d0e0f148d2fda5f00028080040101ab020802a9b2a6ce14e4e52b7d01000f0000280050007800"
        "a000c800f000180100"
    )
    found = TokenCodec([300], fingerprint=KEY).unpack(content).indices
    assert found.tolist() == [[0, 40, 80, 120, 160, 200, 240, 280]]


def test_random_damage_never_gives_other_indices() -> None:
    codec, indices, packed = file_of_three()
    rng = random.Random(0)
    for _ in range(100):
        damaged = bytearray(packed.content)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(packed.header.start, len(damaged))] = rng.randrange(256)
        found = codec.unpack(bytes(damaged), partial=True).indices
        assert bool(((found == indices) | (found == -1)).all())
