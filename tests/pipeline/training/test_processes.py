"""A training stage in several processes: the results of one, one message, and nothing left of it, however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from projects import copy_outputs, digests, environment, make_params, run_pipeline, run_stage, write_params, written_by
from safetensors.torch import load_file
from typer.testing import CliRunner

from mlnt.training.distributed import Ranks
from mlnt.training.passes import Network
from pipeline.base.errors import UserError
from pipeline.before_training.estimate import Estimate
from pipeline.cli import app
from pipeline.stages import train
from pipeline.store.record import Record
from pipeline.store.sizes import Sizes
from pipeline.systems.registry import BY_STAGE
from pipeline.training import device
from pipeline.training.processes import require_same
from pipeline.training.session import Session

STAGE = ["meta-train", "--iteration", "1"]
LONG: dict[str, Any] = {
    "train__epochs": 40,
    "train__evaluate_every": "24 steps",
    "run__checkpoint_every": "16 steps",
    "compute__eval_batch_size": 16,
}
"""160 steps, evaluated in several batches."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What comes before the stage meta1."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("download", "noise", "pretrain", "features"):
            run_stage(stage, make_params(train__epochs=1, train__lr_drop_epochs=[]))
    return folder


@pytest.fixture
def copied(prepared: Path, project: Path) -> Path:
    copy_outputs(prepared, project)
    return project


def by_one(**changes: Any) -> dict[str, str]:
    """The digests of the stage's results, by this process; they are removed."""
    run_stage("meta1", make_params(**changes))
    found = digests(Path(), *written_by("meta1"))
    for name in found:
        Path(name).unlink()
    return found


@contextmanager
def started(command: list[str], log: Path) -> Iterator[psutil.Process]:
    """It runs, in a group of its own; afterwards nothing of it does."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment(), stdout=file, stderr=file, start_new_session=True)
    family = [psutil.Process(process.pid)]
    try:
        yield family[0]
        process.wait(120)
    finally:
        for each in family[0].children(recursive=True) if family[0].is_running() else []:
            each.kill()
        process.kill()
        process.wait()


def pipeline(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", *arguments]


def ranks(launcher: psutil.Process) -> list[psutil.Process]:
    """The processes that train, in their order, once there is a checkpoint that was not there."""
    before = {path: path.stat().st_mtime_ns for path in Path().glob("checkpoints/*/*/state.*")}
    deadline = time.monotonic() + 300
    while {path: path.stat().st_mtime_ns for path in Path().glob("checkpoints/*/*/state.*")} == before:
        assert launcher.status() != psutil.STATUS_ZOMBIE, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = [child for child in launcher.children() if "RANK" in child.environ()]
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


def errors(log: Path) -> list[str]:
    text = log.read_text(encoding="utf-8")
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("error: ")]


def test_stopped_in_every_way_it_goes_on_with_other_numbers_to_the_same_bits(copied: Path, tmp_path: Path) -> None:
    """Of two synthetic mini-batches even the order of the sum is the same."""
    expected = by_one(**LONG)
    write_params(copied, **LONG, run__processes=2)
    log = tmp_path / "log"

    with started(pipeline(*STAGE), log) as launcher:
        of_stage = ranks(launcher)
        assert len(of_stage) == 2
        of_stage[1].kill()
        assert launcher.wait(120) == 1
        assert psutil.wait_procs(of_stage, timeout=120)[1] == []
    assert len(errors(log)) == 1
    assert "The same command goes on" in errors(log)[0]

    with started(pipeline(*STAGE), log) as launcher:
        of_stage = ranks(launcher)
        launcher.kill()
        assert psutil.wait_procs(of_stage, timeout=120)[1] == []
    text = log.read_text(encoding="utf-8")
    assert text.count("going on after step") == text.count("stopped before step") == 1, text

    with started(pipeline(*STAGE), log) as launcher:
        of_stage = ranks(launcher)
        of_stage[1].send_signal(signal.SIGTERM)
        assert launcher.wait(120) == 143
        assert psutil.wait_procs(of_stage, timeout=120)[1] == []
    text = log.read_text(encoding="utf-8")
    assert errors(log) == []
    assert len(stopped := re.findall(r"stopped before step (\d+) of 160", text)) == 1, text

    write_params(copied, **LONG)
    done = run_pipeline(copied, *STAGE)
    assert done.returncode == 0, done.stderr
    assert f"going on after step {stopped[0]} of 160" in done.stderr
    assert digests(copied, *written_by("meta1")) == expected


def test_the_models_of_three_processes_are_those_of_one(copied: Path, tmp_path: Path) -> None:
    """Under torchrun, evaluated in parts, and with the trainings that leave a part out. The sum of more than two
    gradients has another order, so that the bits differ."""
    changes = {"mlnt__M": 5, "train__folds": 2, "train__epochs": 1, "train__lr_drop_epochs": []}
    changes["compute__eval_batch_size"] = 9
    run_stage("meta1", make_params(**changes))
    one = tmp_path / "one"
    copy_outputs(copied, one)
    for name in digests(copied, *written_by("meta1")):
        Path(name).unlink()
    write_params(copied, **changes)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "--local-addr", "localhost"]
    with started([*torchrun, "-m", "pipeline", *STAGE], tmp_path / "log") as launcher:
        assert launcher.wait(600) == 0, (tmp_path / "log").read_text(encoding="utf-8")

    assert digests(copied, *written_by("meta1")).keys() == digests(one, *written_by("meta1")).keys()
    for path in Path("models/meta1").glob("*.safetensors"):
        expected = load_file(one / path)
        for name, tensor in load_file(path).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)
    ours, theirs = (json.loads((folder / "records/meta1.json").read_text())[0] for folder in (copied, one))
    for key in ("params", "inputs", "code", "versions"):
        assert ours[key] == theirs[key]
    assert json.loads(Path("timings/meta1.json").read_text())["processes"] == 3
    assert not list(Path().rglob("state.safetensors"))


ONE_FAILS = """
import os
if os.environ.get("RANK") == "1":
    from mlnt.training.loop import Training
    from pipeline.base.errors import RunError
    def fail(*_):
        raise RunError("this rank alone")
    Training._evaluate = fail
"""


@pytest.mark.parametrize(
    ("all_of_them", "status", "expected"), [(True, 2, "no such file"), (False, 1, "this rank alone")]
)
def test_an_error_is_said_once_and_ends_all(
    all_of_them: bool, status: int, expected: str, copied: Path, tmp_path: Path
) -> None:
    write_params(copied, run__processes=2)
    if all_of_them:
        Path("data/features.h5").unlink()
    else:
        (tmp_path / "sitecustomize.py").write_text(ONE_FAILS, encoding="utf-8")
    ended = run_pipeline(copied, *STAGE, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert ended.returncode == status, ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, ended.stderr
    assert expected in said[0]
    assert "Traceback" not in ended.stderr
    assert digests(copied, "models/meta1", "records/meta1.json") == {}


def test_what_cannot_be_divided_is_trained_by_one_process(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = make_params(run__processes=2)
    assert [train.processes(params, stage) for stage in ("pretrain", "control2", "forward", "meta1")] == [1, 1, 1, 2]
    for change in ({"mlnt__fast_weights": "classifier"}, {"mlnt__M": 1}, {"mlnt__M": 0}, {"mlnt__eta": 0.0}):
        assert train.processes(make_params(run__processes=2, **change), "meta1") == 1
    assert train.processes(make_params(run__processes=8, mlnt__M=3), "meta1") == 3
    once = make_params(run__processes=2, train__epochs=1, train__lr_drop_epochs=[])
    run_stage("pretrain", once)
    assert "Cross Entropy: by one process" in capsys.readouterr().err
    write_params(copied, train__epochs=1, train__lr_drop_epochs=[])
    before = digests(copied)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert CliRunner().invoke(app, ["pretrain"]).output == ""
    assert digests(copied) == before


def test_there_is_a_gpu_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    auto = {"compute__device": "auto", "mlnt__M": 5}
    assert train.processes(make_params(run__processes="all", **auto), "meta1") == 2
    with pytest.raises(UserError, match=r"run\.processes: found 3, expected at most 2"):
        train.processes(make_params(run__processes=3, **auto), "pretrain")
    assert train.processes(make_params(run__processes=3, mlnt__M=5), "meta1") == 3  # on the CPU


def test_all_is_as_many_as_the_cores_have_threads_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cores", lambda: 5)
    for threads, expected in ((1, 5), (2, 2), (8, 1), (None, 1)):
        assert device.processes(make_params(run__processes="all", compute__threads=threads)) == expected


def test_ranks_that_would_train_something_else_are_refused() -> None:
    class Second(Ranks):
        rank, size = 1, 2

        def shared(self, make: Any) -> Any:
            return asdict(Record("meta1", {}, {"labels": "those of rank 0"}, {}, "", {}))

    with pytest.raises(UserError, match="meta1: rank 1 has other inputs than rank 0"):
        require_same(Second(), Record("meta1", {}, {"labels": "other ones"}, {}, "", {}))
    require_same(Second(), Record("meta1", {}, {"labels": "those of rank 0"}, {}, "", {}))


def test_networks_with_random_layers_are_refused(copied: Path) -> None:
    class Two(Ranks):
        size = 2

    with closing(Session.open(make_params(), Two())) as session:
        session._require_divisible(Network(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))))
        with pytest.raises(UserError, match=r"run\.processes: .* random layers"):
            session._require_divisible(Network(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.1))))


def test_the_time_of_a_stage_is_that_of_the_passes_of_one_process() -> None:
    sizes = Sizes((1, 8, 8), 10, train=64, validation=0, test=0)

    def seconds(processes: int, **changes: Any) -> float:
        params = make_params(train__batch_size=64, train__epochs=1, run__processes=processes, mlnt__M=10, **changes)
        return Estimate(params, sizes, 0.0, 0.0, 1.0, {"meta1": 54.0}).training(BY_STAGE["meta1"])

    assert seconds(1) == 54
    assert seconds(2, mlnt__update="joint") == pytest.approx(29)
    assert seconds(4, mlnt__update="joint") == pytest.approx(19)
    assert seconds(2) == pytest.approx(54 * 30 / 55)
    assert seconds(2, mlnt__fast_weights="classifier") == 54


def test_the_time_of_what_is_divided_by_images() -> None:
    sizes = Sizes((1, 8, 8), 10, train=64, validation=0, test=0)

    def seconds(processes: int, **measured: float) -> float:
        params = make_params(run__processes=processes)
        return Estimate(params, sizes, **{"start_up": 0.0, "image": 0.0, "plain": 1.0, **measured}, steps={}).run([], 0)

    for kind in ("image", "embedding"):
        assert seconds(4, **{kind: 2.0}) - seconds(4) == pytest.approx((seconds(1, **{kind: 2.0}) - seconds(1)) / 4)
