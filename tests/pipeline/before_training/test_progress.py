"""What a stage says while it runs, how its history grows, and how long it thinks that all will take."""

from __future__ import annotations

import hashlib
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from projects import ROOT, default_values, digests, make_params, run_stage, write_picture
from runs import Run, run_all
from torch import nn

from pipeline.base import console, files
from pipeline.base.errors import RunError, UserError
from pipeline.before_training import estimate, timing
from pipeline.before_training.estimate import Estimate
from pipeline.paper import grid, history
from pipeline.paper.sweep.plan import seconds as seconds_of
from pipeline.params.load import read_yaml
from pipeline.params.schema import Params
from pipeline.stages import download
from pipeline.store.record import Record
from pipeline.store.sizes import Sizes
from pipeline.systems.registry import BY_STAGE, CROSS_ENTROPY, DEFAULT
from pipeline.training import fit

CPU = torch.device("cpu")


# Lines, where there is no terminal


class Log:
    """What is said, by a clock that is set by hand."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.said: list[str] = []
        patch.setattr("time.monotonic", lambda: self.now)
        patch.setattr(console, "say", self.said.append)

    def steps(self, bar: console.Bar, seconds: float, steps: range, note_every: int = 0) -> None:
        for step in steps:
            bar.at(step)
            self.now += seconds
            if note_every and (step + 1) % note_every == 0:
                bar.note(f"epoch {(step + 1) // note_every}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    return Log(monkeypatch)


def test_long_epochs_say_a_line_each_and_one_a_minute_between_them(log: Log) -> None:
    log.steps(console.Lines("meta1", 200, "step"), 1.5, range(200), note_every=100)
    assert log.said == [
        "meta1: step 41 of 200; 4 min left",
        "meta1: step 81 of 200; 3 min left",
        "meta1: epoch 1; 2 min 30 s left",
        "meta1: step 141 of 200; 1 min 30 s left",
        "meta1: step 181 of 200; 28 s left",
        "meta1: epoch 2",
    ]


def test_short_epochs_say_a_line_now_and_then_and_the_last(log: Log) -> None:
    log.steps(console.Lines("pretrain", 300, "step"), 0.03, range(300), note_every=10)
    assert log.said == ["pretrain: epoch 17; 4 s left", "pretrain: epoch 30"]


def test_what_is_short_says_nothing_but_its_last_note(log: Log) -> None:
    log.steps(console.Lines("features", 50, "image"), 1.0, range(50))
    assert log.said == []


def test_a_stage_that_goes_on_counts_the_time_of_what_it_does_itself(log: Log) -> None:
    log.steps(console.Lines("meta1", 1000, "step"), 10.0, range(900, 908))
    assert log.said == ["meta1: step 907 of 1,000; 16 min left"]


def test_of_an_unknown_total_no_time_is_left(log: Log) -> None:
    log.steps(console.Lines("fetching", 0, "MiB"), 10.0, range(8))
    assert log.said == ["fetching: MiB 7"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1 s"),
        (1.4, "1 s"),
        (59.4, "59 s"),
        (59.9, "1 min"),
        (70.3, "1 min 10 s"),
        (598.0, "10 min"),
        (1500.0, "25 min"),
        (3590.0, "1 h"),
        (5400.0, "1 h 30 min"),
        (36500.0, "10 h 10 min"),
        (20 * 86400.0, "20 days"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


def test_counted_items_are_the_items(log: Log) -> None:
    def slow() -> Any:
        for item in "abc":
            log.now += 40
            yield item

    assert list(console.counted(slow(), "download", 3)) == ["a", "b", "c"]
    assert log.said == ["download: image 2 of 3; 40 s left"]


# The history grows


def test_the_history_grows_and_ends_as_it_always_did(
    copied: Run, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("plots/meta1.csv").unlink()
    shutil.rmtree("models/meta1")
    grown: list[list[str]] = []
    monkeypatch.setattr(fit, "LIVE_S", 0.0)
    monkeypatch.setattr(
        console.Lines, "note", lambda *_: grown.append([row["epoch"] for row in copied.table("plots/meta1.csv")])
    )
    run_stage("meta1", copied.params)
    assert grown == [["1"], ["1", "2"]]
    assert digests(copied.folder, "plots", "models") == digests(finished.folder, "plots", "models")


def test_a_history_that_cannot_be_written_stops_training_only_at_the_end(
    copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree("models/pretrain")
    calls: list[bool] = []

    def full(path: Path, rows: Any, synced: bool = True) -> None:
        calls.append(synced)
        raise RunError(f"{path}: could not be written")

    monkeypatch.setattr(fit, "LIVE_S", 0.0)
    monkeypatch.setattr(files, "write_csv", full)
    with pytest.raises(RunError, match=r"plots/pretrain\.csv"):
        run_stage("pretrain", copied.params)
    assert calls == [False, False, True]


def test_while_the_models_of_an_earlier_run_are_there_their_history_is_too(
    copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests(copied.folder, "plots", "models")
    monkeypatch.setattr(fit, "LIVE_S", 0.0)

    def stop(*_: Any) -> None:
        raise SystemExit(143)

    with monkeypatch.context() as patch:
        patch.setattr(console.Lines, "note", stop)
        with pytest.raises(SystemExit):
            run_stage("meta1", make_params(train__lr=0.05))
    assert digests(copied.folder, "plots", "models") == before


@pytest.mark.parametrize("rows", [0, 1])
def test_the_report_takes_no_history_of_a_stage_that_was_stopped(rows: int, copied: Run) -> None:
    lines = Path("plots/meta3.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    Path("plots/meta3.csv").write_text("".join(lines[: 1 + rows]), encoding="utf-8")
    with pytest.raises(UserError, match=rf"plots/meta3.csv: ends with epoch {rows} of 2: .* `dvc repro` goes on"):
        run_stage("report", copied.params)


def test_tables_take_no_history_but_that_which_the_stage_ended_with() -> None:
    written = Record.of("meta1", {}, [], {}, {"history of meta1": hashlib.sha256(b"abc").hexdigest()})
    assert history._finished(written, "abc")
    assert not history._finished(written, "ab")
    assert not history._finished(replace(written, outputs={}), "abc")


# Evaluated inside of an epoch


def test_a_stage_that_evaluates_inside_of_epochs_stopped_or_not(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    params = make_params(train__evaluate_every="3 steps")  # four steps an epoch
    line = run_stage("meta1", params)
    whole = digests(copied.folder, "plots/meta1.csv", "models/meta1")
    rows = copied.table("plots/meta1.csv")
    assert [row["epoch"] for row in rows] == ["0.75", "1.5", "2"]
    card = copied.json("models/meta1/model.json")
    for model, epoch in card["best_epoch"].items():
        column = [float(row[f"{model}_validation_accuracy"]) for row in rows]
        assert epoch == float(rows[column.index(max(column))]["epoch"])
        assert card["validation_accuracy"][model] == pytest.approx(max(column), abs=1e-6)
        if model == card["mentor"]:
            of_test = float(rows[column.index(max(column))][f"{model}_test_accuracy"])
            assert f"{max(column):.2%}" in line
            assert line.endswith(f"{of_test:.2%}")
    shutil.rmtree("models/meta1")

    def at(_: console.Lines, number: int) -> None:
        if number == 5:
            raise SystemExit(143)

    with monkeypatch.context() as patch:
        patch.setattr(console.Lines, "at", at)
        with pytest.raises(SystemExit):
            run_stage("meta1", params)
    assert [row["epoch"] for row in copied.table("plots/meta1.csv")] == ["0.75"]
    run_stage("meta1", params)
    assert digests(copied.folder, "plots/meta1.csv", "models/meta1") == whole


def test_evaluation_and_report_read_histories_of_another_length(project: Path) -> None:
    run = run_all(project, make_params(train__evaluate_every="3 steps"))
    assert "<svg" in run.text("reports/index.html")


# How long it will take


SIZES = Sizes((1, 8, 8), 10, train=160, validation=40, test=60)


def by_hand(params: Params, sizes: Sizes = SIZES) -> Estimate:
    steps = {"meta1": 10.0, "meta2": 10.0, "meta3": 10.0}
    return Estimate(params, sizes, start_up=4.0, image=0.01, plain=1.0, steps=steps)


def test_the_time_of_stages_by_hand() -> None:
    found = by_hand(make_params())  # 2 epochs of 5 steps of 32; 2 evaluations of 2 networks on 100 images
    assert found.training(CROSS_ENTROPY) == pytest.approx(10 * 1.0 + 2 * 2 * 100 * 0.01)
    assert found.training(BY_STAGE["control2"]) == pytest.approx(10 + 4 + 160 * 0.01)  # and the filter
    assert found.training(BY_STAGE["meta1"]) == pytest.approx(100 + 4)
    assert found.training(BY_STAGE["meta2"]) == pytest.approx(10 * (10 + 32 * 0.01) + 4 + 160 * 0.01)
    in_parts = make_params(train__folds=3)  # three trainings on two thirds, and one on all
    for stage in ("pretrain", "meta2"):
        alone = by_hand(make_params()).training(BY_STAGE[stage])
        assert by_hand(in_parts).training(BY_STAGE[stage]) == pytest.approx(3 * alone)
    assert by_hand(in_parts).training(BY_STAGE["forward"]) == by_hand(make_params()).training(BY_STAGE["forward"])
    often = by_hand(make_params(train__evaluate_every="1 steps"))
    assert often.training(CROSS_ENTROPY) == pytest.approx(10 + 10 * 2 * 100 * 0.01)


def test_the_time_of_two_networks() -> None:
    found = replace(by_hand(make_params()), steps={"co_teaching": 2.0, "divide_mix": 7.0})
    assert found.training(BY_STAGE["co_teaching"]) == pytest.approx(10 * 2 + 2 * 4)
    # Two networks look at 160 samples before each of the two epochs.
    assert found.training(BY_STAGE["divide_mix"]) == pytest.approx(10 * 7 + 2 * 4 + 2 * 2 * 160 * 0.01)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock that counts the linear layers that images pass: what a machine does beside moves no test."""
    images = 0

    def passed(module: nn.Module, inputs: tuple[torch.Tensor], _: object) -> None:
        nonlocal images
        images += len(inputs[0]) * isinstance(module, nn.Linear)

    monkeypatch.setattr(timing.Timer, "_now", lambda _: float(images))
    handle = nn.modules.module.register_module_forward_hook(passed)
    yield
    handle.remove()


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("head", [False, True])
def test_the_steps_of_two_networks_are_timed(head: bool) -> None:
    changes = {"model__train": "head", "model__weights": "any.safetensors"} if head else {}
    params = make_params(**changes, divide_mix__augmentations=4)
    pairs = [BY_STAGE[name] for name in ("co_teaching", "divide_mix")]
    found = estimate.measure(params, SIZES, pairs, CPU, width=32)
    assert found.plain == 2 * 32  # the student and its average look at a mini-batch
    assert found.steps["co_teaching"] == 2 * found.plain
    # Two networks, each with its average; four augmentations of what they guess labels for, and of what they learn.
    assert found.steps["divide_mix"] > 4 * found.plain


def test_the_time_of_a_stage_with_a_length_of_its_own() -> None:
    params = make_params(joint_optimization__epochs=9)
    first, second = (BY_STAGE[name] for name in ("joint_optimization_1", "joint_optimization"))
    assert by_hand(params).training(first) == pytest.approx(9 / 2 * by_hand(params).training(second))


def test_the_time_of_a_run_is_that_of_its_stages() -> None:
    found, each = by_hand(make_params()), 4.0 + estimate.DVC_S
    expected = sum(found.training(system) for system in DEFAULT) + (6 + 3 + 2) * each
    expected += 260 * 0.01 + 6 * (4 * 100 + 160) * 0.01  # features, evaluate
    assert found.run(DEFAULT, 2) == pytest.approx(expected)
    alone = found.run([CROSS_ENTROPY], 0, evaluated=False)
    assert alone == pytest.approx(found.training(CROSS_ENTROPY) + 2 * each + 2.6)


def test_parts_that_leave_no_mini_batch_are_said_before_anything_is_timed() -> None:
    few = Sizes((1, 8, 8), 10, train=50, validation=40, test=60)
    with pytest.raises(UserError, match=r"train\.folds: found 2; .* 25 training samples, .* batch of 32"):
        estimate.measure(make_params(train__folds=2), few, DEFAULT, torch.device("cpu"))
    estimate.measure(make_params(train__folds=3), few, [CROSS_ENTROPY], torch.device("cpu"))


@pytest.mark.parametrize("change", [{}, {"mlnt__order": "second"}, {"mlnt__update": "joint"}, {"mlnt__M": 0}])
def test_a_measurement_is_of_every_kind_of_step_and_moves_no_generator(change: dict[str, Any]) -> None:
    torch.manual_seed(3)
    states: list[Callable[[], Any]] = [torch.get_rng_state, lambda: torch.tensor(np.random.get_state()[1].astype(int))]  # noqa: NPY002
    before, python = [state() for state in states], random.getstate()
    found = estimate.measure(make_params(**change), SIZES, DEFAULT, CPU)
    assert all(torch.equal(state(), value) for state, value in zip(states, before, strict=True))
    assert random.getstate() == python
    assert set(found.steps) == {"meta1", "meta2", "meta3"}
    assert min(found.start_up, found.image, found.plain, *found.steps.values()) > 0


def test_a_measurement_of_heads_knows_what_embedding_takes() -> None:
    params = make_params(model__train="head", model__weights="any.safetensors")
    found = estimate.measure(params, SIZES, DEFAULT, CPU)
    assert min(found.embedding, found.image, found.plain, *found.steps.values()) > 0
    longer = replace(found, embedding=found.embedding + 1.0)
    assert longer.run(DEFAULT, 0) == pytest.approx(found.run(DEFAULT, 0) + SIZES.samples)
    assert estimate.measure(params, SIZES, DEFAULT, CPU, width=32).embedding == 0.0  # they are there


def test_a_part_of_a_batch_stands_for_all_of_it_where_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []
    monkeypatch.setattr(timing.Timer, "step", lambda timer, *_: timed.append(timer._batch_size) or 2.0)
    params = make_params(train__batch_size=64)
    sizes = SIZES._replace(train=640)
    part = 64 // estimate.FRACTION
    assert estimate.measure(params, sizes, DEFAULT, CPU).plain == 2.0 * 64 / part
    assert set(timed) == {part}
    monkeypatch.setattr(estimate, "CHEAP_S", 1e6)
    assert estimate.measure(params, sizes, DEFAULT, CPU).plain == 2.0
    assert set(timed) == {part, 64}


def test_fewer_samples_than_a_batch_are_said(project: Path) -> None:
    with pytest.raises(UserError, match=r"train.batch_size: need at least one batch of 32 training samples, got 20"):
        estimate.measure(make_params(), SIZES._replace(train=20), DEFAULT, CPU)


def test_what_one_stage_has_measured_the_next_ones_read(project: Path) -> None:
    params = make_params()
    found = replace(by_hand(params), steps={"meta1": 1 / 3})
    assert estimate.kept(params, SIZES, CPU) is None
    estimate.keep(found, CPU)
    assert estimate.kept(params, SIZES, CPU) == found
    assert estimate.kept(make_params(mlnt__M=3), SIZES, CPU) is None
    assert estimate.kept(params, SIZES._replace(shape=(3, 8, 8)), CPU) is None
    longer = make_params(train__epochs=9)  # of the same steps
    assert estimate.kept(longer, SIZES, CPU) == replace(found, params=longer)
    estimate.MEASURED.write_text("{")
    assert estimate.kept(params, SIZES, CPU) is None


def test_the_first_stage_tells_of_the_run_and_each_of_itself(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    monkeypatch.setattr(estimate, "measure", lambda params, sizes, *_: by_hand(params, sizes))
    for stage in ("pretrain", "meta1"):
        run_stage(stage, copied.params)
    whole, first, second = (line for line in said if "about" in line)
    assert whole.startswith("the whole run (pretrain, features, control2, control3, meta1, meta2, meta3, evaluate, ")
    assert (first[:13], second[:6]) == ("Cross Entropy", "MLNT 1")


def test_a_network_that_cannot_be_timed_costs_no_training(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Estimate:
        raise RuntimeError("out of memory")

    warned: list[str] = []
    monkeypatch.setattr(console, "warn", warned.append)
    monkeypatch.setattr(estimate, "measure", fail)
    run_stage("pretrain", copied.params)
    assert warned == ["how long it will take is not known: out of memory"]


# How much data there is


def pictures(root: Path) -> Path:
    for i, name in enumerate(
        f"{split}/{label}/{i}.png" for split in ("train", "test") for label in "ab" for i in (0, 1)
    ):
        write_picture(root / name, i, size=(12, 9))
    return root


def test_sizes_before_and_after_the_download_are_the_same(project: Path) -> None:
    params = make_params()
    before = download.sizes(params)
    run_stage("download", params)
    after = download.sizes(params)
    run_stage("noise", params)
    assert before == after == download.sizes(params) == SIZES._replace(train=159)


def test_sizes_of_what_is_not_there_yet(project: Path, tmp_path: Path) -> None:
    def sizes(**changes: Any) -> Sizes | None:
        return download.sizes(make_params(data__limit=None, data__limit_test=None, **changes))

    for source, classes in (("cifar10", 10), ("cifar100", 100), ("cifar100-coarse", 20)):
        assert sizes(data__source=source) == Sizes((3, 32, 32), classes, 40_000, 10_000, 10_000)
    root = pictures(tmp_path / "own")
    folder = {"data__source": "imagefolder", "noise__validation_fraction": 0.25, "data__resize": 7}
    assert sizes(**folder, data__root=str(root)) == Sizes((3, 7, 7), 2, 3, 1, 4)
    with tarfile.open(tmp_path / "own.tar", "w") as archive:
        archive.add(root, "own")
    assert sizes(**folder, data__root=str(tmp_path / "own.tar")) is None
    run_stage("download", make_params(**folder, data__root=str(root)))  # of which the list is not
    (root / "list.csv").write_text("path,label\ntrain/a/0.png,x\ntrain/b/0.png,y\n", encoding="utf-8")
    assert sizes(**folder, data__root=str(root / "list.csv")) == Sizes((3, 7, 7), 2, 2, 0, 0)
    (root / "test/a/0.png").write_text("no image", encoding="utf-8")  # the first
    with pytest.raises(UserError, match=r"test/a/0\.png"):
        sizes(**folder, data__root=str(root))
    assert sizes(**folder, data__root=str(root), data__on_bad_image="skip") == Sizes((3, 7, 7), 2, 3, 1, 4)
    with pytest.raises(UserError, match="no such folder or file"):
        sizes(**folder, data__root=str(tmp_path / "nothing"))


def test_a_data_set_of_another_source_or_size_tells_nothing(copied: Run) -> None:
    assert download.sizes(make_params(data__source="cifar10")).shape == (3, 32, 32)
    assert download.sizes(make_params(data__limit=100)).train == 80


# Sweeps


def test_a_sweep_times_each_kind_of_run_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    base, preset = default_values(), read_yaml(ROOT / "presets/digits.yaml")
    timed: list[int] = []
    monkeypatch.setattr(
        estimate, "measure", lambda params, sizes, *_: timed.append(params.mlnt.M) or by_hand(params, sizes)
    )

    def seconds(name: str, seeds: int, **changes: Any) -> float | None:
        sweep = grid.SWEEPS[name]
        runs = [grid.values_of(base, preset, "digits", cell, seed) for cell in sweep.cells for seed in range(seeds)]
        for values in runs:
            values["data"].update(changes)
        return seconds_of(runs, sweep.stages)

    once = seconds("table1", 1)
    assert timed == [5]
    assert seconds("table1", 2) == pytest.approx(2 * (once or 0.0))
    timed.clear()
    seconds("figure4", 1)
    assert timed == [0, 5, 10, 15]
    assert seconds("table1", 1, source="imagefolder", root=None) is None
