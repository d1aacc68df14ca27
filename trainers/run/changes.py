"""How the configuration of a resumed run differs from what was trained so far."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from trainers.core.optimized import DEFAULT_FINAL_RATIO

FROZEN = "model.init_args.freeze"
SETTLED = ("seed_everything", FROZEN)
"""What a resumed run cannot change: it goes on with the random numbers and the moments of its checkpoint."""
SETTLED_BY_DATA = tuple(f"model.init_args.{name}" for name in ("seed", "initialization_samples", "pretraining_steps"))
"""Nor these, once the quantizer is initialized."""
PLACES = ("name", "runs", "project")
"""What says where a run is, not what is trained."""

MEANT_BY_NONE = {"model.init_args.final_learning_rate_ratio": DEFAULT_FINAL_RATIO}
"""What earlier versions recorded where None is recorded now."""


def changes(
    recorded: Mapping[str, Any],
    asked: Mapping[str, Any],
    *,
    initialized: bool,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """What differs, as `name: old -> new`.

    Args:
        recorded: configuration of the run, as its `config.yaml` has it.
        asked: configuration that it goes on with.
        initialized: whether its quantizer is initialized.
        defaults: `recorded`, with the defaults of what it does not have: options that are newer than the run.

    Raises:
        ValueError: what differs was settled when training began; the message names it.
    """
    old, new, meant = flattened(recorded), flattened(asked), flattened(defaults)
    found = {
        name: f"{name}: {old.get(name, 'not recorded')} -> {new.get(name, 'left out')}"
        for name in sorted(old.keys() | new.keys())
        if _meant(old, name) != _meant(new, name)
        and name not in PLACES
        and (name in old or name not in meant or meant[name] != new.get(name))
    }
    settled = SETTLED + SETTLED_BY_DATA if initialized else SETTLED
    # Runs of earlier versions froze nothing, and recorded nothing of it.
    known = {name for name in found if name in old or (name.startswith(FROZEN) and new.get(name) != [])}
    if refused := [line for name, line in found.items() if name in known and name.startswith(settled)]:
        raise ValueError(
            f"{'; '.join(refused)}: settled when training began; leave it as it was, or start anew under another "
            "--name, without --ckpt_path"
        )
    return list(found.values())


def _meant(flat: Mapping[str, Any], name: str) -> Any:
    value = flat.get(name)
    return MEANT_BY_NONE.get(name) if value is None else value


def flattened(content: Any, where: str = "") -> dict[str, Any]:
    """The values in nested mappings and lists by their dotted names; an empty one is a value."""
    if not isinstance(content, dict | list) or not content:
        return {where: content}
    items = content.items() if isinstance(content, dict) else enumerate(content)
    parts = [flattened(value, f"{where}.{key}" if where else str(key)) for key, value in items]
    return {name: value for part in parts for name, value in part.items()}
