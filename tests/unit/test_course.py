"""When a run is evaluated, and when it ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kdcluster.course import TENTHS, Course, evaluation_count
from kdcluster.experiment.training import Train

lengths = st.integers(1, 10_000)
per_epoch = st.integers(1, 500)


@given(epochs=st.integers(1, 200), per_epoch=per_epoch)
def test_epochs_are_evaluated_each(epochs: int, per_epoch: int) -> None:
    train = Train(epochs=epochs)
    course = Course.of(train, per_epoch)
    assert list(course.ends) == [per_epoch * (number + 1) for number in range(epochs)]
    assert (course.steps, course.epochs, len(course.ends)) == (per_epoch * epochs, epochs, evaluation_count(train))
    assert [course.epoch(step) for step in course.ends] == list(range(1, epochs + 1))


@given(steps=lengths, few=per_epoch, many=per_epoch)
def test_runs_of_as_many_steps_are_evaluated_at_the_same_ones(steps: int, few: int, many: int) -> None:
    train = Train(steps=steps)
    one, other = Course.of(train, few), Course.of(train, many)
    assert one.ends == other.ends
    assert len(one.ends) == evaluation_count(train) == min(TENTHS, steps)
    assert one.steps == other.steps == one.ends[-1] == steps
    gaps = [after - before for before, after in zip((0, *one.ends), one.ends, strict=False)]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


@given(steps=lengths, per_epoch=per_epoch)
def test_the_last_epoch_of_so_many_steps_may_be_a_part(steps: int, per_epoch: int) -> None:
    course = Course.of(Train(steps=steps), per_epoch)
    assert (course.epochs - 1) * per_epoch < steps <= course.epochs * per_epoch
    assert course.epoch(steps) == course.epochs
    assert course.epoch(steps - 1) < course.epochs


@given(steps=lengths, step=st.integers(0, 10_000))
def test_what_is_due_is_what_has_been_passed(steps: int, step: int) -> None:
    course = Course.of(Train(steps=steps), 7)
    assert course.due(step) == sum(end <= step for end in course.ends)
