"""Translation of files of earlier formats."""

from collections.abc import Mapping
from typing import Any

MOVED_MODULES = {
    "vqkit.audio_tokenizer": "vqkit",
    "vqkit.baking": "vqkit.parts.codebooks",
    "vqkit.backbones.lapped": "vqkit.backbones.mdct",
    "vqkit.backbones.transformer": "vqkit.backbones.frame_transformer",
    "vqkit.backbones.windowed_attention": "vqkit.backbones.swin2d",
    "vqkit.base": "vqkit",
    "vqkit.codebooks": "vqkit",
    "vqkit.composites.cross_scale": "vqkit",
    "vqkit.composites.disentanglement": "vqkit",
    "vqkit.composites.grouped": "vqkit",
    "vqkit.composites.residual": "vqkit",
    "vqkit.config": "vqkit.saving.config",
    "vqkit.cross_scale": "vqkit",
    "vqkit.deployment.bake": "vqkit.parts.codebooks",
    "vqkit.estimators": "vqkit",
    "vqkit.lookup_free.binary": "vqkit.quantizers.binary",
    "vqkit.lookup_free.bits": "vqkit",
    "vqkit.lookup_free.bsq": "vqkit",
    "vqkit.lookup_free.fsq": "vqkit",
    "vqkit.lookup_free.lfq": "vqkit",
    "vqkit.losses": "vqkit",
    "vqkit.maintenance": "vqkit",
    "vqkit.pointwise": "vqkit",
    "vqkit.pretrained": "vqkit.saving.pretrained",
    "vqkit.quantizer": "vqkit",
    "vqkit.search": "vqkit",
    "vqkit.streaming": "vqkit.backbones.streaming",
    "vqkit.tokenizer": "vqkit",
    "vqkit.tokenizers.cross_scale_streams": "vqkit",
}
"""Modules that saved files name, and where their classes are reached today."""

RENAMED_CLASSES = {
    "CodeSplit": "vqkit.LBGSplitting",
    "RawStraightThrough": "vqkit.UnnormalizedStraightThrough",
    "ReadThrough": "vqkit.EmbeddingStraightThrough",
    "TableCodebook": "vqkit.FrozenCodebook",
    "UnusedCodebook": "vqkit.OnlineClusteredCodebook",
}
"""Classes of vqkit in format version 1, and their path today."""

_ROTATION_TRICKS = {
    ("lambda", "keep"): "vqkit.RotationTrick",
    ("one", "keep"): "vqkit.UnscaledRotationTrick",
    ("lambda", "drop"): "vqkit.TangentialRotationTrick",
    ("one", "drop"): "vqkit.UnscaledTangentialRotationTrick",
}
"""The arguments `scale` and `radial` of format version 1, and the class that they became."""

_BINARY_VARIANTS = {
    "vqkit.LFQ": ("bit_order", "msb_first", "vqkit.MSBFirstLFQ"),
    "vqkit.BSQ": ("gradient", "textbook", "vqkit.TextbookBSQ"),
}
"""The argument that a class took up to format version 2, and the class that one of its two values became."""

_FORMER_DEFAULTS: dict[str, dict[str, Any]] = {
    "vqkit.backbones.conv1d.ConvDecoder1d": {"odd_zero_first": False},
    "vqkit.backbones.conv1d.ConvEncoder1d": {"odd_zero_first": False},
    "vqkit.backbones.conv2d.ConvDecoder2d": {"norm_eps": 1e-5},
    "vqkit.backbones.conv2d.ConvEncoder2d": {"norm_eps": 1e-5},
    "vqkit.BridgedCodebook": {"tanh_gelu": False},
}
"""What classes computed up to format version 3, in arguments that they have since then."""

_FORMER_BRIDGE = {"factory": "vqkit.BridgedCodebook", "init_args": _FORMER_DEFAULTS["vqkit.BridgedCodebook"]}
"""The codebook of the method "fvq" up to format version 3."""


def current_path(class_path: str) -> str:
    """Today's path of a class.

    Args:
        class_path: module and class name joined by a dot, of any version and any package.

    Returns:
        The new path of a class of vqkit that was moved or renamed, else `class_path`.
    """
    module, _, name = class_path.rpartition(".")
    if module.partition(".")[0] == "vqkit" and name in RENAMED_CLASSES:
        return RENAMED_CLASSES[name]
    return f"{MOVED_MODULES.get(module, module)}.{name}" if module else class_path


def to_current_version(config: Any, version: int) -> Any:
    """A configuration of an earlier format version, in the terms of version 4.

    Args:
        config: the content of a `config.json`, or any value in it.
        version: 1 to 3.

    Returns:
        The same with today's paths and arguments; `config` itself is left as it is.
    """
    if isinstance(config, list):
        return [to_current_version(item, version) for item in config]
    if not isinstance(config, Mapping):
        return config
    migrated = {key: to_current_version(item, version) for key, item in config.items()}
    for mark in {"class_path", "factory"} & config.keys():
        if isinstance(config[mark], str):
            migrated[mark] = path = current_path(config[mark])
            arguments = migrated.get("init_args", {})
            if path in _FORMER_DEFAULTS and isinstance(arguments, dict):
                migrated["init_args"] = _FORMER_DEFAULTS[path] | arguments
            elif (
                path == "vqkit.Quantizer" and isinstance(arguments, dict) and _is_bridged(config.get("args"), arguments)
            ):
                migrated["init_args"] = arguments | {"codebook": _FORMER_BRIDGE}
            elif path == "vqkit.RotationTrick" and version == 1:
                migrated |= _rotation_trick(mark, arguments)
            elif path in _BINARY_VARIANTS and isinstance(arguments, dict):
                name, value, variant = _BINARY_VARIANTS[path]
                migrated[mark] = variant if arguments.pop(name, None) == value else path
    return migrated


def computed_formerly(config: Any) -> Any:
    """A configuration of today with what its classes computed up to format version 3, whatever it asks for."""
    if isinstance(config, list):
        return [computed_formerly(item) for item in config]
    if not isinstance(config, Mapping):
        return config
    former = {key: computed_formerly(item) for key, item in config.items()}
    for path in (former.get(mark) for mark in ("class_path", "factory")):
        if isinstance(path, str) and path in _FORMER_DEFAULTS:
            former["init_args"] = former.get("init_args", {}) | _FORMER_DEFAULTS[path]
    return to_current_version(former, 3)


def _is_bridged(positional: Any, named: Mapping[str, Any]) -> bool:
    """Whether the arguments of a `Quantizer`, or of a factory of one, leave its codebook to the method "fvq"."""
    method = positional[0] if isinstance(positional, list) and positional else named.get("method")
    return method == "fvq" and named.get("codebook") is None


def _rotation_trick(mark: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    variant = (arguments.get("scale", "lambda"), arguments.get("radial", "keep"))
    largest_angle = 180.0 if arguments.get("obtuse", "ste") == "rotate" else 90.0
    return {mark: _ROTATION_TRICKS[variant], "init_args": {"largest_angle": largest_angle}}
