"""The results table, from run directories made by hand: what is in the means, and all that is said when it is not."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from kdcluster import plan as planning
from kdcluster.experiment import configfile
from kdcluster.results.measured import TOP1, measure
from kdcluster.results.render import render
from kdcluster.results.single import decimal, float32
from kdcluster.results.spread import interval95, t_quantile
from kdcluster.results.table import build
from kdcluster.run import TRAINED
from kdcluster.runs import RunDir

GOLDEN = Path(__file__).parents[1] / "golden" / "results_table.txt"
STEPS = 10
"""Steps of an epoch."""
PARAMS = {"teacher": 85_875_556, "baseline": 5_543_716, "distilled": 5_543_716}
TEACHER = [80.0, 90.0, 91.125]
BASELINE = [[70.0, 77.0, 76.5], [71.0, 76.0, 76.25], [69.0, 75.5, 77.5]]
DISTILLED = [[75.0, 83.0, 83.5], [76.0, 83.25, 83.0], [74.0, 82.0, 83.0]]


def planned(tmp_path, *overrides, seeds=(0, 1, 2)):
    return planned_with(tmp_path, "train: {epochs: 3}", *overrides, seeds=seeds)


def planned_with(tmp_path, train, *overrides, seeds=(0, 1, 2), data="{name: cifar100}"):
    path = tmp_path / "exp1.yaml"
    path.write_text(
        f"data: {data}\n"
        "teacher: {model: vit_base_patch16_224, pretrained: false}\n"
        "student: {model: vit_tiny_patch16_224, pretrained: false}\n"
        f"{train}\nseeds: {list(seeds)}\n"
    )
    return planning.plan([configfile.load(str(path), overrides)])


def evaluation(epoch, top1, val=None, step=None):
    values = {"test/top1": top1, "test/top5": 99.0, "test/loss": 1.0}
    if val is not None:
        values |= {"val/top1": val, "val/top5": 99.0, "val/loss": 1.0}
    return {"epoch": epoch, "step": epoch * STEPS if step is None else step, **values}


def fabricate(root, run, tops, *, vals=None, outcome="done", result=True, step=STEPS, **trainer):
    """The directory of a run that was evaluated after each epoch, as the trainer leaves it."""
    directory = RunDir(root, run.id)
    attempt = directory.start_attempt({})
    facts = {"params": PARAMS[run.role], "batchnorm_batch": None, "trainer_code": "today"} | trainer
    attempt.write("trainer", {"steps_per_epoch": STEPS, "procs": 2, "device": "cpu", "threads": 1, **facts})
    attempt.write("outcome", {"state": outcome})
    attempt.log().write_text("step 1\n")
    epochs = [evaluation(i, top1, vals[i - 1] if vals else None, i * step) for i, top1 in enumerate(tops, start=1)]
    if run.train is None:
        epochs = [evaluation(0, tops[0])]
    writer = EventFileWriter(str(directory.events), filename_suffix=f".a{attempt.number}")
    for epoch in epochs:
        for tag in sorted(epoch.keys() - {"epoch", "step"}):
            value = Summary.Value(tag=tag, simple_value=epoch[tag])
            writer.add_event(event_pb2.Event(wall_time=1.0, step=epoch["step"], summary=Summary(value=[value])))
    writer.close()
    if result:
        by = "val/top1" if vals else "test/top1"
        document = {
            "schema": "kdcluster.result/1", "id": run.id, "hash": run.hash, "attempt": attempt.number,
            "epochs": len(epochs), "steps": epochs[-1]["step"], "selected_on": by[:-5],
            "best": max(epochs, key=lambda epoch: epoch[by]), "last": epochs[-1], **facts,
        }  # fmt: skip
        (directory.path / "result.json").write_text(json.dumps(document))
    return directory


def of(plan, role, seed=0):
    return next(run for run in plan.runs if run.role == role and (role == "teacher" or run.seed == seed))


def trained(plan):
    """Its runs but the store of the teacher's logits."""
    return [run for run in plan.runs if run.role in TRAINED]


def full(root, plan, **trainer):
    """Every run of a plan with three seeds done."""
    fabricate(root, of(plan, "teacher"), TEACHER)
    for seed in range(3):
        fabricate(root, of(plan, "baseline", seed), BASELINE[seed])
        fabricate(root, of(plan, "distilled", seed), DISTILLED[seed], **trainer)


def rows(table):
    (experiment,) = table.experiments
    return {row.role: row for row in experiment.rows}


def reasons(table):
    return [problem.reason for problem in table.experiments[0].problems]


def said(table):
    return table.experiments[0].notes


def without_hashes(text):
    return re.sub(r"(-s\d+-)[0-9a-f]{8}\b", r"\1<hash8>", text)


def edit(path, **values):
    document = json.loads(path.read_text())
    for key, value in values.items():
        *blocks, last = key.split("__")
        inner = document
        for block in blocks:
            inner = inner[block]
        inner[last] = value
    path.write_text(json.dumps(document))


# --- numbers


def test_means_spread_gain_and_retention(tmp_path):
    plan = planned(tmp_path)
    full(tmp_path, plan)
    table = build(plan, tmp_path, trainer_code="today")
    found = rows(table)
    assert found["teacher"].top1_mean == 91.125
    assert (found["teacher"].top1_sd, found["teacher"].gain, found["teacher"].retention) == (None, None, None)
    baseline, distilled = found["baseline"], found["distilled"]
    assert baseline.top1_mean == pytest.approx((77.0 + 76.25 + 77.5) / 3)
    assert distilled.top1_mean == pytest.approx((83.5 + 83.25 + 83.0) / 3)
    assert distilled.top1_sd == pytest.approx(0.25)
    assert baseline.gain is None
    gains = [6.5, 7.0, 5.5]
    assert distilled.gain == pytest.approx(sum(gains) / 3)
    half = 4.302652729749 * math.sqrt(sum((g - sum(gains) / 3) ** 2 for g in gains) / 2) / math.sqrt(3)
    assert distilled.gain_ci95 == pytest.approx((distilled.gain - half, distilled.gain + half))
    assert distilled.retention == pytest.approx(100 * 83.25 / 91.125)
    assert distilled.reduction == pytest.approx(85_875_556 / 5_543_716)
    assert (distilled.n, distilled.n_expected) == (3, 3)
    assert distilled.configuration == "distilled: vit_tiny_patch16_224 (α 0.5, T 4)"
    assert distilled.runs == plan.wanted["exp1"]["distilled"]
    assert table.complete
    assert table.experiments[0].problems == ()


def test_each_seed_with_its_gain_its_cost_and_its_time(tmp_path):
    plan = planned(tmp_path)
    full(tmp_path, plan)
    RunDir(tmp_path, of(plan, "baseline", 2).id).attempt(1).write("outcome", {"state": "failed"})
    (tmp_path / of(plan, "baseline", 2).id / "result.json").unlink()
    first = RunDir(tmp_path, of(plan, "distilled", 1).id).attempt(1)
    first.write("start", {"started": 1000.0, "host": "here", "gpus_held": 2})
    first.write("outcome", {"state": "done", "time": 1090.0})
    (experiment,) = build(plan, tmp_path).experiments
    found = {(row.role, row.seed): row for row in experiment.seeds}
    assert list(found) == [("teacher", 0), *((role, seed) for role in ("baseline", "distilled") for seed in range(3))]
    assert [found["distilled", seed].gain for seed in range(3)] == [6.5, 7.0, None]
    assert (found["baseline", 2].top1, found["distilled", 2].top1, found["teacher", 0].gain) == (None, 83.0, None)
    assert found["distilled", 1].run == of(plan, "distilled", 1).id
    assert (found["distilled", 1].gpu_hours, found["distilled", 1].wall_s) == (0.05, 90.0)
    assert "7 runs took 1:30, summed; 0.05 GPU-hours" in experiment.notes


@pytest.mark.parametrize("lost", [False, True], ids=["from the events", "from result.json"])
def test_accuracies_have_the_decimals_of_their_counts(tmp_path, lost):
    """An event file has float32: 89.32 is 89.31999969482422 there."""
    plan = planned(tmp_path, seeds=(0, 1))
    directories = [fabricate(tmp_path, of(plan, "baseline", seed), [top1]) for seed, top1 in enumerate((89.32, 89.06))]
    for directory in directories if lost else ():
        shutil.rmtree(directory.events)
    table = build(plan, tmp_path, trainer_code="today")
    assert [seed.top1 for seed in table.experiments[0].seeds if seed.top1 is not None] == [89.32, 89.06]
    assert rows(table)["baseline"].top1_mean == 89.19
    assert not any("contradict" in problem.reason for problem in table.experiments[0].problems)
    assert ",89.32," in render(table, "csv", per_seed=True)


@pytest.mark.parametrize("bits", [0, 1, 0x7F7FFFFF, *range(0x42000000, 0x42C80000, 99_991)])
def test_a_decimal_is_the_shortest_of_its_float32(bits):
    value = np.uint32(bits).view(np.float32)
    assert decimal(float(value)) == float(str(value))
    assert float32(decimal(float(value))) == value


def test_protocol_last_takes_the_last_epoch(tmp_path):
    plan = planned(tmp_path)
    full(tmp_path, plan)
    table = build(plan, tmp_path, "last")
    assert rows(table)["baseline"].top1_mean == pytest.approx((76.5 + 76.25 + 77.5) / 3)
    assert "last epoch" in table.experiments[0].notes[0]
    assert "selected on test" not in table.experiments[0].notes[0]
    assert table.experiments[0].problems == ()


def test_with_a_validation_split_the_best_epoch_is_chosen_there(tmp_path):
    plan = planned(tmp_path, "data.val_fraction=0.1", seeds=[0])
    fabricate(tmp_path, of(plan, "teacher"), TEACHER, vals=[1.0, 2.0, 3.0])
    fabricate(tmp_path, of(plan, "baseline"), [70.0, 77.0, 76.5], vals=[60.0, 60.0, 50.0])
    table = build(plan, tmp_path)
    assert rows(table)["baseline"].top1_mean == 70.0  # the first of equals, not the best on test
    assert table.experiments[0].notes[0] == "protocol best: each run counts with test/top1 of its best val/top1 epoch"
    assert not [p for p in table.experiments[0].problems if p.state == "done"]


def test_without_a_split_the_table_says_selected_on_test(tmp_path):
    plan = planned(tmp_path)
    full(tmp_path, plan)
    assert "selected on test" in build(plan, tmp_path).experiments[0].notes[0]


def test_one_seed_has_a_gain_but_no_spread(tmp_path):
    plan = planned(tmp_path, seeds=[0])
    for role, tops in (("teacher", TEACHER), ("baseline", BASELINE[0]), ("distilled", DISTILLED[0])):
        fabricate(tmp_path, of(plan, role), tops)
    table = build(plan, tmp_path)
    row = rows(table)["distilled"]
    assert (row.n, row.top1_mean, row.top1_sd, row.gain, row.gain_ci95) == (1, 83.5, None, 6.5, None)
    assert "of one seed the gain has no interval, and says nothing of other seeds (--seeds 0,1,2)" in said(table)


def test_the_gain_is_over_the_seeds_that_both_have(tmp_path):
    plan = planned(tmp_path)
    full(tmp_path, plan)
    shutil.rmtree(tmp_path / of(plan, "baseline", 0).id)
    shutil.rmtree(tmp_path / of(plan, "distilled", 1).id)
    table = build(plan, tmp_path)
    row = rows(table)["distilled"]
    assert (row.n, row.n_expected, row.gain, row.gain_ci95) == (2, 3, 5.5, None)
    assert "the gain is over the seeds that both have: 2" in table.experiments[0].notes


@pytest.mark.parametrize(
    ("lifts", "said"),
    [
        ((1.0, -1.0, 0.5), "includes zero: no gain is shown; more seeds may tell (--seeds)"),  # +0.2 [-2.4, 2.8]
        ((-2.0, -1.0, 0.5), "includes zero: no gain is shown; more seeds may tell (--seeds)"),
        ((2.0, 2.1, 2.2), "lies above zero: distilled is better than no distillation"),
        ((-2.0, -2.1, -2.2), "lies below zero: distilled is worse than no distillation"),
    ],
)
@pytest.mark.parametrize("style", ["table", "md", "json"])
def test_what_the_interval_of_a_gain_shows_is_said(tmp_path, lifts, said, style):
    plan = planned(tmp_path)
    fabricate(tmp_path, of(plan, "teacher"), TEACHER)
    for seed, lift in enumerate(lifts):
        fabricate(tmp_path, of(plan, "baseline", seed), [60.0])
        fabricate(tmp_path, of(plan, "distilled", seed), [60.0 + lift])
    assert f"with 3 seeds the interval of the gain {said}" in render(build(plan, tmp_path), style)
    shutil.rmtree(tmp_path / of(plan, "distilled", 2).id)  # with a run to come it is too early
    assert "the interval of the gain" not in render(build(plan, tmp_path), style)


@pytest.mark.parametrize(
    ("schedule", "baseline", "distilled", "said"),
    [("constant", [50.0, 60.0], [50.0, 60.0], "2 of 2 students"), ("constant", [50.0, 60.0], [60.0, 50.0], "1 of 2"),
     ("constant", [60.0, 50.0], [60.0, 50.0], None), ("cosine", [50.0, 60.0], [50.0, 60.0], None)],
)  # fmt: skip
def test_students_that_were_still_getting_better_are_counted(tmp_path, schedule, baseline, distilled, said):
    plan = planned(tmp_path, "train.epochs=2", f"train.schedule={schedule}", seeds=[0])
    fabricate(tmp_path, of(plan, "teacher"), [80.0, 90.0])
    fabricate(tmp_path, of(plan, "baseline"), baseline)
    fabricate(tmp_path, of(plan, "distilled"), distilled)
    notes = [note for note in build(plan, tmp_path).experiments[0].notes if "did best in the last epoch" in note]
    assert bool(notes) is bool(said)
    assert not said or notes[0].startswith(said)


def test_a_length_in_steps_is_of_evaluations(tmp_path):
    plan = planned_with(tmp_path, "train: {steps: 30}", seeds=[0])
    tops = [float(number) for number in range(10)]
    for run in trained(plan):
        directory = fabricate(tmp_path, run, tops, steps_per_epoch=7, step=3)
        assert measure(run, directory, "best").problems == ()
    notes = build(plan, tmp_path).experiments[0].notes
    assert "protocol best: each run counts with its best test/top1, so the evaluation is selected on test" in notes
    assert "2 of 2 students did best in the last evaluation: more steps may do better" in notes
    assert build(plan, tmp_path, "last").experiments[0].notes[0] == "protocol last: test/top1 of the last evaluation"


def test_labels_that_are_shared_and_images_without_are_said(tmp_path):
    def notes(train, without):
        plan = planned_with(tmp_path, f"train: {train}", seeds=[0], data="{name: cifar100, labelled: 500}")
        for run in trained(plan):
            fabricate(tmp_path, run, [50.0, 60.0, 70.0], steps_per_epoch=STEPS, images=without[run.role])
        return [note for note in build(plan, tmp_path).experiments[0].notes if "label" in note or "steps" in note]

    said = "distilled: the same labels as teacher and baseline (500), and 3,500 images without"
    none, some = {"labelled": 500, "unlabelled": 0}, {"labelled": 500, "unlabelled": 3500}
    without = {"teacher": none, "baseline": none, "distilled": some}
    assert notes("{epochs: 3}", without)[0] == said
    assert notes("{epochs: 3, lr: 1e-3}", {**without, "distilled": {}})[0] == said.replace("3,500 images", "images")
    alone = planned_with(tmp_path, "train: {epochs: 2}", data="{name: cifar100, labelled: 500}").only(["baseline"])
    assert not any("label" in note for note in build(alone, tmp_path).experiments[0].notes)


def test_epochs_of_unequal_length_are_said(tmp_path):
    plan = planned_with(tmp_path, "train: {epochs: 3}", seeds=[0], data="{name: cifar100, labelled: 500}")
    for run in trained(plan):
        step = 2 if run.role == "distilled" else 1
        fabricate(tmp_path, run, [50.0, 60.0, 70.0], steps_per_epoch=step, step=step)
    said = "distilled took more steps than baseline, whose epochs have fewer images: train.steps gives both as many"
    assert said in build(plan, tmp_path).experiments[0].notes


def test_the_legend_explains_what_there_is(tmp_path):
    """Of runs that are not done it took four lines of a terminal."""
    plan = planned(tmp_path)
    assert build(plan, tmp_path).notes == ()
    for role in ("teacher", "baseline", "distilled"):
        fabricate(tmp_path, of(plan, role), [60.0])
    assert [note.partition(" ")[0] for note in build(plan, tmp_path).notes] == ["gain"]
    full(tmp_path, plan)
    assert [note.partition(" ")[0] for note in build(plan, tmp_path).notes] == ["±", "gain"]


def test_an_evaluate_only_teacher_has_one_evaluation_at_step_0(tmp_path):
    plan = planned(tmp_path, "teacher.train=none", "teacher.pretrained=true",
                   "teacher.model=vit_base_patch16_224.augreg_in21k", seeds=[0])  # fmt: skip
    teacher = of(plan, "teacher")
    fabricate(tmp_path, teacher, [88.5], steps_per_epoch=None)
    for protocol in ("best", "last"):
        table = build(plan, tmp_path, protocol)
        assert rows(table)["teacher"].top1_mean == 88.5
        assert teacher.id not in [problem.run for problem in table.experiments[0].problems]
        assert rows(table)["teacher"].configuration == "teacher: vit_base_patch16_224"


def test_alpha_0_is_the_baseline(tmp_path):
    plan = planned(tmp_path, "distill.alpha=0")
    fabricate(tmp_path, of(plan, "teacher"), TEACHER)
    for seed in range(3):
        fabricate(tmp_path, of(plan, "baseline", seed), BASELINE[seed])
    table = build(plan, tmp_path)
    row = rows(table)["distilled"]
    assert (row.gain, row.gain_ci95, row.n) == (0.0, (0.0, 0.0), 3)
    assert row.runs == rows(table)["baseline"].runs
    assert any("by construction" in note for note in table.experiments[0].notes)


def test_without_a_teacher_there_is_no_retention_and_no_reduction(tmp_path):
    plan = planned(tmp_path)
    full(tmp_path, plan)
    shutil.rmtree(tmp_path / of(plan, "teacher").id)
    table = build(plan, tmp_path)
    row = rows(table)["baseline"]
    assert (row.retention, row.reduction) == (None, None)
    assert (rows(table)["teacher"].n, rows(table)["teacher"].top1_mean) == (0, None)
    assert not table.complete
    assert [problem.state for problem in table.experiments[0].problems] == ["planned"]


def test_a_plan_cut_down_to_roles_has_rows_for_these(tmp_path):
    plan = planned(tmp_path)
    full(tmp_path, plan)
    table = build(plan.only(["distilled"]), tmp_path)
    assert list(rows(table)) == ["teacher", "distilled"]
    assert rows(table)["distilled"].gain is None
    assert "no gain: no seed has both a baseline and a distilled run" in table.experiments[0].notes
    assert rows(build(planned(tmp_path, "distill.alpha=0").only(["distilled"]), tmp_path)) == {}


# --- runs that are not done


def test_runs_that_are_not_done_are_listed_with_reason_and_log(tmp_path):
    plan = planned(tmp_path)
    full(tmp_path, plan)
    failed, running = of(plan, "distilled", 1), of(plan, "baseline", 2)
    for run, outcome in ((failed, "failed"), (running, None)):
        shutil.rmtree(tmp_path / run.id)
        fabricate(tmp_path, run, [80.0, 81.0, 82.0], result=False, outcome=outcome)
    states = {
        failed.id: ("failed", "RuntimeError: out of memory", "runs/x/torchrun.log"),
        running.id: ("running", "", None),
        of(plan, "teacher").id: ("running", "the launching half has not looked again", None),
    }
    table = build(plan, tmp_path, states=states)
    found = rows(table)
    assert [(found[role].n, found[role].n_expected) for role in TRAINED] == [(1, 1), (2, 3), (2, 3)]
    assert [(p.run, p.state, p.reason, p.log) for p in table.experiments[0].problems] == [
        (running.id, "running", "", None),
        (failed.id, "failed", "RuntimeError: out of memory", "runs/x/torchrun.log"),
    ]


def test_a_run_is_done_by_its_newest_attempt_or_by_its_result(tmp_path):
    plan = planned(tmp_path, seeds=[0])
    directory = fabricate(tmp_path, of(plan, "teacher"), TEACHER, result=False)
    assert rows(build(plan, tmp_path))["teacher"].n == 1
    directory.start_attempt({}).write("outcome", {"state": "failed"})
    assert rows(build(plan, tmp_path))["teacher"].n == 0
    shutil.rmtree(directory.path)
    fabricate(tmp_path, of(plan, "teacher"), TEACHER, outcome="failed")
    assert rows(build(plan, tmp_path))["teacher"].n == 1


# --- result.json against the event files


@pytest.mark.parametrize("protocol", ["best", "last"])
@pytest.mark.parametrize("form", ["table", "md", "csv", "json"])
def test_without_result_json_nothing_changes(tmp_path, protocol, form):
    plan = planned(tmp_path)
    full(tmp_path, plan)
    before = render(build(plan, tmp_path, protocol, trainer_code="other"), form)
    for path in tmp_path.glob("*/result.json"):
        path.unlink()
    assert render(build(plan, tmp_path, protocol, trainer_code="other"), form) == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"best__test/top1": 78.0}, "best test/top1 78 at step 20, event files 77 at step 20"),
        ({"best__step": 10}, "best test/top1 77 at step 10, event files 77 at step 20"),
        ({"last__test/top1": 76.0}, "last test/top1 76 at step 30, event files 76.5 at step 30"),
        ({"last__step": 40}, "last test/top1 76.5 at step 40, event files 76.5 at step 30"),
        ({"params": 7}, "result.json contradicts trainer.json: 7 parameters, trainer.json 5543716"),
        ({"hash": "0" * 64}, "another run"),
        ({"schema": "kdcluster.result/9"}, "left out"),
        ({"best": {}}, "left out"),
        ({"last__test/top1": math.nan}, "left out"),
    ],
)
@pytest.mark.parametrize("protocol", ["best", "last"])
def test_a_contradiction_is_reported_and_the_event_files_win(tmp_path, wrong, said, protocol):
    plan = planned(tmp_path, seeds=[0])
    directory = fabricate(tmp_path, of(plan, "baseline"), BASELINE[0])
    edit(directory.path / "result.json", **wrong)
    table = build(plan, tmp_path, protocol)
    assert rows(table)["baseline"].top1_mean == (77.0 if protocol == "best" else 76.5)
    assert rows(table)["baseline"].params == 5_543_716
    (problem,) = [p for p in table.experiments[0].problems if p.state == "done"]
    assert problem.run == of(plan, "baseline").id
    assert said in problem.reason
    assert problem.log == str(directory.newest().log())


def test_a_result_that_is_no_json_is_reported(tmp_path):
    plan = planned(tmp_path, seeds=[0])
    directory = fabricate(tmp_path, of(plan, "teacher"), TEACHER)
    (directory.path / "result.json").write_text('{"schema": "kdclus')
    assert rows(build(plan, tmp_path))["teacher"].top1_mean == 91.125
    assert "left out" in reasons(build(plan, tmp_path))[0]


@pytest.mark.parametrize(("protocol", "number"), [("best", 77.0), ("last", 76.5)])
def test_without_event_files_result_json_stands_in_and_that_is_said(tmp_path, protocol, number):
    plan = planned(tmp_path, seeds=[0])
    directory = fabricate(tmp_path, of(plan, "baseline"), BASELINE[0])
    shutil.rmtree(directory.events)
    table = build(plan, tmp_path, protocol)
    assert rows(table)["baseline"].top1_mean == number
    assert f"{protocol} {TOP1} is taken from result.json" in reasons(table)
    (directory.path / "result.json").unlink()
    table = build(plan, tmp_path, protocol)
    assert (rows(table)["baseline"].top1_mean, rows(table)["baseline"].n) == (None, 0)
    assert f"there is no {protocol} {TOP1}: its evaluation is lost" in reasons(table)


def damage(directory, step):
    """Flip a bit in every record of one evaluation."""
    (path,) = directory.events.iterdir()
    data = bytearray(path.read_bytes())
    for match in re.finditer(rb"\x10" + bytes([step]) + rb"\*.{5}(test|val)/", bytes(data), re.DOTALL):
        data[match.start() + 3] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("step", "protocol", "with_result", "without"),
    [
        (10, "best", 77.0, 77.0),
        (20, "best", 77.0, 76.5),
        (30, "best", 77.0, 77.0),
        (10, "last", 76.5, 76.5),
        (30, "last", 76.5, None),
    ],
)
def test_a_damaged_evaluation_is_reported_and_result_json_stands_in(tmp_path, step, protocol, with_result, without):
    plan = planned(tmp_path, seeds=[0])
    directory = fabricate(tmp_path, of(plan, "baseline"), BASELINE[0])
    damage(directory, step)
    lost = f"1 of 3 evaluations missing from the event files, the first at step {step}"
    for number in (with_result, without):
        table = build(plan, tmp_path, protocol)
        assert rows(table)["baseline"].top1_mean == number
        said = [p.reason for p in table.experiments[0].problems if p.state == "done"]
        assert said[0] == lost
        assert not any("contradicts" in reason for reason in said)
        assert any("damaged place" in note for note in table.experiments[0].notes)
        (directory.path / "result.json").unlink(missing_ok=True)


def test_a_newest_file_that_is_cut_is_reported_once_it_costs_an_evaluation(tmp_path):
    plan = planned(tmp_path, seeds=[0])
    directory = fabricate(tmp_path, of(plan, "baseline"), BASELINE[0])
    (path,) = directory.events.iterdir()
    path.write_bytes(path.read_bytes()[:-5])  # of test/top5, the last that is written
    assert not any("ends inside" in note for note in build(plan, tmp_path).experiments[0].notes)
    path.write_bytes(path.read_bytes()[:-60])
    assert any("ends inside" in note for note in build(plan, tmp_path).experiments[0].notes)


def test_without_trainer_json_its_facts_come_from_result_json(tmp_path):
    plan = planned(tmp_path, seeds=[0])
    directory = fabricate(tmp_path, of(plan, "baseline"), BASELINE[0])
    (directory.newest().path / "trainer.json").unlink()
    table = build(plan, tmp_path)
    assert (rows(table)["baseline"].top1_mean, rows(table)["baseline"].params) == (77.0, 5_543_716)
    assert "there is no trainer.json; its facts are taken from result.json" in reasons(table)


def test_the_size_of_a_student_is_known_from_the_other_role(tmp_path):
    plan = planned(tmp_path, seeds=[0])
    fabricate(tmp_path, of(plan, "teacher"), TEACHER)
    fabricate(tmp_path, of(plan, "baseline"), BASELINE[0])
    found = rows(build(plan, tmp_path))
    assert (found["distilled"].n, found["distilled"].params) == (0, 5_543_716)
    assert found["distilled"].reduction == found["baseline"].reduction


# --- notes


def test_another_batchnorm_batch_than_the_baselines_marks_the_row(tmp_path):
    plan = planned(tmp_path, seeds=[0, 1])
    for seed in (0, 1):
        fabricate(tmp_path, of(plan, "baseline", seed), BASELINE[seed], batchnorm_batch=128)
        fabricate(tmp_path, of(plan, "distilled", seed), DISTILLED[seed], batchnorm_batch=64 + 64 * seed)
    table = build(plan, tmp_path)
    assert rows(table)["distilled"].note == 1
    assert rows(table)["baseline"].note is None
    assert "64 (baseline: 128)" in table.experiments[0].notes[0]
    assert "(α 0.5, T 4) [1]" in render(table)


def test_batchnorm_over_a_part_of_the_batch_is_said(tmp_path):
    plan = planned(tmp_path)
    fabricate(tmp_path, of(plan, "baseline", 0), BASELINE[0], batchnorm_batch=64)
    fabricate(tmp_path, of(plan, "distilled", 0), DISTILLED[0], batchnorm_batch=64)
    said = "BatchNorm took its statistics over a part of each batch (images): baseline 64 of 128, distilled 64 of 128"
    assert said in render(build(plan, tmp_path))


def test_broken_images_that_were_left_out_are_said(tmp_path):
    plan = planned(tmp_path)
    full(tmp_path, plan, images_skipped=0)
    assert "skip_broken" not in render(build(plan, tmp_path))
    for skipped, said in ((1, "1 broken image"), (3, "3 broken images")):
        full(tmp_path, plan, images_skipped=skipped)
        assert f"without {said} of cifar100 (data.skip_broken)" in render(build(plan, tmp_path))


def test_test_images_that_were_trained_on_are_said(tmp_path):
    """`submit` said so, and the table, which is what is shown to others, did not."""
    plan = planned(tmp_path)
    full(tmp_path, plan)
    assert "among the training" not in render(build(plan, tmp_path))
    full(tmp_path, plan, images_in_both=46)
    said = "46 test images are among the training images, too: the test accuracy counts what was learnt by heart"
    assert said in render(build(plan, tmp_path))


def test_equal_or_no_batchnorm_marks_nothing(tmp_path):
    plan = planned(tmp_path)
    full(tmp_path, plan)
    assert rows(build(plan, tmp_path))["distilled"].note is None


def test_another_precision_than_the_baselines_or_the_teachers_marks_the_row(tmp_path):
    plan = planned(tmp_path, seeds=[0, 1])
    fabricate(tmp_path, of(plan, "teacher"), TEACHER)  # of an earlier version, which trained in bf16 and did not say so
    for seed in (0, 1):
        fabricate(tmp_path, of(plan, "baseline", seed), BASELINE[seed], amp="bf16")
        fabricate(tmp_path, of(plan, "distilled", seed), DISTILLED[seed], amp="none" if seed else "bf16")
    table = build(plan, tmp_path)
    assert {role: row.note for role, row in rows(table).items()} == {"teacher": None, "baseline": None, "distilled": 1}
    said = "the runs were not all trained in one precision: teacher bf16, baseline bf16, distilled bf16 and float32"
    assert table.experiments[0].notes[0] == f"[1] {said}"
    for seed in (0, 1):  # on another place than the teacher, all alike
        for role in ("baseline", "distilled"):
            directory = RunDir(tmp_path, of(plan, role, seed).id)
            facts = directory.newest().read("trainer")
            differing = {"amp": "none", "batchnorm_batch": 64 if role == "distilled" else 128}
            directory.newest().write("trainer", facts | differing)
    table = build(plan, tmp_path)
    assert {role: row.note for role, row in rows(table).items()} == {"teacher": None, "baseline": 1, "distilled": 1}
    precision, batchnorm = table.experiments[0].notes[0].removeprefix("[1] ").split("; ")
    assert precision.endswith("teacher bf16, baseline float32, distilled float32")
    assert batchnorm.endswith("64 (baseline: 128)")


def test_a_precision_that_the_file_asks_for_marks_nothing(tmp_path):
    plan = planned(tmp_path, "teacher.train={amp: none}")
    fabricate(tmp_path, of(plan, "teacher"), TEACHER, amp="none")
    fabricate(tmp_path, of(plan, "baseline"), BASELINE[0], amp="bf16")
    fabricate(tmp_path, of(plan, "distilled"), DISTILLED[0], amp="bf16")
    assert {row.note for row in rows(build(plan, tmp_path)).values()} == {None}


def test_runs_of_other_trainer_code_are_named(tmp_path):
    plan = planned(tmp_path)
    full(tmp_path, plan, trainer_code="yesterday")
    (note,) = [n for n in build(plan, tmp_path, trainer_code="today").experiments[0].notes if "code" in n]
    assert all(run_id in note for run_id in plan.wanted["exp1"]["distilled"])
    assert of(plan, "teacher").id not in note
    assert not any("code" in n for n in build(plan, tmp_path).experiments[0].notes)


def test_experiments_that_share_runs_have_a_table_each(tmp_path):
    plan = planned(tmp_path)
    full(tmp_path, plan)
    (tmp_path / "exp2.yaml").write_text((tmp_path / "exp1.yaml").read_text() + "distill: {alpha: 0.9}\n")
    both = planning.plan([configfile.load(str(tmp_path / f"{name}.yaml")) for name in ("exp1", "exp2")])
    table = build(both, tmp_path)
    assert [experiment.name for experiment in table.experiments] == ["exp1", "exp2"]
    assert table.experiments[1].rows[:2] == table.experiments[0].rows[:2]
    assert table.experiments[1].rows[2].n == 0


def test_the_text_is_the_golden_one(tmp_path):
    plan = planned(tmp_path, "reference.teacher=91.12", "reference.distilled=83.38")
    full(tmp_path, plan)
    gone = of(plan, "distilled", 2)
    shutil.rmtree(tmp_path / gone.id)
    edit(tmp_path / of(plan, "baseline", 1).id / "result.json", **{"best__test/top1": 99.0})
    (tmp_path / of(plan, "baseline", 1).id / "attempts" / "1" / "torchrun.log").unlink()
    states = {gone.id: ("failed", "rank 1: RuntimeError: out of memory", "runs/x/attempts/2/torchrun.log")}
    table = build(plan, tmp_path, states=states, trainer_code="today")
    assert without_hashes(render(table)) == GOLDEN.read_text(encoding="utf-8")


# --- on paper


def on_paper(plan, root, protocol="best"):
    made = build(plan, root, protocol, trainer_code="today").experiments[0].paper
    return made.caption, " ".join(made.notes)


def test_a_paper_has_a_caption_and_how_the_epoch_was_chosen(tmp_path):
    plan = planned(tmp_path)
    full(tmp_path, plan, trainer_code="yesterday")
    caption, notes = on_paper(plan, tmp_path)
    students = "the student trained alone (baseline) and the student distilled from the teacher"
    assert caption == f"Top-1 test accuracy on CIFAR-100: the teacher, {students}."
    assert notes == "Best test accuracy over the epochs: the epoch is selected on the test set."
    assert on_paper(plan, tmp_path, "last")[1] == "Test accuracy of the last epoch."
    caption, _ = on_paper(plan.only(["teacher"]), tmp_path)
    assert caption == "Top-1 test accuracy on CIFAR-100: the teacher."


@pytest.mark.parametrize(
    ("setting", "facts", "said"),
    [
        ("data.val_fraction=0.1", {}, "Test accuracy of the epoch that is best on held-out training images."),
        (
            "data.labelled=500",
            {"images": {"unlabelled": 3500}},
            "Teacher and baseline learn from 500 images with labels; the distilled student also sees 3,500 without.",
        ),
        (
            "train.amp=auto",
            {"images_in_both": 3},
            "3 test images are among the training images, too: the test",
        ),
        ("train.amp=auto", {"amp": "none"}, "[1] The runs were not all trained in one precision: teacher bf16, "),
    ],
)
def test_a_paper_says_what_its_reader_has_to_know(tmp_path, setting, facts, said):
    plan = planned(tmp_path, setting)
    full(tmp_path, plan, **facts)
    assert said in on_paper(plan, tmp_path)[1]


def test_a_paper_says_that_nothing_was_distilled(tmp_path):
    plan = planned(tmp_path, "distill.alpha=0", "data.labelled=500")
    said = on_paper(plan, tmp_path)[1]
    assert said.endswith("With α = 0 the distilled student is the baseline.")
    assert "Teacher, baseline and distilled learn from 500 images with labels." in said


def test_a_paper_says_which_seeds_the_gain_is_over(tmp_path):
    plan = planned(tmp_path)
    full(tmp_path, plan)
    shutil.rmtree(tmp_path / of(plan, "distilled", 2).id)
    assert on_paper(plan, tmp_path)[1].endswith(" The gain is over the seeds that both students have: 0 and 1.")


# --- statistics


@pytest.mark.parametrize(
    ("p", "df", "quantile"),
    [
        (0.975, 1, 12.7062047), (0.975, 2, 4.30265273), (0.975, 3, 3.18244631), (0.975, 4, 2.77644511),
        (0.975, 9, 2.26215716), (0.975, 10, 2.22813885), (0.975, 30, 2.04227246), (0.975, 120, 1.97993041),
        (0.95, 5, 2.01504837), (0.025, 7, -2.36462425), (0.995, 8, 3.35538733), (0.5, 6, 0.0),
    ],
)  # fmt: skip
def test_t_quantiles(p, df, quantile):
    assert t_quantile(p, df) == pytest.approx(quantile, abs=1e-7)


def test_the_interval_needs_two_values():
    assert interval95([]) is None
    assert interval95([3.0]) is None
    assert interval95([1.0, 3.0]) == pytest.approx((2 - 12.7062047, 2 + 12.7062047))


# --- other arms


def test_label_smoothing_is_an_arm_of_its_own_and_says_what_the_teacher_adds_to_it(tmp_path):
    plan = planned(tmp_path, "control=label_smoothing", "distill.alpha=0.3")
    smoothed = [run for run in plan.runs if run.role == "baseline" and run.train.label_smoothing]
    assert [run.train.label_smoothing for run in smoothed] == [0.3, 0.3, 0.3]
    full(tmp_path, plan)
    for run, top in zip(smoothed, (79.0, 79.0, 80.0), strict=True):
        fabricate(tmp_path, run, [70.0, top, 78.0])
    table = build(plan, tmp_path)
    assert [row.configuration for row in table.experiments[0].rows] == [
        "teacher: vit_base_patch16_224",
        "baseline: vit_tiny_patch16_224",
        "label smoothing: vit_tiny_patch16_224",
        "distilled: vit_tiny_patch16_224 (α 0.3, T 4)",
    ]
    row = rows(table)["control"]
    gains = [79.0 - 77.0, 79.0 - 76.25, 80.0 - 77.5]
    assert (row.n, row.n_expected, row.top1_mean) == (3, 3, pytest.approx(238 / 3))
    assert row.gain == pytest.approx(sum(gains) / 3)
    assert row.gain_ci95 == pytest.approx(interval95(gains))
    beyond = [83.5 - 79.0, 83.25 - 79.0, 83.0 - 80.0]
    low, high = interval95(beyond)
    assert (
        f"distilled - label smoothing alone is {sum(beyond) / 3:+.2f} points over 3 seeds; its interval "
        f"[{low:.1f}, {high:.1f}] lies above zero: distilled is better than label smoothing alone"
    ) in said(table)
    assert [row.run for row in table.experiments[0].seeds if row.role == "control"] == [run.id for run in smoothed]


def test_a_smoothed_arm_is_the_run_of_a_file_that_says_so_itself(tmp_path):
    plan = planned(tmp_path, "control=label_smoothing", "train.label_smoothing=0.1")
    other = planned(tmp_path, f"train.label_smoothing={1 - 0.5 * 0.9:g}")
    assert plan.wanted["exp1"]["control"] == other.wanted["exp1"]["baseline"]


def test_without_a_teacher_to_distil_there_is_nothing_to_control(tmp_path):
    plan = planned(tmp_path, "control=label_smoothing", "distill.alpha=0")
    assert plan.wanted["exp1"]["control"] == ()


def test_an_arm_that_failed_stays_in_the_table(tmp_path):
    plan = planned(tmp_path, "control=label_smoothing")
    full(tmp_path, plan)
    table = build(plan, tmp_path)
    assert (rows(table)["control"].n, rows(table)["control"].n_expected, table.complete) == (0, 3, False)
    assert reasons(table) == ["not started"] * 3
