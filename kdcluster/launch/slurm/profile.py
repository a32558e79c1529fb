"""A cluster profile: how jobs are asked for on one site. The only place with site names.

Profiles are YAML files, looked for in ./slurm/profiles, in the user's configuration folder, and in the package.
"""

from __future__ import annotations

import difflib
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from kdcluster import wording
from kdcluster.errors import ConfigError, NotFound
from kdcluster.experiment.fields import Block, field
from kdcluster.experiment.yamlfile import Source
from kdcluster.files import config_folder, shipped

UNCHOSEN = ("template", "dev")
"""Profiles that nobody gets without naming them."""


def minutes(value: Any) -> Any:
    """SLURM's forms of a time, in whole minutes, rounded up (sbatch(1), --time).

    A number is minutes; text is `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M` or `D-H:M:S`.
    """
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", value.strip())
    if not found:
        raise ValueError("must be minutes, or one of SLURM's forms: 90, 90:00, 8:00:00, 1-12, 1-12:30, 1-12:30:00")
    days, parts = int(found[1] or 0), [int(part) for part in found[2].split(":")]
    if found[1] is None and len(parts) < 3:  # without days, hours are there only as the first of three
        parts = [0, *parts]
    hours, mins, seconds = [*parts, 0, 0][:3]
    return (days * 24 + hours) * 60 + mins + (seconds > 0)


def _matching(pattern: str, wanted: str) -> AfterValidator:
    def checked(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(wanted)
        return value

    return AfterValidator(checked)


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be one line without control characters")
    return value


def _names(values: dict[str, str]) -> dict[str, str]:
    for name, value in values.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name of an environment variable")
        if "\0" in value:
            raise ValueError(f"{name} holds a NUL byte")
    return values


def _options(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        if not re.fullmatch(r"[a-z][a-z-]*", name):
            raise ValueError(f"{name!r} is no long option of sbatch")
        if name in _OURS:
            raise ValueError(f"{name} is set by kdcluster" + (f"; use {_OURS[name]}" if _OURS[name] else ""))
        if not str(value).isprintable():
            raise ValueError(f"{name} must be one line without control characters")
    return values


_OURS = {
    **dict.fromkeys(("job-name", "output", "error", "open-mode", "nodes", "ntasks", "ntasks-per-node", "array"), ""),
    **dict.fromkeys(("dependency", "kill-on-invalid-dep", "wrap", "chdir", "export", "requeue", "no-requeue"), ""),
    **dict.fromkeys(("parsable", "wait", "test-only"), ""),
    **dict.fromkeys(("gres", "gpus-per-node", "gpus"), "gpu_request"),
    **{name: name for name in ("partition", "account", "qos")},
    "time": "time_limit",
    "mem": "mem_per_gpu",
    "cpus-per-task": "cpus_per_gpu",
    "signal": "signal_lead_s",
}
"""Options of sbatch that are not the profile's to set under `sbatch:`, and the key that sets them."""

Word = Annotated[
    str, _matching(r"[\w.,:/@+*=!&|()\[\]-]+", "must be one word without quotes, blanks or control characters")
]
Line = Annotated[str, AfterValidator(_printable)]
Memory = Annotated[str, _matching(r"\d+[KMGT]?", "must be a whole number with K, M, G or T, as in 32G")]

_key = partial(field, hashed=False)
"""A documented key; none enters a run's id."""


class Profile(Block):
    """How jobs are asked for on one cluster."""

    partition: Word | None = _key("Partition; null: the cluster's default.", None)
    account: Word | None = _key("Account that is charged; null: your default.", None)
    qos: Word | None = _key("Quality of service; null: your default.", None)
    device: Literal["cuda", "cpu"] = _key(
        "cpu: a run of N GPUs trains on N CPU processes, though N GPUs are asked for (the dev cluster pretends them).",
        "cuda",
    )
    gpus_per_node: int | None = _key(
        "GPUs of one node; a run of more is spread over several. null: what sinfo says.", None, ge=1
    )
    gpu_request: Literal["gres", "gpus-per-node"] = _key(
        "Which option asks for GPUs: --gres=gpu:N or --gpus-per-node=N.", "gres"
    )
    gpu_type: Word | None = _key("Type of GPU, as in --gres=gpu:a100:N.", None)
    cpus_per_gpu: int | None = _key(
        "CPU cores for each GPU. null: the node's cores shared out over its GPUs, as sinfo has them.", None, ge=1
    )
    mem_per_gpu: Memory | None = _key("Memory of the host for each GPU, as in 32G; null: the cluster's default.", None)
    time_limit: Annotated[int, Field(ge=1), BeforeValidator(minutes)] | None = _key(
        "Time limit of each job: minutes, or SLURM's forms (8:00:00, 1-12:00). null: the partition's default.",
        None,
        unit="minutes",
    )
    signal_lead_s: int = _key(
        "How long before the time limit or a preemption SLURM sends SIGUSR2; a run saves and leaves then.",
        120,
        unit="seconds",
        ge=1,
        le=3600,
    )
    setup: tuple[Line, ...] = _key(
        "Shell lines that each job begins with, as in [module load cuda, source ~/env/bin/activate].", (), strict=False
    )
    environment: Annotated[dict[str, str], AfterValidator(_names)] = _key(
        "Environment variables of each job, set before `setup`.", {}
    )
    container: tuple[Line, ...] = _key(
        "Words before torchrun, as in [apptainer, exec, --nv, image.sif]. kdcluster itself runs on the host's Python.",
        (),
        strict=False,
    )
    scratch: Line | None = _key(
        "Folder on the node's own disk for temporary files (TMPDIR of the job); $VARIABLES are the job's.", None
    )
    network_interface: Word | None = _key(
        "Interface between nodes, as in ib0, for NCCL and gloo; null: they choose.", None
    )
    shutdown_timeout_s: int = _key(
        "How long torchrun gives processes that it stops to save, before it kills them.", 30, unit="seconds", ge=1
    )
    max_restarts: int = _key(
        "How often a run that crashed is started again in the same job, on another node where it crashed before its "
        "first step; 0: it fails at once.",
        0,
        ge=0,
        le=100,
    )
    max_requeues: int = _key(
        "How often a job may be requeued after a preemption, its time limit or a lost node.", 10, ge=0, le=1000
    )
    sbatch: Annotated[dict[str, str | int | bool], AfterValidator(_options)] = _key(
        "Any other long option of sbatch, as in {constraint: a100, exclude: node7}; true for one without a value.", {}
    )


def folders() -> list[Path]:
    """Where profiles lie, the first found wins: the working directory, the user's configuration, the package."""
    return [Path("slurm/profiles"), config_folder() / "profiles", shipped("slurm/profiles")]


def profiles() -> dict[str, Path]:
    """The profiles that can be named here."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def own() -> list[str]:
    """Names of the profiles that the user has made."""
    return [name for name in profiles() if name not in UNCHOSEN]


def choose(name: str | None) -> tuple[str | None, Profile]:
    """The profile that was named (or given as a file), else the user's only one, else SLURM's own defaults.

    Raises:
        NotFound: there is none of that name.
        ConfigError: it is not a sound one, or the user has several and named none.
    """
    known = profiles()
    if name is None:
        mine = own()
        if len(mine) > 1:
            raise ConfigError(f"which cluster? there are {', '.join(mine)}: --cluster NAME, or KDCLUSTER_CLUSTER")
        return (mine[0], load(known[mine[0]])) if mine else (None, Profile())
    if name in known:
        return name, load(known[name])
    if Path(name).is_file():
        return Path(name).stem, load(Path(name))
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
    raise NotFound(f"no cluster profile {name!r} in {', '.join(map(str, folders()))}; {hint}")


def load(path: Path) -> Profile:
    """Read one profile.

    Raises:
        ConfigError: everything that is wrong with it, each at its line.
    """
    source = Source(path, "partition:, gpus_per_node:, time_limit:", lambda values, folder: None)
    try:
        return Profile.model_validate(source.values)
    except ValidationError as error:
        raise ConfigError(*source.report(wording.problems(error, Profile))) from None
