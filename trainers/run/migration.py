"""Class paths of configurations written before version 0.2, and what they are called today."""

_CORE = ("Adversary", "FeatureMatching", "Hinge", "LeastSquares", "LossBalancer", "RelativeFeatureMatching")

MOVED_MODULES = {
    "trainers.data.audio": "trainers.audio",
    "trainers.data.images": "trainers.image",
    "trainers.discriminators": "trainers.audio",
    "trainers.objectives": "trainers.audio",
    "trainers.tracking": "trainers.run.tracking",
}
"""Modules that saved configurations name, and where their classes are reached today."""


def current_path(class_path: str) -> str:
    """Today's path of a class of the trainers; any other path as it is."""
    module, _, name = class_path.rpartition(".")
    if module == "trainers.objectives" and name in _CORE:
        return f"trainers.core.{name}"
    return f"{MOVED_MODULES.get(module, module)}.{name}" if module else class_path


REPLACED_ARGUMENTS = {
    ("trainers.image.ImageTokenizerTask", name): "losses are listed now: objectives: [{class_path: trainers.image."
    f"{name.upper()}, init_args: {{weight: ...}}}}]"
    for name in ("l1", "l2")
}
"""Class and argument of configurations before version 0.2, and what stands in its place."""
