"""The shape of each record of a run: what is used of it, and what that may be.

A field that is not named here is another version's, or only for people to read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from kdcluster.states import LIVE, UNSTARTED, State


def _ended(state: State) -> State:
    if state in (*UNSTARTED, *LIVE):
        raise ValueError(f"no attempt ends as {state}")
    return state


def _path(value: Any) -> Any:
    if not isinstance(value, str) or "\0" in value:  # pydantic's own text has no path that is not UTF-8
        raise ValueError("must be a path")
    return value


Time = Annotated[float, Field(ge=0, le=4e10)]
"""Seconds since the epoch."""
Number = Annotated[int, Field(ge=0, le=2**53)]
Percent = Annotated[float, Field(ge=0, le=100)]
End = Annotated[State, Field(strict=False), AfterValidator(_ended)]
FilePath = Annotated[Any, AfterValidator(_path)]


class Record(BaseModel):
    """What is used of a JSON object."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class Process(Record):
    host: str
    pid: Annotated[int, Field(gt=0, le=2**31)]
    start_time: str | float | None
    folder: FilePath = ""
    run: str | None = None


class Job(Record):
    id: str | None
    name: str | None
    folder: FilePath = ""
    time: Time | None = None
    submitter: Process | None = None


REFS: dict[str, TypeAdapter[Any]] = {"local": TypeAdapter(Process), "slurm": TypeAdapter(Job)}
"""Of the built-in places; one that is not named here holds its own references against what it expects."""


class Given(Record):
    """Who was given a run; those of earlier versions name a `supervisor` or a `job`."""

    backend: str | None = None
    ref: dict[str, Any] | None = None
    job: Job | None = None
    supervisor: Process | None = None
    after_attempt: Number = 0

    def model_post_init(self, _: Any) -> None:
        if (self.backend is None) != (self.ref is None):
            raise ValueError("backend and ref go together")
        if self.backend in REFS:
            REFS[self.backend].validate_python(self.ref)


class Ticket(Given):
    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        if not (self.backend or self.job or self.supervisor):
            raise ValueError("it names nobody")


class Start(Given):
    started: Time | None = None
    host: str | None = None
    from_step: Number = 0
    gpus: list[str] | None = None
    gpus_held: Annotated[float, Field(ge=0, le=1e6)] = 0
    job_id: str | None = None
    waited_s: float | None = None
    nodes: str | None = None
    code_changed: bool = False
    sweep: str | None = None
    sweep_of: str | None = None


class Outcome(Record):
    state: End
    reason: str = ""
    rank: Number | None = None
    host: str | None = None
    returncode: int | None = None
    signal: str | None = None
    out_of_memory: bool = False
    time: Time | None = None
    next: str | None = None


class Heartbeat(Record):
    time: Time | None = None
    step: Number = 0
    steps: Number = 0
    epoch: Number = 0
    epochs: Number = 0
    steps_per_s: float | None = None
    images_per_s: float | None = None
    top1: Percent | None = None
    best_top1: Percent | None = None
    waits: dict[str, str] = {}
    """Of a supervisor: for what its runs wait."""


class Trainer(Record):
    params: Number | None = None
    batchnorm_batch: Number | None = None
    amp: Literal["bf16", "none"] | None = None
    trainer_code: str | None = None
    images_skipped: Number = 0
    images_in_both: Number = 0
    steps_per_epoch: Number | None = None
    images: dict[str, Number] = {}
    resumed_at_step: Number = 0
    device: str | None = None
    procs: Number = 1
    threads: Number | None = None


class Preempted(Record):
    step: Number


class Failure(Record):
    rank: Number
    host: str
    step: Number
    time: Time
    message: str
    collective: bool
    out_of_memory: bool
    traceback: str | None = None


class Node(Record):
    host: str
    returncode: int = 0


class Evaluation(Record):
    step: Number
    top1: Percent = Field(alias="test/top1")


class Saved(Record):
    """A file of a run."""

    bytes: Number
    sha256: str


class Result(Record):
    document: Literal["kdcluster.result/1"] = Field(alias="schema")
    id: str
    hash: str
    attempt: Number
    params: Number
    best: Evaluation | None = None
    """None of a store."""
    last: Evaluation | None = None
    predictions: dict[str, Saved | None] = {}
    """By protocol; none of earlier versions."""
    views: Number | dict[str, Number] | None = None
    """Of a store how many it holds; of a distilled run `read` and `computed`."""


class View(Record):
    crc32c: Number
    top1: Percent | None = None
    device: str = ""
    tolerance: Annotated[float, Field(ge=0)] | None = None


class Manifest(Record):
    """Of a store of the teacher's logits."""

    document: str = Field(alias="schema")
    images: Number
    classes: Number
    precision: str = "none"
    weights: str = ""
    views: dict[Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")], View]


class Submit(Record):
    words: str | list[str]


class Trial(Record):
    experiment: str
    values: dict[str, Any]


class Begun(Record):
    run: str
    step: Number


class Submission(Record):
    root: FilePath
    data_dir: FilePath
    runs: list[str]
    layouts: dict[str, dict[str, Any]]


class Task(Record):
    run_dir: FilePath
    data_dir: FilePath
    layout: dict[str, Any]
    profile: dict[str, Any]
    code: str


class Holder(Process):
    what: str
    since: Time


class Spread(Record):
    """Percentiles."""

    p10: Annotated[float, Field(gt=0)]
    p50: Annotated[float, Field(gt=0)]
    p90: Annotated[float, Field(gt=0)]


class Speed(Record):
    device: Literal["cpu", "cuda"]
    name: str
    engine: str
    precision: Literal["fp32", "int8", "bf16"]
    batch1_ms: Spread
    batch64_images_per_s: Spread


class Benchmark(Record):
    """What a model costs."""

    document: Literal["kdcluster.benchmark/1"] = Field(alias="schema")
    weights: str
    time: Time
    bytes: dict[str, Number | None]
    int8_top1: Percent | None
    speeds: list[Speed]


OF_A_RUN = {"result": Result, "ticket": Ticket, "experiments": list[str], "submit": Submit, "trials": list[Trial]}
OF_AN_ATTEMPT = {"start": Start, "agent": Process, "outcome": Outcome, "heartbeat": Heartbeat, "trainer": Trainer}
OF_AN_ATTEMPT |= {"preempted": Preempted, "failure-rank": Failure, "node": Node}
NUMBERED = ("failure-rank", "node")
OTHERS = {"submission": Submission, "task": Task, "supervisor": Process, ".submit": Holder, "begun": Begun}
OTHERS |= {"manifest": Manifest, "benchmark": Benchmark}
