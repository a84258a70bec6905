"""Sweeps: which jobs there are, where they run, and what is looked at before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import ROOT, default_values, git

from pipeline.base.errors import RunError, UserError
from pipeline.base.git import run_git
from pipeline.paper import history
from pipeline.paper.grid import ALL_STAGES, FIRST_ITERATION, SWEEPS, Sweep, values_of
from pipeline.paper.sweep import executors, plan, remote
from pipeline.paper.sweep.executors import Local, Slurm, gpus_here, minutes, settings, slot_gpus
from pipeline.paper.sweep.jobs import jobs, targets
from pipeline.paper.sweep.run import Where
from pipeline.paper.sweep.worker import Job, Place, stop_group
from pipeline.params.load import changed, read_yaml

BASE, DIGITS = default_values(), read_yaml(ROOT / "presets/digits.yaml")


def jobs_of(name: str, seeds: int) -> list[Job]:
    sweep: Sweep = SWEEPS[name]
    missing = [(cell, [values_of(BASE, DIGITS, "digits", cell, seed) for seed in range(seeds)]) for cell in sweep.cells]
    return jobs(name, missing, sweep.stages)


def test_targets_are_the_ends_of_the_chains() -> None:
    baselines = [f"baselines/dvc.yaml:baseline@{s}" for s in ("forward", "forward_estimated", "cnn_crf")]
    last = "baselines/dvc.yaml:baseline@joint_optimization"  # its first step is needed for it
    assert set(targets(ALL_STAGES)) == {"meta3", "control3", *baselines, last}
    assert targets(FIRST_ITERATION) == ("meta1",)
    assert targets((*FIRST_ITERATION, "meta2")) == ("meta2",)
    assert targets(("meta1", "gce")) == ("meta1", "references/dvc.yaml:reference@gce")
    assert targets(("download", "embed")) == ("embed",)
    assert targets(("noise", "features", "pretrain")) == ("features",)


def test_other_files_at_the_same_place_are_other_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result goes home under its job's name, and what is there already stays as it is."""
    monkeypatch.chdir(tmp_path)
    names = []
    for text in ("0.8,0.2\n0.2,0.8\n", "0.7,0.3\n0.2,0.8\n", "0.8,0.2\n0.2,0.8\n"):
        history._content.cache_clear()
        Path("matrix.csv").write_text(text)
        noise = {"noise.kind": "matrix", "noise.matrix_file": "matrix.csv"}
        cell = SWEEPS["figure3"].cells[0]
        values = changed(values_of(BASE, DIGITS, "digits", cell, 0), noise)
        names.append([job.name for job in jobs("mine", [(cell, [values])], FIRST_ITERATION)])
    history._content.cache_clear()
    assert names[0] == names[2] != names[1]


def test_without_an_estimate_a_sweep_still_begins(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login node of a cluster has no GPU."""
    values = changed(values_of(BASE, DIGITS, "digits", SWEEPS["figure3"].cells[0], 0), {"compute.device": "cuda"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert plan.seconds([values], FIRST_ITERATION) is None
    assert "no estimate of the time: compute.device: found cuda" in capsys.readouterr().err


def test_git_speaks_english_whatever_the_users_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert run_git("-c", "alias.said=!echo $LC_ALL", "said", cwd=tmp_path).stdout == "C\n"


def test_table_4_wants_nothing_that_needs_true_labels() -> None:
    """On Clothing1M the stages `forward` and `cnn_crf` stop: they need the noise matrix, or some true labels."""
    assert set(ALL_STAGES) - set(SWEEPS["table4"].stages) == {"forward", "cnn_crf"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # One noise for each cell and seed: all that they share is the data set.
        ("table1", {("embed",): (1, 30)}),
        # M = 0, 5, 10, 15 on the same labels and the same pretrained network, for each of 4 noises and 5 seeds.
        ("figure4", {("embed",): (1, 80), ("features",): (20, 4)}),
        # Only iteration 2 reads τ.
        ("figure6", {("embed",): (1, 50), ("meta1",): (10, 5)}),
    ],
)
def test_stages_that_experiments_share_run_once_and_before(name: str, expected: dict[Any, Any]) -> None:
    found = jobs_of(name, 5)
    experiments = [job for job in found if job.result]
    assert len(experiments) == len(SWEEPS[name].cells) * 5
    assert len({job.name for job in found}) == len(found)
    shared = [job for job in found if not job.result]
    counted = {
        each: (
            sum(job.targets == each for job in shared),
            sum(job.name in other.after for other in experiments for job in shared if job.targets == each)
            // sum(job.targets == each for job in shared),
        )
        for each in {job.targets for job in shared}
    }
    assert counted == expected
    first = next(job for job in shared if job.targets == ("embed",))
    assert not first.after
    assert all(first.name in job.after for job in found if job is not first)


def test_an_experiment_alone_waits_for_nothing() -> None:
    (job,) = jobs_of("figure3", 1)
    assert job.result
    assert not job.after


def test_each_slot_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [slot_gpus(slot, ["0", "1", "2"], 1) for slot in range(4)] == ["0", "1", "2", "0"]
    assert [slot_gpus(slot, ["4", "5", "6", "7"], 2) for slot in range(2)] == ["4,5", "6,7"]
    assert slot_gpus(0, [], 1) == slot_gpus(0, ["0"], 0) == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5f")
    assert gpus_here() == ["3", "GPU-5f"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus_here() == []


def place(folder: Path) -> Place:
    return Place(folder, "0" * 40, "remote", folder, folder, None)


def test_options_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--gpus-per-job: found 2, expected at most the 1"):
        Local(place(tmp_path), 1, ["0"], 2)
    with pytest.raises(UserError, match="--partition, --slurm: found with --executor local"):
        Where(partition="gpu").open(place(tmp_path))
    monkeypatch.setattr(executors.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no sbatch here"):
        Where("slurm").open(place(tmp_path))
    assert settings(["account=vision", "cpus-per-task=8"]) == {"account": "vision", "cpus-per-task": "8"}
    with pytest.raises(UserError, match="--slurm: found '--account'"):
        settings(["--account"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("90:30", 90), ("4:00:00", 240), ("1-12", 2160), ("1-12:30", 2190), ("2-0:10:00", 2890)],
)
def test_time_limits_are_slurms(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["2", "4h", "", "1-", "1:2:3:4"])
def test_other_time_limits_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--time: found"):
        minutes(text)


def test_slurm_that_does_not_answer_has_ended_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors.shutil, "which", lambda name: name)
    queue = Slurm(place(tmp_path), 4, {})
    answers = iter([(0, "b\na\nother\n"), (1, ""), (0, "a\n")])

    def squeue(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        status, text = next(answers)
        return subprocess.CompletedProcess([], status, text)

    monkeypatch.setattr(executors.subprocess, "run", squeue)
    assert queue.going(["a", "b", "c"]) == {"a", "b"}
    assert queue.going(["a", "b", "c"]) == {"a", "b"}
    assert queue.going(["a", "b", "c"]) == {"a"}


def test_the_reason_of_a_failure_is_the_last_error_of_its_newest_log(tmp_path: Path) -> None:
    here = place(tmp_path)
    assert "no log gives a reason" in executors.last_error(here, "job")
    logs = here.logs("job")
    logs.mkdir(parents=True)
    (logs / "1_0_log.out").write_text(
        "error: a warning of old\nerror: no such luck\nERROR: failed to reproduce 'pretrain': exited with 2\n"
    )
    assert executors.last_error(here, "job") == "error: no such luck"
    (logs / "2_0_log.out").write_text("ERROR: no space\nnothing more\n")
    assert executors.last_error(here, "job") == "ERROR: no space"


# What is looked at before


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "empty")
    monkeypatch.chdir(folder)
    return folder


def test_results_go_to_a_repository_of_the_sweeps_own_unless_told(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD").strip()
    own = remote.opened(None, commit)
    assert Path(own) == repository / ".dvc/tmp/sweep/results.git"
    assert git(repository, "ls-remote", own, "main").split()[0] == commit
    assert remote.opened(None, commit) == own
    git(repository, "init", "--quiet", "--bare", "../shared.git")
    git(repository, "remote", "add", "shared", "../shared.git")
    for wanted in ("shared", "../shared.git"):
        assert Path(remote.opened(wanted, commit)) == repository.parent / "shared.git"
    assert git(repository, "ls-remote", "shared") == ""  # nothing was written


def test_a_repository_that_takes_no_results_is_refused_beforehand(repository: Path) -> None:
    with pytest.raises(UserError, match=r"--git-remote: found '\.\./nothing\.git', expected a git repository"):
        remote.opened("../nothing.git", git(repository, "rev-parse", "HEAD").strip())


def test_an_experiment_that_is_here_already_is_not_replaced(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD").strip()
    own = remote.opened(None, commit)
    for name, message in (("same", "theirs"), ("new", "theirs")):
        git(repository, "commit", "--quiet", "--allow-empty", "--message", message)
        git(repository, "push", "--quiet", own, f"HEAD:refs/exps/00/11/{name}")
        git(repository, "reset", "--quiet", "--hard", commit)
    git(repository, "commit", "--quiet", "--allow-empty", "--message", "ours")
    git(repository, "update-ref", "refs/exps/00/11/same", "HEAD")
    remote.fetch(own)
    assert git(repository, "log", "-1", "--format=%s", "refs/exps/00/11/same").strip() == "ours"
    assert git(repository, "log", "-1", "--format=%s", "refs/exps/00/11/new").strip() == "theirs"


def test_a_cache_that_cannot_be_written_is_found_beforehand(repository: Path) -> None:
    (repository / "file").touch()
    (repository / ".dvc").mkdir()
    (repository / ".dvc/config").write_text("[cache]\n    dir = ../file/cache\n", encoding="utf-8")
    with pytest.raises(RunError, match="DVC's cache cannot be written"):
        remote.cache()


STAGE = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(1)
    pathlib.Path("saved").touch()
    sys.exit()
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(60)
"""
LEADER = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as DVC, which waits for its stage
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""


@pytest.mark.parametrize("slurm_told", [True, False])
def test_a_stage_saves_its_checkpoint_whoever_tells_it(tmp_path: Path, slurm_told: bool) -> None:
    arguments = [sys.executable, "-c", LEADER, STAGE]
    leader = subprocess.Popen(arguments, cwd=tmp_path, start_new_session=True)
    while not (tmp_path / "ready").exists():
        assert leader.poll() is None
        time.sleep(0.05)
    if slurm_told:
        os.killpg(leader.pid, signal.SIGTERM)  # the leader ends of it at once
        leader.wait()
    stop_group(leader.pid, tell=not slurm_told)
    leader.wait()
    assert (tmp_path / "saved").exists()
