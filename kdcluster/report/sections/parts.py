"""What sections are made of."""

from __future__ import annotations

from typing import NamedTuple

from kdcluster.report.draw import inline
from kdcluster.report.facts import Facts
from kdcluster.report.markup import Html
from kdcluster.report.pictures import PICTURES


class Section(NamedTuple):
    """A heading, and what stands below it."""

    title: str
    body: Html


def picture(name: str, facts: Facts, label: str, caption: object) -> Html:
    """One of PICTURES with what is to be seen in it, in words; nothing where there is nothing to draw."""
    made = PICTURES[name]
    return inline(made.draw, facts, facts.name, label, caption, made.height(facts)) if made.has(facts) else Html()
