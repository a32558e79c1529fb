"""What the arguments of a command mean: which experiments, which runs of them, where they lie and run."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcluster.errors import ConfigError, NotFound, meant
from kdcluster.terminal import say

if TYPE_CHECKING:
    from kdcluster.experiment.configfile import LoadedExperiment
    from kdcluster.launch.backend import Backend
    from kdcluster.plan import Plan
    from kdcluster.runs import RunDir


@dataclass(frozen=True)
class Chosen:
    """The options that commands share, as they were typed; each command takes some of them."""

    experiments: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Of experiments and of runs."""
    overrides: tuple[str, ...] = ()
    seeds: str | None = None
    roles: str | None = None
    gpus: int | None = None
    procs: int | None = None
    runs_dir: Path = Path("runs")
    data_dir: Path | None = None
    backend: str = "auto"
    cluster: str | None = None
    nodes: int | None = None

    @property
    def root(self) -> Path:
        """The runs directory."""
        return self.runs_dir.absolute()

    def say_where_no_runs_are(self) -> None:
        """Say which runs directory was looked into, where there is nothing in it."""
        from kdcluster.records import entries

        if all(name.startswith(".") for name in entries(self.root)):
            say(f"there are no runs in {self.root}; --runs-dir or KDCLUSTER_RUNS_DIR names another directory")

    @property
    def data(self) -> Path:
        """The data directory."""
        return (self.data_dir or self.root.parent / "data").absolute()

    @functools.cached_property
    def named(self) -> tuple[str, ...]:
        """The names that are experiments'."""
        from kdcluster.experiment import configfile

        def is_experiment(name: str) -> bool:
            try:
                configfile.find(name)
            except NotFound:
                return False
            return True

        return self.experiments or tuple(name for name in self.names if is_experiment(name))

    @functools.cached_property
    def single(self) -> list[RunDir]:
        """The runs that were named one by one.

        Raises:
            NotFound: one is the name of no experiment and of no run.
        """
        from kdcluster.experiment import configfile
        from kdcluster.runs import find_run

        found = {}
        for name in self.names:
            if name not in self.named:
                try:
                    run_dir = find_run(self.root, name)
                except NotFound:
                    configfile.find(name)  # says what experiment may have been meant
                    raise
                found[run_dir.id] = run_dir
        return list(found.values())

    def plan_with_runs(self) -> Plan:
        """The plan of the named experiments, and the runs that were named one by one, with what they need.

        Raises:
            ConfigError: what is wrong with files and options; an option of experiments without one.
        """
        from kdcluster.plan import Plan

        if not self.single:
            return self.plan()
        if not self.named and (self.overrides or self.seeds is not None or self.roles is not None):
            raise ConfigError("--set, --seeds and --role are of an experiment; a run has its settings")
        made = self.plan() if self.named else Plan((), {}, {})
        asked = {name: count for name, count in (("gpus", self.gpus), ("procs", self.procs)) if count is not None}
        self._short()  # what is wrong with them
        runs = (run for run_dir in self.single for run in run_dir.with_needs())
        if not asked:
            return made.joined(runs)
        there = {"device": "cuda" if "gpus" in asked else "cpu", "gpus": None, "procs": None, **asked}
        resources = ((run, run.resources.model_copy(update=there)) for run in runs)
        return made.joined(run.model_copy(update={"resources": where}) for run, where in resources)

    def load(self, name: str) -> LoadedExperiment:
        """One experiment with the command line on top of its file."""
        return self._load(name, self.settings)

    def _load(self, name: str, settings: Sequence[str]) -> LoadedExperiment:
        from kdcluster.experiment import configfile

        try:
            return configfile.load(name, settings)
        except NotFound as error:
            raise self.no_experiment(name, error) from None

    def no_experiment(self, name: str, error: NotFound) -> NotFound:
        """That there is no such experiment; of a name that is a run's, what shows it."""
        from kdcluster.runs import find_run

        try:
            run_dir = find_run(self.root, name)
        except NotFound:
            return error
        except ConfigError as several:
            return NotFound(f"no experiment {name!r}, and {several}")
        of = run_dir.experiments()
        shows = [f"kdcluster show {shlex.quote(name)}{self.where} shows it"]
        shows += [f"kdcluster results {shlex.quote(one)}{self.where} --per-seed has it beside others" for one in of[:1]]
        told = f"a run of {' and '.join(of)}" if of else "a run"
        return NotFound(f"{name!r} is {told} ({run_dir.id}), not an experiment: {'; '.join(shows)}")

    @property
    def settings(self) -> list[str]:
        """All that the command line sets on top of a file, as --set takes it."""
        return [*self.overrides, *self._short()]

    def plan(self, *names: str) -> Plan:
        """The plan of the named experiments (or of `names`) with the command line on top of their files.

        Raises:
            ConfigError: everything that is wrong with files and options.
        """
        from kdcluster.plan import ROLES, plan

        short = self._short()
        for text in self._overridden():
            say(f"--set {text} does not count: a later --set has the same key")
        loaded = []
        problems: list[str] = []
        for name in names or self.named:
            try:
                loaded.append(self._load(name, [*self.overrides, *short]))
            except ConfigError as error:
                problems += error.problems
        for text, option in short.items():
            problems = [problem.replace(f"--set {text}:", f"{option}:", 1) for problem in problems]
        if problems:
            raise ConfigError(*dict.fromkeys(problems))  # a wrong --set is wrong in every experiment
        made = plan(loaded)
        if self.roles is None:
            return made
        wanted = [role.strip() for role in self.roles.split(",")]
        if unknown := [role for role in wanted if role not in ROLES]:
            hint = meant(unknown[0], ROLES)
            raise ConfigError(f"--role {self.roles}: {unknown[0]!r} is no role; there are {', '.join(ROLES)}{hint}")
        return made.only(wanted)

    def _overridden(self) -> list[str]:
        """What the command line sets and sets again."""
        keys = [text.partition("=")[0] for text in self.overrides]
        return [text for at, text in enumerate(self.overrides) if keys[at] in keys[at + 1 :]]

    def started(self) -> tuple[str, ...]:
        """Names of the experiments that are known here and have a run in this runs directory."""
        from kdcluster.experiment import configfile
        from kdcluster.plan import plan

        names = []
        for name in configfile.experiments():
            try:
                made = plan([configfile.load(name)])
            except ConfigError:
                continue  # a broken file says so when it is named
            if any((self.root / run.id).is_dir() for run in made.runs):
                names.append(name)
        return tuple(names)

    def _short(self) -> dict[str, str]:
        """--set KEY=VALUE -> the shorter option that stands for it."""
        short: dict[str, str] = {}
        if self.seeds is not None:
            short[f"seeds=[{self.seeds}]"] = f"--seeds {self.seeds}"
        if self.gpus is not None and self.procs is not None:
            raise ConfigError("--gpus and --procs exclude each other; give one of them")
        if self.gpus is not None:
            resources = ("resources.device=cuda", "resources.procs=null", f"resources.gpus={self.gpus}")
            short |= dict.fromkeys(resources, f"--gpus {self.gpus}")
        if self.procs is not None:
            resources = ("resources.device=cpu", "resources.gpus=null", f"resources.procs={self.procs}")
            short |= dict.fromkeys(resources, f"--procs {self.procs}")
        return short

    def place(self, max_gpu_hours: float | None = None) -> Backend:
        """Where runs run; what `auto` chose is said."""
        from kdcluster.launch.backend import Options, choose

        place, words = choose(self.backend, Options(self.cluster, self.nodes, max_gpu_hours))
        line, more, _ = words.partition("\n")
        if line:
            say(f"{line} (see kdcluster doctor)" if more else line)
        return place

    # The same again, in another command

    def again(self, *names: str) -> str:
        """The arguments that name the same runs in another command."""
        sets = [word for override in self.overrides for word in ("--set", override)]
        words = [
            *(names or (*self.named, *(run_dir.id for run_dir in self.single))),
            *sets,
            *(["--seeds", self.seeds] if self.seeds is not None else []),
        ]
        return shlex.join(words)

    @property
    def where(self) -> str:
        """The argument that names the same runs directory in another command, if it has to be named."""
        return "" if self.root == Path("runs").absolute() else f" --runs-dir {shlex.quote(str(self.root))}"

    def submit_again(self, *runs: str) -> str:
        """The arguments of the same submit, or of one of these runs there, without what the environment gives."""
        given: dict[str, Any] = {} if runs else {"--role": self.roles, "--gpus": self.gpus, "--procs": self.procs}
        given |= {"--data-dir": self.data_dir, "--backend": self.backend, "--cluster": self.cluster}
        given |= {"--nodes": self.nodes}
        backend, cluster = map(os.environ.get, ("KDCLUSTER_BACKEND", "KDCLUSTER_CLUSTER"))
        known = (("--backend", backend or "auto"), ("--cluster", cluster))
        words = [str(word) for pair in given.items() if pair[1] is not None and pair not in known for word in pair]
        return " ".join([shlex.join(runs) or self.again(), *map(shlex.quote, words)])
