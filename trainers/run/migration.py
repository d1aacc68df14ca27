"""What configurations and commands named before version 0.2, and what it is called today."""

import re
from collections.abc import Collection

_CORE = {
    "AdversarialLoss",
    "Adversary",
    "Discriminator",
    "FeatureMatching",
    "Hinge",
    "LeastSquares",
    "LossBalancer",
    "Objective",
    "RelativeFeatureMatching",
}

MOVED_MODULES = {
    "trainers.data.audio": "trainers.audio",
    "trainers.data.channels": "trainers.audio",
    "trainers.data.images": "trainers.image",
    "trainers.discriminators": "trainers.audio",
    "trainers.objectives": "trainers.audio",
    "trainers.tracking": "trainers.run.tracking",
}
"""Modules that saved configurations name, and where their classes are reached today."""


REPLACED_ARGUMENTS = {
    ("trainers.image.ImageTokenizerTask", name): "losses are listed now: objectives: [{class_path: trainers.image."
    f"{name.upper()}, init_args: {{weight: ...}}}}]"
    for name in ("l1", "l2")
}
"""Class and argument of configurations before version 0.2, and what stands in its place."""

REPLACED_CLASSES = {
    f"trainers.callbacks.{module}{curve}Schedule": "numbers follow the optimizer's steps now: model.init_args."
    f"schedules: {{NAME: {{class_path: trainers.core.{curve}, init_args: {{start: ..., end: ..., steps: ...}}}}}}"
    for curve in ("Linear", "Cosine")
    for module in ("", "schedule.")
}
"""The same for classes."""


def current_path(class_path: str) -> str:
    """Today's path of a class of the trainers; any other path as it is."""
    module, _, name = class_path.rpartition(".")
    if module in ("trainers.objectives", "trainers.discriminators") and name in _CORE:
        return f"trainers.core.{name}"
    return f"{MOVED_MODULES.get(module, module)}.{name}" if module else class_path


def renamed_overlay(message: str, words: Collection[str]) -> str:
    """`; write ...` where a message names an overlay that is a word of `--quantizer` now or was moved, else nothing."""
    found = re.search(r"configs/(quantizers|residual)/(\w+)\.yaml", message)
    if not found:
        return ""
    folder, name = found.groups()
    if name in words:
        return f"; write --quantizer {name} for it now"
    return f"; write --config configs/quantizers/{name}.yaml for it now" if folder == "residual" else ""
