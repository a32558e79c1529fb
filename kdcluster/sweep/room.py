"""What the nodes of a Ray have: room for a trial, the runs directory, the same trainer."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdcluster.errors import ConfigError, KdclusterError
from kdcluster.files import trainer_code, write_aside
from kdcluster.launch.torchrun import Layout
from kdcluster.wording import count


def ray_module() -> Any:
    """Ray, with Tune.

    Raises:
        KdclusterError: it is not installed.
    """
    try:
        import ray
        import ray.tune
    except ImportError:
        raise KdclusterError("a sweep needs Ray Tune: pip install 'kdcluster[sweep]'") from None
    return ray


def check_fit(layout: Layout, gpus: float, nodes: Iterable[tuple[float, float]]) -> None:
    """Refuse a trial that could never run, instead of waiting for room for ever.

    Args:
        layout: of a trial.
        gpus: that Ray keeps for it.
        nodes: cores and GPUs of each.

    Raises:
        ConfigError: what a trial needs, and what the nodes have.
    """
    cores, nodes = layout.cores or 1, sorted(set(nodes))
    if not any(node[0] >= cores and node[1] >= gpus for node in nodes):
        here = "; ".join(f"{count(node[0], 'core')} and {count(node[1], 'GPU')}" for node in nodes)
        needs = count(cores, "core") + (f" and {count(gpus, 'GPU')}" if gpus else "")
        raise ConfigError(
            f"a trial needs {needs} on one node, and none has that ({here}); "
            f"ask for less with --gpus-per-trial, --procs or resources.threads"
        )


def nodes_of_ray() -> list[tuple[float, float]]:
    """Cores and GPUs of each node of the Ray that this process is connected to."""
    alive = [node["Resources"] for node in ray_module().nodes() if node["Alive"]]
    return [(node.get("CPU", 0), node.get("GPU", 0)) for node in alive]


def check_nodes(folder: Path, data_dir: Path) -> None:
    """Have every node of the connected Ray look for the runs directory, the data and the same trainer.

    Raises:
        KdclusterError: what a node does not have.
    """
    ray = ray_module()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    word, code, place = secrets.token_hex(8), trainer_code(), folder / "here"
    write_aside(place, word)

    def look() -> str:
        try:
            from kdcluster.files import trainer_code
        except ImportError as error:
            return f"kdcluster cannot be imported there ({error}); install it on every node"
        if not place.is_file() or place.read_text() != word:
            return f"it does not see {folder}; --runs-dir must lie on a file system that all nodes share"
        if not data_dir.is_dir():
            return f"it does not see {data_dir}; --data-dir must lie on a file system that all nodes share"
        return "" if trainer_code() == code else "its kdcluster is another version than this one"

    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = []
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked.append((node["NodeManagerHostname"], task.options(scheduling_strategy=there).remote()))
    for name, answer in asked:
        if wrong := ray.get(answer):
            raise KdclusterError(f"node {name}: {wrong}")
