"""What can be said of single images, from logits that were kept: pure functions of arrays, without torch.

Letters: N images, C classes. Logits are (N, C) of any floating type, labels (N,) whole numbers below C. Where logits
are equal the lower class is taken.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits = NDArray[np.floating[Any]]
    Labels = NDArray[np.integer[Any]]


def right(logits: Logits, labels: Labels) -> tuple[int, int]:
    """How many images are right for sure, and at most: where rounding has made the largest logits equal, the label may
    have been the largest before, or not."""
    import numpy as np

    logits = logits.astype(np.float32)
    largest = logits.max(axis=1, keepdims=True) == logits  # (N, C)
    hit = largest[np.arange(len(labels)), labels]
    return int((hit & (largest.sum(axis=1) == 1)).sum()), int(hit.sum())


def predicted(logits: Logits) -> NDArray[np.intp]:
    """(N,) the class of the largest logit."""
    import numpy as np

    found: NDArray[np.intp] = logits.astype(np.float32).argmax(axis=1)
    return found


def top_k(logits: Logits, labels: Labels, k: int = 5) -> NDArray[np.bool_]:
    """(N,) whether the label is among the k largest."""
    import numpy as np

    logits = logits.astype(np.float32)
    own = logits[np.arange(len(labels)), labels][:, None]
    before = np.arange(logits.shape[1]) < labels[:, None]
    found: NDArray[np.bool_] = ((logits > own) | ((logits == own) & before)).sum(axis=1) < k
    return found


def confusion(labels: Labels, guesses: Labels, classes: int) -> NDArray[np.int64]:
    """(C, C) images by label (row) and predicted class (column)."""
    import numpy as np

    found: NDArray[np.int64] = np.bincount(labels.astype(np.int64) * classes + guesses, minlength=classes**2)
    return found.reshape(classes, classes)


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """(N, C) in float64."""
    import numpy as np

    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def calibration(logits: Logits, labels: Labels, bins: int = 15) -> list[tuple[int, float, float]]:
    """(images, mean confidence, accuracy) of each of so many equal bins of the confidence, the largest probability at
    temperature 1; shares of 1, and 0 where a bin is empty. Bin i holds (i / bins, (i + 1) / bins]."""
    import numpy as np

    confidence = np.exp(log_softmax(logits).max(axis=1))
    hit = predicted(logits) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    sums = (np.bincount(which, weights=values, minlength=bins) for values in (confidence, hit))
    means = [np.divide(total, counts, out=np.zeros(bins), where=counts > 0) for total in sums]
    return list(zip(counts.tolist(), *(mean.tolist() for mean in means), strict=True))


def ece(logits: Logits, labels: Labels, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599), a share of 1: |accuracy - confidence| of the bins
    of `calibration`, weighted by their images."""
    found = calibration(logits, labels, bins)
    return sum(n * abs(accuracy - confidence) for n, confidence, accuracy in found) / len(labels)


def agreement(one: Logits, other: Logits) -> float:
    """Of how many images both predict the same class, a share of 1."""
    return float((predicted(one) == predicted(other)).mean())


def kl(teacher: Logits, student: Logits) -> float:
    """KL(teacher ‖ student) at temperature 1, in nats, mean over the images."""
    import numpy as np

    theirs, ours = log_softmax(teacher), log_softmax(student)
    return float((np.exp(theirs) * (theirs - ours)).sum(axis=1).mean())


def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided p of McNemar's exact test (1947): that of images which only one of two models has right, each model is
    as likely to be that one; `fixed` and `broken` are how many of them each has. 1 where there are none."""
    n, most = fixed + broken, max(fixed, broken)
    ways = math.comb(n, most)
    tail = 0  # of 2 ** n, in whole numbers, so that it is exact
    for k in range(most, n + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)
        if ways * n < tail >> 64:  # what is left cannot be seen in a float: of 3,000 images a fifth of the time
            break
    return min(1.0, 2 * tail / (1 << n))
