"""The settings of a run or an experiment as dotted keys, each with its default and whether it decides the numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from kdcluster.experiment import identity
from kdcluster.experiment.configfile import LoadedExperiment
from kdcluster.run import RECIPES, Run
from kdcluster.wording import spelt

REQUIRED = PydanticUndefined
"""The default of a key that has none."""
NOT_IN_THE_ID = "(not in the id)"
"""Said of a setting that decides no number."""


class Setting(NamedTuple):
    """What one key is set to."""

    value: Any
    default: Any = REQUIRED
    hashed: bool = True

    @property
    def is_default(self) -> bool:
        """Whether it is what a file that says nothing of it has."""
        return bool(self.value == self.default)

    @property
    def text(self) -> str:
        """The value as a file would have it, but text without quotes."""
        return self.value if isinstance(self.value, str) and self.value else spelt(self.value)

    @property
    def plain(self) -> Any:
        """The value in JSON; as text where that has none such, as dates and nan by hand in a config.yaml."""
        try:
            json.dumps(self.value, allow_nan=False)
        except (TypeError, ValueError):
            return self.text
        return self.value


def of_run(run: Run) -> dict[str, Setting]:
    """A run's settings, as its config.yaml has them; its model's keys stand without a block's name.

    Of a file or folder that it names, the content is what counts: a key `… (content)` has the beginning of its digest.
    """
    found = {"role": Setting(run.role), "seed": Setting(run.seed), "recipe": Setting(run.recipe, RECIPES.get(run.role))}
    for prefix, block in (("", run.model), ("data.", run.data), ("distill.", run.distill), ("train.", run.train)):
        found.update(_flat(block, prefix, run.digests) if block else ())
    if run.train is None:
        found["train"] = Setting("none")
    if run.teacher:
        found["teacher"] = Setting(run.teacher.id)
        found["teacher.min_top1"] = Setting(run.teacher.min_top1, None, hashed=False)
    found["variant"] = Setting(run.variant, "")
    found.update(_plain("imports", list(run.imports), [], run.digests))
    found.update(_flat(run.resources, "resources.", run.digests))
    return found


def of_experiment(loaded: LoadedExperiment) -> dict[str, Setting]:
    """The keys of an experiment file, in its order; of the teacher's own `train` those that are set."""
    return dict(_flat(loaded.config, "", loaded.digests))


def _flat(block: BaseModel, prefix: str, digests: Mapping[str, str]) -> Iterator[tuple[str, Setting]]:
    for name, default, hashed in _fields(type(block)):
        value, key = getattr(block, name), prefix + name
        if isinstance(value, BaseModel):
            found = _flat(value, f"{key}.", digests)
            if key == "teacher.train":  # what it does not name is as in `train`
                found = ((inner, one) for inner, one in found if inner.split(".")[2] in value.model_fields_set)
            yield from found
        elif value is None and key == "teacher.train":
            yield key, Setting("none")
        elif isinstance(value, dict):
            yield from ((f"{key}.{inner}", Setting(one, hashed=hashed)) for inner, one in value.items())
        else:
            plain = list(value) if isinstance(value, tuple) else value
            yield from _plain(key, plain, default, digests, hashed=hashed)


@cache
def _fields(block: type[BaseModel]) -> tuple[tuple[str, Any, bool], ...]:
    """Name, default, and whether it decides the numbers."""
    of_the_id = identity.hashed(block)
    defaults = ((name, info.default) for name, info in block.model_fields.items())
    return tuple((name, list(one) if isinstance(one, tuple) else one, name in of_the_id) for name, one in defaults)


def _plain(
    key: str, value: Any, default: Any, digests: Mapping[str, str], *, hashed: bool = True
) -> Iterator[tuple[str, Setting]]:
    """A key, and the content of the files that it names, which is hashed in the place of their paths."""
    paths = value if isinstance(value, list) else [value]
    named = [digests[path] for path in paths if isinstance(path, str) and path in digests] if digests else []
    yield key, Setting(value, default, hashed and not named)
    if named:
        yield f"{key} (content)", Setting(" ".join(digest[:12] for digest in named))
