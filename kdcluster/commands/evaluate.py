"""`kdcluster evaluate`: how good a run is on other images, class by class.

Letters: C classes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcluster.columns import as_json, fitted, in_ascii
from kdcluster.commands import outputs
from kdcluster.commands.arguments import Chosen
from kdcluster.commands.best import best_of, distilled, refuse_for_a_run
from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.launch import finished
from kdcluster.results.spread import wilson95
from kdcluster.run import STORE
from kdcluster.runs import RunDir
from kdcluster.terminal import can_show, say, show_text, width
from kdcluster.wording import one_line, wide, wrapped

if TYPE_CHECKING:
    from numpy.typing import NDArray

WHOLE = 20
"""So many classes have room for their matrix in a terminal."""
OFTEN = 3
"""So many classes are named that one was taken for."""
MOST_LABELS = 60
"""So many classes can be read along a picture's sides."""
LETTERS = 12
"""Of a picture's title, in an inch."""


def evaluate(chosen: Chosen, style: str | None, *, best: bool, folder: Path, output: Path | None, device: str) -> None:
    """Print or write it; `best`: of an experiment, of the best of its distilled runs.

    Raises:
        ConfigError: a picture has no file to go to, or the file's end says another format; the folder is not as it
            should be.
        KdclusterError: the run has no weights that can be used.
    """
    style = outputs.style_of(output, style, outputs.EVALUATIONS)
    if style == "png" and output is None:
        raise ConfigError("--format png makes a picture: give the file as --output FILE.png")
    run_dir, selected = _named(chosen, best=best)
    run = run_dir.load()
    if run.role == STORE:
        raise ConfigError(f"{run.id} stores logits and has no model of its own; evaluate its teacher {run.needs[0]}")
    wrong = run_dir.weights_problem("best")
    if wrong and run_dir.newest() is None:
        raise KdclusterError(f"{run.id} has not been trained yet; kdcluster submit {run.id} starts it")
    if wrong:
        raise KdclusterError(f"{run.id}: its best weights are {wrong}; kdcluster submit {run.id} --retry makes them")
    found = finished.evaluate(run, chosen.root, chosen.data, folder.absolute(), device)
    document = _document(run.id, folder, found)
    if run_dir.result() is None:
        document["notes"].append("the run is not finished: these are its best weights so far")
    if selected:
        document["notes"].append(f"this run is {selected}")
    content = _rendered(document, style, output)
    if output is None:
        assert isinstance(content, str)
        return show_text(content)
    outputs.write(output, content)
    say(f"{output}: {_summary(document)}")


def _named(chosen: Chosen, *, best: bool) -> tuple[RunDir, str]:
    """The run that is meant, and how one of several was chosen."""
    if not chosen.named:
        refuse_for_a_run(chosen, best=best)
        (run_dir,) = chosen.single
        return run_dir, ""
    if best:
        return best_of(*distilled(chosen))
    name = chosen.again(*chosen.named)
    table = f"kdcluster results {name}{chosen.where} --per-seed"
    raise ConfigError(f"{name} is an experiment: --best takes its best distilled run, or name a run: {table}")


def _rendered(document: dict[str, Any], style: str, output: Path | None) -> str | bytes:
    if style == "png":
        return picture(document)
    if style == "json":
        return as_json(document)
    plain = output is None and not can_show("×")
    text = "\n".join(_lines(document, width() if output is None else None)) + "\n"
    return in_ascii(text) if plain else text


def _document(run_id: str, folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What `--format json` prints. Accuracies in percent, None of a class without images."""
    import numpy as np

    from kdcluster.results.scores import confusion

    names = found["classes"]
    matrix = confusion(np.array(found["labels"]), np.array(found["predicted"]), len(names))
    images, right = matrix.sum(axis=1).tolist(), matrix.diagonal().tolist()
    each = [
        {"name": name, "images": n, "right": hit, "top1": 100 * hit / n if n else None}
        for name, n, hit in zip(names, images, right, strict=True)
    ]
    return {
        "schema": "kdcluster.evaluation/1",
        "run": run_id,
        "data": str(folder),
        **{key: found[key] for key in ("top1", "top5", "loss", "device", "precision")},
        "images": sum(images),
        "right": sum(right),
        "top1_ci95": wilson95(sum(right), sum(images)),
        "classes": each,
        "confusion": matrix.tolist(),
        "notes": list(found["notes"]),
    }


def _summary(document: dict[str, Any]) -> str:
    top5 = f", top-5 {document['top5']:.2f} %" if len(document["classes"]) > 5 else ""
    counted = f"{document['right']:,} of {document['images']:,}"
    low, high = document["top1_ci95"]
    interval = f"95 % interval {low:.2f} to {high:.2f}, Wilson"
    return f"top-1 {document['top1']:.2f} % ({counted}; {interval}){top5}, loss {document['loss']:.4f}"


def _with_images(document: dict[str, Any]) -> tuple[list[str], list[int]]:
    """The names of all classes, and which of them have images."""
    classes = document["classes"]
    return [one_line(one["name"]) for one in classes], [at for at, one in enumerate(classes) if one["images"]]


def _lines(document: dict[str, Any], columns: int | None) -> Iterator[str]:
    """For people: the summary, each class with what it was taken for, the matrix where it has room."""
    matrix, (names, there) = document["confusion"], _with_images(document)
    yield from wrapped(f"{document['run']} on {document['data']}: {_summary(document)}", columns, "  ")
    yield ""
    rows = [["class", "images", "right", "accuracy", "taken for"]]
    for at in there:
        one = document["classes"][at]
        counted = [str(one["images"]), str(one["right"]), f"{one['top1']:.1f} %"]
        rows.append([names[at], *counted, _taken_for(names[at], names, matrix[at])])
    yield from _aligned(rows, range(1, 4), columns, {4: 3})
    if len(names) <= WHOLE:
        counts = ([names[at], *map(str, matrix[at])] for at in there)
        whole = fitted([["", *names], *counts], range(1, len(names) + 1), width=columns)
        if all(wide(line) <= (columns or wide(line)) for row in whole.rows for line in row):
            some = f", of the {len(there)} of {len(names)} classes that have any" * (len(there) < len(names))
            yield from ("", *wrapped(f"images by label (row) and prediction (column){some}:", columns, "  "), "")
            yield from (line for row in whole.rows for line in row)
    for note in document["notes"]:
        yield from ("", *wrapped(note, columns, "  "))


def _taken_for(name: str, names: Sequence[str], row: Sequence[int]) -> str:
    """The classes that images of one were taken for most often."""
    others = sorted((-n, other) for other, n in zip(names, row, strict=True) if n and other != name)
    return ", ".join(f"{other} ({-n})" for n, other in others[:OFTEN]) + ", …" * (len(others) > OFTEN)


def _aligned(rows: list[list[str]], right: range, columns: int | None, ranks: dict[int, int]) -> Iterator[str]:
    yield from (line for row in fitted(rows, right, width=columns, ranks=ranks).rows for line in row)


def picture(document: dict[str, Any]) -> bytes:
    """The confusion matrix as a PNG: of each class that has images the share of these.

    Raises:
        KdclusterError: matplotlib is not installed.
    """
    import numpy as np

    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise KdclusterError("a picture needs matplotlib: pip install 'kdcluster[report]'") from None
    names, there = _with_images(document)
    matrix = np.array(document["confusion"])[there]
    shares = matrix / matrix.sum(axis=1, keepdims=True)
    width, height = (min(3 + 0.28 * n, 20) for n in (len(names), len(there)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a class in a script that no font here has
        figure = Figure(figsize=(width + 1, height), layout="constrained", dpi=120)
        axes = figure.add_subplot()
        shown = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        figure.colorbar(shown, label="share of the class")
        if len(names) <= MOST_LABELS:
            axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)  # a $ in a name is a $
            axes.set_yticks(range(len(there)), [names[at] for at in there], parse_math=False)
        if len(names) <= WHOLE:
            _write_counts(axes, matrix.tolist(), shares)
        axes.set_xlabel("predicted")
        axes.set_ylabel("labelled")
        about = (document["run"], f"on {Path(document['data']).absolute().name}", _summary(document))
        title = (line for text in about for line in wrapped(text, int(LETTERS * (width + 1))))
        figure.suptitle("\n".join(title), fontsize="small", parse_math=False)
        out = io.BytesIO()
        figure.savefig(out, format="png")
    return out.getvalue()


def _write_counts(axes: Any, matrix: Sequence[Sequence[int]], shares: NDArray[Any]) -> None:
    for y, row in enumerate(matrix):
        for x, n in enumerate(row):
            if n:
                colour = "white" if shares[y, x] > 0.6 else "black"
                axes.text(x, y, str(n), ha="center", va="center", color=colour, fontsize="small")
