"""A training that was stopped goes on where it stopped, or leaves what is not its own alone."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from projects import digests, make_params, run_stage, written_by
from runs import Run

from mlnt.training.loop import Training
from pipeline.base import console
from pipeline.base.errors import RunError
from pipeline.store import checkpoints
from pipeline.store.record import Record


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Training is stopped before this step, as by a signal."""

    def at(_: console.Lines, number: int) -> None:
        if number == step:
            raise SystemExit(143)

    patch.setattr(console.Lines, "at", at)


@pytest.mark.parametrize("stage", ["pretrain", "meta1", "meta2", "control2"])
def test_a_stopped_stage_goes_on_and_gives_the_same_bits(
    stage: str, finished: Run, copied: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLNT_CHECKPOINT_DIR", str(tmp_path / "elsewhere"))
    for path in written_by(stage):
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()
    with monkeypatch.context() as patch:
        stop_at(5, patch)  # four steps an epoch
        with pytest.raises(SystemExit):
            run_stage(stage, copied.params)
    assert set(digests(copied.folder, *written_by(stage))) == {f"plots/{stage}.csv"}  # the epoch that was done
    assert [row["epoch"] for row in copied.table(f"plots/{stage}.csv")] == ["1"]
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    run_stage(stage, copied.params)
    assert f"{stage}: going on after step 4 of 8" in said
    assert digests(copied.folder, *written_by(stage)) == digests(finished.folder, *written_by(stage))
    assert not list(copied.folder.rglob("state.safetensors"))


def test_a_stop_while_the_last_epoch_is_judged_counts_too(
    finished: Run, copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Training._evaluate

    def stopped(training: Training, step: int) -> Any:
        if step == training.num_steps:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(training, step)

    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_evaluate", stopped)
        with pytest.raises(SystemExit) as caught:
            run_stage("pretrain", copied.params)
    assert caught.value.code == 130
    run_stage("pretrain", copied.params)
    assert any(line.startswith("pretrain: stopped after its last step") for line in said)
    assert "pretrain: going on after step 8 of 8" in said
    assert digests(copied.folder, *written_by("pretrain")) == digests(finished.folder, *written_by("pretrain"))


@pytest.mark.parametrize("in_the_way", ["timings", "timings/pretrain.json"])
def test_a_time_that_cannot_be_written_costs_no_training(
    in_the_way: str, finished: Run, copied: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    if in_the_way == "timings":
        Path(in_the_way).write_text("a file where the folder should be", encoding="utf-8")
    else:
        Path(in_the_way).mkdir(parents=True)
    run_stage("pretrain", copied.params)
    said = capsys.readouterr().err
    assert "warning: timings/pretrain.json: could not be written: " in said
    assert digests(copied.folder, *written_by("pretrain")) == digests(finished.folder, *written_by("pretrain"))
    assert not list(copied.folder.rglob("state.safetensors"))


def test_a_folder_that_vanishes_is_not_made_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(RunError, match="could not be made"), checkpoints.opened(Record("pretrain", {}, {}, {}, "", {})):
        pass


def test_a_table_of_other_precision_is_another_input(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(SystemExit):
            run_stage("meta1", copied.params)
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    for stage in ("features", "meta1"):
        run_stage(stage, make_params(features__dtype="float16"))
    assert copied.params.features.dtype == "float32"
    assert not any("going on" in line for line in said)


def test_the_checkpoint_of_other_parameters_or_inputs_is_left_alone(
    finished: Run, copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(SystemExit):
            run_stage("meta2", copied.params)
    before = digests(copied.folder, "checkpoints")
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    run_stage("meta2", make_params(mlnt__M=1))
    run_stage("meta1", make_params(mlnt__M=1))
    run_stage("meta2", copied.params)  # under another mentor
    assert not any("going on" in line for line in said)
    assert before.items() <= digests(copied.folder, "checkpoints").items()
    assert sum(name.endswith("state.safetensors") for name in before) == 1
