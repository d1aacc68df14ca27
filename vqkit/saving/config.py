"""Objects that remember how they were built, and their form as plain JSON.

`Configured` records the arguments of a constructor call; `to_config` writes an object as nested dictionaries of the
form that jsonargparse reads too (`class_path` and `init_args`), and `from_config` builds it again. A configuration may
come from a stranger: only classes that derive from `Configured` are found, in modules that are listed here or allowed
by the caller, and no other module is imported (`docs/security.md`).
"""

import importlib
import inspect
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import nn

from vqkit.saving.annotations import check_arguments
from vqkit.saving.hints import check_names
from vqkit.saving.migration import current_path
from vqkit.sharding import own_class

BUILDABLE = (
    "vqkit",
    "vqkit.backbones.activations",
    "vqkit.backbones.antialiasing",
    "vqkit.backbones.autoencoder_kl",
    "vqkit.backbones.conv1d",
    "vqkit.backbones.conv2d",
    "vqkit.backbones.convnext1d",
    "vqkit.backbones.depthwise1d",
    "vqkit.backbones.encodec",
    "vqkit.backbones.esc",
    "vqkit.backbones.factorized",
    "vqkit.backbones.frame_transformer",
    "vqkit.backbones.gaussian",
    "vqkit.backbones.latent_tokens",
    "vqkit.backbones.magvit2",
    "vqkit.backbones.maskgit",
    "vqkit.backbones.mlp",
    "vqkit.backbones.positions",
    "vqkit.backbones.resampled",
    "vqkit.backbones.resnet1d",
    "vqkit.backbones.timm2d",
    "vqkit.backbones.vit",
    "vqkit.backbones.vocos",
    "vqkit.backbones.weight_norm",
    "vqkit.methods.coda",
    "vqkit.methods.sinkhorn",
    "vqkit.parts.codebooks",
    "vqkit.parts.int8",
    "vqkit.quantizers.pursuit",
    "vqkit.quantizers.topk",
    "vqkit.quantizers.whitening",
    "vqkit.tokenizers.vectors",
)
"""Modules of this package by which a configuration reaches classes: what `vqkit` exports, backbones, baked tables."""

_MARKS = {"class_path", "factory", "float"}
"""Keys that give a dictionary of a configuration a meaning of its own."""

_weights_follow: ContextVar[bool] = ContextVar("_weights_follow", default=False)


@contextmanager
def weights_follow() -> Iterator[None]:
    """Context for building modules whose state is loaded right afterwards.

    A module that takes its first values from a file of the machine that it was trained on must not ask for that file
    again: it looks at `weights_will_follow()` and allocates. `from_pretrained` builds in this context, and so does the
    command line of the trainers where a checkpoint is resumed.
    """
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)


def weights_will_follow() -> bool:
    """Whether this is inside of `weights_follow()`, so that only the shapes of new state count."""
    return _weights_follow.get()


class Configured:
    """Mixin that records the arguments of the constructor call, for `to_config`.

    Recording happens in `__new__`: it sees exactly the outermost call, whatever the constructors below it pass on, and
    leaves `__init__` and its signature alone (dataclasses and classes without a constructor of their own included).
    The record holds what was passed; attributes that are changed later are not seen.

    Examples:
        >>> class Part(Configured):
        ...     def __init__(self, weight: float = 1.0):
        ...         self.weight = weight
        >>> to_config(Part(0.5))["init_args"]
        {'weight': 0.5}
    """

    _recorded_call: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Create the object and note the call. Copying and unpickling come here too, and then restore the old note.

        Raises:
            TypeError: an argument by a name that the constructor does not have; the message says where it belongs.
        """
        check_names(cls, kwargs, base=Configured, defaults=lambda: cls.default_parts(*args, **kwargs))
        instance = super().__new__(cls)
        # Past `nn.Module.__setattr__`, which would ask for `nn.Module.__init__` first.
        # Modules that are defaults are noted too: a copy of the object has copies of them, in both places.
        parameters = inspect.signature(cls.__init__).parameters.values()
        named = [item for item in parameters if item.kind is item.KEYWORD_ONLY]
        parts = {item.name: item.default for item in named if isinstance(item.default, nn.Module)}
        object.__setattr__(instance, "_recorded_call", (_snapshot(args), parts | _snapshot(kwargs)))
        return instance

    @classmethod
    def default_parts(cls, *args: Any, **kwargs: Any) -> Sequence[type]:
        """The classes of the parts that an object with these arguments has where they name none, for messages."""
        return ()

    def recorded_arguments(self) -> dict[str, Any]:
        """The arguments of the constructor call by name, defaults included.

        Raises:
            ValueError: the constructor takes arguments by position only.
        """
        return _arguments(self, "")

    def record(self, **arguments: Any) -> None:
        """Note other arguments, after the parts that they stand for were replaced.

        Args:
            arguments: of the constructor, by name; those that are not given stay as they were.
        """
        object.__setattr__(self, "_recorded_call", ((), self.recorded_arguments() | arguments))


def _snapshot(value: Any) -> Any:
    """Copy lists and dictionaries, which a caller may change later, and reduce factories to the class that they call.

    For a `Callable` argument jsonargparse (4.53) builds `partial(its_function, its_instantiator, Class, **init_args)`,
    and under LightningCLI the instantiator holds the whole program: a module that kept it could not be copied.
    """
    if type(value) in (list, tuple):
        return type(value)(_snapshot(item) for item in value)
    if type(value) is dict:
        return {key: _snapshot(item) for key, item in value.items()}
    if type(value) is partial:
        called, args = value.func, _snapshot(value.args)
        while args and not isinstance(called, type) and getattr(called, "__module__", "").startswith("jsonargparse."):
            called, args = args[0], args[1:]
        return partial(called, *args, **_snapshot(value.keywords))
    return value


def to_config(configured: Configured) -> dict[str, Any]:
    """Write an object as a dictionary that JSON can hold.

    Arguments that were left at their default are written too, so that a later change of a default does not change what
    is built from the file. Tuples become lists and paths become strings. A factory (a `Configured` class, or a
    `functools.partial` of one, which is also what jsonargparse makes of `class_path` for a `Callable` argument) is
    written under the key `factory` instead of `class_path`.

    Args:
        configured: the object; every part among its arguments must be `Configured` too.

    Returns:
        `{"class_path": ..., "init_args": {...}}`, nested.

    Raises:
        ValueError: if an argument has no JSON form (a lambda, a tensor, a module that is not `Configured`), or if a
            module that was passed has been replaced since; the message names the argument.
    """
    if not isinstance(configured, Configured):
        raise ValueError(
            f"to_config writes Configured objects, got {configured!r}: derive its class from vqkit.Configured."
        )
    return _write_instance(configured, "")


def from_config(config: Mapping[str, Any], *, allow: Sequence[str] = ("vqkit",)) -> Any:
    """Build the object that `to_config` wrote.

    Args:
        config: `{"class_path": ..., "init_args": {...}}`; `init_args` may be left out.
        allow: packages or modules whose classes may be built. Add your own package for parts that you wrote. A name
            given here is imported; a module below it has to be imported already.

    Returns:
        A new object, with freshly initialised parameters where it has any.

    Raises:
        ValueError: if the configuration names something that is not a `Configured` class of an allowed package, or has
            arguments that the class does not take; the message names the argument.
    """
    if not isinstance(config, Mapping) or "class_path" not in config:
        raise ValueError(f"A configuration is a dictionary with the key 'class_path', got {config!r}.")
    return _read({key: config[key] for key in ("class_path", "init_args") if key in config}, allow, "")


def resolve_class(class_path: Any, *, allow: Sequence[str] = ("vqkit",)) -> type[Configured]:
    """Find the class that a configuration names, and refuse everything else.

    Args:
        class_path: module and class name joined by a dot.
        allow: as in `from_config`.

    Raises:
        ValueError: if the path leads out of the allowed packages or to anything but a `Configured` class.
    """
    if not isinstance(class_path, str) or "." not in class_path:
        raise ValueError(f"class_path={class_path!r}: expected 'package.module.Class'.")
    refusal = f"class_path={class_path!r} is refused: only Configured classes of {', '.join(allow)} may be built"
    if (renamed := current_path(class_path)) != class_path:
        raise ValueError(f"class_path={class_path!r} is called {renamed!r} now: write that.")
    module_name, _, class_name = class_path.rpartition(".")
    if not _is_below(module_name, allow):
        raise ValueError(f"{refusal}. If you trust it, name its package in allow=.")
    found = _vars_of(module_name, allow, refusal).get(class_name)
    # The class's own module counts, not the name it was reached by: `vqkit.saving.config.Path` is not a class of vqkit.
    if not (isinstance(found, type) and issubclass(found, Configured) and _is_below(found.__module__, allow)):
        raise ValueError(f"{refusal}, and {class_name!r} is none there.")
    return found


def _vars_of(module_name: str, allow: Sequence[str], refusal: str) -> dict[str, Any]:
    """What a module holds, which is imported only where it is named in `allow` or `BUILDABLE` itself."""
    if module_name in allow or (module_name in BUILDABLE and _is_below(BUILDABLE[0], allow)):
        try:
            return vars(importlib.import_module(module_name))
        except ModuleNotFoundError as error:
            raise ValueError(f"{refusal}, and there is no module {error.name!r}.") from error
    if _is_below(module_name, BUILDABLE[:1]):
        raise ValueError(f"{refusal}, of vqkit those in {', '.join(BUILDABLE)}.")
    if module_name not in sys.modules:
        raise ValueError(f"{refusal}, and {module_name!r} is not imported: import it, or name it in allow=.")
    return vars(sys.modules[module_name])


def _is_below(module_name: str, allow: Sequence[str]) -> bool:
    return any(module_name == name or module_name.startswith(f"{name}.") for name in allow)


def _class_path(cls: type, where: str) -> str:
    """The shortest dotted path that leads to the class, so that public names survive a move between files."""
    cls = own_class(cls)
    parts = cls.__module__.split(".")
    for length in range(1, len(parts) + 1):
        module_name = ".".join(parts[:length])
        if getattr(sys.modules.get(module_name), "__dict__", {}).get(cls.__name__) is cls:
            return f"{module_name}.{cls.__name__}"
    raise ValueError(
        f"{_at(where)}: the class {cls.__module__}.{cls.__qualname__} cannot be imported by name, so a configuration"
        " cannot name it. Define it at the top level of a module."
    )


def _at(where: str) -> str:
    return f"argument {where!r}" if where else "the object"


def _join(where: str, name: str | int) -> str:
    return f"{where}.{name}" if where else str(name)


def _arguments(configured: Configured, where: str) -> dict[str, Any]:
    args, kwargs = configured._recorded_call
    bound = inspect.signature(type(configured).__init__).bind(configured, *args, **kwargs)
    bound.apply_defaults()
    arguments: dict[str, Any] = {}
    for parameter in list(bound.signature.parameters.values())[1:]:
        value = bound.arguments[parameter.name]
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= value
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            arguments[parameter.name] = value
        elif parameter.kind is parameter.POSITIONAL_ONLY or value:
            raise ValueError(
                f"{_at(_join(where, parameter.name))}: {type(configured).__name__} takes it by position only, and a"
                " configuration holds arguments by name. Give it a name that can be passed as a keyword."
            )
    return arguments


def _write_instance(configured: Configured, where: str) -> dict[str, Any]:
    arguments = _arguments(configured, where)
    parts = configured._modules if isinstance(configured, nn.Module) else {}
    for name, value in arguments.items():
        if isinstance(value, nn.Module) and parts.get(name, value) is not value:
            raise ValueError(
                f"{_at(_join(where, name))} was replaced after construction, so the recorded configuration no longer"
                f" describes the module. Build a new {type(configured).__name__} with the part that it shall have."
            )
    init_args = {name: _write(value, _join(where, name)) for name, value in arguments.items()}
    return {"class_path": _class_path(type(configured), where), "init_args": init_args}


def _write(value: Any, where: str) -> Any:
    factory = partial(value) if isinstance(value, type) else value
    if isinstance(factory, partial) and isinstance(factory.func, type) and issubclass(factory.func, Configured):
        config: dict[str, Any] = {"factory": _class_path(factory.func, where)}
        if factory.args:
            config["args"] = _write(factory.args, where)
        config["init_args"] = {name: _write(item, _join(where, name)) for name, item in factory.keywords.items()}
        return config
    if isinstance(value, Configured):
        return _write_instance(value, where)
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no word for it
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_write(item, _join(where, index)) for index, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value) and not _MARKS & value.keys():
        return {key: _write(item, _join(where, key)) for key, item in value.items()}
    raise ValueError(
        f"{_at(where)} cannot be written to a configuration: {value!r} ({type(value).__name__}). Pass numbers, strings,"
        " lists, objects of classes that derive from vqkit.Configured, and for a factory such a class or a"
        " functools.partial of it instead of a function."
    )


def _read(value: Any, allow: Sequence[str], where: str) -> Any:
    if isinstance(value, list):
        return [_read(item, allow, _join(where, index)) for index, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    marks = _MARKS & value.keys()
    if not marks:
        return {key: _read(item, allow, _join(where, key)) for key, item in value.items()}
    mark = sorted(marks)[0]
    known = {"class_path": {"init_args"}, "factory": {"init_args", "args"}, "float": set()}[mark]
    if not value.keys() <= known | {mark}:
        raise ValueError(f"{_at(where)}: unexpected keys {sorted(value.keys() - known - {mark})} beside {mark!r}.")
    if mark == "float":
        if value["float"] not in ("inf", "-inf", "nan"):
            raise ValueError(f"{_at(where)}: float={value['float']!r}: expected 'inf', '-inf' or 'nan'.")
        return float(value["float"])
    return _read_class(value, mark, allow, where)


def _read_class(value: Mapping[str, Any], mark: str, allow: Sequence[str], where: str) -> Any:
    cls = resolve_class(value[mark], allow=allow)
    init_args = value.get("init_args", {})
    args = value.get("args", [])
    if not isinstance(init_args, Mapping) or not isinstance(args, list):
        raise ValueError(f"{_at(where)}: init_args is a dictionary and args a list, got {init_args!r} and {args!r}.")
    keywords = {name: _read(item, allow, _join(where, name)) for name, item in init_args.items()}
    positional = [_read(item, allow, _join(where, index)) for index, item in enumerate(args)]
    bind = inspect.signature(cls.__init__).bind_partial if mark == "factory" else inspect.signature(cls.__init__).bind
    try:
        check_names(cls, keywords, base=Configured, defaults=lambda: cls.default_parts(*positional, **keywords))
        bound = bind(None, *positional, **keywords)
        if is_own(cls):
            check_arguments(cls.__init__, bound.arguments, where)
        return partial(cls, *positional, **keywords) if mark == "factory" else cls(**keywords)
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:  # a constructor trips over numbers that it never met: 0, 10^30, -1
        kind = "does not take these arguments" if isinstance(error, TypeError) else "cannot be built"
        raise ValueError(f"{_at(where)}: {value[mark]} {kind}: {type(error).__name__}: {error}.") from error


def is_own(cls: type) -> bool:
    """Whether a class is one of this package, whose constructors run on the meta device and have annotations."""
    return _is_below(cls.__module__, BUILDABLE[:1])
