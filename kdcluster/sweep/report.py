"""What came of a sweep's points: from their run directories alone, for the terminal, for files, and for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from kdcluster.columns import as_csv, as_json, escaped, fitted, in_ascii, markdown
from kdcluster.differing import label, short
from kdcluster.results import fragment, latex
from kdcluster.results.render import Format
from kdcluster.results.render import render as rendered
from kdcluster.sweep.confirmation import Confirmed
from kdcluster.sweep.points import Space, counted
from kdcluster.sweep.scored import Tried
from kdcluster.wording import wrapped

SCHEMA = "kdcluster.sweep/1"


def table(
    found: Sequence[Tried], metric: str, *, width: int | None = None, spell: Callable[[str], str] = str
) -> list[str]:
    """The trials as lines, the best first, and below them why some did not come to an end."""
    lines = rows(found, metric, numbered=True, width=width, spell=spell)
    why = (f"{one.point.ids[0]}: {one.state}: {one.reason}" for one in found if one.reason)
    return [*lines, *(line for text in why for line in wrapped(spell(text), width, "  "))]


def rows(
    found: Sequence[Tried],
    metric: str,
    *,
    numbered: bool = False,
    width: int | None,
    spell: Callable[[str], str] = str,
) -> list[str]:
    """Headings and a line for each trial.

    Where they are wider than the terminal, runs are named by the digits at the end of their ids, then keys by their
    ends; what still has no room gives way.
    """
    keys = _keys(found)
    told = ([*_values(one, found, short), one.shown or "-", str(one.epochs)] for one in found)
    cells = [list(map(spell, row)) for row in told]
    ends = [label(key, keys, {}) for key in keys]
    for names, digits in ((keys, None), (keys, -8), (ends, -8)):
        head = [*names, metric, counted(one.point for one in found), "state", "runs"]
        ids = ([run_id[digits:] for run_id in one.point.ids] for one in found)
        body = [[*row, one.state, " ".join(own)] for row, one, own in zip(cells, found, ids, strict=True)]
        if numbered:
            head, body = ["", *head], [[str(number), *row] for number, row in enumerate(body, 1)]
        last = len(head) - 1
        ranks = {last: 2, last - 2: 1}
        right = [*([0] if numbered else []), *(at + numbered for at in _right(found))]
        fit = fitted([head, *body], right, width=width, ranks=ranks, wraps={last: 8, last - 1: 8})
        if not fit.left_out:
            break
    return [line for row in fit.rows for line in row]


def _cells(found: Sequence[Tried], metric: str) -> list[list[str]]:
    """Headings and rows."""
    told = ([*_values(one, found), one.shown or "-", str(one.epochs)] for one in found)
    rows = [[*row, one.state, " ".join(one.point.ids)] for row, one in zip(told, found, strict=True)]
    return [[*_keys(found), metric, counted(one.point for one in found), "state", "runs"], *rows]


def _short_names(found: Sequence[Tried], metric: str) -> list[list[str]]:
    """The same for paper: keys by their ends, and without the runs."""
    keys = _keys(found)
    head, *body = (row[:-1] for row in _cells(found, metric))
    return [[*(label(key, keys, {}) for key in keys), *head[len(keys) :]], *body]


def _keys(found: Sequence[Tried]) -> list[str]:
    """Of all points: earlier ones may have been of a smaller space."""
    return list(dict.fromkeys(key for one in found for key in one.point.values))


def _right(found: Sequence[Tried]) -> list[int]:
    """Which columns of `_cells` hold numbers."""
    keys = _keys(found)
    texts = [key for key in keys if any(isinstance(one.point.values.get(key), str) for one in found)]
    return [at for at, key in enumerate([*keys, "metric", "epochs"]) if key not in texts]


def _values(one: Tried, found: Sequence[Tried], spelt: Callable[[Any], str] = str) -> list[str]:
    return [spelt(one.point.values.get(key, "")) for key in _keys(found)]


def notes(searched: Space, found: Sequence[Tried]) -> list[str]:
    """How the numbers are to be taken."""
    sweep = searched.sweep
    many = sum(one.value is not None for one in found)
    best = (
        f"the best of {many} was selected by {sweep.metric}: expect less of it on other images; "
        f"the confirmation on fresh seeds is what counts"
    )
    said = [*([best] if many else []), *filter(None, [_spread(found)])]
    if searched.loaded.config.data.val_fraction == 0:
        share = f"{100 * sweep.val_fraction:g} %"  # none of them is among those that keep their labels
        of_teacher = " and was trained on these, too" if searched.loaded.config.data.labelled is None else ""
        teacher = f"; their teacher is the experiment's own{of_teacher}" if searched.role == "distilled" else ""
        said.append(f"{sweep.metric} is measured on {share} of the training images, which the trials hold out{teacher}")
    return said


def _spread(found: Sequence[Tried]) -> str:
    """What the ± is; empty where there is none."""
    known = [one for one in found if one.se is not None]
    on = f"on {' or '.join(str(n) for n in sorted({one.images for one in known if one.images}))} held-out images"
    if any(one.sd is not None for one in found):
        largest = max((one.se or 0.0 for one in known), default=0.0)
        shared = f"; the standard error {on}, the same ones for every seed, is up to {largest:.2f}"
        return f"± is the standard deviation over the seeds{shared if known else ''}"
    chance = "differences of that size between trials may be chance"
    return f"± is the binomial standard error of an accuracy {on}: {chance}" if known else ""


def render(
    searched: Space,
    found: Sequence[Tried],
    style: Format,
    after: Confirmed | None = None,
    *,
    of_baseline: Sequence[Tried] = (),
    ascii: bool = False,
    width: int | None = None,
) -> str:
    """The trials in a format of the results table, for people with the confirmation; ends with a line break.

    `of_baseline`: its own trials, where it was searched, too. `ascii` and `width` are as in results/render.py.
    """
    metric, every = searched.sweep.metric, [*found, *of_baseline]
    if style == "json":
        return as_json({**document(searched, every), "confirmation": after and after.document})
    if style == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in document(searched, every)["trials"])
    if style == "csv":
        return _csv(every, metric)
    spell = in_ascii if ascii and style != "html" else str
    words: Sequence[str] = ()
    if after:
        words = after.verdict.words if after.verdict else ("not every run of the confirmation is done",)
    confirmed = rendered(after.table, style, ascii=ascii, width=width) if after else ""
    parts = [one for one in (found, of_baseline) if one]
    if style == "latex":  # without the runs, whose ids have no room on paper
        cells = [(_short_names(one, metric), _right(one)) for one in parts]
        caption = f"Trials of the hyperparameter search, the best {metric} first."
        told = latex.float_of(f"sweep of {searched.loaded.name}", caption, cells, [*notes(searched, found), *words])
        return "\n\n".join(filter(None, (latex.PREAMBLE, told, confirmed.rstrip("\n")))) + "\n"

    def below(texts: Sequence[str]) -> list[str]:
        if style == "html":
            return fragment.items(texts)
        each = (wrapped(spell(text), width, "  ") if style == "table" else [f"- {escaped(text)}"] for text in texts)
        return [line for one in each for line in one]

    lines: list[str] = []
    for one in parts:
        if one[0].point.runs[0].role == "baseline":
            lines += ["", *below(["the baseline with the same chance:"])]
        if style == "table":
            lines += table(one, metric, width=width, spell=spell)
        else:
            lines += (fragment.table if style == "html" else markdown)(_cells(one, metric), _right(one))
    lines += ["", *below(notes(searched, found))]
    if after:
        lines += ["", confirmed, *below(words)]
    text = "\n".join([*lines, ""])
    return text.encode("ascii", "xmlcharrefreplace").decode() if ascii and style == "html" else spell(text)


def _csv(found: Sequence[Tried], metric: str) -> str:
    told: list[list[Any]] = [[*_keys(found), metric, "sd", "se", "images", "epochs", "state", "reason", "runs", "role"]]
    for one in found:
        more = [one.value, one.sd, one.se, one.images, one.epochs, one.state, one.reason, " ".join(one.point.ids)]
        more.append(one.point.runs[0].role)
        told.append([*_values(one, found), *more])
    return as_csv(told)


def document(searched: Space, found: Sequence[Tried]) -> dict[str, Any]:
    """`results --sweep --format json`."""
    rows = [
        {
            "values": one.point.values,
            "settings": one.point.settings,
            "metric_mean": one.value,
            "metric_sd": one.sd,
            "metric_se": one.se,
            "images": one.images,
            "epochs": one.epochs,
            "state": one.state,
            "reason": one.reason,
            "runs": list(one.point.ids),
            "role": one.point.runs[0].role,
        }
        for one in found
    ]
    return {
        "schema": SCHEMA,
        "experiment": searched.loaded.name,
        "metric": searched.sweep.metric,
        "selected": True,
        "trials": rows,
        "notes": notes(searched, found),
    }
