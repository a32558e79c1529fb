"""The options and arguments that several commands take: their names, what is said of them, and what TAB offers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from kdcluster.commands import completion
from kdcluster.commands.chosen import Chosen as Chosen
from kdcluster.errors import meant

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def takes(*options: Decorator) -> Decorator:
    """A command that gets `Chosen` from these options, and its own ones besides."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_chosen(**given: Any) -> Any:
            shared = {field.name: given.pop(field.name) for field in fields(Chosen) if field.name in given}
            return command(Chosen(**shared), **given)

        return stacked(*options)(with_chosen)

    return decorate


def stacked(*options: Decorator) -> Decorator:
    """Several decorators as one, the first on top."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


runs_dir = click.option(
    "--runs-dir",
    envvar="KDCLUSTER_RUNS_DIR",
    default="runs",
    show_default="./runs",
    type=click.Path(path_type=Path),
    help="Where runs lie.",
)
data_dir = click.option(
    "--data-dir",
    envvar="KDCLUSTER_DATA_DIR",
    default=None,
    type=click.Path(path_type=Path),
    help="Data sets and decoded arrays.  [default: data, beside the runs directory]",
)
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
experiments = click.argument(
    "experiments", nargs=-1, required=True, metavar="EXP...", shell_complete=completion.experiments
)
overrides = click.option(
    *("--set", "overrides"),
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the file; repeatable.",
    shell_complete=completion.settings,
)
settings = stacked(overrides, click.option("--seeds", default=None, metavar="0,1,2", help="The students' seeds."))


def _resources(gpus: str) -> Decorator:
    return stacked(
        click.option("--gpus", type=click.IntRange(1), default=None, help=gpus),
        click.option("--procs", type=click.IntRange(1), default=None, help="CPU processes of each run instead."),
    )


class OneOf(click.Choice[str]):
    """One of a few words; a misspelt one gets a suggestion."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        said = super().get_invalid_choice_message(value, ctx)
        return said.removesuffix(".") + (meant(str(value), self.choices) or ".")


class Amount(click.FloatRange):
    """A number within bounds; what is none is told what is counted, as in `a number of minutes`."""

    def __init__(self, counted: str, low: float, high: float | None = None, **is_open: bool) -> None:
        super().__init__(low, high, **is_open)
        self.name = f"number of {counted}"


class _BackendName(click.ParamType[str]):
    """`auto`, or a backend that is installed here; they are looked up when a command needs them."""

    name = "auto|local|slurm"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if ctx and ctx.resilient_parsing:  # TAB was pressed: nothing runs, and this is not waited for
            return value
        from kdcluster.launch.backend import names

        known = ["auto", *names()]
        if value not in known:
            self.fail(f"{value!r} is no backend; there are {', '.join(known)}{meant(value, known)}", param, ctx)
        return value


def _place(nodes: str) -> Decorator:
    return stacked(
        click.option(
            "--backend",
            type=_BackendName(),
            shell_complete=completion.backends,
            default="auto",
            envvar="KDCLUSTER_BACKEND",
            show_default=True,
            help="Where the runs run; auto is SLURM where sbatch is set up (not inside a job), else this machine.",
        ),
        click.option(
            "--cluster",
            default=None,
            envvar="KDCLUSTER_CLUSTER",
            metavar="NAME|FILE",
            shell_complete=completion.clusters,
            help="Cluster profile.  [default: your only one, else SLURM's own defaults]",
        ),
        click.option("--nodes", type=click.IntRange(1), default=None, help=nodes),
    )


resources = _resources("GPUs of each run, one process each.")
resources_of_a_sweep = _resources("GPUs of the whole sweep, and of its teacher.  [default: here, all that are free]")
place = _place("Nodes of each run.  [default: as few as hold it]")
place_of_a_sweep = _place("Nodes of the whole sweep.  [default: as few as hold its GPUs]")
notify = click.option(
    "--notify",
    default=None,
    metavar="COMMAND",
    help="Run at the end with a summary on stdin.  [default: what ~/.config/kdcluster/notify says]",
)
role = click.option(
    *("--role", "roles"),
    default=None,
    metavar="ROLE,...",
    help="These roles, and what they need.",
    shell_complete=completion.roles,
)
