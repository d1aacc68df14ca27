"""Draw the five parts of a quantizer: docs/figures/parts.svg, which `scripts/publish.py` writes anew."""

from document_tables import KINDS, ROOT, public_classes

from vqkit.methods import METHODS

PICTURE = ROOT / "docs/figures/parts.svg"
BOXES = {
    "searches": (150, 30, "Which code is chosen?"),
    "estimators": (520, 30, "How do gradients pass?"),
    "codebooks": (335, 200, "What are the code vectors?"),
    "losses": (660, 200, "What is penalised?"),
    "maintenance": (10, 200, "What happens to unused codes?"),
}
"""Left and upper edge of each part's box, and the question that it answers."""
WIDTH, HEIGHT = 250, 100
ARROWS = [
    ((70, 80), (150, 80), "vectors z"),
    ((400, 80), (520, 80), "indices"),
    ((770, 80), (880, 80), "quantized"),
    ((390, 200), (320, 130), ""),
    ((530, 200), (600, 130), ""),
    ((260, 250), (335, 250), "rewrites"),
    ((660, 250), (585, 250), "gradients"),
]
"""From where to where, and what goes along."""
STYLE = (
    "text{font:14px sans-serif;fill:#1f2937}.name{font-weight:bold;font-size:16px}.small{font-size:12px;fill:#4b5563}"
    "rect{fill:#eef2ff;stroke:#4f46e5}line{stroke:#374151;stroke-width:1.5;marker-end:url(#tip)}"
)


def picture() -> str:
    """The drawing as SVG; each box names the part of the method `ema`, and how many there are."""
    ema = METHODS["ema"]()
    chosen = {
        "searches": type(ema.search).__name__,
        "estimators": type(ema.estimator).__name__,
        "codebooks": getattr(ema.codebook, "__name__", ""),
        "losses": type(ema.losses[0]).__name__,
        "maintenance": type(ema.maintenance[0]).__name__,
    }
    size = 'markerWidth="9" markerHeight="7" refX="8" refY="3.5"'
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 320">',
        "<title>The five parts of a quantizer</title>",
        f"<style>{STYLE}</style>",
        f'<defs><marker id="tip" {size} orient="auto"><path d="M0 0L9 3.5L0 7z"/></marker></defs>',
        '<rect width="960" height="320" style="fill:#fff;stroke:none"/>',
        *(_box(kind, chosen[kind], *place) for kind, place in BOXES.items()),
        *(_arrow(*arrow) for arrow in ARROWS),
        _text("small", 460, 170, "codes"),
        "</svg>\n",
    ]
    return "\n".join(lines)


def _box(kind: str, example: str, left: int, top: int, question: str) -> str:
    middle, number = left + WIDTH // 2, len(public_classes(KINDS[kind]))
    lines = [
        f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        _text("name", middle, top + 28, KINDS[kind].__name__),
        _text("question", middle, top + 54, question),
        _text("small", middle, top + 80, f"{example}; {number} in all"),
    ]
    return "\n".join(lines)


def _arrow(start: tuple[int, int], end: tuple[int, int], label: str) -> str:
    line = f'<line x1="{start[0]}" y1="{start[1]}" x2="{end[0]}" y2="{end[1]}"/>'
    return line + _text("small", (start[0] + end[0]) // 2, start[1] - 6, label) if label else line


def _text(style: str, x: int, y: int, words: str) -> str:
    return f'<text class="{style}" x="{x}" y="{y}" text-anchor="middle">{words}</text>'


if __name__ == "__main__":
    PICTURE.write_text(picture())
