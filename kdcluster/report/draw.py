"""matplotlib: figures of a size and a palette, as a drawing inside a page or as a file for a paper."""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcluster.errors import KdclusterError
from kdcluster.report.markup import Html, element, raw, text
from kdcluster.wording import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MM = 25.4
"""Millimetres of an inch."""
FORMATS = (".pdf", ".png", ".svg")

ON_PAPER = {
    "ink": "#000000",
    "soft": "#444444",
    "line": "#d0d0d0",
    "paper": "#ffffff",
    "teacher": "#5b6470",
    "baseline": "#b45309",
    "distilled": "#1d5fbf",
}
"""What is drawn -> its colour; blue and orange are told apart by whoever sees colours, and each has its own line."""
IN_A_PAGE = {name: f"#0101{number:02x}" for number, name in enumerate(ON_PAPER, 1)}
"""Colours that stand for variables of the page, which are others in the light, in the dark and in print."""


@dataclass(frozen=True)
class Look:
    """How large a figure is, and in what colours."""

    width: float
    """In inches."""
    height: float
    colour: Mapping[str, str]
    size: float
    """Of its text, in points."""
    y_min: float | None = None
    """The lowest accuracy that is shown, in percent; None: as low as there are points. Of pictures that heed it."""


PAGE = Look(380 / 72, 250 / 72, IN_A_PAGE, 10.5)


def paper(width_mm: float, y_min: float | None = None) -> Look:
    """Of a figure for a paper."""
    return Look(width_mm / MM, 0.66 * width_mm / MM, ON_PAPER, 8, y_min)


def matplotlib() -> Any:
    """The library.

    Raises:
        KdclusterError: it is not installed.
    """
    try:
        import matplotlib
        import matplotlib.figure
        import matplotlib.style
    except ImportError:
        raise KdclusterError("pictures need matplotlib: pip install 'kdcluster[report]'") from None
    return matplotlib


@contextmanager
def drawing(look: Look) -> Iterator[None]:
    """matplotlib as we want it, whatever the user's own settings are; its text is text, never mathematics."""
    ink, soft, line = (look.colour[name] for name in ("ink", "soft", "line"))
    settings = {
        "text.parse_math": False,
        "font.size": look.size,
        "svg.fonttype": "none",
        "svg.hashsalt": "kdcluster",
        "pdf.fonttype": 42,  # TrueType, which publishers ask for
        "figure.constrained_layout.use": True,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.dpi": 300,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": soft,
        "axes.labelcolor": soft,
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": line,
        "grid.linewidth": 0.5,
        "text.color": ink,
        "xtick.color": soft,
        "ytick.color": soft,
        "legend.facecolor": look.colour["paper"],
        "legend.edgecolor": "none",
        "legend.framealpha": 0.8,
        "legend.fontsize": 0.9 * look.size,
        "legend.borderpad": 0.1,
        "lines.linewidth": 0.15 * look.size,
        "lines.markersize": 0.45 * look.size,
        "hatch.linewidth": 0.8,
    }
    library = matplotlib()
    with library.style.context("default"), library.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")  # a page has fonts of its own
        yield


def axes(figure: Figure, x: str, y: str) -> Axes:
    """The only ones of a figure."""
    made = figure.subplots()
    made.set_xlabel(x)
    made.set_ylabel(y)
    made.tick_params(length=3)
    return made


def whole_numbers(plot: Axes) -> None:
    """There is nothing between two epochs."""
    from matplotlib.ticker import MaxNLocator

    plot.xaxis.set_major_locator(MaxNLocator(integer=True))


def area(colour: str, label: str) -> Any:
    """What a legend has for a band."""
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, alpha=0.2, lw=0, label=label)


def brief(text: str, most: int = 24) -> str:
    """A name from outside, as a picture has room for it."""
    text = one_line(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


Draw = Callable[["Figure", Any, Look], None]


def figure(draw: Draw, facts: Any, look: Look, height: float = 1.0) -> Figure:
    """A figure, `height` times as high as is usual."""
    made: Figure = matplotlib().figure.Figure(figsize=(look.width, look.height * height))
    draw(made, facts, look)
    return made


def inline(draw: Draw, facts: Any, of: str, label: str, caption: object, height: float = 1.0) -> Html:
    """A figure of a page: a drawing whose colours are the page's variables, and what is said below it.

    Args:
        draw: draws it.
        facts: what it shows.
        of: the experiment, whose drawings are apart from those of others in the page.
        label: what is to be seen, for who sees it not.
        caption: below it.
        height: as `figure` has it.
    """
    out = io.StringIO()
    with drawing(PAGE):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure(draw, facts, PAGE, height).savefig(out, format="svg", metadata=nothing)
    return element("figure", _svg(out.getvalue(), of, label), element("figcaption", caption))


def _svg(made: str, of: str, label: str) -> Html:
    """matplotlib's file as an element of a page, its ids apart from those of other drawings."""
    key = f"p{zlib.crc32(f'{of} {made}'.encode(errors='backslashreplace')):08x}"
    made = made[made.index("<svg") :]
    made = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>|<!--.*?-->", "", made, flags=re.S)
    head, body = made.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    body = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{key}-", body)
    body = re.sub(r"font: ((?:\w+ )*[\d.]+px) [^;\"]+", r"font: \1 var(--sans)", body)
    for name, colour in IN_A_PAGE.items():
        body = body.replace(colour, f"var(--{name})")
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    return raw(f'<svg {box[0]} {space} role="img" aria-label="{text(label)}">{body}')


def to_file(draw: Draw, facts: Any, look: Look, path: Path, height: float = 1.0) -> bytes:
    """The content of a figure's file, by the end of its name; the same for the same facts."""
    out = io.BytesIO()
    kind = path.suffix[1:].lower()
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
    with drawing(look):
        figure(draw, facts, look, height).savefig(out, format=kind, metadata=dates, facecolor=look.colour["paper"])
    return out.getvalue()
