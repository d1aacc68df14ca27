"""Licenses of published weights: what a model card says, and which of them have to be accepted."""

import re
from pathlib import Path

MODEL_CARD = "README.md"
UNKNOWN = "unknown"
LONGEST_HEAD = 2**16
"""Characters of a model card that are read: its head is a few lines."""


def license_of(card: Path) -> str | None:
    """The `license` in the head of a model card, of which hubs have one, a list, or "other" with its name beside it."""
    if not card.is_file():
        return None
    with card.open(encoding="utf-8-sig", errors="replace") as file:
        text = file.read(LONGEST_HEAD)
    head = re.match(r"\s*---\n(.*?)\n---", text, flags=re.DOTALL)
    entry = r"""^["']?(license|license_name)["']? *:(.*(?:\n+ *- .*)*)"""
    said = re.findall(entry, head[1] if head else "", flags=re.MULTILINE)
    words = {key: " ".join(re.findall(r"[+.-]*\w[\w.+-]*", re.sub(" #.*", "", text))) for key, text in said}
    terms = words.get("license")
    return words.get("license_name") or terms if terms == "other" else terms or None


def is_non_commercial(terms: str) -> bool:
    """Whether a license forbids commercial use, as far as its words tell."""
    meant = r"(?<![a-z])nc(?![a-z])|non[-_ ]?commercial|research|academic"
    return re.search(meant, terms, flags=re.IGNORECASE) is not None


def check_accepted(terms: str, accepted: str | None, weights: object) -> None:
    """Refuse weights whose license forbids commercial use, unless it was accepted.

    Args:
        terms: of the weights.
        accepted: the same words, from whoever keeps to them.
        weights: what has this license, for the message.

    Raises:
        ValueError: it was not, or another one was.
    """
    if is_non_commercial(terms) and accepted != terms:
        raise ValueError(
            f"{weights}: its license {terms!r} forbids commercial use; if you keep to it, give "
            f"accept_license={terms!r} to vqkit.convert, or --accept-license to its command"
        )
