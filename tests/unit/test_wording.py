"""Words for people: counts, and what text from outside may not do."""

from __future__ import annotations

import pytest

from kdcluster.wording import count


@pytest.mark.parametrize(
    ("number", "what", "said"),
    [
        (0, "run", "0 runs"),
        (1, "run", "1 run"),
        (1.0, "GPU", "1 GPU"),
        (0.5, "GPU", "0.5 GPUs"),
        (2, "CPU process", "2 CPU processes"),
        (12345678, "byte", "12345678 bytes"),
    ],
)
def test_a_count(number: float, what: str, said: str) -> None:
    assert count(number, what) == said
