"""`--quantizer NAME` of an overlay: the composites of `configs/quantizers/`, in the sizes of any configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.run.bases import read_config
from trainers.run.explain import resolve
from vqkit import (
    AttentionProjection,
    AudioTokenizer,
    CrossScaleTokenizer,
    FeatureSplitQuantizer,
    GroupedQuantizer,
    MultiScaleQuantizer,
    ProjectedQuantizer,
    SplitQuantizer,
)
from vqkit.quantizers.composite import CompositeQuantizer

FOLDER = Path(__file__).parents[2] / "configs" / "quantizers"

ARRANGEMENTS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
"""Names of the overlays, each of which has one quantizer for a whole tokenizer."""


def arranged(config: Mapping[str, Any], name: str) -> tuple[dict[str, Any], list[str]]:
    """A configuration with the quantizer of an overlay, which takes dim and layout of the one that was there.

    Groups share the dim as they do in the overlay; what has maps in and out keeps the sizes inside. Scales lie along
    one axis for sound. One that is arranged so already, of the same classes and methods, is left as it is.

    Args:
        config: of a model, with all `init_args`; left as it is.
        name: of `ARRANGEMENTS`.

    Returns:
        The configuration, and a line of what was changed.

    Raises:
        ValueError: the tokenizer takes no other composite, or its dim has no such groups.
    """
    task = config["init_args"]
    tokenizer = task.get("tokenizer")
    found, arguments = class_of(tokenizer), tokenizer["init_args"]
    old = arguments.get("quantizer")
    if not isinstance(old, Mapping) or issubclass(found, CrossScaleTokenizer):
        raise ValueError(
            f"quantizer={name!r}: {found.__name__} takes streams of its own, and no other composite; give "
            "--quantizer a method, or another --config"
        )
    new = read_config(FOLDER / f"{name}.yaml")["model.init_args.tokenizer.init_args.quantizer"]
    if _skeleton(old) == _skeleton(new):
        return dict(config), []
    dim = _dim_of(old)
    made = _fitted(new, dim, name, sound=issubclass(found, AudioTokenizer))
    made["init_args"]["channel_dim"] = old["init_args"]["channel_dim"]
    changed = {**tokenizer, "init_args": {**arguments, "quantizer": made}}
    line = f"{name}: {class_of(new).__name__} of dim {dim}, in place of {class_of(old).__name__}"
    return {**config, "init_args": {**task, "tokenizer": changed}}, [line]


def class_of(node: Any) -> Any:
    """The class that a node, or its path alone, stands for; None of anything else."""
    path = node.get("class_path") if isinstance(node, Mapping) else node
    return resolve(path) if isinstance(path, str) else None


def _members(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those that a composite lists, or the one that it builds several of."""
    found = class_of(node)
    if not issubclass(found, CompositeQuantizer):
        return []
    listed = node["init_args"][found.member_name]
    return listed if isinstance(listed, list) else [listed]


def _skeleton(node: Mapping[str, Any]) -> tuple[Any, ...]:
    """Classes and methods."""
    return class_of(node), node["init_args"].get("method"), tuple(map(_skeleton, _members(node)))


def _dim_of(node: Mapping[str, Any]) -> int:
    """The size of the channel axis."""
    arguments = node["init_args"]
    own = arguments.get("dim") or arguments.get("bits") or len(arguments.get("levels") or ())
    if own:
        return own
    dims = list(map(_dim_of, _members(node)))
    if issubclass(class_of(node), GroupedQuantizer | FeatureSplitQuantizer):
        return sum(dims) * (arguments.get("num_groups") or 1)
    return dims[0]


def _fitted(node: Mapping[str, Any], dim: int, name: str, *, sound: bool) -> dict[str, Any]:
    """A node of the overlay `name` with another dim."""
    arguments, found, now = dict(node["init_args"]), class_of(node), _dim_of(node)
    if issubclass(found, MultiScaleQuantizer) and sound:
        arguments["axes"] = 1
    if issubclass(found, CompositeQuantizer) and not issubclass(found, SplitQuantizer | ProjectedQuantizer):
        parts = [(member, dim * _dim_of(member), now) for member in _members(node)]
        shared = issubclass(found, GroupedQuantizer | FeatureSplitQuantizer)
        if shared and any(size % whole for _, size, whole in parts):
            raise ValueError(f"quantizer={name!r}: dim={dim} is not divided as its {found.__name__} of dim={now} is")
        made = [_fitted(member, size // whole if shared else dim, name, sound=sound) for member, size, whole in parts]
        listed = isinstance(arguments[found.member_name], list)
        arguments[found.member_name] = made if listed else made[0]
    elif now != dim:
        arguments["dim"] = dim
    if issubclass(found, ProjectedQuantizer) and class_of(arguments["projection"]) is AttentionProjection:
        inner = _dim_of(arguments["quantizer"])
        if max(dim, inner) % min(dim, inner):
            fit = [size for size in range(1, inner + 1) if inner % size == 0]
            raise ValueError(
                f"quantizer={name!r}: dim={dim} and the {inner} channels of its books: expected one of {fit}, or a "
                f"multiple of {inner}, since the heads of its maps share the channels; give encoder and decoder such a "
                "dim by --model.tokenizer.encoder.dim and --model.tokenizer.decoder.dim, and the quantizer with them"
            )
    return {**node, "init_args": arguments}
