"""What SLURM says of its nodes, partitions and accounts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kdcluster.errors import SchedulerError
from kdcluster.launch.slurm.ask import settings, user
from kdcluster.launch.slurm.command import Refused, ask
from kdcluster.launch.slurm.profile import minutes


@dataclass(frozen=True)
class NodeType:
    """What a node of a partition has, and the partition's time limits; None: none."""

    cpus: int
    gpus: int
    time_limit_min: int | None
    """The default, else the maximum."""
    max_time_min: int | None


def node_type(partition: str | None) -> NodeType | None:
    """The node with the most GPUs in a partition (None: the default one); None where SLURM does not say."""
    which = [f"--partition={partition}"] if partition else []
    text = ask("sinfo", "--noheader", *which, "--format=%P|%c|%G|%L|%l")
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 4]
    if partition is None:
        rows = [row for row in rows if row[0].endswith("*")] or rows
    nodes = []
    for _, cpus, gres, default, most in rows:
        gpus = sum(int(n) for n in re.findall(r"\bgpu(?::[^:,()]+)*?:(\d+)", gres))
        limits = [minutes(limit) if re.match(r"\d", limit) else None for limit in (default, most)]
        cores = int(re.match(r"\d+", cpus)[0])  # type: ignore[index]
        nodes.append(NodeType(cores, gpus, limits[0] or limits[1], limits[1]))
    return max(nodes, key=lambda node: node.gpus, default=None)


def names(nodelist: str) -> list[str]:
    """`node[1-2]` as names."""
    return ask("scontrol", "show", "hostnames", nodelist).split() if nodelist else []


def usable(partition: str) -> set[str]:
    """Nodes of a partition that are not down, drained or reserved for maintenance."""
    text = ask("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N %T")
    return {found[1] for found in re.finditer(r"^(\S+) (?:idle|mix|alloc|compl)\w*[~#]?$", text, re.MULTILINE)}


def address(node: str) -> str:
    """NodeAddr of a node: its name need not resolve."""
    found = re.search(r"\bNodeAddr=(\S+)", ask("scontrol", "show", "node", "--oneliner", node))
    return found[1] if found else node


def accounts() -> list[str] | None:
    """The accounts that the user may charge; None where SLURM keeps none."""
    try:
        text = ask("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user()}", "format=account")
    except (Refused, SchedulerError):
        return None
    return sorted({line.strip() for line in text.splitlines() if line.strip()}) or None


def kill_wait_s() -> float:
    """What a job may count on between SLURM's SIGTERM and SIGKILL (KillWait); SLURM's default where it does not say."""
    try:
        found = re.match(r"\d+", settings().get("KillWait", ""))
    except (Refused, SchedulerError):
        found = None
    return float(found[0]) if found else 30.0


def version() -> str:
    """SLURM's version, once its controller has answered."""
    ask("sinfo", "--noheader")
    return ask("sbatch", "--version").strip()
