"""Facts to one HTML file that needs nothing else: no script, no font, no image from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from kdcluster import __version__
from kdcluster.report.facts import Facts
from kdcluster.report.markup import Html, element, joined, named, raw, together
from kdcluster.report.public import public
from kdcluster.report.sections import images, origin, results, seeds, sweep
from kdcluster.report.sections.parts import Section

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""Content security: whatever stood in the page, nothing would run and nothing would be fetched."""

SECTIONS: tuple[Callable[[Facts], Section | None], ...] = (
    results.results,
    results.course,
    seeds.gains,
    seeds.sizes,
    images.classes,
    images.examples,
    images.calibration,
    images.without,
    sweep.sweep,
    origin.costs,
    origin.reproduce,
)
"""In their order; one that has nothing to say gives None."""


def page(experiments: Sequence[Facts], made: str, *, internal: bool = False) -> str:
    """The whole file.

    Args:
        experiments: what it is about.
        made: when, in words.
        internal: with hosts, folders and what was not committed.
    """
    if not internal:
        experiments = [public(one) for one in experiments]
    title = f"Distillation: {', '.join(one.name for one in experiments)}"
    parts = [_experiment(one, number, len(experiments) > 1) for number, one in enumerate(experiments)]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content=f"kdcluster {__version__}"),
        element("title", title),
        raw(f"<style>{_style()}</style>"),
    )
    overview = results.overview(experiments) if len(experiments) > 1 else Html()
    heading = together("Distillation: ", joined(named(one.name) for one in experiments))
    told = element("p", f"Made {made} by kdcluster {__version__}", class_="soft")
    body = element(
        "body",
        element("a", "Skip to the results", href="#results", class_="skip"),
        element("header", element("h1", heading), told),
        element("nav", element("ul", *(link for links, _ in parts for link in links)), aria_label="Contents"),
        element("main", overview, *(article for _, article in parts), id="results", tabindex=-1),
        element("footer", "This file needs nothing else: it loads nothing and runs no script."),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _style() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def _experiment(facts: Facts, number: int, several: bool) -> tuple[list[Html], Html]:
    """Links to the parts of an experiment, and the parts."""
    level = "h3" if several else "h2"
    links, parts = [], [results.headline(facts)]
    for made in filter(None, (section(facts) for section in SECTIONS)):
        anchor = f"e{number}-{re.sub('[^a-z]+', '-', made.title.lower())}"
        links.append(element("li", element("a", made.title, href=f"#{anchor}")))
        heading = element(level, made.title, id=f"{anchor}")
        parts.append(element("section", heading, made.body, aria_labelledby=anchor))
    if several:
        anchor = f"e{number}"
        links = [element("li", element("a", facts.name, href=f"#{anchor}"))]
        parts.insert(0, element("h2", named(facts.name), id=anchor))
    return links, element("article", *parts)
