"""One start of a run: its records, its logs, and what its ranks left behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kdcluster import records
from kdcluster.errors import DISK_FULL, Damaged
from kdcluster.files import write_json
from kdcluster.tickets import Ticket


@dataclass(frozen=True)
class Attempt:
    """One start of a run."""

    path: Path

    @property
    def number(self) -> int:
        return int(self.path.name)

    @cached_property
    def start(self) -> Mapping[str, Any]:
        """Its start.json, which is written with its folder and never again; empty where it is damaged."""
        return self.read("start")

    def read(self, name: str) -> dict[str, Any]:
        """`attempts/<n>/<name>.json`, empty where it has not been written or is damaged (`damage` says so)."""
        return records.found(f"{self.path}/{name}.json") or {}

    def look(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """All its records by name, and what is wrong with others, in words: its start is written with its folder."""
        run, names = self.path.parents[1], records.entries(self.path)
        whole, wrong = {}, [] if "start.json" in names else [f"its {self.path.relative_to(run)}/start.json is gone"]
        for name in filter(records.is_of_an_attempt, names):
            try:
                whole[name.removesuffix(".json")] = records.read(f"{self.path}/{name}") or {}
            except Damaged as error:
                wrong.append(records.in_words(error, run))
        return whole, wrong

    def damage(self) -> list[str]:
        """What is wrong with its records, in words."""
        return self.look()[1]

    def write(self, name: str, values: dict[str, Any], *, sync: bool = True) -> None:
        """Write `attempts/<n>/<name>.json` atomically."""
        write_json(self.path / f"{name}.json", values, sync=sync)

    def write_last(self, name: str, values: dict[str, Any]) -> None:
        """`write` for why the attempt ended: where the disk is full, into the room that was kept for it."""
        try:
            self.write(name, values)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            (self.path / "reserve").unlink(missing_ok=True)
            self.write(name, values)

    def given_to(self) -> Ticket | None:
        """Who began it, where its start says so.

        Raises:
            Damaged: it cannot be read.
        """
        path = self.path / "start.json"
        if (values := records.read(path)) is None:
            raise Damaged(path, "it is gone")
        return Ticket.read(values)

    def log(self, rank: int | None = None) -> Path:
        """A rank's log; None: torchrun's own."""
        return self.path / ("torchrun.log" if rank is None else f"rank{rank}.log")

    def log_to_read(self) -> Path:
        """Its rank's log where it has one rank, else the folder of all its logs."""
        names = records.entries(self.path)
        ranks = ["torchrun.log"] * ("torchrun.log" in names)
        for before in ("torchrun-node", "rank"):
            ranks += [name for _, name in records.numbered(names, before, ".log")]
        return self.path / ranks[-1] if len(ranks) == 2 else self.path

    def logs(self) -> list[tuple[str, Path]]:
        """Every log of this attempt as (label, path): torchrun's first, then the ranks in order."""
        names = records.entries(self.path)
        found = {"torchrun node": records.numbered(names, "torchrun-node", ".log")}
        found["rank"] = records.numbered(names, "rank", ".log")
        numbered = ((f"{what} {number}", self.path / name) for what, some in found.items() for number, name in some)
        return [("torchrun", self.log()), *numbered]

    def failures(self) -> list[dict[str, Any]]:
        """The failure files that ranks left, by rank."""
        names = records.numbered(records.entries(self.path), "failure-rank", ".json")
        return list(filter(None, (records.found(self.path / name) for _, name in names)))
