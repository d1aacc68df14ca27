import copy
import inspect
import json
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from tests.refusals import refused
from vqkit import Quantizer, ResidualQuantizer
from vqkit.parts.estimators import StraightThrough
from vqkit.saving.config import Configured, from_config, resolve_class, to_config

ALLOW = ("vqkit", __name__)


class Part(Configured, nn.Module):
    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight


class Bare(Part):
    """Without a constructor of its own."""


class Derived(Part):
    """Calls the recording constructor of its base with something else."""

    def __init__(self, half: float, *, name: str = "derived") -> None:
        super().__init__(2 * half)
        self.name = name


class Book(Configured, nn.Module):
    def __init__(self, codebook_size: int, dim: int, *, decay: float = 0.99) -> None:
        super().__init__()
        self.sizes = (codebook_size, dim)
        self.decay = decay


class Whole(Configured, nn.Module):
    def __init__(
        self,
        method: str = "vq",
        *,
        dim: int,
        book: Callable[[int, int], Book] | None = None,
        part: Part | None = None,
        parts: Sequence[Part] | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.dim = dim
        self.book = (book or Book)(16, dim)
        self.part = part
        self.parts = nn.ModuleList(parts or ())


class Chain(Configured, nn.Module):
    def __init__(self, stage: Callable[[], Whole], num_stages: int = 2) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stage() for _ in range(num_stages))


class Values(Configured):
    def __init__(self, value: Any = None, **rest: Any) -> None:
        self.value = value
        self.rest = rest


class ByPosition(Configured):
    def __init__(self, *values: int) -> None:
        self.values = values


@dataclass(frozen=True)
class Frozen(Configured):
    size: int
    rate: float = 0.5


class Plain:
    pass


def some_function() -> None:
    raise AssertionError("a configuration must never call a function")


def round_trip(configured: Configured) -> Any:
    config = to_config(configured)
    restored = from_config(json.loads(json.dumps(config, allow_nan=False)), allow=ALLOW)
    assert type(restored) is type(configured)
    assert to_config(restored) == config
    return restored


def test_config_holds_the_outermost_call_with_defaults() -> None:
    assert to_config(Derived(0.5)) == {
        "class_path": f"{__name__}.Derived",
        "init_args": {"half": 0.5, "name": "derived"},
    }
    restored = round_trip(Derived(0.5, name="other"))
    assert (restored.weight, restored.name) == (1.0, "other")


def test_a_record_follows_parts_that_were_replaced() -> None:
    whole = Whole("ema", dim=3, part=Part(2.0))
    whole.part = Part(5.0)
    whole.record(part=whole.part)
    assert whole.recorded_arguments() == {"method": "ema", "dim": 3, "book": None, "part": whole.part, "parts": None}
    assert round_trip(whole).part.weight == 5.0
    assert copy.deepcopy(whole).recorded_arguments()["part"] is not whole.part
    several = Values(1, extra=2)
    several.record(extra=3)
    assert to_config(several)["init_args"] == {"value": 1, "extra": 3}


def test_a_class_without_constructor_and_a_dataclass_are_recorded() -> None:
    assert round_trip(Bare(3.0)).weight == 3.0
    assert round_trip(Frozen(3)) == Frozen(3, 0.5)


def test_nested_parts_and_lists() -> None:
    whole = Whole("ema", dim=4, part=Derived(2.0), parts=[Part(), Part(0.25)])
    restored = round_trip(whole)
    assert (restored.method, restored.dim, restored.part.weight) == ("ema", 4, 4.0)
    assert [part.weight for part in restored.parts] == [1.0, 0.25]


@pytest.mark.parametrize("book", [Book, partial(Book, decay=0.5), partial(partial(Book), decay=0.5)])
def test_factories(book: Callable[[int, int], Book]) -> None:
    restored = round_trip(Whole(dim=4, book=book))
    assert restored.book.sizes == (16, 4)
    assert restored.book.decay == (0.99 if book is Book else 0.5)


def test_nested_factories_with_positional_arguments() -> None:
    chain = Chain(partial(Whole, "ema", dim=4, book=partial(Book, decay=0.5), part=Part(0.5)), num_stages=3)
    restored = round_trip(chain)
    assert [stage.method for stage in restored.stages] == ["ema"] * 3
    assert restored.stages[2].book.decay == 0.5
    assert to_config(chain)["init_args"]["stage"]["factory"] == f"{__name__}.Whole"


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 0.1, 1e-12, float("inf"), "text", [1, [2.0, None]], {"a": [1], "b": {"c": True}}, [Values(1)]],
)
def test_plain_values(value: Any) -> None:
    restored = round_trip(Values(value, other=value))
    if not isinstance(value, list) or not isinstance(value[0], Values):
        assert restored.value == value
        assert type(restored.value) is type(value)
    assert restored.rest.keys() == {"other"}


def test_tuples_become_lists_and_paths_strings() -> None:
    assert to_config(Values((1, (2,))))["init_args"]["value"] == [1, [2]]
    assert to_config(Values(Path("codes") / "base"))["init_args"]["value"] == "codes/base"


@pytest.mark.parametrize(
    "value",
    [lambda: Book(1, 1), some_function, torch.zeros(2), Plain(), nn.Linear(1, 1), torch.float16, {1: 2}, 1j,
     partial(some_function), partial(lambda cls: cls(), Book), {"class_path": "os.system"}],
)  # fmt: skip
def test_what_cannot_be_written_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"argument 'value\.1\.inner' cannot be written .*vqkit\.Configured"):
        to_config(Values([0, {"inner": value}]))


def test_errors_name_the_argument_through_parts_and_factories() -> None:
    with pytest.raises(ValueError, match=r"argument 'stage\.part\.value'"):
        to_config(Values(stage=partial(Whole, part=Values(torch.zeros(2)))))


def test_classes_that_cannot_be_imported_and_arguments_by_position_are_refused() -> None:
    class Local(Configured):
        pass

    with pytest.raises(ValueError, match=r"argument 'value': the class .*Local cannot be imported by name"):
        to_config(Values(Local()))
    with pytest.raises(ValueError, match="argument 'values': ByPosition takes it by position only"):
        to_config(ByPosition(1, 2))
    with pytest.raises(ValueError, match="to_config writes Configured objects"):
        to_config(Plain())  # type: ignore[arg-type]


def test_a_part_that_was_replaced_is_noticed() -> None:
    whole = Whole(dim=4, part=Part(0.5))
    whole.part = Part(0.25)
    with pytest.raises(ValueError, match="argument 'part' was replaced after construction"):
        to_config(whole)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda whole: pickle.loads(pickle.dumps(whole))])
def test_copies_keep_their_configuration(copied: Callable[[Whole], Whole]) -> None:
    whole = Whole(dim=4, part=Part(0.5), book=partial(Book, decay=0.5))
    assert to_config(copied(whole)) == to_config(whole)
    chain = ResidualQuantizer(partial(Quantizer, "vq", dim=4, codebook_size=8), 2)  # with the estimator of all chains
    assert to_config(copied(chain)) == to_config(chain)


def test_recording_leaves_module_and_signature_alone() -> None:
    whole = Whole(dim=4, part=Part())
    assert [name for name, _ in whole.named_modules()] == ["", "book", "part", "parts"]
    assert not whole.state_dict()
    assert list(inspect.signature(Whole).parameters) == ["method", "dim", "book", "part", "parts"]
    assert list(inspect.signature(Bare).parameters) == ["weight"]
    with pytest.raises(TypeError, match="Whole has no argument 'dimm': did you mean 'dim'"):
        Whole(dimm=4)  # type: ignore[call-arg]


class Program:
    """Stands for LightningCLI, whose instantiators hold the trainer: nothing that is built may keep it."""

    def __call__(self, class_type: type, *args: Any, **kwargs: Any) -> Any:
        return class_type(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Program":
        raise AssertionError("the record holds on to the program")


def parse(annotation: type, config: dict[str, Any], *, program: Program | None = None) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--object", type=annotation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated spellings, whose successors older releases lack
        if program is not None:
            parser.add_instantiator(program, Configured)
        return parser.instantiate_classes(parser.parse_object({"object": config})).object


@pytest.mark.parametrize("program", [None, Program()])
def test_objects_built_by_jsonargparse_can_be_written_and_copied(program: Program | None) -> None:
    book = {"class_path": f"{__name__}.Book", "init_args": {"decay": 0.5}}
    part = {"class_path": f"{__name__}.Derived", "init_args": {"half": 0.5}}
    stage = {
        "class_path": f"{__name__}.Whole",
        "init_args": {"method": "ema", "dim": 4, "book": book, "part": part, "parts": [part]},
    }
    whole = copy.deepcopy(parse(Whole, stage, program=program))
    restored = round_trip(whole)
    assert (restored.book.sizes, restored.book.decay, restored.parts[0].weight) == ((16, 4), 0.5, 1.0)
    chain = parse(Chain, {"class_path": f"{__name__}.Chain", "init_args": {"stage": stage}}, program=program)
    restored = round_trip(copy.deepcopy(chain))
    assert [chained.book.decay for chained in restored.stages] == [0.5, 0.5]


def test_the_record_does_not_change_with_the_callers_lists() -> None:
    items = [1, [2]]
    values = Values(items)
    items.append(3)
    items[1].append(4)  # type: ignore[attr-defined]
    assert to_config(values)["init_args"]["value"] == [1, [2]]


def test_configurations_without_factories_are_read_by_jsonargparse_too() -> None:
    config = to_config(Whole("ema", dim=4, part=Derived(2.0), parts=[Part()]))
    assert to_config(parse(Whole, copy.deepcopy(config))) == config


@pytest.mark.parametrize(
    "class_path",
    ["os.system", "builtins.eval", "torch.nn.Linear", "vqkit.saving.config.importlib.import_module",
     "vqkit.saving.config.Path", "vqkit.saving.config.nn", "vqkit.saving.config.to_config",
     "vqkit.saving.config.nn.Linear", "vqkit.nothing.Class", "vqkit.saving.config",
     "vqkitten.Class", "Whole", "", None, 3, f"{__name__}.some_function", f"{__name__}.Plain", f"{__name__}.ALLOW",
     f"{__name__}.partial", f"{__name__}.Path"],
)  # fmt: skip
@pytest.mark.parametrize("mark", ["class_path", "factory"])
def test_only_configured_classes_of_allowed_packages_are_built(class_path: Any, mark: str) -> None:
    with pytest.raises(ValueError, match="class_path="):
        resolve_class(class_path, allow=ALLOW)
    config = {"class_path": f"{__name__}.Values", "init_args": {"value": [{mark: class_path}]}}
    with pytest.raises(ValueError, match="class_path="):
        from_config(config, allow=ALLOW)


def test_packages_must_be_allowed() -> None:
    with pytest.raises(ValueError, match=r"refused: only Configured classes of vqkit .* allow="):
        from_config(to_config(Part()))
    with pytest.raises(ValueError, match="'StraightThrough' is none there"):  # in reach, but of another package
        resolve_class(f"{__name__}.{StraightThrough.__name__}", allow=(__name__,))


test_damaged_configurations_are_refused = refused(
    ([], "a dictionary with the key 'class_path'"),
    ({"init_args": {}}, "a dictionary with the key 'class_path'"),
    (
        {"class_path": f"{__name__}.Part", "init_args": {"weigth": 1}},
        "does not take these arguments: .*'weigth': did you mean 'weight'",
    ),
    ({"class_path": f"{__name__}.Whole"}, "does not take these arguments: .*'dim'"),
    ({"class_path": f"{__name__}.Part", "init_args": [1]}, "init_args is a dictionary"),
    (
        {"class_path": f"{__name__}.Values", "init_args": {"value": {"class_path": f"{__name__}.Part", "x": 1}}},
        r"argument 'value': unexpected keys \['x'\] beside 'class_path'",
    ),
    by=lambda config: from_config(config, allow=ALLOW),
)
