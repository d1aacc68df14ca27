"""A tokenizer beside its baselines, of any modality: the figures, their record and their table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Baseline = dict[str, Any] | str
"""Figures and protocol of a baseline, or in words why there are none."""


@dataclass
class Comparison:
    """Figures and reconstructions of a tokenizer and its baselines.

    Attributes:
        figures: of the tokenizer, as `TokenizerMetrics.compute` gives them.
        per_level: of the tokenizer, as `TokenizerMetrics.per_level` gives them.
        counts: (levels, K) how often each code was used.
        reconstructions: name -> one for each file; `original` and `vqkit` too.
        baselines: name -> figures, rate and protocol; or why there are none.
    """

    figures: dict[str, float]
    per_level: dict[str, list[float]]
    counts: Tensor
    reconstructions: dict[str, list[Tensor]]
    baselines: dict[str, Baseline] = field(default_factory=dict)

    def record(self, protocol: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
        """What a run folder keeps of it, as JSON.

        Args:
            protocol: how the figures were measured.
            training: how the tokenizer was trained.
        """
        facts = {"baselines": self.baselines, "protocol": protocol, "training": training}
        return {**self.figures, **self.per_level, **facts}

    def grid(
        self, titles: Mapping[str, str], files: Sequence[int], caption: Callable[[Tensor, Tensor], str]
    ) -> tuple[dict[str, list[Tensor]], dict[str, list[str]]]:
        """Columns and captions for `grid_figure`: the originals, then what each method made of them.

        Args:
            titles: name of a method -> title of its column; others are left out.
            files: which files.
            caption: of an original and what was made of it.
        """
        originals = [self.reconstructions["original"][number] for number in files]
        columns, captions = {"original": originals}, {"original": [""] * len(originals)}
        for name, copies in self.reconstructions.items():
            if name in titles:
                shown = [copies[number] for number in files]
                columns[titles[name]] = shown
                captions[titles[name]] = [caption(*pair) for pair in zip(originals, shown, strict=True)]
        return columns, captions


@dataclass(frozen=True)
class Column:
    """A figure in the table of a comparison.

    Attributes:
        title: above the column.
        width: in characters.
        form: of the number, as `str.format` takes it.
        figures: names of the figure; the first that a row has is shown.
    """

    title: str
    width: int
    form: str
    figures: tuple[str, ...]

    def cell(self, row: Mapping[str, Any]) -> str:
        """The figure of a row; "-" where it has none."""
        found = next((row[name] for name in self.figures if row.get(name) is not None), None)
        return f"{'-' if found is None else self.form.format(found):>{self.width}}"


def table(
    columns: Sequence[Column],
    titles: Mapping[str, str],
    figures: Mapping[str, Any],
    baselines: Mapping[str, Baseline],
) -> str:
    """The comparison as lines for a person.

    Args:
        columns: what is shown.
        titles: name of each baseline, and of `vqkit` -> what its row is called; in the order of the rows.
        figures: of the tokenizer.
        baselines: as `Comparison` has them.
    """
    lines = [f"{'':26}" + "".join(f"{column.title:>{column.width}}" for column in columns)]
    rows: dict[str, Mapping[str, Any] | str] = {"vqkit": figures, **baselines}
    for name, title in titles.items():
        row = rows.get(name)
        if row is not None:
            shown = row if isinstance(row, str) else "".join(column.cell(row) for column in columns)
            lines.append(f"{title:26}{shown}")
    return "\n".join(lines)
