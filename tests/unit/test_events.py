"""Event files: everything that was written is read, and nothing that was damaged passes for a value."""

import io
import math
import random
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from kdcluster.files import write_aside
from kdcluster.results import events as module
from kdcluster.results import sound
from kdcluster.results.events import Follower, attempt_of, event_files, read_scalars
from kdcluster.results.frames import split

NAME = "events.out.tfevents.1700000000.host.1.0.a1"


def scalar(tag, step, value):
    return event_pb2.Event(
        wall_time=1.7e9 + step, step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)])
    )


def start(step):
    return event_pb2.Event(
        wall_time=1.7e9, step=step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    )


def top1(steps, offset=0.0):
    return [scalar("test/top1", step, offset + step / 8) for step in steps]


def write(folder, events, name=NAME):
    folder.mkdir(exist_ok=True)
    path = folder / name
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for event in (event_pb2.Event(wall_time=1.7e9, file_version="brain.Event:2"), *events):
            writer.write(event.SerializeToString())
    return path


def values(scalars, tag="test/top1"):
    return {point.step: point.value for point in scalars.points.get(tag, [])}


def offsets(path):
    """Where each record begins."""
    found, at = [], 0
    for record in split(path.read_bytes()).records:
        found.append(at)
        at += len(record) + 16
    return found


def change(path, at, new):
    data = path.read_bytes()
    path.write_bytes(data[:at] + new + data[at + len(new) :])


def flip(path, at, bit=2):
    change(path, at, bytes([path.read_bytes()[at] ^ 1 << bit]))


# --- what is there is read


def test_every_one_of_15000_points_is_kept(tmp_path):
    writer = EventFileWriter(str(tmp_path), max_queue_size=1000, filename_suffix=".a1")
    for step in range(5000):
        for tag in ("test/top1", "train/loss", "val/top1"):
            writer.add_event(scalar(tag, step, step / 64))
    writer.close()
    scalars = read_scalars(tmp_path, prefixes=("test/", "val/", "train/"))
    assert {tag: len(points) for tag, points in scalars.points.items()} == dict.fromkeys(
        ("test/top1", "train/loss", "val/top1"), 5000
    )
    assert values(scalars) == {step: step / 64 for step in range(5000)}
    assert scalars.problems == scalars.incomplete == ()


def test_what_torch_writes_is_read_as_tensorboard_reads_it(tmp_path):
    for attempt, (first, last) in enumerate([(0, 9), (6, 12)], start=1):
        writer = SummaryWriter(tmp_path, purge_step=first, filename_suffix=f".a{attempt}")
        for step in range(first, last):
            writer.add_scalar("test/top1", 10 * attempt + step / 3, step)
            writer.add_scalar("test/loss", step / 7, step, new_style=True)
            writer.add_scalar("train/loss", step, step)
        writer.add_text("test/note", "not a scalar")
        writer.close()
    scalars = read_scalars(tmp_path)
    assert set(scalars.points) == {"test/top1", "test/loss"}
    theirs = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    assert values(scalars) == {event.step: event.value for event in theirs.Scalars("test/top1")}
    assert values(scalars, "test/loss") == {
        step: struct.unpack("<f", struct.pack("<f", step / 7))[0] for step in range(12)
    }
    assert [point.attempt for point in scalars.points["test/top1"]] == [1] * 6 + [2] * 6
    assert scalars.problems == scalars.incomplete == ()


def test_float_tensors_of_one_element_are_scalars_and_others_are_not(tmp_path):
    tensors = {
        "test/a": TensorProto(dtype=1, float_val=[1.5]),
        "test/b": TensorProto(dtype=1, tensor_content=struct.pack("<f", 2.5)),
        "test/vector": TensorProto(dtype=1, float_val=[1.0, 2.0]),
        "test/text": TensorProto(dtype=7, string_val=[b"words"]),
    }
    event = event_pb2.Event(step=3)
    for tag, tensor in tensors.items():
        event.summary.value.add(tag=tag).tensor.CopyFrom(tensor)
    write(tmp_path, [event])
    scalars = read_scalars(tmp_path)
    assert {tag: [(p.step, p.value) for p in points] for tag, points in scalars.points.items()} == {
        "test/a": [(3, 1.5)],
        "test/b": [(3, 2.5)],
    }


@pytest.mark.parametrize("events", [None, []], ids=["empty file", "only the version record"])
def test_a_file_without_scalars_is_no_damage(tmp_path, events):
    write(tmp_path, events or [])
    if events is None:
        (tmp_path / NAME).write_bytes(b"")
    scalars = read_scalars(tmp_path)
    assert (scalars.points, scalars.problems, scalars.incomplete) == ({}, (), ())


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    assert read_scalars(tmp_path / "events").points == {}


def test_a_file_that_cannot_be_read_is_reported(tmp_path):
    (tmp_path / NAME).mkdir()
    assert read_scalars(tmp_path).problems == (f"{NAME}: cannot be read: Is a directory",)


# --- damage


@pytest.mark.parametrize("there", [7, 12, 20, 45], ids=lambda there: f"{there} bytes of the last record")
def test_an_unfinished_tail_is_not_damage(tmp_path, there):
    path = write(tmp_path, top1(range(50)))
    path.write_bytes(path.read_bytes()[: offsets(path)[-1] + there])
    scalars = read_scalars(tmp_path)
    assert values(scalars) == {step: step / 8 for step in range(49)}
    assert scalars.problems == ()
    assert scalars.incomplete == (f"{NAME}: ends inside a record, after {there} bytes of it",)


def test_a_flipped_bit_in_a_value_costs_that_point_alone(tmp_path):
    path = write(tmp_path, top1(range(50)))
    at = offsets(path)[20]
    size = offsets(path)[21] - at
    flip(path, at + size - 6)
    scalars = read_scalars(tmp_path)
    assert values(scalars) == {step: step / 8 for step in range(50) if step != 19}
    assert scalars.problems == (f"{NAME}: {size} bytes lost in 1 damaged place, the first at byte {at}",)
    assert scalars.incomplete == ()


@pytest.mark.parametrize("byte", range(12))
def test_a_damaged_header_costs_that_point_alone(tmp_path, byte):
    path = write(tmp_path, top1(range(50)))
    flip(path, offsets(path)[20] + byte)
    scalars = read_scalars(tmp_path)
    assert values(scalars) == {step: step / 8 for step in range(50) if step != 19}
    assert "damaged" in scalars.problems[0]


def test_a_damaged_header_of_the_last_record_is_damage_and_no_tail(tmp_path):
    path = write(tmp_path, top1(range(5)))
    flip(path, offsets(path)[-1])
    scalars = read_scalars(tmp_path)
    assert list(values(scalars)) == [0, 1, 2, 3]
    assert len(scalars.problems) == 1
    assert scalars.incomplete == ()


def test_nuls_after_the_end_are_reported_and_cost_nothing(tmp_path):
    path = write(tmp_path, top1(range(50)))
    path.write_bytes(path.read_bytes() + bytes(4096))
    scalars = read_scalars(tmp_path)
    assert len(values(scalars)) == 50
    assert "4096 bytes lost" in scalars.problems[0]


def test_a_hole_of_nuls_costs_what_it_covers(tmp_path):
    path = write(tmp_path, top1(range(500)))
    starts = offsets(path)
    change(path, starts[101] + 20, bytes(4096))
    scalars = read_scalars(tmp_path)
    lost = set(range(500)) - set(values(scalars))
    covered = [i - 1 for i, at in enumerate(starts) if starts[101] <= at < starts[101] + 20 + 4096]
    assert lost == set(covered)
    assert "1 damaged place" in scalars.problems[0]


def test_bytes_cut_out_of_the_middle_cost_no_more_than_the_records_they_are_of(tmp_path):
    path = write(tmp_path, top1(range(50)))
    starts, data = offsets(path), path.read_bytes()
    path.write_bytes(data[: starts[11] + 5] + data[starts[13] + 9 :])
    scalars = read_scalars(tmp_path)
    assert set(range(50)) - set(values(scalars)) <= {10, 11, 12}
    assert scalars.problems


def test_two_damaged_places_are_counted(tmp_path):
    path = write(tmp_path, top1(range(50)))
    for record in (10, 30):
        flip(path, offsets(path)[record] + 14)
    assert "2 damaged places" in read_scalars(tmp_path).problems[0]


def test_any_single_flipped_bit_is_found_in_the_framing(tmp_path):
    data = write(tmp_path, top1(range(6))).read_bytes()
    whole = split(data).records
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        frames = split(bytes(damaged))
        assert frames.lost
        assert [record for record in whole if record in frames.records] == frames.records
        assert len(frames.records) == len(whole) - 1


@pytest.fixture(scope="module")
def flipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flipped")
    events = [start(0)]
    for step in range(1, 41):
        events += [scalar("train/loss", step, 1 / step), scalar("val/top1", step, step / 7), *top1([step])]
    path = write(folder, events)
    return path, path.read_bytes(), read_scalars(folder)


@settings(max_examples=150, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True))
def test_a_flipped_bit_never_gives_a_value_that_was_not_written(flipped, where):
    path, data, whole = flipped
    bit = int(where * 8 * len(data))
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    scalars = read_scalars(path.parent)
    lost = 0
    for tag, points in whole.points.items():
        assert set(scalars.points[tag]) <= set(points)
        lost += len(points) - len(scalars.points[tag])
    assert lost <= 1
    assert scalars.problems


# --- attempts


def test_a_purge_removes_what_older_files_have_from_that_step_on(tmp_path):
    write(tmp_path, [*top1(range(100), 5), *top1([100])], "events.out.tfevents.1700000000.h.1.0.a1")
    write(tmp_path, [start(50), *top1(range(50, 80))], "events.out.tfevents.1700000001.h.2.0.a2")
    scalars = read_scalars(tmp_path)
    assert values(scalars) == {step: step / 8 + (5 if step < 50 else 0) for step in range(80)}
    assert scalars.problems == ()


def test_a_purge_removes_tags_that_the_newer_file_does_not_write(tmp_path):
    write(tmp_path, [scalar("val/top1", 9, 1.0)], "events.out.tfevents.1700000000.h.1.0.a1")
    write(tmp_path, [start(5)], "events.out.tfevents.1700000001.h.2.0.a2")
    assert read_scalars(tmp_path).points == {}


def test_attempts_are_read_in_their_order_whatever_the_clocks_said(tmp_path):
    write(tmp_path, top1(range(10), 5), "events.out.tfevents.1700000009.h.1.0.a9")
    write(tmp_path, [start(5), *top1(range(5, 10))], "events.out.tfevents.1700000000.h.1.0.a10")
    (tmp_path / "notes.txt").write_text("not an event file")
    assert [attempt_of(path) for path in event_files(tmp_path)] == [9, 10]
    assert values(read_scalars(tmp_path))[9] == 9 / 8


def test_files_of_one_attempt_are_read_by_their_creation_time(tmp_path):
    names = [f"events.out.tfevents.{created}.h.1.0" for created in (999999999, 1700000000, 1700000000)]
    write(tmp_path, top1(range(10), 5), names[0])
    write(tmp_path, [start(5), *top1(range(5, 10))], names[1])
    assert values(read_scalars(tmp_path))[9] == 9 / 8


def test_a_newer_attempt_without_a_purge_wins(tmp_path):
    write(tmp_path, top1(range(100), 5), "events.out.tfevents.1700000000.h.1.0.a1")
    write(tmp_path, top1(range(50, 150)), "events.out.tfevents.1700000001.h.2.0.a2")
    scalars = read_scalars(tmp_path)
    assert values(scalars) == {step: step / 8 + (5 if step < 50 else 0) for step in range(150)}
    assert scalars.problems == ()


def test_two_writers_of_one_attempt_are_reported(tmp_path):
    for rank in (0, 1):
        write(tmp_path, top1(range(100), rank), f"events.out.tfevents.1700000000.h.{rank}.0.a1")
    scalars = read_scalars(tmp_path)
    assert values(scalars) == {step: 1 + step / 8 for step in range(100)}
    assert scalars.problems == ("test/top1: 100 points replaced by the same attempt, without a purge (two writers?)",)


def test_a_first_file_that_was_cut_is_no_damage(tmp_path):
    path = write(tmp_path, top1(range(100), 5), "events.out.tfevents.1700000000.h.1.0.a1")
    path.write_bytes(path.read_bytes()[:-3])
    write(tmp_path, [start(99), *top1(range(99, 150))], "events.out.tfevents.1700000001.h.2.0.a2")
    scalars = read_scalars(tmp_path)
    assert len(values(scalars)) == 150
    assert scalars.problems == ()
    assert len(scalars.incomplete) == 1


def test_a_lost_start_record_lets_no_thrown_away_point_of_the_same_steps_live(tmp_path):
    write(tmp_path, top1(range(100), 5), "events.out.tfevents.1700000000.h.1.0.a1")
    path = write(tmp_path, [start(50), *top1(range(50, 100))], "events.out.tfevents.1700000001.h.2.0.a2")
    flip(path, offsets(path)[1] + 13)
    scalars = read_scalars(tmp_path)
    assert values(scalars) == {step: step / 8 + (5 if step < 50 else 0) for step in range(100)}
    assert scalars.problems


# --- values


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 100.5, -0.5, 3.1e38])
def test_an_impossible_accuracy_is_reported_and_left_out(tmp_path, value):
    write(tmp_path, [*top1(range(3)), scalar("test/top1", 3, value), scalar("val/top5", 3, value)])
    scalars = read_scalars(tmp_path)
    assert list(values(scalars)) == [0, 1, 2]
    assert [said.partition(":")[0] for said in scalars.problems] == ["test/top1", "val/top5"]
    assert "1 impossible value left out" in scalars.problems[0]
    assert "at step 3" in scalars.problems[0]


def test_a_loss_may_be_large_but_not_infinite(tmp_path):
    write(tmp_path, [scalar("test/loss", 1, 250.0), scalar("test/loss", 2, math.inf)])
    scalars = read_scalars(tmp_path)
    assert values(scalars, "test/loss") == {1: 250.0}
    assert len(scalars.problems) == 1


def test_impossible_values_that_were_purged_are_not_reported(tmp_path):
    write(tmp_path, [scalar("test/top1", 3, math.nan), start(2), *top1([2, 3])])
    assert read_scalars(tmp_path).problems == ()


def test_the_bounds_of_an_accuracy_are_possible(tmp_path):
    write(tmp_path, [scalar("test/top1", 1, 0.0), scalar("test/top1", 2, 100.0)])
    assert values(read_scalars(tmp_path)) == {1: 0.0, 2: 100.0}


# --- read on while a run writes


def content(events):
    with io.BytesIO() as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
        return file.getvalue()


def embedded(step):
    """A record that holds another one: where the outer one is not whole, the inner one counts, until it is."""
    inner = content(top1([step]))
    event = scalar("test/top1", step, 1.0)
    event.summary.value.add(tag="test/note").tensor.CopyFrom(TensorProto(dtype=7, string_val=[inner, inner]))
    return event


STEPS = st.integers(0, 30)
EVENT = st.one_of(
    st.builds(
        lambda step, value: scalar("test/top1", step, value), STEPS, st.sampled_from([1.0, 2.0, math.nan, 101.0])
    ),
    st.builds(lambda step: scalar("train/loss", step, 1.0), STEPS),
    st.builds(start, STEPS),
    st.builds(embedded, STEPS),
)


@st.composite
def grown(draw):
    """(file, bytes that it is given) one after the other: events, damaged here and there, in pieces of any size.

    Mostly one attempt after the other, sometimes two at once.
    """
    pieces = []
    for attempt in range(1, draw(st.integers(1, 3)) + 1):
        data = bytearray(content(draw(st.lists(EVENT, max_size=8))))
        for _ in range(draw(st.integers(0, 2)) if data else 0):
            at = draw(st.integers(0, len(data) - 1))
            change = draw(st.sampled_from(["flip", "cut out", "nuls", "cut off"]))
            if change == "flip":
                data[at] ^= 1 << draw(st.integers(0, 7))
            else:
                until = len(data) if change == "cut off" else at + draw(st.integers(0, 80))
                data[at:until] = bytes(20) if change == "nuls" else b""
            if not data:
                break
        ends = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
        bounds = zip([0, *ends], [*ends, len(data)], strict=True)
        pieces.append([(f"events.out.tfevents.1700000000.h.1.0.a{attempt}", bytes(data[a:b])) for a, b in bounds])
    if draw(st.booleans()):
        return [piece for file in pieces for piece in file]
    order = draw(st.permutations([number for number, file in enumerate(pieces) for _ in file]))
    left = [iter(file) for file in pieces]
    return [next(left[number]) for number in order]


@settings(max_examples=400, deadline=None)
@given(grown())
def test_however_files_grow_each_look_gives_what_reading_everything_gives(pieces):
    with tempfile.TemporaryDirectory() as name:
        follower = Follower(Path(name))
        for file, data in pieces:
            with (Path(name) / file).open("ab") as open_file:
                open_file.write(data)
            assert repr(follower.look()) == repr(read_scalars(Path(name)))  # as text, for the sake of nan
        assert repr(follower.look()) == repr(read_scalars(Path(name)))


# --- long files, whose sound beginning is looked at at once


def others(steps):
    """What most of a file is: scalars that nobody wants here, and some that look as if they were wanted."""
    tags = ("train/loss", "train/kd", "perf/images_per_s", "x", "a/test/top1", "tes", "val")
    return [scalar(tag, step, 3.0**at) for step in steps for at, tag in enumerate(tags)]


@pytest.fixture
def few(monkeypatch):
    """Files need not be long, nor records many."""
    monkeypatch.setattr(sound, "LONG", 32)
    monkeypatch.setattr(sound, "MANY", 2)


def taken(data, begun, records):
    """What is made of a file of which the beginning was looked at at once."""
    rest = split(data[begun:], begun)
    history = module._History(("test/", "val/"))
    for record in (*records, *rest.records):
        history.take(record, 1)
    return repr((history.sound(), rest.lost, rest.tail, rest.settled, rest.open))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(grown(), st.integers(0, 40))
def test_a_beginning_that_is_looked_at_at_once_gives_what_each_record_gives(few, pieces, many):
    data = content(others(range(many))) + b"".join(data for _, data in pieces)
    assert taken(data, *sound.records(data, (b"test/", b"val/"))) == taken(data, 0, [])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**9))
def test_one_changed_byte_is_found_in_a_long_file(few, seed):
    chance = random.Random(seed)
    events = [start(0), *others(range(100, 140)), *top1(range(30)), *others([0, 1, 10**5, 2**40])]
    events.append(event_pb2.Event(step=1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START)))
    data = bytearray(content(events))
    begun, _ = sound.records(bytes(data), (b"test/",))
    assert begun == len(data)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    begun, records = sound.records(bytes(data), (b"test/", b"val/"))
    assert begun < len(data)
    assert taken(bytes(data), begun, records) == taken(bytes(data), 0, [])


def test_of_a_long_file_hardly_a_record_is_parsed(tmp_path, monkeypatch):
    events = [start(0), *others(range(2000)), *top1(range(10))]
    path = write(tmp_path, events)
    assert path.stat().st_size > 10 * sound.LONG
    begun, records = sound.records(path.read_bytes(), (b"test/", b"val/"))
    assert begun == path.stat().st_size
    assert len(records) < 20  # the version, the start, ten that are wanted, and a few in groups that are small
    assert list(values(read_scalars(tmp_path))) == list(range(10))


@pytest.fixture
def bytes_read(monkeypatch):
    """How many bytes each reading of a file took."""
    sizes = []
    monkeypatch.setattr(module, "split", lambda data, base: sizes.append(len(data)) or split(data, base))
    return sizes


def test_a_look_reads_only_what_is_new(tmp_path, bytes_read):
    path = write(tmp_path, top1(range(500)))
    whole = path.read_bytes()
    follower = Follower(tmp_path)
    path.write_bytes(whole[:-10])
    assert len(values(follower.look())) == 499
    path.write_bytes(whole)
    assert len(values(follower.look())) == 500
    assert len(values(follower.look())) == 500
    record = len(whole) - offsets(path)[-1]
    assert bytes_read == [len(whole) - 10, record, 0]
    write(tmp_path, [start(499), *top1([499], 1.0)], NAME.replace(".a1", ".a2"))
    assert values(follower.look())[499] == 499 / 8 + 1.0
    assert sum(bytes_read[3:]) < 4 * record


@pytest.mark.parametrize("what", ["shrank", "was replaced", "is gone", "an older one grew", "one came in between"])
def test_what_did_not_just_grow_is_read_again(tmp_path, what):
    names = [NAME.replace(".a1", f".a{attempt}") for attempt in (1, 3)]
    older, newer = (write(tmp_path, top1(range(9), offset), name) for offset, name in enumerate(names))
    follower = Follower(tmp_path)
    follower.look()
    data = content(top1(range(5, 30), 7.0))
    if what == "shrank":
        newer.write_bytes(data[:200])
    elif what == "was replaced":
        write_aside(newer, data)
    elif what == "is gone":
        newer.unlink()
    elif what == "an older one grew":
        older.write_bytes(older.read_bytes() + data)
    else:
        (tmp_path / NAME.replace(".a1", ".a2")).write_bytes(data)
    assert follower.look() == read_scalars(tmp_path)


def test_a_file_that_can_be_read_again_is_read(tmp_path):
    (tmp_path / NAME).mkdir()
    follower = Follower(tmp_path)
    assert follower.look().problems == (f"{NAME}: cannot be read: Is a directory",)
    (tmp_path / NAME).rmdir()
    write(tmp_path, top1(range(3)))
    assert len(values(follower.look())) == 3
    assert follower.look().problems == ()
