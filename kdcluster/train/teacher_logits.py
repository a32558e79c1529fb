"""The teacher's logits: its forward pass, and where a student takes them from.

Stored and computed logits are the same numbers: the same weights and views, float16, the precision in which the teacher
was trained, and forward passes of one number of rows. On a CPU they are the same bits, whatever the batch, the ranks
and the threads; on a GPU they differ by what the manifest has as `tolerance`.

Letters: b images of a forward pass, N images of the whole training set, C classes, W ranks.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from kdcluster.errors import KdclusterError
from kdcluster.files import file_digest
from kdcluster.plan import Run
from kdcluster.processes import processor
from kdcluster.rows import Rows
from kdcluster.runs import RunDir
from kdcluster.teacherlogits import Missing, Store, precision
from kdcluster.train import feed, models, speed, views
from kdcluster.train.distributed import World
from kdcluster.train.losses import round_logits

log = logging.getLogger(__name__)

ROWS = 128
"""Images of a forward pass, filled up where there are fewer. On CPUs from 16 rows on each number of them gave the same
bits in every model that was tried, but 1 to 12 gave others (1e-5); 128 is what most batches are, and 64 rows cost a
resnet18 at 28 px 17 % more time an image."""
AHEAD = 4
"""Batches that are read ahead where a view is too large for the device."""


class Forward:
    """A teacher's forward pass.

    Args:
        net: with its best weights, in evaluation mode, without gradients.
        amp: precision, `bf16` or `none`: the one in which it was trained and evaluated.
    """

    def __init__(self, net: nn.Module, amp: str) -> None:
        self.net, self.amp = net, amp
        self.searches = speed.worth_searching(net)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """float16 (b, C) of images (b, channels, H, W), in passes of ROWS; on a GPU the last one may have fewer."""
        of_student, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, self.searches
        try:
            return self._logits(images)
        finally:
            torch.backends.cudnn.benchmark = of_student

    def _logits(self, images: Tensor) -> Tensor:
        found = []
        for some in images.split(ROWS):
            gap = ROWS - len(some) if images.device.type == "cpu" else 0
            filled = torch.cat([some, some[:1].expand(gap, -1, -1, -1)]) if gap else some
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp == "bf16"):
                found.append(round_logits(self.net(filled)[: len(some)]))
        return torch.cat(found)


def load_teacher(root: Path, run: Run, world: World, *, debug: bool = False) -> Forward:
    """The teacher of a run with its best weights.

    Args:
        root: the runs directory.
        run: of a student, or of a store.
        world: on whose device it is wanted.
        debug: take its start weights where it is not trained yet.

    Raises:
        KdclusterError: it has no best weights, or they are damaged.
    """
    assert run.teacher is not None
    place = RunDir(root, run.teacher.id)
    weights, problem = place.weights("best"), place.weights_problem("best")
    trained = problem != "gone"
    if not trained and not debug:
        raise KdclusterError(
            f"the teacher {run.teacher.id} has no best weights yet ({weights}); "
            f"submit the experiment, which trains it first"
        )
    if trained and problem:
        raise KdclusterError(f"{weights} is {problem}; submit the experiment with --retry, which makes it again")
    net = models.build(run.teacher.model, run.num_classes, run.channels, start=not trained)
    if trained:
        models.load_saved(net.net, weights)
    else:
        log.warning("the teacher %s is not trained yet: debugging with its start weights", run.teacher.id)
    net.to(world.device).eval().requires_grad_(False)
    return Forward(net.in_channels_last(), precision(place.path))


def made_by(device: torch.device) -> str:
    """What else decides the last bits of logits: torch, and the processor that computes them."""
    if device.type == "cuda":
        return f"torch {torch.__version__}, {torch.cuda.get_device_name(device)}"
    return f"torch {torch.__version__}, {processor()}"


def store_of(root: Path, store: str, run: Run, images: int) -> Store:
    """A store, as it has to be for the weights that a run's teacher has now.

    Args:
        root: the runs directory.
        store: id of the store's run.
        run: of a student, or the store's own.
        images: N.
    """
    assert run.teacher is not None
    place = RunDir(root, run.teacher.id)
    of = {
        "run": store,
        "teacher": place.id,
        "precision": precision(place.path),
        "images": images,
        "classes": run.num_classes,
    }
    with suppress(OSError):
        of["weights"] = file_digest(place.weights("best"))
    return Store(root / store, of)


@dataclass
class Targets:
    """The teacher's logits as a student's run takes them, one view an epoch: read where they stand, else computed.

    Args:
        run: the student's.
        root: its runs directory.
        world: on whose device they are wanted.
        images: N.
        debug: a teacher that is not trained will do.
        origin: epoch -> `read` or `computed`, of the epochs so far.
    """

    run: Run
    root: Path
    world: World
    images: int
    debug: bool = False
    origin: dict[int, str] = field(default_factory=dict)
    _view: Tensor | Rows | None = None
    """On the device; or in its file, because it is large."""
    _number: int | None = None
    """Which one."""

    @cached_property
    def forward(self) -> Forward:
        """The teacher, built when a view is missing for the first time."""
        made = load_teacher(self.root, self.run, self.world, debug=self.debug)
        if (
            self.world.device.type == "cuda"
        ):  # gpu only; as of a step in pieces: a pass may have fewer rows than another
            made.net = speed.compiled(made.net, self.run, self.world, pieces=2)
        return made

    @cached_property
    def store(self) -> Store:
        """Where they stand, as it has to be for the teacher as it is now, and stays for this run."""
        assert self.run.store is not None
        return store_of(self.root, self.run.store, self.run, self.images)

    def begin(self, epoch: int) -> None:
        """Get the view of an epoch: onto the device, unless it is too large for that."""
        view = views.view_of(self.run, epoch)
        if self._view is None or self._number != view:
            self._view, self._number = self._read(view), view
        self.origin[epoch] = "computed" if self._view is None else "read"
        if self._view is None:
            _ = self.forward  # built now, and not in the middle of a step

    def _read(self, view: int) -> Tensor | Rows | None:
        """The view; None, and why is said, where it does not stand whole."""
        if not self.run.store:
            return None
        try:
            found = self.store.read(view, _free(self.world.device) // 10)
        except Missing as why:
            self._say(view, why, is_wrong=why.damaged)
            return None
        return found if isinstance(found, Rows) else torch.from_numpy(found).to(self.world.device)

    def _say(self, view: int | None, why: object, *, is_wrong: bool) -> None:
        text = "view %s of %s is computed along the way, with the same numbers: %s"
        log.log(logging.WARNING if is_wrong else logging.INFO, text, view, self.run.store, why)

    def batches(self, batches: Sequence[feed.Index]) -> Iterator[Tensor | None]:
        """The logits of each batch of images, float16 (B, C) on the device; None: they are to be computed.

        A thread reads ahead in a view that lies on the host because it is large.
        """
        view = self._view
        if view is None:
            yield from (None for _ in batches)
        elif isinstance(view, Tensor):
            yield from (view.index_select(0, index.device) for index in batches)
        else:
            with ThreadPoolExecutor(1) as reader:
                coming = deque(reader.submit(self._rows, view, index) for index in batches[:AHEAD])
                for number in range(len(batches)):
                    try:
                        rows = coming.popleft().result()
                    except OSError as error:  # the file server is away, or somebody has deleted it there
                        self._say(self._number, error, is_wrong=True)
                        self._view = None
                        yield from (None for _ in batches[number:])
                        return
                    if number + AHEAD < len(batches):
                        coming.append(reader.submit(self._rows, view, batches[number + AHEAD]))
                    yield rows.to(self.world.device, non_blocking=True)

    def _rows(self, view: Rows, index: feed.Index) -> Tensor:
        rows = torch.frombuffer(view.take(index.host.tolist()), dtype=torch.float16).view(len(index), -1)
        return rows if self.world.device == feed.HOST else rows.pin_memory()

    def of(self, images: Tensor, stored: Tensor | None) -> Tensor:
        """float16 (b, C): the stored ones, or those of a forward pass over the same images."""
        return self.forward(images) if stored is None else stored

    def counted(self) -> dict[str, int]:
        """Of how many epochs the view was read, and of how many computed."""
        return dict(Counter(self.origin.values()))


def _free(device: torch.device) -> int:
    """Bytes that are free where a view would lie, and on its way there."""
    host: int = psutil.virtual_memory().available
    if device.type != "cuda":
        return host
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # gpu only
    return min(host, torch.cuda.mem_get_info(device)[0] + unused)
