"""A stand-in for a GPU, to see where the host would wait for one. It computes on the CPU, but knows what lies where.

PLACE is the CPU under another name, so that `.to(PLACE)` is a copy that a dispatch mode sees, while every kernel,
the backward pass and the fused optimizers run as they are. `StandIn` follows which memory was put there, and while it
is `watching` refuses what makes the host wait for a GPU, or fails on one:

- reading a number or an array: .item(), `if x`, .tolist(), .cpu(), .numpy(), nonzero, equal, boolean masks;
- a copy to the device from memory that is not pinned, or without non_blocking; a number made into a tensor;
- tensors of both in one kernel.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PLACE = torch.device("cpu", 0)

aten = torch.ops.aten
# In inference mode an op of other ops is seen whole: item, to, pin_memory beside what they are made of.
READS = (
    aten._local_scalar_dense,
    aten.item,
    aten.is_nonzero,
    aten.nonzero,
    aten.equal,
    aten.masked_select,
    aten._unique2,
    aten.bincount,
)
READING = {"cpu", "tolist", "numpy", "__array__"}
"""Methods that dispatch nothing on the CPU."""
COPIES, PINS = (aten._to_copy, aten.to), (aten._pin_memory, aten.pin_memory)
GATHERS = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)

KEPT = 2000


class StandIn(TorchDispatchMode):
    """Which memory is on the device, which is pinned on the host, and which may be either."""

    def __init__(self) -> None:
        super().__init__()
        self.watching = False
        self._place: dict[int, tuple[str, torch.UntypedStorage]] = {}
        self._reads = _Reads(self)

    def __enter__(self) -> StandIn:
        super().__enter__()
        self._reads.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._reads.__exit__(*raised)
        super().__exit__(*raised)

    def where(self, tensor: Tensor) -> str:
        """`device`, `pinned`, `either` (made by an op without tensors, on whatever `.device` says), or `host`."""
        known = self._place.get(tensor.untyped_storage()._cdata)
        return known[0] if known else "host"

    def put(self, tensor: Tensor, where: str) -> None:
        """Say where a tensor's memory is; it is kept alive, so that no other memory takes its number, until a sweep."""
        if len(self._place) > KEPT:
            used = torch._C._storage_Use_Count
            self._place = {key: place for key, place in self._place.items() if used(key) > 1}
        storage = tensor.untyped_storage()
        self._place[storage._cdata] = where, storage

    def refuse(self, what: str) -> None:
        if self.watching:
            raise AssertionError(f"a host sync: {what}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = dict(kwargs or {}), func.overloadpacket
        named = {**dict(zip((a.name for a in func._schema.arguments), args, strict=False)), **kwargs}
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        places = {self.where(x) for x in inputs if x.dim()}
        if packet is aten.is_pinned:
            return self.where(args[0]) == "pinned"
        if packet in PINS:
            return self._marked(args[0].clone(), "pinned")
        pinned = kwargs.get("pin_memory") and "pinned"
        kwargs.pop("pin_memory", None)
        if packet in READS and any(self.where(x) in ("device", "either") for x in inputs):
            self.refuse(str(func))
        if packet in GATHERS and any(x.dtype == torch.bool for x in tree_leaves(args[1]) if isinstance(x, Tensor)):
            self.refuse(f"{func} with a mask")
        if packet is aten.lift_fresh:
            self.refuse(f"{func}: a number made into a tensor")
        if packet in COPIES:  # to the device that a tensor says, which is the CPU, it stays where it is
            there = "device" if named.get("device") == PLACE else self.where(args[0])
            self._copy(args[0], there, named.get("non_blocking", False), func)
            return self._marked(func(*args, **kwargs), there)
        if packet is aten.copy_:
            self._copy(args[1], self.where(args[0]), named.get("non_blocking", False), func)
        elif "device" in places and places & {"host", "pinned"}:
            self.refuse(f"{func} with tensors of the host and of the device")
        there = "device" if kwargs.get("device") == PLACE or "device" in places else pinned or "either"
        if inputs and there == "either" and places - {"either"}:
            there = "host"
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._place and there != "host":
                self.put(tensor, there)
        return out

    def _marked(self, tensor: Tensor, where: str) -> Tensor:
        self.put(tensor, where)
        return tensor

    def _copy(self, source: Tensor, target: str, non_blocking: bool, func: Any) -> None:
        ends = {self.where(source), target}
        if ends in ({"device"}, {"device", "either"}) and self.where(source) != "either":
            return
        if "device" in ends and not (non_blocking and "pinned" in ends):
            self.refuse(f"{func} from {self.where(source)} to {target}")


class _Reads(TorchFunctionMode):
    def __init__(self, device: StandIn) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        reads = name in READING or (name == "to" and "cpu" in (*args[1:], *(kwargs or {}).values()))
        if reads and self._device.where(args[0]) in ("device", "either"):
            self._device.refuse(f".{name}()")
        return func(*args, **(kwargs or {}))


@contextmanager
def cuda_refuses_to_wait() -> Iterator[None]:
    """A real GPU's own guard. That it is a prototype is said when it is switched, where a warning would be an error and
    leave it on for the tests that follow."""

    def switch(mode: str) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode(mode)

    switch("error")
    try:
        yield
    finally:
        switch("default")
