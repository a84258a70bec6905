from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import (
    ROOT,
    changed,
    copy_outputs,
    default_values,
    digests,
    edit_params,
    environment,
    invoke,
    make_params,
    run,
    run_pipeline,
    run_stage,
    write_params,
)
from ruamel.yaml import YAML
from safetensors.torch import save_file

from pipeline.base.errors import RunError, UserError
from pipeline.cli import app
from pipeline.params import presets
from pipeline.params.load import load

COMMANDS = {
    "look": "data/seen/",
    "download": "data/dataset.h5",
    "inject-noise": "data/labels.h5",
    "embed": "data/embeddings.h5",
    "pretrain": "models/pretrain/",
    "extract-features": "data/features.h5",
    "meta-train": "models/meta1/",
    "evaluate": "metrics/evaluate.json",
    "report": "reports/index.html",
    "baseline": "models/NAME/",
    "sweep": "DVC experiments",
    "tables": "reports/PRESET/index.html",
    "predict": "predictions.csv",
    "init": "params.yaml",
    "list": "DIR/labels.csv",
    "show": "results",
    "preset": "params.yaml",
    "doctor": "project",
    "prune": "checkpoints",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with parameters and presets, and nothing else."""
    write_params(tmp_path)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    return tmp_path


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_writes(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert COMMANDS[command] in result.output
    assert "--debug" in result.output


@pytest.mark.parametrize(("what", "written"), [("model", "exports/onnx/"), ("labels", "exports/FORMAT/")])
def test_help_says_what_an_export_writes(what: str, written: str) -> None:
    result = invoke("export", what, "--help")
    assert result.exit_code == 0
    assert written in result.output
    assert f" {what} " in invoke("export").output


def test_help_lists_every_command_and_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pipeline.__main__ import main\n"
        "sys.argv = ['mlnt', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = {'torch', 'numpy', 'h5py', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "print(f'status {status}, heavy {sorted(heavy)}')\n"
    )
    result = run(tmp_path, sys.executable, "-c", code, COLUMNS="200")
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1] == "status 0, heavy []"
    for command in COMMANDS:
        assert f" {command} " in result.stdout
    assert {str(command.name) for command in app.registered_commands} == set(COMMANDS)


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=str,
)
def test_a_terminal_without_some_characters_is_shown_the_others(variables: dict[str, str], folder: Path) -> None:
    """LANG=en_US.ISO-8859-1 has no arrow."""
    for arguments, status, expected in (
        (["download", "--help"], 0, "> data/dataset.h5"),
        (["preset", "cifar10", "--params", "params.yaml"], 0, "mlnt.eta"),
        (["download"], 2, "data.root"),
    ):
        write_params(folder, data__source="imagefolder", data__root="λ→")
        result = run_pipeline(folder, *arguments, **variables, COLUMNS="100")
        assert result.returncode == status, result.stderr
        assert expected in result.stdout + result.stderr
        assert "Traceback" not in result.stderr


# Errors: one message, an exit status, nothing written


@pytest.mark.parametrize(
    ("changes", "arguments", "expected"),
    [
        ({}, ["download", "--params", "nosuch.yaml"], "nosuch.yaml: no such file"),
        ({"train.lr": 0}, ["download"], "params.yaml: train.lr: found 0"),
        ({"mlnt.m": 3}, ["pretrain"], "params.yaml: mlnt.m: no such parameter; did you mean mlnt.M?"),
        ({"data.source": "imagefolder"}, ["download"], "data.root: found null"),
        ({}, ["inject-noise"], "data/dataset.h5: no such file; `mlnt download` makes it"),
        ({}, ["report"], "data/dataset.h5: no such file; `mlnt download` makes it"),
        ({}, ["show"], "metrics/evaluate.json: no such file; `dvc repro` makes it"),
        ({}, ["meta-train", "--iteration", "1", "--control"], "--control: found --iteration 1, expected 2 or 3"),
        ({}, ["preset", "nosuch"], "preset: found 'nosuch', expected one of cifar10"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_2(
    changes: dict[str, Any], arguments: list[str], expected: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(changed(default_values(), changes), file)
    monkeypatch.chdir(folder)
    before = digests(folder)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {expected}")
    assert result.stderr.count("\n") == 1
    assert digests(folder) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["meta-train", "--iteration", "4"], "--iteration"),
        (["meta-train"], "--iteration"),
        (["pretrain", "--epochs", "3"], "--epochs"),
        (["nosuch"], "nosuch"),
        (["predict", ""], "''"),
        (["init", "--images", "", "new"], "''"),
        (["predict", "a.png", "--out="], "'--out='"),
    ],
)
def test_wrong_arguments_are_status_2(arguments: list[str], expected: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert expected in result.output


def test_a_home_that_the_shell_leaves_as_it_is_is_expanded(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert invoke("report", "--params=~/nosuch.yaml").exit_code == 2
    assert said == [f"{tmp_path}/nosuch.yaml: no such file; run this where params.yaml lies, or name it with --params"]


def test_a_process_ends_with_one_line_and_with_debug_with_the_traceback(folder: Path) -> None:
    plain, debug = (run_pipeline(folder, "inject-noise", *option) for option in ([], ["--debug"]))
    assert (plain.returncode, plain.stdout) == (2, "")
    assert plain.stderr.startswith("error: data/dataset.h5: no such file")
    assert plain.stderr.count("\n") == 1
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr
    assert "data/dataset.h5: no such file" in debug.stderr


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (UserError("data.root: wrong"), 2, "data.root: wrong"),
        (RunError("disk full"), 1, "disk full"),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero (--debug shows where)"),
    ],
)
def test_the_exit_status_tells_whose_fault_it_is(
    error: Exception, status: int, expected: str, said: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Any) -> str:
        raise error

    monkeypatch.setattr("pipeline.stages.download.run", fails)
    result = invoke("download", "--params", str(folder / "params.yaml"))
    assert (result.exit_code, said) == (status, [expected])
    assert invoke("download", "--params", str(folder / "params.yaml"), "--debug").exception is error


@pytest.mark.parametrize(("key", "status"), [("train.lr", 2), ("report.gallery", 0)])
def test_what_was_edited_while_a_stage_trained_is_not_taken_for_what_it_trained_with(
    key: str, status: int, said: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC notes the parameters that it finds at the end."""
    path = folder / "params.yaml"

    def edits(_: Any, stage: str) -> str:
        edit_params(path, {key: 7})
        return f"{stage}: trained"

    monkeypatch.setattr("pipeline.stages.train.run", edits)
    assert invoke("pretrain", "--params", str(path)).exit_code == status
    assert any("changed while pretrain was training: train.lr was" in line for line in said) == (status == 2)


# Around the pipeline


def test_presets_are_listed_and_merged(folder: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.chdir(folder)
    listed = invoke("preset")
    assert listed.exit_code == 0
    for name, what in presets.available().items():
        assert f"{name} " in listed.output
        assert what in listed.output
    merged = invoke("preset", "cifar10")
    assert merged.exit_code == 0
    assert "data.source: digits → cifar10" in merged.output.splitlines()
    assert "is cifar10 already" in invoke("preset", "cifar10").output
    assert said == []


def test_a_file_of_weights_stays_where_the_network_does(folder: Path) -> None:
    path = folder / "params.yaml"

    def start_of(preset: str) -> tuple[str | None, bool]:
        presets.apply(preset, path)
        model = load(path).model
        return model.weights, model.pretrained

    assert start_of("imagefolder-quick") == (None, True)
    edit_params(path, {"model.pretrained": False, "model.weights": "here.safetensors"})
    assert start_of("imagefolder") == ("here.safetensors", False)
    assert start_of("digits") == (None, False)
    assert start_of("imagefolder") == (None, True)


@pytest.fixture
def healthy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that would run."""
    (folder / ".dvc").mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", environment()["PATH"])
    return folder


def test_the_doctor_lets_a_good_project_go(healthy: Path) -> None:
    result = invoke("doctor")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "Ready: dvc repro"
    for subject in ("python", "packages", "cuda", "dvc", "git", "machine", "disk", "params"):
        assert f"  {subject} " in result.output


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train.lr": 0, "mlnt.M": -1}, ["train.lr: found 0", "mlnt.M: found -1"]),
        ({"data.source": "imagefolder", "data.root": "nosuch"}, ["data.root: nosuch: no such file or folder"]),
        ({"data.source": "imagefolder"}, ["data.root is null"]),
        ({"data.storage": "files"}, ["data.storage: files wants data.source to be imagefolder, not digits"]),
        ({"model.weights": "nosuch.safetensors"}, ["model.weights: nosuch.safetensors: no such file"]),
        ({"model.weights": "other.safetensors"}, ["model.weights: "]),
        ({"train.batch_size": 4000}, ["train.batch_size: need at least one batch of 4000 training samples"]),
        ({"train.folds": 2, "train.batch_size": 100}, ["train.folds: found 2"]),
    ],
)
def test_the_doctor_finds_what_is_wrong_with_parameters(
    changes: dict[str, Any], expected: list[str], healthy: Path
) -> None:
    edit_params(healthy / "params.yaml", changes)
    save_file({"stem.weight": torch.zeros(7, 3, 3, 3)}, healthy / "other.safetensors")
    result = invoke("doctor")
    assert result.exit_code == 2
    assert all(f"{text}" in result.output for text in expected), result.output
    assert result.output.splitlines()[-1] == "It will not run before what failed is mended."


def test_the_doctor_finds_another_python_or_no_dvc(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (healthy / ".dvc").rmdir()
    assert "no DVC repository; run `dvc init`" in invoke("doctor").output
    monkeypatch.setenv("PATH", str(healthy))
    result = invoke("doctor")
    assert result.exit_code == 2
    assert "`python` on PATH is None" in result.output
    assert "source .venv/bin/activate" in result.output


# Stopping and going on


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that iteration 1 needs, and parameters under which it takes some seconds."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for stage in ("download", "noise", "pretrain", "features"):
        run_stage(stage, make_params())
    write_params(folder, train__epochs=40)
    return folder


@contextmanager
def training(folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`meta-train --iteration 1` in a process of its own."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "meta-train", "--iteration", "1"],
            cwd=folder,
            env=environment(),
            stderr=file,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def state_of(folder: Path) -> tuple[Any, ...]:
    """The identity of the checkpoint; it is replaced as a whole."""
    return tuple((path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("checkpoints/*/*/state.*"))


def wait_for_another_checkpoint(folder: Path, process: subprocess.Popen[bytes]) -> None:
    before, deadline = state_of(folder), time.monotonic() + 300
    while state_of(folder) in (before, ()):
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_stopped_run_goes_on_and_gives_the_bits_of_one_that_was_not(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = [tmp_path / f"log{i}" for i in range(4)]
    with training(prepared, logs[0]) as process:
        wait_for_another_checkpoint(prepared, process)
        # While it stands still it holds its lock.
        process.send_signal(signal.SIGSTOP)
        second = run_pipeline(prepared, "meta-train", "--iteration", "1")
        assert second.returncode == 2
        assert "another process is training meta1 with the same parameters" in second.stderr
        assert second.stderr.count("\n") == 1
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        assert process.wait(120) == 128 + signal.SIGTERM
    for log, number, status in ((logs[1], signal.SIGINT, 130), (logs[2], signal.SIGKILL, -signal.SIGKILL)):
        assert not (prepared / "models/meta1").exists()
        with training(prepared, log) as process:
            wait_for_another_checkpoint(prepared, process)
            process.send_signal(number)
            assert process.wait(120) == status
    with training(prepared, logs[3]) as process:
        assert process.wait(120) == 0
    said = [log.read_text(encoding="utf-8") for log in logs]
    assert not any("Traceback" in text for text in said)
    gone_on = [re.search(r"meta1: going on after step (\d+) of (\d+)", text) for text in said]
    stopped = [re.search(r"meta1: stopped before step (\d+) of", text) for text in said]
    assert gone_on[0] is None
    steps = [int(match[1]) for match in gone_on[1:] if match]
    # A signal stops it at the very step; kill -9 takes back what came after the last checkpoint.
    assert [int(match[1]) for match in stopped if match] == steps[:2]
    assert 1 <= steps[0] < steps[1] < steps[2] < int(gone_on[1][2])

    straight = tmp_path / "straight"
    straight.mkdir()
    copy_outputs(prepared, straight)
    shutil.rmtree(straight / "models/meta1")
    (straight / "plots/meta1.csv").unlink()
    monkeypatch.chdir(straight)
    run_stage("meta1", make_params(train__epochs=40))
    written = ("models", "plots")
    assert digests(straight, *written) == digests(prepared, *written)
    assert not [
        name for name in digests(prepared, "checkpoints", "models") if name.endswith((".tmp", ".safetensors.tmp"))
    ]
    assert state_of(prepared) == ()


@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_inside_a_destructor_ends_the_command_too(number: str, status: int, tmp_path: Path) -> None:
    """Python swallows what is raised there."""
    code = f"""
import os, signal, sys, time
from pipeline import __main__, cli

class Slow:
    def __del__(self):
        os.kill(os.getpid(), signal.{number})
        for _ in range(1000):
            time.sleep(0.001)

def app(**_):
    Slow()
    time.sleep(30)
    print("not ended")

cli.app = app
__main__.main()
"""
    result = run(tmp_path, sys.executable, "-c", code, PYTHONPATH=str(ROOT))
    assert (result.returncode, result.stdout, result.stderr) == (status, "", "")


@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_while_the_command_is_still_importing_ends_it_without_a_traceback(
    number: str, status: int, tmp_path: Path
) -> None:
    (tmp_path / "typer.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.{number})\n", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = run(tmp_path, sys.executable, "-m", "pipeline", "--help", PYTHONPATH=path)
    assert (result.returncode, result.stdout, result.stderr) == (status, "", "")
