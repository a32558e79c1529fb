"""SLURM without a SLURM: profiles, batch scripts, and which state is true whatever the queue says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcluster.errors import ConfigError, KdclusterError, NotFound, SchedulerError
from kdcluster.experiment.config import Resources
from kdcluster.launch import status
from kdcluster.launch.backend import Phase, given_to
from kdcluster.launch.slurm import answers, command, nodes
from kdcluster.launch.slurm import ask as scheduler
from kdcluster.launch.slurm import queue as jobs
from kdcluster.launch.slurm.answers import Job
from kdcluster.launch.slurm.backend import Slurm
from kdcluster.launch.slurm.profile import Profile, choose, load, minutes, profiles
from kdcluster.launch.slurm.queue import Jobs
from kdcluster.launch.slurm.script import job_name, room, script
from kdcluster.launch.submission import submit
from kdcluster.launch.torchrun import Layout, layout
from kdcluster.plan import Plan
from kdcluster.runs import RunDir
from kdcluster.sweep import job as sweep_job
from tests import fabricated
from tests.fabricated import LIVE, put, started
from tests.tiny import make_plan

GOLDEN = Path(__file__).parents[1] / "golden" / "job.sh"


# --- profiles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("90", 90), ("90:00", 90), ("8:00", 8), ("8:00:00", 480), ("0:30", 1), ("1:00:01", 61)),
        *(("1-0", 1440), ("1-12", 2160), ("1-12:30", 2190), ("1-12:30:00", 2190), (45, 45)),
    ],
)
def test_a_time_limit_means_what_slurm_means_by_it(text: Any, expected: int) -> None:
    assert minutes(text) == expected


@pytest.fixture
def here(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(empty_folder / "config"))
    (empty_folder / "slurm" / "profiles").mkdir(parents=True)
    return empty_folder / "slurm" / "profiles"


def test_every_problem_of_a_profile_at_its_line(here: Path) -> None:
    path = here / "bad.yaml"
    path.write_text(
        "partitoin: gpu\ntime_limit: soon\nqos: a b\nmem_per_gpu: lots\nenvironment: {1A: x}\nsbatch: {gres: gpu}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert [line.removeprefix(f"{path}:") for line in caught.value.problems] == [
        "1:1: partitoin: unknown key; did you mean partition?",
        "2:1: time_limit: must be minutes, or one of SLURM's forms: 90, 90:00, 8:00:00, 1-12, 1-12:30, 1-12:30:00 "
        "(got 'soon')",
        "3:1: qos: must be one word without quotes, blanks or control characters (got 'a b')",
        "4:1: mem_per_gpu: must be a whole number with K, M, G or T, as in 32G (got 'lots')",
        "5:1: environment: '1A' is no name of an environment variable (got {1A: 'x'})",
        "6:1: sbatch: gres is set by kdcluster; use gpu_request (got {gres: 'gpu'})",
    ]


@pytest.mark.parametrize("value", ['"a100\\n#SBATCH --uid=0"', '"a\\eb"', '"a\\u2028b"'])
def test_an_option_of_sbatch_is_one_line(here: Path, value: str) -> None:
    (here / "bad.yaml").write_text(f"sbatch: {{comment: true, constraint: {value}}}\n")
    with pytest.raises(ConfigError, match=r"1:1: sbatch: constraint must be one line without control characters \(got"):
        load(here / "bad.yaml")


def test_eight_hours_are_eight_hours(here: Path) -> None:
    (here / "lab.yaml").write_text("time_limit: 8:00:00\n")
    assert load(here / "lab.yaml").time_limit == 480


def test_the_only_profile_is_the_default_and_shipped_ones_never_are(here: Path) -> None:
    assert {"dev", "template"} <= profiles().keys()
    assert choose(None) == (None, Profile())
    (here / "lab.yaml").write_text("partition: gpu\n")
    assert choose(None) == ("lab", Profile(partition="gpu"))
    assert choose(str(here / "lab.yaml"))[0] == "lab"
    (here / "other.yaml").write_text("partition: gpu\n")
    with pytest.raises(ConfigError, match="which cluster\\? there are lab, other"):
        choose(None)
    with pytest.raises(NotFound, match=r"no cluster profile 'laab' .*did you mean 'lab'"):
        choose("laab")


def test_the_shipped_profiles_are_sound() -> None:
    for name in ("dev", "template"):
        load(profiles()[name])


# --- layouts and scripts ----------------------------------------------------------------------------------------


def test_gpus_are_spread_evenly_over_nodes() -> None:
    lab = Profile(cpus_per_gpu=4, gpus_per_node=8)
    assert layout(Resources(gpus=16), room(lab, None)) == Layout("cuda", 16, None, 2, 16)
    assert layout(Resources(gpus=8), room(lab, 4)) == Layout("cuda", 8, None, 4, 8)
    assert layout(Resources(), room(lab, None)) == Layout("cuda", 1, None, 1, 1)
    assert layout(Resources(gpus=2), room(Profile(device="cpu", gpus_per_node=8), None)) == Layout("cpu", 2, 1, 1, 2)
    assert layout(Resources(procs=3), room(lab, None)) == Layout("cpu", 3, 4, 1, 0)
    for gpus, count in ((9, None), (8, 3), (16, 1)):
        with pytest.raises(ConfigError, match=f"{gpus} GPUs cannot be spread evenly over"):
            layout(Resources(gpus=gpus), room(lab, count))


def test_the_batch_script_is_the_golden_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    profile = Profile(
        partition="gpu",
        account="lab",
        gpu_type="a100",
        cpus_per_gpu=12,
        mem_per_gpu="64G",
        time_limit=480,
        setup=("module load cuda",),
        environment={"NOTE": "it's $(here)"},
        sbatch={"constraint": "a&b", "exclusive": True},
    )
    there = layout(Resources(gpus=16), room(profile.model_copy(update={"gpus_per_node": 8}), None))
    assert script("name", there, profile, Path("/runs/my run/slurm/1"), ["<job of teacher>"]) == GOLDEN.read_text()


def test_two_runs_directories_never_share_a_job_name() -> None:
    names = {job_name(Path(root) / "teacher-a", number) for root in ("/a", "/b") for number in (1, 2)}
    assert len(names) == 4


def test_a_path_that_submitit_would_rewrite_is_refused() -> None:
    with pytest.raises(ConfigError, match="replace %j in a path"):
        script("n", Layout("cpu", 1, 1), Profile(), Path("/runs/%job"))
    with pytest.raises(ConfigError, match="replace %t in a path"):
        sweep_job.script("n", Layout("cpu", 1, 1), Profile(), Path("/runs/%trial"), [], [])


@settings(max_examples=30, deadline=None)
@given(
    value=st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20),
    name=st.text(st.characters(exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
        lambda name: name not in (".", "..") and "%" not in name
    ),
)
def test_nothing_that_a_user_names_is_run_by_the_shell(
    tmp_path_factory: pytest.TempPathFactory, value: str, name: str
) -> None:
    """The script under a real bash with an `srun` that writes down what it was given."""
    place = tmp_path_factory.mktemp("job")
    folder = place / name
    folder.mkdir()
    srun = place / "srun"
    srun.write_text('#!/bin/bash\nprintf "%s\\0" "$@" "$VALUE" >"$OUT"\n')
    srun.chmod(0o755)
    text = script("n", Layout("cpu", 1, 1), Profile(environment={"VALUE": value}), folder)
    assert "\r" not in text
    env = {"PATH": f"{place}:{os.environ['PATH']}", "OUT": str(place / "out"), "SLURM_JOB_ID": "7", "LC_ALL": "C.UTF-8"}
    subprocess.run(["bash", "-s"], input=text.encode(), env=env, check=True, capture_output=True)
    words = (place / "out").read_bytes().split(b"\0")
    assert words[-3:-1] == [str(folder).encode(), value.encode()]
    assert {path.name for path in place.iterdir()} == {name, "srun", "out"}


# --- what is asked of SLURM -------------------------------------------------------------------------------------


KEPT = {
    "SLURM_CONF": "/etc/slurm.conf",
    "SLURM_CLUSTERS": "c",
    "SLURM_CONF_SERVER": "h",
    "SLURM_JWT": "t",
    "PATH": "/bin",
}
OPTIONS = (
    *("SBATCH_TIMELIMIT", "SQUEUE_FORMAT", "SACCT_FORMAT", "SINFO_FORMAT", "SCANCEL_NAME", "SCONTROL_ALL"),
    *("SLURM_TIME_FORMAT", "SLURM_CPU_BIND", "SRUN_DEBUG", "SUBMITIT_X"),
)
HOSTILE = dict.fromkeys(OPTIONS, "x")
SILENT = {"SALLOC_ACCOUNT": "x", "SLURM_ROOT": "/opt/slurm", "RANK": "0", "MASTER_PORT": "1"}


@pytest.mark.parametrize("inside", [{}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}])
def test_nothing_of_a_shell_or_of_a_job_goes_on_but_which_slurm_is_meant(inside: dict[str, str]) -> None:
    assert command.clean_environment({**HOSTILE, **SILENT, **inside, **KEPT}) == KEPT
    assert command.ignored({**HOSTILE, **SILENT, **inside, **KEPT}) == ([] if inside else sorted(HOSTILE))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Programs in the place of SLURM's: `fake(sbatch="echo 7")` is a shell script; scontrol answers nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def make(**programs: str) -> Path:
        for name, body in programs.items():
            (folder / name).write_text(f"#!/bin/bash\ncd '{folder}'\n{body}\n")
            (folder / name).chmod(0o755)
        return folder

    make(scontrol="exit 1")
    forget()
    yield make
    forget()


def forget() -> None:
    """What is asked once a process, and what is said once."""
    for once in (scheduler.settings, scheduler._has_json, command._say_what_is_ignored):
        once.cache_clear()


ME = scheduler.user()
NOW = 1.8e9
AWAY = "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1"
LOST = "echo x >>tries; echo 'sbatch: error: Batch job submission failed: Socket timed out' >&2; exit 1"


def row(number: str, name: str, state: str = "PENDING", *, submitted: float = NOW, user: str = ME) -> str:
    """A shell line that prints a job as squeue does."""
    return f"echo '{number}|{state}|Priority|N/A|{submitted:.0f}|{user}||{name}'"


def test_what_is_ignored_is_said_once_and_reaches_no_command(
    fake: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fake(sbatch="env >>said; echo 7", squeue="env >>said")
    for name, value in (HOSTILE | SILENT).items():
        monkeypatch.setenv(name, value)
    assert scheduler.submit(Path("job.sh"), "n", NOW) == "7"
    scheduler.queue()
    names = {line.partition("=")[0] for line in (folder / "said").read_text().splitlines()}
    assert names & (HOSTILE | SILENT).keys() == {"SLURM_TIME_FORMAT"}  # our own, for squeue
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"ignored, though set in this shell: {', '.join(sorted(HOSTILE))}; ")


def test_a_banner_is_no_job_id(fake: Any) -> None:
    fake(sbatch="echo Welcome to site 2026; echo '17;cluster'")
    assert scheduler.submit(Path("job.sh"), "n", NOW) == "17"


def test_an_answer_that_was_lost_is_looked_for_by_name(fake: Any) -> None:
    folder = fake(sbatch=LOST, squeue=f"{row('5', 'other')}; {row('6', 'mine')}")
    assert scheduler.submit(Path("job.sh"), "mine", NOW) == "6"
    assert (folder / "tries").read_text() == "x\n"  # sent once


@pytest.mark.parametrize("sacct", [AWAY, "exit 0"])
def test_sbatch_is_not_asked_again_before_a_look_was_answered(fake: Any, sacct: str) -> None:
    folder = fake(sbatch=LOST, squeue="[ -e there ] || " + AWAY, sacct=sacct)
    with pytest.raises(scheduler.Unanswered, match="not known whether SLURM has taken job mine") as caught:
        scheduler.submit(Path("job.sh"), "mine", NOW)
    assert caught.value.exit_code == SchedulerError.exit_code
    assert (folder / "tries").read_text() == "x\n"


def test_accounting_that_does_not_answer_leaves_it_unknown_too(fake: Any) -> None:
    folder = fake(sbatch=LOST, squeue="true", sacct="echo 'Connection refused' >&2; exit 1")
    with pytest.raises(scheduler.Unanswered):
        scheduler.submit(Path("job.sh"), "mine", NOW)
    assert (folder / "tries").read_text() == "x\n"


def test_a_job_that_slurm_lists_late_is_found(fake: Any) -> None:
    asked = "echo x >>looks; [ $(wc -l <looks) -lt 2 ] || "
    folder = fake(sbatch=LOST, squeue=asked + row("6", "mine"), sacct="exit 0")
    assert scheduler.submit(Path("job.sh"), "mine", NOW) == "6"
    folder = fake(squeue="true", sacct=f"[ $(date +%s) -gt 0 ] && echo '7|PENDING|Unknown|{NOW:.0f}|{ME}|c||mine'")
    assert scheduler.submit(Path("job.sh"), "mine", NOW) == "7"
    assert (folder / "tries").read_text() == "x\nx\n"


def test_another_job_of_that_name_is_not_taken_for_ours(fake: Any) -> None:
    others = (row("3", "mine", submitted=NOW - 3600), row("4", "mine", user="somebody"), row("5", "mine2"))
    fake(sbatch=LOST, squeue="; ".join(others), sacct="exit 0")
    with pytest.raises(SchedulerError) as caught:
        scheduler.submit(Path("job.sh"), "mine", NOW)
    assert not isinstance(caught.value, scheduler.Unanswered)  # looked for, and not there
    fake(squeue="; ".join((*others, row("7", "mine", submitted=NOW - 60), row("6", "mine", submitted=NOW + 60))))
    assert [job.id for job in scheduler.find("mine", NOW)] == ["6", "7"]
    known = Job("7", "n", "", user=ME, cluster="a")
    assert [scheduler.is_meant(known, "n", NOW, cluster) for cluster in ("a", "", "b")] == [True, True, False]


def test_a_busy_controller_is_asked_again_and_a_refusal_is_not(fake: Any) -> None:
    busy = "echo x >>tries; [ $(wc -l <tries) -gt 2 ] && echo 9 || { " + AWAY + "; }"
    folder = fake(sbatch=busy, squeue="true", sacct="exit 0")
    assert scheduler.submit(Path("job.sh"), "mine", NOW) == "9"
    fake(sbatch="echo x >>tries; echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    (folder / "tries").unlink()
    with pytest.raises(command.Refused, match="invalid partition specified: nope"):
        scheduler.submit(Path("job.sh"), "mine", NOW)
    assert (folder / "tries").read_text() == "x\n"


def test_a_cancel_says_whose_job_it_means(fake: Any) -> None:
    folder = fake(scancel='echo "$@" >>asked')
    scheduler.cancel([Job("5", "a", "RUNNING"), Job("6", "a", "PENDING")])
    scheduler.cancel([Job("5", "a", "RUNNING"), Job("7", "b", "PENDING")])
    scheduler.cancel([])
    assert (folder / "asked").read_text() == f"--user={ME} --name=a 5 6\n--user={ME} 5 7\n"
    fake(scancel="echo 'scancel: error: Kill job error on job id 5: Invalid job id specified' >&2; exit 1")
    scheduler.cancel([Job("5", "a", "RUNNING")])  # it has ended


# --- what SLURM answers, as text and as JSON --------------------------------------------------------------------


def start(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).isoformat()


JOBS = [
    Job("5", "teacher.a1b2.1", "PENDING", "Priority", start(1800000500), "", ME, 1.8e9, "dev"),
    Job("6", "a|b", "RUNNING", "None", start(1800000100), "node[1-2]", ME, 1.8e9, "dev"),
    Job("7", "n", "COMPLETING", "None", start(1800000100), "node1", ME, 1.8e9, "dev"),
    Job("8", "n", "NEWSTATE", "SomethingNew", "", "", ME, 1.8e9, "dev"),
]
ENDED = [
    Job("1", "n", "COMPLETED", "COMPLETED", start(1800000100), "node1", ME, 1.8e9, "dev"),
    Job("2", "n", "CANCELLED", "CANCELLED by root", "", "", ME, 1.8e9, "dev"),
    Job("3", "n", "NEWSTATE", "NEWSTATE", start(1800000100), "node1", ME, 1.8e9, "dev"),
    Job("4", "n", "", "RUNNING", start(1800000100), "node1", ME, 1.8e9, "dev"),  # one that is kept for ever
]


def number(job: Job) -> dict[str, Any]:
    """The start of a job, as the JSON of 23.11 and later has it."""
    seconds = datetime.fromisoformat(job.start).timestamp() if job.start else 0
    return {"set": bool(job.start), "infinite": False, "number": int(seconds)}


def queue_as_json(job: Job) -> dict[str, Any]:
    states = ["RUNNING", "COMPLETING"] if job.state == "COMPLETING" else [job.state, "POWER_UP_NODE"]
    given = {"job_id": int(job.id), "name": job.name, "job_state": states, "state_reason": job.reason}
    given |= {"start_time": number(job), "submit_time": {"set": True, "infinite": False, "number": 1800000000}}
    return given | {"nodes": job.nodes, "user_name": job.user, "cluster": job.cluster, "array_task_id": {"set": False}}


def accounting_as_json(job: Job) -> dict[str, Any]:
    state, _, who = job.reason.partition(" by ")
    given = {"job_id": int(job.id), "name": job.name, "state": {"current": [state], "reason": "None"}}
    given |= {"time": {"start": number(job)["number"], "submission": 1800000000}, "kill_request_user": who}
    return given | {"nodes": job.nodes, "user": job.user, "cluster": job.cluster, "steps": []}


def as_text(job: Job, reason: str, *fields: str) -> str:
    seconds = str(number(job)["number"]) if job.start else "N/A"
    return "|".join((job.id, reason, *fields)).replace("START", seconds)


@pytest.fixture(params=["22.05.8", "24.05.2"])
def answering(request: pytest.FixtureRequest, fake: Any) -> Any:
    """A SLURM of a version whose queue has JOBS and whose accounting has ENDED; it notes what it was asked."""
    queue = [as_text(j, j.state, j.reason, "START", "1800000000", j.user, j.nodes, j.name) for j in JOBS]
    sacct = [as_text(j, j.reason, "START", "1800000000", j.user, j.cluster, j.nodes, j.name) for j in ENDED]
    texts = {"queue": "Welcome\n" + "\n".join([*queue, "|||||||", "x|y"]), "ended": "\n".join(["JobID", *sacct])}
    for name, known in (("queue", map(queue_as_json, JOBS)), ("ended", map(accounting_as_json, ENDED))):
        texts[f"{name}.json"] = "CLUSTER: dev\n" + json.dumps({"jobs": list(known), "errors": []}, indent=1)
    asks = 'echo "$@" >>asked; case "$*" in *--json*) cat {0}.json;; *) cat {0};; esac'
    conf = f"[ $1 = --version ] && echo slurm {request.param} || echo -e 'ClusterName = dev\nKillWait   = 17 sec'"
    folder = fake(squeue=asks.format("queue"), sacct=asks.format("ended"), scontrol=conf)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def test_text_and_json_say_the_same(answering: Path) -> None:
    assert scheduler.queue() == JOBS
    assert scheduler.accounting(["1", "2", "3", "4"]) == ENDED
    asked = (answering / "asked").read_text().splitlines()
    assert all(f"--user={ME}" in line for line in asked)  # root is shown everybody's
    assert sum("--json" in line for line in asked) in (0, 3)  # 3: once to see whether it can
    assert scheduler.cluster_name() == "dev"
    assert Slurm.ends_within_s() == 17.0  # KillWait: so long cancel waits for it


def test_without_its_json_plugin_slurm_is_read_as_text(answering: Path, fake: Any) -> None:
    fake(squeue='[[ "$*" = *--json* ]] || exec cat queue; echo "fatal: no plugin serializer/json" >&2; exit 1')
    assert scheduler.queue() == JOBS
    fake(squeue="echo '{}'")
    scheduler._has_json.cache_clear()
    assert scheduler._has_json() is False


def test_json_that_breaks_off_is_no_answer(answering: Path, fake: Any) -> None:
    if scheduler._has_json():
        fake(squeue="head -c 90 queue.json")
        with pytest.raises(SchedulerError, match="cannot make out what squeue --json answers"):
            scheduler.queue()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("RUNNING", "RUNNING"),  # until 23.02 a word
        (["PENDING"], "PENDING"),
        (["COMPLETED", "COMPLETING"], "COMPLETING"),
        (["PENDING", "REQUEUE_HOLD", "REQUEUED"], "REQUEUED"),
        (["RUNNING", "POWER_UP_NODE"], "RUNNING"),
        (["NEWSTATE"], "NEWSTATE"),
    ],
)
def test_a_state_is_one_word(told: Any, expected: str) -> None:
    assert answers._state(told) == expected


def test_accounting_that_is_not_there_is_not_one_that_does_not_answer(fake: Any) -> None:
    fake(sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert scheduler.accounting(["5"]) == []
    for words in ("sacct: error: Problem talking to the database: Connection refused", "sacct: error: Access denied"):
        fake(sacct=f"echo '{words}' >&2; exit 1")
        with pytest.raises(SchedulerError, match=words.rpartition(": ")[2]):
            scheduler.accounting(["5"])
    fake(squeue="true", sacct="echo no answer from accounting >&2; exit 1")
    known, unknown = jobs.look([{"id": "5", "name": "n"}, {"id": None, "name": "m"}])
    assert known.phase is Phase.ABSENT  # the controller has answered: nothing of it is alive
    assert (unknown.phase, "no answer from accounting" in unknown.why) == (Phase.UNKNOWN, True)


def test_one_cluster_is_meant(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fake(sacct='echo "$@" >>asked')
    monkeypatch.setenv("SLURM_CLUSTERS", "far")
    assert scheduler.cluster_name() == "far"
    scheduler.accounting(["5"])
    assert "--clusters=far" in (folder / "asked").read_text()
    monkeypatch.setenv("SLURM_CLUSTERS", "far,near")
    with pytest.raises(ConfigError, match="SLURM_CLUSTERS=far,near names several clusters"):
        scheduler.cluster_name()
    for in_json in (True, False):  # JSON of several clusters is several documents
        with monkeypatch.context() as patch:
            patch.setattr(scheduler, "_has_json", lambda answer=in_json: answer)
            with pytest.raises(ConfigError, match="names several clusters"):
                scheduler.queue()


def test_who_we_are_says_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody")
    assert scheduler.user() == ME != "somebody"


def test_a_client_without_a_configuration_is_told_from_a_controller_that_is_away(
    fake: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(scontrol='[ "$2" = hostnames ] && echo localhost || { ' + AWAY + "; }")
    assert command.unconfigured() == ""
    assert nodes.kill_wait_s() == 30.0
    fake(scontrol="echo 'scontrol: fatal: Could not establish a configuration source' >&2; exit 1")
    assert "scontrol: fatal: Could not establish" in command.unconfigured()
    fake(scontrol="sleep 60")  # SLURM looks for the file for a minute
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "gone.conf"))
    assert f"SLURM_CONF={tmp_path}/gone.conf cannot be read" in command.unconfigured()


def test_what_a_node_has_is_read_from_sinfo(fake: Any) -> None:
    fake(sinfo="echo 'cpu|64|(null)|1:00:00|infinite'; echo 'gpu*|96|gpu:a100:8(S:0-1)|n/a|2-00:00:00'")
    assert nodes.node_type(None) == nodes.NodeType(96, 8, 2880, 2880)


def test_one_squeue_for_all_runs_and_sacct_for_what_it_forgot(fake: Any) -> None:
    folder = fake(
        squeue=f"echo x >>asked; {row('1', 'a', 'RUNNING')}; echo 'a site banner'",
        sacct=f"echo x >>asked; echo '2|CANCELLED by 0|1800000000|1800000000|{ME}|c|n1|b'",
    )
    found = jobs.asked([{"id": "1", "name": "a"}, {"id": "2", "name": "b"}, {"id": None, "name": "a"}])
    assert (found.queued["1"].state, found.ended["2"].state) == ("RUNNING", "CANCELLED")
    assert found.of({"id": None, "name": "a"}) == found.queued["1"]
    assert (folder / "asked").read_text() == "x\nx\n"
    assert jobs.asked([]) == Jobs()


def test_a_job_is_known_by_its_name_too(fake: Any) -> None:
    """Numbers begin again, and those of another cluster are other jobs."""
    fake(squeue=row("5", "other", "RUNNING"), sacct="exit 0", scancel="exit 9")
    ref = {"id": "5", "name": "mine", "folder": "x"}
    (found,) = jobs.look([ref])
    assert (found.phase, found.why) == (Phase.ABSENT, "SLURM does not know job 5 any more")
    Slurm.cancel([ref])  # not the other one


def test_one_question_for_all_watchers_in_a_while(fake: Any) -> None:
    folder = fake(squeue="echo x >>asked; " + row("5", "n", "RUNNING"), sacct="true")
    refs = [{"id": "5", "name": "n"}, {"id": "6", "name": "m"}]
    watch = jobs.Watch()
    for _ in range(3):
        assert watch.jobs(refs, 10).of(refs[0])
        assert watch.jobs(refs[:1], 10).of(refs[0])
    assert (folder / "asked").read_text() == "x\n"
    watch.jobs([*refs, {"id": "7", "name": "o"}], 10)  # one that nobody has asked for
    watch.jobs(refs, 0)
    assert (folder / "asked").read_text() == "x\nx\nx\n"


# --- states -----------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Plan:
    return make_plan(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def queued(run_dir: RunDir, job_id: str | None = "5", **more: Any) -> RunDir:
    folder = run_dir.path / "slurm" / "1"
    folder.mkdir(parents=True)
    job = {"id": job_id, "name": "n", "folder": str(folder), "time": time.time(), "submitter": LIVE, **more}
    run_dir.write_ticket("slurm", job)
    return run_dir


def seen(run_dir: RunDir, state: str = "", reason: str = "None", problem: str = "") -> tuple[str, str]:
    known = {"5": Job("5", "n", state, reason, nodes="node1")} if state else {}
    has_ended = state in jobs.ENDS
    answer = Jobs({} if has_ended else known, known if has_ended else {}, problem)
    given = given_to(run_dir)
    found = status.derived(run_dir, jobs.seen(given.ref, answer) if given else None)
    return found.state, found.reason


def in_job(make: Callable[[RunDir], None], run_dir: RunDir, job_id: str = "5") -> None:
    """An attempt that the task of a job began."""
    make(run_dir)
    newest = run_dir.newest()
    assert newest is not None
    newest.write("start", {**newest.read("start"), "job_id": job_id})


NOTHING = "; nothing is saved yet"
LONG_AGO = "last heard of 10 h ago"
GIVE_UP = f"{LONG_AGO}; if it is gone for good: kdcluster cancel, then submit --retry"


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        ("PENDING", "Dependency", ("queued", "job 5 waits for the run that it needs")),
        ("PENDING", "JobHeldUser", ("queued", "job 5 is held; scontrol release 5")),
        ("PENDING", "QOSMaxGRESPerUser", ("queued", "job 5 waits: a limit of its QoS is reached (QOSMaxGRESPerUser)")),
        ("PENDING", "SomethingNew", ("queued", "job 5 waits: SomethingNew")),
        ("PENDING", "odd {x} {job}", ("queued", "job 5 waits: odd {x} {job}")),
        ("RUNNING", "None", ("queued", "job 5 starts on node1")),
        ("CANCELLED", "CANCELLED by 0", ("planned", "SLURM ended job 5: CANCELLED by 0 before it started")),
        ("FAILED", "FAILED", ("failed", "SLURM ended job 5: FAILED before training began")),
        ("", "", ("lost", "SLURM does not know job 5 any more, and it never started")),
    ],
)
def test_a_job_that_began_no_attempt(
    made: Plan, root: Path, state: str, reason: str, expected: tuple[str, str]
) -> None:
    assert seen(queued(put(root, made.runs[0], "planned")), state, reason) == expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("RUNNING", ("running", LONG_AGO)),
        ("PENDING", ("queued", "was requeued after attempt 1; job 5 waits: other jobs go first")),
        ("NODE_FAIL", ("lost", "SLURM ended job 5: NODE_FAIL" + NOTHING)),
        ("OUT_OF_MEMORY", ("failed", "SLURM ended job 5: OUT_OF_MEMORY" + NOTHING)),
        ("NEWSTATE", ("running", "SLURM says that job 5 is NEWSTATE, which is unknown here; " + GIVE_UP)),
        ("", ("lost", "SLURM does not know job 5 any more" + NOTHING)),
    ],
)
def test_a_job_whose_attempt_has_no_outcome(made: Plan, root: Path, state: str, expected: tuple[str, str]) -> None:
    run_dir = queued(put(root, made.runs[0], "planned"))
    started(run_dir)
    run_dir.attempt(1).write("start", {"job_id": "5", "host": "node1", "started": time.time() - 36000})
    assert seen(run_dir, state, "Priority" if state == "PENDING" else state) == expected


def test_between_a_crash_and_the_requeue_the_run_has_not_ended(made: Plan, root: Path) -> None:
    run_dir = queued(put(root, made.runs[0], "planned"))
    in_job(fabricated.failed, run_dir)
    outcome = run_dir.attempt(1).read("outcome")
    run_dir.attempt(1).write("outcome", {**outcome, "next": "restart"})
    state, reason = seen(run_dir, "RUNNING")
    assert (state, reason.endswith("ValueError: no; nothing is saved yet); it is requeued")) == ("running", True)
    assert seen(run_dir, "PENDING", "BeginTime")[1].startswith("was requeued after attempt 1 (failed: rank 1, step 7: ")
    assert seen(run_dir, "FAILED")[0] == "failed"  # SLURM would not


def test_a_run_that_is_cancelled_while_it_waits_to_go_on_is_cancelled(made: Plan, root: Path) -> None:
    run_dir = queued(put(root, made.runs[0], "planned"))
    in_job(fabricated.preempted, run_dir)
    assert seen(run_dir, "CANCELLED", "CANCELLED by 0")[0] == "preempted"
    run_dir.mark_cancelled()
    assert seen(run_dir, "PENDING", "BeginTime") == ("queued", "being cancelled")
    assert seen(run_dir, "CANCELLED", "CANCELLED by 0")[0] == "cancelled"
    assert seen(run_dir)[0] == "cancelled"


def test_other_code_than_was_submitted_is_said(made: Plan, root: Path) -> None:
    run_dir = queued(put(root, made.runs[0], "planned"))
    started(run_dir)
    run_dir.attempt(1).write("start", {"job_id": "5", "host": "node1", "started": time.time(), "code_changed": True})
    assert seen(run_dir, "RUNNING") == ("running", "by other trainer code than it was submitted or begun with")


def test_lines_that_nobody_expects_are_no_traceback(fake: Any) -> None:
    fake(
        squeue=f"echo Welcome; {row('7', 'het', 'RUNNING')}; echo 'x|y'; echo '|||||||'; printf '\\377|\\n'; "
        f"echo '8|PENDING|None|soon|never|{ME}||array'",
        sacct=f"echo 'JobID'; echo '9|WEIRD by 7|Unknown|Unknown|{ME}|||n'; echo '9.batch|||||||n'; echo '|||||||'",
    )
    known = jobs.asked([{"id": "7", "name": "het"}, {"id": "9", "name": "n"}, {"id": None, "name": "array"}])
    assert known.queued["7"].state == "RUNNING"
    assert known.ended["9"].state == "WEIRD"
    found = known.of({"id": None, "name": "array"})
    assert found is not None
    assert (found.start, found.submitted) == ("", None)


def test_a_time_limit_without_room_for_a_step_is_said(fake: Any) -> None:
    fake(sinfo="true")
    nothing = Plan((), {}, {})
    for fine in (Profile(time_limit=60), Profile()):
        assert len(Slurm(fine).notes(nothing, [])) == 1  # the worst case
    _, note = Slurm(Profile(time_limit=3, signal_lead_s=120)).notes(nothing, [])
    assert note.startswith("time_limit 3 min and signal_lead_s 120 leave a job little or no room for a step")


def test_a_fresh_heartbeat_counts_where_slurm_does_not_answer(made: Plan, root: Path) -> None:
    run_dir = queued(put(root, made.runs[0], "planned"))
    started(run_dir)
    run_dir.attempt(1).write("start", {"job_id": "5", "host": "node1", "started": time.time()})
    assert seen(run_dir, problem="no answer") == ("running", "no answer; last heard of 0 s ago")


def test_an_outcome_is_the_runs_own_word(made: Plan, root: Path) -> None:
    run_dir = put(root, made.runs[0], "planned")
    queued(run_dir)
    in_job(fabricated.failed, run_dir)
    assert seen(run_dir, "FAILED")[0] == "failed"
    assert seen(run_dir, "")[0] == "failed"
    done = queued(put(root, made.runs[1], "planned"))
    in_job(fabricated.done, done)
    assert seen(done, "COMPLETING")[0] == "done"


def test_a_preempted_run_has_not_ended_while_its_job_goes_on(made: Plan, root: Path) -> None:
    run_dir = queued(put(root, made.runs[0], "planned"))
    in_job(fabricated.preempted, run_dir)
    assert seen(run_dir, "RUNNING")[0] == "running"
    assert seen(run_dir, "PENDING", "BeginTime")[0] == "queued"
    state, reason = seen(run_dir, "CANCELLED", "CANCELLED by 0")
    assert state == "preempted"
    assert "CANCELLED by 0" in reason


def test_a_submit_that_died_before_its_record_is_found_by_name(made: Plan, root: Path) -> None:
    run_dir = queued(put(root, made.runs[0], "planned"), None, submitter=fabricated.DEAD)
    assert seen(run_dir, "PENDING", "Priority")[0] == "queued"
    assert seen(run_dir) == ("planned", "")
    live = queued(put(root, made.runs[1], "planned"), None)
    assert seen(live) == ("queued", "is being submitted")


def test_students_do_not_wait_for_a_teacher_on_another_backend(
    made: Plan, root: Path, tmp_path: Path, fake: Any
) -> None:
    put(root, made.runs[0], "running")
    fake(sbatch="exit 9", squeue="true", sacct="true")
    with pytest.raises(KdclusterError, match=r"on this machine, .*kdcluster submit teacher-\S+ --backend local --wait"):
        submit(made, root, tmp_path, Slurm(Profile(cpus_per_gpu=1, gpus_per_node=8)), lambda runs: None)


def test_what_one_command_queued_is_taken_back_where_slurm_refuses_the_rest(
    made: Plan, root: Path, tmp_path: Path, fake: Any
) -> None:
    folder = fake(
        sbatch='[ "$1" = --test-only ] && exit 0; echo x >>tries; [ $(wc -l <tries) -lt 3 ] && wc -l <tries || '
        "{ echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; }",
        scancel='echo "$@" >>cancelled',
        squeue="true",
        sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1",
    )
    backend = Slurm(Profile(cpus_per_gpu=1, gpus_per_node=8, time_limit=10))
    with pytest.raises(KdclusterError, match="QOSMaxSubmitJobPerUserLimit\nnothing is queued"):
        submit(made, root, tmp_path, backend, lambda runs: None)
    cancelled = [line.split() for line in (folder / "cancelled").read_text().splitlines()]
    names = [f"--name={job_name(root / made.runs[number].id, 1)}" for number in (1, 0)]
    assert cancelled == [[f"--user={ME}", names[0], "2"], [f"--user={ME}", names[1], "1"]]
    assert [RunDir(root, run.id).ticket() for run in made.runs] == [None] * 4


def test_a_budget_is_refused_before_anything_is_queued(root: Path, tmp_path: Path, fake: Any) -> None:
    made = make_plan(tmp_path, {"resources": {"gpus": 1}})
    fake(sbatch="exit 9", squeue="true", sacct="true")
    profile = Profile(cpus_per_gpu=1, gpus_per_node=8, time_limit=120)
    chosen = [run.id for run in made.runs]
    assert Slurm(profile).gpu_hours(made, chosen) == 88.0  # 4 runs on a GPU, 2 hours, 11 attempts
    often = profile.model_copy(update={"max_requeues": 0, "max_restarts": 2})
    assert Slurm(often).gpu_hours(made, chosen) == 24.0
    with pytest.raises(KdclusterError, match="--max-gpu-hours 87: the worst case is more \\(88 GPU-hours\\)"):
        submit(made, root, tmp_path, Slurm(profile, max_gpu_hours=87), lambda runs: None)


def test_without_slurm_there_is_a_message(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SchedulerError, match="no squeue on this machine; submit from a login node, or use --backend"):
        scheduler.queue()


# --- doctor -----------------------------------------------------------------------------------------------------


def findings(root: Path, profile: Profile) -> dict[str, tuple[bool, str]]:
    found = Slurm(profile, "own").examine(None, root, with_job=False)
    return {finding.what: (finding.ok, finding.found if finding.ok else finding.todo) for finding in found}


def test_the_doctor_holds_the_profile_against_the_cluster(root: Path, fake: Any) -> None:
    fake(
        sinfo='[ "$2" = --partition=nope ] || echo "gpu*|96|gpu:a100:4|1:00:00|2:00:00"',
        sbatch='[ "$1" = --version ] && echo slurm 22.05.8 || true',
        sacctmgr="echo lab; echo other",
    )
    good = findings(root, Profile(gpus_per_node=4, time_limit=120, account="lab"))
    assert good == {
        "slurm": (True, "slurm 22.05.8"),
        "partition": (True, "the default partition: nodes of 4 GPUs and 96 cores"),
        "time limit": (True, "120 of at most 120 minutes"),
        "account": (True, "lab"),
        "sbatch --test-only": (True, "SLURM would run it"),
        "compute node": (True, "not looked at from there; --with-job does, by a job of a few seconds"),
    }
    bad = findings(root, Profile(gpus_per_node=8, time_limit=121, account="nobody"))
    assert {what for what, (ok, _) in bad.items() if not ok} == {"partition", "time limit", "account"}
    assert bad["account"] == (False, "set `account` in the profile to one of lab, other")
    fake(sbatch='[ "$1" = --version ] && echo slurm 22.05.8 || { echo "not available" >&2; exit 1; }')
    assert findings(root, Profile(partition="nope", cpus_per_gpu=1, gpus_per_node=1)).keys() >= {"partition"}
    assert findings(root, Profile(partition="nope", cpus_per_gpu=1, gpus_per_node=1))["partition"][0] is False
    fake(sinfo="echo Unable to contact slurm controller >&2; exit 1")
    assert findings(root, Profile()) == {"slurm": (False, "")}
