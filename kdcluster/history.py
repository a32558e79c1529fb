"""What each attempt of a run did, why it ended, what it cost in GPU-hours and time: from the run directory alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdcluster.runs import Attempt, RunDir
from kdcluster.states import State
from kdcluster.wording import one_line


@dataclass(frozen=True)
class Record:
    """One attempt. The field names are those of `status --json`; times in seconds since the epoch."""

    attempt: int
    job_id: str | None
    where: str
    """SLURM nodes, else the host."""
    started: float | None
    """None: its start is damaged."""
    ended: float | None
    """None: nobody has written down its end; it may still run."""
    waited_s: float | None
    """How long its job was ready to start, or was requeued, before it did; None without SLURM."""
    from_step: int
    to_step: int
    state: State | None
    """How it ended; None where nobody has written it down."""
    reason: str
    rank: int | None
    """That failed first."""
    returncode: int | None
    signal: str | None
    out_of_memory: bool
    traceback: str | None
    gpu_hours: float
    lost_gpu_hours: float
    """For steps that a later attempt did again, or without a step at all."""
    wall_s: float = 0.0
    """From its start to its end, or to the last that was heard of it."""
    damage: str = ""
    """What is wrong with its records; stands in the reason, too. Without its start it cost nothing that is known."""


@dataclass(frozen=True)
class Cost:
    """GPU-hours of some runs: all of them, and those for steps that were done again; and their time, one by one."""

    gpu_hours: float = 0.0
    lost_gpu_hours: float = 0.0
    wall_s: float = 0.0


def history(run_dir: RunDir) -> list[Record]:
    """Every attempt of a run, oldest first; of a damaged one what can be read, and its reason says what is wrong."""
    attempts = run_dir.attempts()
    looks = [attempt.look() for attempt in attempts]
    begun = [_began_at(found.get("trainer", {}), found.get("start", {})) for found, _ in looks]
    records = [
        _record(attempt, looks[at], begun[at], begun[at + 1] if at + 1 < len(begun) else None, run_dir)
        for at, attempt in enumerate(attempts)
    ]
    return list(_waited(records))


def _waited(records: list[Record]) -> Iterator[Record]:
    """A requeued job waits from the moment its last attempt ended; SLURM counts its own delay of two minutes not."""
    before = None
    for one in records:
        same = before is not None and one.job_id is not None and before.job_id == one.job_id
        if before and same and before.ended is not None and one.started is not None:
            yield replace(one, waited_s=max(0.0, one.started - before.ended))
        else:
            yield one
        before = one


def cost(parts: Iterable[Record | Cost]) -> Cost:
    """What attempts, or runs, cost together."""
    parts = list(parts)
    sums = (sum(getattr(one, name) for one in parts) for name in ("gpu_hours", "lost_gpu_hours", "wall_s"))
    return Cost(*sums)


def headline(one: Record) -> str:
    """One attempt in one line."""
    words = [f"on {one.where}" + (f" in job {one.job_id}" if one.job_id else "")]
    if one.started is not None:
        words.append(f"from {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(one.started))}")
        if one.ended is not None:
            until = time.strftime("%H:%M:%S", time.localtime(one.ended))
            words[-1] += f" to {until} ({span(one.ended - one.started)})"
    if one.waited_s:
        words.append(f"waited {span(one.waited_s)}")
    words.append(f"steps {one.from_step} to {one.to_step}")
    if one.gpu_hours:
        lost = f", {one.lost_gpu_hours:.3g} of them lost" if one.lost_gpu_hours else ""
        words.append(f"{one.gpu_hours:.3g} GPU-hours{lost}")
    if one.state is not None or one.reason:
        words.append(": ".join(filter(None, (one.state, one.reason))))
    return one_line("; ".join(words))


def post_mortem(records: Sequence[Record]) -> list[str]:
    """All attempts, each with the traceback of the rank that failed first, and what they cost."""
    lines = []
    for one in records:
        lines.append(f"attempt {one.attempt} {headline(one)}")
        if one.state == State.FAILED:
            facts = {"rank": one.rank, "exit code of torchrun": one.returncode, "signal": one.signal}
            known = [f"{name} {value}" for name, value in facts.items() if value is not None]
            lines.append(f"    {', '.join([*known, *['out of memory'] * one.out_of_memory])}")
        lines += [f"    {line}" for line in (one.traceback or "").splitlines()]
    if total := spent(cost(records)):
        lines.append(total)
    return lines


def spent(total: Cost) -> str:
    """A cost in words; empty where no GPU was held."""
    lost = f", {total.lost_gpu_hours:.3g} of them lost to repeats" if total.lost_gpu_hours else ""
    return f"{total.gpu_hours:.3g} GPU-hours{lost}" if total.gpu_hours else ""


def span(seconds: float) -> str:
    """A time as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def began_at(attempt: Attempt) -> int:
    """The step that an attempt went on from: what its trainer could load, else what was there when it started."""
    return _began_at(attempt.read("trainer"), attempt.read("start"))


def _began_at(trainer: Mapping[str, Any], start: Mapping[str, Any]) -> int:
    return int(trainer.get("resumed_at_step", start.get("from_step", 0)))


def _record(
    attempt: Attempt,
    look: tuple[Mapping[str, dict[str, Any]], Sequence[str]],
    from_step: int,
    next_from: int | None,
    run_dir: RunDir,
) -> Record:
    found, damage = look[0], "; ".join(look[1])
    start, beat, outcome = (found.get(name, {}) for name in ("start", "heartbeat", "outcome"))
    saved = found.get(State.PREEMPTED, {})  # a record that is named as the state is
    failures = [one for name, one in found.items() if name.startswith("failure-rank") and one]
    steps = [from_step, beat.get("step", 0), saved.get("step", 0), *(f["step"] for f in failures)]
    to_step = max(steps)
    overtaken = next_from is not None
    started = start.get("started")
    last_sign = beat.get("time") or started
    ended = outcome.get("time") or (last_sign if overtaken else None)
    rank = outcome.get("rank")
    first = next((f for f in failures if f["rank"] == rank), None) if outcome.get("state") == State.FAILED else None
    until = ended or last_sign
    wall_s = until - started if until and started else 0.0
    hours = _gpus(start) * wall_s / 3600
    silent = "it ended without a word" if overtaken and not outcome and not damage else ""
    return Record(
        attempt=attempt.number,
        job_id=start.get("job_id"),
        where=start.get("nodes") or start.get("host") or "?",
        started=started,
        ended=ended,
        waited_s=start.get("waited_s"),
        from_step=from_step,
        to_step=to_step,
        state=State(outcome["state"]) if outcome else State.LOST if overtaken else None,
        reason="; ".join(filter(None, (outcome.get("reason"), silent, damage))),
        rank=rank,
        returncode=outcome.get("returncode"),
        signal=outcome.get("signal"),
        out_of_memory=bool(outcome.get("out_of_memory")),
        traceback=first.get("traceback") if first else None,
        gpu_hours=hours,
        lost_gpu_hours=hours * _lost(from_step, to_step, next_from, outcome, run_dir),
        wall_s=wall_s,
        damage=damage,
    )


def _gpus(start: dict[str, Any]) -> float:
    """GPUs that an attempt held, used or not; a trial may hold a share of one."""
    return float(start.get("gpus_held", len([gpu for gpu in start.get("gpus") or () if gpu])))


def _lost(from_step: int, to_step: int, next_from: int | None, outcome: dict[str, Any], run_dir: RunDir) -> float:
    """Share of an attempt that was, or will have to be, done again."""
    if next_from is None and (not outcome or outcome["state"] == State.DONE):
        return 0.0  # it runs, or was the last
    kept = next_from if next_from is not None else run_dir.saved_step()
    if to_step == from_step:
        return 1.0
    return min(1.0, max(0.0, (to_step - kept) / (to_step - from_step)))
