"""This machine's GPUs: which there are.

A GPU is a whole card, or a MIG instance of one that is cut up; either is known by its UUID.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import takewhile
from typing import Any

from kdcluster.errors import KdclusterError

ANSWER_S = 60.0
_WITHOUT = "; mend the driver, or run on the CPU with --procs (CUDA_VISIBLE_DEVICES= hides the GPUs)"
_NAME = re.compile(r"[0-9]+$|GPU-|MIG-")
"""What names a GPU in CUDA_VISIBLE_DEVICES; CUDA ignores everything from the first entry on that names none."""


def visible_gpus() -> list[str]:
    """UUIDs of the GPUs that this process may use, without importing torch.

    CUDA_VISIBLE_DEVICES limits the choice as it does for CUDA: indices, UUIDs or their beginnings.

    Raises:
        KdclusterError: the driver fails or hangs, or cannot say which GPUs the indices mean.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if chosen is None else list(takewhile(_NAME.match, map(str.strip, chosen.split(","))))
    if names == []:
        return []
    found = _ask_the_driver()
    gpus = [uuid for uuid, _ in found]
    if names is None:
        return gpus
    if len(gpus) > 1 and any(map(str.isdigit, names)):
        _refuse_doubtful(found)
    visible = []
    for name in names:
        matches = gpus[int(name) :][:1] if name.isdigit() else [uuid for uuid in gpus if uuid.startswith(name)]
        if name.startswith("MIG-GPU-"):  # MIG-GPU-<card>/<instance>/<instance>, as older drivers have it
            matches = [name]
        if len(matches) != 1:  # CUDA ignores all from here on
            break
        visible += matches
    return list(dict.fromkeys(visible))


def _refuse_doubtful(found: Sequence[tuple[str, str]]) -> None:
    """Refuse indices whose meaning CUDA alone knows.

    The driver counts by PCI bus, CUDA by speed unless CUDA_DEVICE_ORDER says PCI_BUS_ID: one order where all cards are
    alike. How CUDA counts MIG instances is not documented.
    """
    mixed = len({model for _, model in found}) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"
    cut_up = any(uuid.startswith("MIG-") for uuid, _ in found)
    if mixed or cut_up:
        why, order = ("MIG instances", "") if cut_up else ("cards that differ", "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or ")
        raise KdclusterError(
            f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}: this machine has {why}, and which ones CUDA "
            f"means by these numbers cannot be told; {order}name them by their UUIDs (`nvidia-smi -L`)"
        )


def _ask_the_driver() -> list[tuple[str, str]]:
    """(UUID, model) of each GPU, by PCI bus; none where no driver is installed.

    In a thread, since a broken driver may hang for ever, out of reach of every signal.
    """
    import pynvml

    answer = Future[list[tuple[str, str]]]()

    def ask() -> None:
        try:
            answer.set_result(_gpus(pynvml))
        except Exception as error:  # raised below, in the thread that asked
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(ANSWER_S)
    except TimeoutError:
        raise KdclusterError(f"the NVIDIA driver did not answer within {ANSWER_S:g} s{_WITHOUT}") from None
    except pynvml.NVMLError_LibraryNotFound:
        return []
    except pynvml.NVMLError as error:
        raise KdclusterError(f"the NVIDIA driver failed: {error}{_WITHOUT}") from None


def _gpus(nvml: Any) -> list[tuple[str, str]]:
    nvml.nvmlInit()
    try:
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                card = nvml.nvmlDeviceGetHandleByIndex(index)
            except nvml.NVMLError_NoPermission:  # another job's: CUDA does not count it either
                continue
            found += [(nvml.nvmlDeviceGetUUID(one), nvml.nvmlDeviceGetName(one)) for one in _parts(nvml, card)]
        return found
    finally:
        nvml.nvmlShutdown()


def _parts(nvml: Any, card: Any) -> list[Any]:
    """A card's MIG instances where it is cut up, else the card."""
    try:
        if nvml.nvmlDeviceGetMigMode(card)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return [card]
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):  # a card, a driver from before MIG
        return [card]
    parts = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        with suppress(nvml.NVMLError_NotFound, nvml.NVMLError_NoPermission):  # there is none, or another job has it
            parts.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index))
    return parts
