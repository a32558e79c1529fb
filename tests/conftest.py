"""What every test stands on: nothing of the caller's environment, and a cache folder of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

INHERITED = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "COLUMNS", "NO_COLOR", "FORCE_COLOR"),
)
"""What an enclosing torchrun, scheduler or shell may leave behind; PREFIXES name whole families."""
PREFIXES = ("MASTER_", "TORCHELASTIC_", "SLURM_", "SBATCH_", "SQUEUE_", "SUBMITIT_", "KDCLUSTER_")


@pytest.fixture(autouse=True, scope="session")
def this_machine() -> Iterator[None]:
    """What tests and their fixtures start is not queued in a SLURM, and waits for nothing else that runs here."""
    folder = tempfile.mkdtemp(prefix="kdcluster-locks-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCLUSTER_BACKEND", "local")
        patch.setenv("KDCLUSTER_LOCKS_DIR", folder)
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A test sees no variables, caches and configuration of the caller's, and leaves nothing in them."""
    for name in list(os.environ):
        if (name in INHERITED or name.startswith(PREFIXES)) and name != "KDCLUSTER_LOCKS_DIR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("KDCLUSTER_BACKEND", "local")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))  # nobody is notified


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread only costs time, on a busy machine ten times as much."""
    import torch  # seconds, and only where something is trained

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with a few small images."""
    from tests import tiny

    tiny.put_images(tmp_path / "data")
    return tmp_path / "data"
