"""What a finished run's model costs: bytes on disk, latency and throughput here. A child process of the launcher.

Reads run configurations on stdin, answers with one JSON document on stdout, as preflight.py does.

runs/<id>/benchmark.json    schema kdcluster.benchmark/1, measured once for these weights and this machine
    weights, time           check sum of best.safetensors; when, in seconds since the epoch
    bytes                   fp32 and fp16: files of weights; int8: an ONNX file, null where it could not be made
    int8_top1, calibrated_on    percent of all test images; how many training images the ranges were taken from
    speeds                  device, name, engine, precision, threads; batch1_ms, batch64_images_per_s: p10, p50, p90
    without                 what is missing, and why
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from kdcluster import records
from kdcluster.errors import KdclusterError
from kdcluster.files import file_digest, write_json
from kdcluster.plan import Run
from kdcluster.processes import die_with, processor
from kdcluster.runs import RunDir
from kdcluster.teacherlogits import precision
from kdcluster.train.finished import portable
from kdcluster.train.finished.model import Finished, open_run, told
from kdcluster.train.models import last_line
from kdcluster.train.preflight import answer_about

SCHEMA = "kdcluster.benchmark/1"
CALIBRATED_ON = 200
"""Training images from which the ranges of the activations are taken."""
MANY = 64
"""Images of a batch of which the throughput is taken."""
WARM_UP, LEAST, MOST = 5, 10, 200
"""Passes that do not count, and how many do."""
ENOUGH_S = 10.0
"""After so long there are no more than LEAST."""

log = logging.getLogger(__name__)


def main() -> None:
    """`python -m kdcluster.train.finished.benchmark --runs-dir DIR --data-dir DIR < runs.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs-dir", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True, help="the pid of who waits, and whom it does not outlive")
    given = parser.parse_args()
    die_with(given.parent, "the kdcluster that asked")
    answer_about(lambda runs: told(lambda: [benchmark(run, given.runs_dir, given.data_dir) for run in runs]))


def benchmark(run: Run, root: Path, data_dir: Path) -> dict[str, Any]:
    """What benchmark.json says; measured and written first, where there is none of these weights and this machine.

    Raises:
        KdclusterError: a package of the extra `export` is missing; the model cannot be exported.
    """
    place = RunDir(root, run.id)
    path, weights = place.path / "benchmark.json", place.weights("best")
    known: dict[str, Any] | None = records.found(path)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    here = {name for name in (processor(), gpu) if name}
    digest = file_digest(weights)
    if known and known["weights"] == digest and {speed["name"] for speed in known["speeds"]} == here:
        return known
    there = open_run(run, root, data_dir)
    with tempfile.TemporaryDirectory(prefix="kdcluster-") as aside:
        made = _measured(there, Path(aside), precision(place.path))
    state = load_file(weights)
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    found = {
        "schema": SCHEMA,
        "weights": digest,
        "time": time.time(),
        **made,
        "bytes": {"fp32": weights.stat().st_size, "fp16": len(save(half)), **made["bytes"]},
    }
    write_json(path, found)
    return found


def _measured(there: Finished, aside: Path, amp: str) -> dict[str, Any]:
    """Everything but the files of weights."""
    missing: dict[str, str] = {}
    calibrated_on = None
    fp32, int8 = portable.make_onnx(there, aside), aside / "int8.onnx"
    log.info("%s: quantizing", there.run.id)
    try:
        calibrated_on = quantize(there, fp32, int8)
    except Exception as error:  # whatever a quantizer raises of a model that it does not understand
        missing["int8"] = str(error) if isinstance(error, KdclusterError) else last_line(error)
    quantized = None if missing else int8
    log.info("%s: measuring", there.run.id)
    images, _ = portable.some_images(there, MANY)
    images = images.repeat(-(-MANY // len(images)), 1, 1, 1)[:MANY]
    return {
        "bytes": {"int8": quantized.stat().st_size if quantized else None},
        "int8_top1": top1(there, quantized) if quantized else None,
        "calibrated_on": calibrated_on,
        "speeds": list(_speeds(there, {"fp32": fp32, "int8": quantized}, images, amp)),
        "without": missing,
    }


def quantize(there: Finished, fp32: Path, int8: Path) -> int:
    """Static quantisation: weights int8, a scale for each channel, activations uint8 with ranges from training images.

    Dynamic quantisation leaves convolutions alone. Activations in uint8 beside weights in int8 are what CPUs have
    instructions for: a resnet18 at 28 px took 0.6 ms, and 2.7 ms with both in int8 (fp32: 0.95).

    Returns:
        from how many.

    Raises:
        KdclusterError: there are no training images here.
    """
    quantization = portable.needed("onnx", "onnxruntime", "onnxruntime.quantization")
    shapes = portable.needed("onnxruntime.quantization.shape_inference")
    if there.arrays is None:
        raise KdclusterError(f"no training images to calibrate on: {there.without}")
    images, _ = portable.some_images(there, CALIBRATED_ON, "train")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined, misc]
        batches: Iterator[Any] = iter(images.split(20))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with portable.quiet(logging.WARNING):
        shapes.quant_pre_process(fp32, int8, skip_symbolic_shape=True)  # the exporter has written the shapes
        quantization.quantize_static(
            int8,
            int8,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    return len(images)


def top1(there: Finished, path: Path) -> float:
    """Percent of all test images that an ONNX file has right."""
    assert there.arrays is not None
    session = portable.session(path)
    images, labels = there.arrays.images["test"], there.arrays.labels["test"]
    right = 0
    for first in range(0, len(labels), MANY):
        logits = session.run(None, {"images": images[first : first + MANY]})[0]
        right += int((logits.argmax(1) == labels[first : first + MANY]).sum())
    return 100 * right / len(labels)


def _speeds(there: Finished, files: Mapping[str, Path | None], images: torch.Tensor, amp: str) -> Iterator[Any]:
    """Of each file on one thread of this CPU, and of the model on its GPU."""
    runtime = portable.needed("onnxruntime")
    for kind, path in files.items():
        if path is not None:
            session = portable.session(path, threads=1)

            def on_cpu(some: torch.Tensor, session: Any = session) -> None:
                session.run(None, {"images": some.numpy()})

            about = {"device": "cpu", "name": processor(), "engine": f"onnxruntime {runtime.__version__}"}
            yield {**about, "precision": kind, "threads": 1, **_both(on_cpu, images)}
    if torch.cuda.is_available():  # gpu only
        net = there.net.to("cuda").in_channels_last()
        about = {"device": "cuda", "name": torch.cuda.get_device_name(), "engine": f"torch {torch.__version__}"}

        def on_gpu(some: torch.Tensor) -> None:
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=amp == "bf16"):
                net(some.to("cuda"))
            torch.cuda.synchronize()

        yield {**about, "precision": "bf16" if amp == "bf16" else "fp32", "threads": 1, **_both(on_gpu, images)}


def _both(run: Callable[[torch.Tensor], Any], images: torch.Tensor) -> dict[str, Any]:
    """Latency of one image and throughput of a batch, with how they spread."""
    one, many = timed(lambda: run(images[:1])), timed(lambda: run(images))
    rates = [len(images) / seconds for seconds in many]
    return {"batch1_ms": spread([1e3 * seconds for seconds in one]), "batch64_images_per_s": spread(rates)}


def timed(work: Callable[[], Any]) -> list[float]:
    """Seconds of each pass, after a warm-up."""
    for _ in range(WARM_UP):
        work()
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < LEAST or (len(found) < MOST and time.perf_counter() - began < ENOUGH_S):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Percentiles."""
    return {f"p{at}": float(np.percentile(values, at)) for at in (10, 50, 90)}


if __name__ == "__main__":
    main()
