"""`kdcluster tensorboard`: TensorBoard on this machine alone, with names of runs that a person can read."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdcluster.commands.arguments import Chosen
from kdcluster.commands.bands import Band
from kdcluster.commands.curves import Curves
from kdcluster.differing import SIGNS, settings, words
from kdcluster.errors import KdclusterError, NotFound
from kdcluster.experiment import configfile
from kdcluster.runs import RunDir, run_dirs
from kdcluster.terminal import say, show, show_wrapped, size
from kdcluster.wording import count, one_line

EVERY_S = 5
"""Seconds between two looks for new runs, and between TensorBoard's looks at their files."""
HOST = "127.0.0.1"
LONGEST = 200
"""Bytes of a name; a file's may have 255."""
NAMED = ("role", "seed", "teacher")
"""What a name says anyway, or would say by an id of its own."""
BANDS = ("teacher", "baseline", "distilled")
"""What has its mean over the seeds; a sweep's trials have none."""
PINNED = [{"plugin": "scalars", "tag": tag} for tag in ("test/top1", "best/top1", "train/loss")]
"""Cards above all others, which TensorBoard sorts by their tags."""


def tensorboard(chosen: Chosen, port: int | None) -> None:
    """Serve until Ctrl-C or SIGTERM; runs that begin meanwhile come in.

    TensorBoard names a run by its folder: here a link to the run's events in a folder of our own, which goes with us.
    Debug runs lie elsewhere, and have no link.

    Raises:
        NotFound: an experiment that was named is neither a file nor known to a run.
        KdclusterError: the port is taken.
    """
    wanted = {_name(chosen, experiment) for experiment in chosen.experiments}
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    with tempfile.TemporaryDirectory(prefix="kdcluster-tensorboard-") as folder:
        links = Links(chosen.root, Path(folder), wanted)
        there = links.look()
        url = _serve(folder, port, ", ".join(sorted(wanted)) or str(chosen.root))
        at = urllib.parse.urlsplit(url).port
        pins = urllib.parse.quote(json.dumps(PINNED, separators=(",", ":")))
        show(url)
        show_wrapped(
            "", f"the same without smoothing, and the accuracies pinned on top: {url}?smoothing=0&pinnedCards={pins}"
        )
        say(f"{count(there, 'run')} in {chosen.root}; those that begin come in; Ctrl-C ends it")
        say(f"from another machine: ssh -N -L {at}:{HOST}:{at} {socket.gethostname()}, then this address there")
        while not ending.wait(EVERY_S):
            links.look()
    if size(sys.stderr):
        say("")  # the shell's prompt would stand behind ^C


def _name(chosen: Chosen, experiment: str) -> str:
    """What runs call an experiment; one whose file is gone is known by them."""
    if any(experiment in run_dir.experiments() for run_dir in run_dirs(chosen.root)):
        return experiment
    try:
        return configfile.find(experiment).stem
    except NotFound as error:
        raise chosen.no_experiment(experiment, error) from None


def _serve(folder: str, port: int | None, title: str) -> str:
    """TensorBoard in a thread; returns its address."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from tensorboard import program

    server = program.TensorBoard()
    given = {"logdir": folder, "host": HOST, "port": str(port or "default"), "reload_interval": str(EVERY_S)}
    server.configure(argv=["", *(f"--{key}={value}" for key, value in given.items()), f"--window_title={title}"])
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # notes about how it loads
            return str(server.launch())
    except program.TensorBoardServerException as error:
        raise KdclusterError(f"TensorBoard does not start: {error.msg}; --port takes another one") from None


class Links:
    """A folder with a link to the events of each run, as EXPERIMENT/WHAT IT IS; without EXPERIMENT where it is one.

    Args:
        root: the runs directory.
        folder: where the links lie.
        wanted: names of experiments; none: all.
    """

    def __init__(self, root: Path, folder: Path, wanted: Iterable[str] = ()) -> None:
        self.root, self.folder, self.wanted = root, folder, set(wanted)
        self._named: dict[Path, RunDir] = {}
        self._bands: dict[tuple[Path, str], Band] = {}
        self._curves = Curves(root)

    def look(self) -> int:
        """Link the runs that have begun since, and bring the bands up to date; returns how many runs are linked. A name
        once given stays."""
        linked = set(self._named.values())
        for run_dir in run_dirs(self.root):
            if run_dir not in linked and run_dir.events.is_dir():
                for experiment in run_dir.experiments() or ["no experiment"]:
                    if not self.wanted or experiment in self.wanted:
                        self._link(experiment, run_dir)
        for band in self._bands.values():
            band.look(self._curves.of)
        return len(set(self._named.values()))

    def _link(self, experiment: str, run_dir: RunDir) -> None:
        above = self.folder / ("" if len(self.wanted) == 1 else _as_name(experiment))
        role, seed = re.match(r"([a-z]*)(?:.*-s(\d+)-)?", run_dir.id).groups()  # type: ignore[union-attr]
        values: dict[str, Any] = {}
        if trials := run_dir.trials_of(experiment):
            role, values = "trial", trials[0]["values"]
        elif role == "distilled":  # to read a run's settings takes milliseconds
            values = {key: value for key, value in settings(run_dir.known()[0]).items() if key in SIGNS}
        name = above / _as_name(" ".join([role, *words(values), f"s{seed}"]))
        if other := self._named.get(name):
            ours, theirs = settings(run_dir.known()[0]), settings(other.known()[0])
            values |= {
                key: value for key, value in ours.items() if key not in NAMED and theirs.get(key, value) != value
            }
            name = above / _as_name(" ".join([role, *words(values), f"s{seed}"]))
        if role in BANDS:
            self._join(experiment, above / _as_name(" ".join([role, *words(values)])), run_dir)
        if name in self._named:
            name = name.with_name(f"{name.name} {run_dir.id[-8:]}")
        above.mkdir(parents=True, exist_ok=True)
        name.symlink_to(run_dir.events)
        self._named[name] = run_dir

    def _join(self, experiment: str, name: Path, run_dir: RunDir) -> None:
        """Into the band of the runs that differ from this one in their seed alone."""
        run, _ = run_dir.known()
        alike = (name.parent, repr({**settings(run), "seed": None}))
        if alike not in self._bands:
            taken = {band.folder for band in self._bands.values()}
            folder = name.with_name(f"{name.name}, mean")
            free = folder if folder not in taken else name.with_name(f"{name.name} {run.id[-8:]}, mean")
            self._bands[alike] = Band(free, _as_name(experiment))
        self._bands[alike].runs.append(run.id)


def _as_name(text: str) -> str:
    """Text from a record as the name of one file that is not hidden, whatever it holds."""
    name = one_line(text).replace("/", "_").lstrip(".") or "_"
    return name.encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore")
