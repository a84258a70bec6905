"""Sweeps: what they plan, which experiments count, what the tables say. Experiments here are made by hand."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from projects import ROOT, default_values

from pipeline.base.errors import UserError
from pipeline.paper import figure7, grid, pages, tables
from pipeline.paper import history as past
from pipeline.paper import statistics as comparison
from pipeline.paper.figures import Filtered, progress
from pipeline.paper.grid import ALL_STAGES, FIRST_ITERATION, SWEEPS, Cell, sweep_named, values_of
from pipeline.paper.history import Finished, identity_of, plain
from pipeline.paper.statistics import CROSS_ENTROPY, ROWS, Mean, Row
from pipeline.paper.sweep.plan import Part, make_plan, only
from pipeline.params.load import changed, check, read_yaml
from pipeline.params.schema import Params, leaf_keys
from pipeline.report.numbers import published
from pipeline.store.record import Record
from pipeline.systems.registry import chain, sections, stages_before

BASE = default_values()
DIGITS = read_yaml(ROOT / "presets/digits.yaml")


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Presets are read here; checkpoints are elsewhere."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MLNT_CHECKPOINT_DIR", str(tmp_path / "checkpoints"))


def identity(params: dict[str, Any], stages: Sequence[str]) -> str:
    return identity_of(plain(params), stages)


def history(last: float, best: float | None = None) -> list[dict[str, str]]:
    """Two epochs; the first is best on validation."""
    first = last if best is None else best
    return [
        {f"{m}_{s}_accuracy": str(v) for m in ("student", "teacher") for s in ("validation", "test", "train")}
        | {f"{m}_validation_accuracy": str(w) for m in ("student", "teacher")}
        | {"epoch": epoch}
        for epoch, v, w in (("1", first, 0.9), ("2", last, 0.8))
    ]


def records_of(values: dict[str, Any], stages: Sequence[str], code: str = "") -> dict[str, Record]:
    """What these stages, and all that they need, would write: each output is named by its stage and parameters."""
    flat = past.plain(values)
    needed = set().union(*(chain(stage) for stage in stages))
    outputs = {
        each: f"{each} of {sorted((k, str(v)) for k, v in flat.items() if k.partition('.')[0] in past.read_by([each]))}"
        for each in needed
    }
    return {
        each: Record(
            each,
            {k: v for k, v in flat.items() if k.partition(".")[0] in sections(each)},
            {before: outputs[before] for before in stages_before(each)},
            {each: outputs[each]},
            code or past.code_now(each),
            {},
        )
        for each in needed
    }


def experiment(cell: Cell, seed: int, accuracy: float = 0.5, time: int = 0, **more: Any) -> Finished:
    stages, code = more.pop("stages", ALL_STAGES), more.pop("code", "")
    preset, name = more.pop("preset", DIGITS), more.pop("preset_name", "digits")
    values = changed(values_of(BASE, preset, name, cell, seed), more)
    rows = {stage: history(accuracy + 0.01 * (stage != "pretrain")) for stage in stages}
    return Finished(f"exp-{seed}-{time}", time, records_of(values, stages, code), rows)


def write_divergence(folder: Path, stage: str, params: Params, code: str = "") -> None:
    """As training leaves it: through the schema."""
    values = past.plain(params.model_dump(mode="json", by_alias=True))
    note = {"stage": stage, "params": values, "code": code or past.code_now(stage), "message": "<nan> at step 3"}
    (folder / "diverged.json").write_text(json.dumps(note))


def plan(name: str, finished: list[Finished], seeds: int = 3, **more: Any) -> Any:
    return make_plan(SWEEPS[name], seeds, BASE, DIGITS, "digits", finished, **more)


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("preset", ["digits", "cifar10", "clothing1m"])
def test_every_cell_of_every_sweep_is_valid(name: str, preset: str) -> None:
    chosen = read_yaml(ROOT / f"presets/{preset}.yaml")
    keys = set(leaf_keys())
    for cell in SWEEPS[name].cells:
        assert set(cell.changes) <= keys
        params = check(values_of(BASE, chosen, preset, cell, 3), Path("params.yaml"))
        assert params.seed == 3
    assert len({cell.label for cell in SWEEPS[name].cells}) == len(SWEEPS[name].cells)


def test_a_sweep_can_be_cut_down_to_some_cells() -> None:
    table = SWEEPS["table1"]
    assert [cell.label for cell in only(table, "table1", ["r=0.7", "r=0.5"]).cells] == ["r=0.5", "r=0.7"]
    assert only(table, "table1", []) == table
    with pytest.raises(UserError, match=r"--cell: found 'r=0.2', expected one of those of table1: r=0; r=0.1; r=0.3"):
        only(table, "table1", ["r=0.5", "r=0.2"])


def test_a_table_of_systems_takes_others_beside_its_own() -> None:
    more = sweep_named("table1", ["elr", "elr"])
    cell, also = more.cells[3], (*ALL_STAGES, "elr")
    assert more.stages == also
    found = [experiment(cell, 0), experiment(cell, 1, stages=also)]
    assert make_plan(more, 2, BASE, DIGITS, "digits", found).done == 1
    assert plan("table1", found, seeds=2).done == 2  # what has more counts for the table itself too
    with pytest.raises(UserError, match=r"--also: found 'bootstrapping'.*gce"):
        sweep_named("table1", ["bootstrapping"])
    with pytest.raises(UserError, match=r"figure4 does not compare systems.*table1"):
        sweep_named("figure4", ["elr"])


def test_tables_show_a_system_beside_the_papers_where_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [experiment(SWEEPS["table1"].cells[3], 0, stages=(*ALL_STAGES, "elr"))]
    found += [experiment(SWEEPS["figure4"].cells[0], 0, stages=FIRST_ITERATION)]
    monkeypatch.setattr(past, "finished", lambda: found)
    monkeypatch.setattr(past, "belongs_here", lambda *_: False)
    for also in [], ["elr"]:
        tables.run("digits", tmp_path, also)
        assert ("| ELR |" in (tmp_path / "table1.md").read_text(encoding="utf-8")) == bool(also)


def test_the_tables_have_the_papers_columns() -> None:
    for name in ("table1", "table2"):
        numbers = published(SWEEPS[name].paper)
        assert [cell.label for cell in SWEEPS[name].cells] == list(numbers["Cross Entropy (reproduced)"])
        ours = {row.paper for row in ROWS} - {""}
        assert set(numbers) - ours == {"Cross Entropy [24]"}
    assert tables._order_numbers(SWEEPS["table3"])["MLNT-student (1st iter.)"]["SN r=0.3, order=second"] == (
        90.74,
        None,
    )


def test_a_sweep_wants_every_cell_with_every_seed() -> None:
    found = plan("table3", [])
    assert (found.total, found.done, len(found.open)) == (24, 0, 24)
    assert [values["seed"] for values in found.missing[0][1]] == [0, 1, 2]
    assert found.missing[1][1][0]["mlnt"]["order"] == "second"


def test_what_is_finished_or_diverged_is_not_wanted_again(tmp_path: Path) -> None:
    cells = SWEEPS["table3"].cells
    done = [experiment(cells[0], seed, stages=FIRST_ITERATION) for seed in (0, 2)]
    folder = tmp_path / "checkpoints/meta1/0123"
    folder.mkdir(parents=True)
    diverging = check(values_of(BASE, DIGITS, "digits", cells[3], 0), Path("params.yaml"))
    write_divergence(folder, "meta1", diverging)
    found = plan("table3", done)
    assert (found.done, found.diverged, len(found.open)) == (2, 1, 21)
    missing = {cell.label: [v["seed"] for v in values] for cell, values in found.missing}
    assert missing[cells[0].label] == [1]
    assert missing[cells[3].label] == [1, 2]


def test_the_parts_of_a_sweep_are_all_of_it_and_no_experiment_twice() -> None:
    """Whatever of it is finished: what the parts are does not depend on that."""
    done = [experiment(SWEEPS["table3"].cells[0], 0, stages=FIRST_ITERATION)]
    parts = [plan("table3", done, part=Part(number, 5)) for number in range(5)]
    assert [found.total for found in parts] == [5, 5, 5, 5, 4]
    assert sum(found.done for found in parts) == 1
    wanted = [identity(values, FIRST_ITERATION) for found in parts for values in found.open]
    assert sorted(wanted) == sorted(identity(v, FIRST_ITERATION) for v in plan("table3", done).open)
    assert Part.parse("3/5") == Part(3, 5)
    for wrong in ("5/5", "1", "a/b", "-1/5", "1/0"):
        with pytest.raises(UserError, match="--part: found"):
            Part.parse(wrong)


def test_an_experiment_of_a_table_serves_a_figure_but_not_the_other_way_round() -> None:
    table, figure3 = SWEEPS["table2"].cells[3], SWEEPS["figure3"].cells[0]
    assert plan("figure3", [experiment(table, 0)]).done == 1
    assert plan("table2", [experiment(figure3, 0, stages=FIRST_ITERATION)]).done == 0


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"evaluate.label_issue_threshold": 0.4}, True),
        ({"run.checkpoint_every": 7}, True),
        ({"filter.tau": 0.45}, True),  # nothing of the first iteration depends on it
        ({"cnn_crf.weight_end": 1.0}, True),
        ({"mlnt.M": 4}, False),
        ({"noise.sampling": "bernoulli"}, False),
        ({"features.dtype": "float16"}, False),
        ({"seed": 1}, False),
    ],
    ids=str,
)
def test_two_runs_are_the_same_if_what_their_stages_read_is_the_same(change: dict[str, Any], same: bool) -> None:
    other = changed(BASE, change)
    assert (identity(BASE, FIRST_ITERATION) == identity(other, FIRST_ITERATION)) == same


def test_the_parameters_of_a_baseline_count_for_it() -> None:
    other = changed(BASE, {"cnn_crf.weight_end": 1.0})
    assert identity(BASE, ("cnn_crf",)) != identity(other, ("cnn_crf",))
    assert identity(BASE, ("joint_optimization",)) == identity(other, ("joint_optimization",))
    assert "joint_optimization" in past.read_by(["joint_optimization"])


def test_duplicates_count_once_and_the_newer_complete_one_counts() -> None:
    sweep = SWEEPS["figure3"]
    cell = sweep.cells[0]
    runs = [
        experiment(cell, 0, 0.5, time=1, stages=FIRST_ITERATION),
        experiment(cell, 0, 0.6, time=2, stages=FIRST_ITERATION),
        experiment(cell, 0, 0.7, time=3, stages=("pretrain",)),
        experiment(cell, 1, 0.8, time=4, stages=FIRST_ITERATION),
    ]
    found = comparison.runs_of(sweep, cell, runs, BASE, DIGITS, "digits")
    assert found.accuracies("pretrain", "student", "last") == pytest.approx({0: 60.0, 1: 80.0})


def test_best_is_the_first_epoch_of_the_highest_validation_accuracy() -> None:
    assert comparison.accuracy(history(0.7, best=0.4), "student", "best", "test") == 0.4
    assert comparison.accuracy(history(0.7, best=0.4), "student", "last", "test") == 0.7
    assert comparison.accuracy([], "student", "last", "test") is None


# Statistics


def test_mean_and_standard_error() -> None:
    assert comparison.mean_of([]) is None
    assert comparison.mean_of([80.0]) == Mean(80.0, None, 1)
    number = comparison.mean_of([80.0, 82.0, 87.0])
    assert number is not None
    assert number.error == pytest.approx(statistics.stdev([80, 82, 87]) / math.sqrt(3))


def test_the_paired_test_by_hand() -> None:
    """Differences 1, 2, 3: t = 2 / (1/√3) = 3.4641 with two degrees of freedom, p = 1 − t/√(t² + 2) = 0.0742."""
    left, right = {0: 11.0, 1: 22.0, 2: 33.0, 9: 1.0}, {0: 10.0, 1: 20.0, 2: 30.0, 8: 5.0}
    t = 2 * math.sqrt(3)
    assert comparison.p_value(left, right) == pytest.approx(1 - t / math.sqrt(t * t + 2), rel=1e-9)
    assert comparison.p_value({0: 1.0}, {0: 2.0}) is None
    assert comparison.p_value({0: 1.0, 1: 2.0}, {0: 2.0, 1: 4.0}) is None
    # Each seed gains one image of 719; the files' six digits make differences of 0.1390 and 0.1391.
    without, with_one = (
        {s: 100 * round((k + more) / 719, 6) for s, k in enumerate((500, 613, 650))} for more in (0, 1)
    )
    assert comparison.p_value(with_one, without) is None


def test_holms_correction() -> None:
    # Sorted: 0.01 ≤ 0.05/4, 0.016 ≤ 0.05/3, 0.03 > 0.05/2: here it stops, although 0.04 ≤ 0.05/1.
    assert comparison.holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.016, "e": None}) == {"b", "d"}
    assert comparison.holm({"a": 0.051}) == set()


def test_arrows_say_better_or_worse_than_cross_entropy() -> None:
    reference = {s: 80.0 + s for s in range(5)}
    up, down, same = (Row(name, name, "student", "") for name in ("up", "down", "same"))
    noise = [0.1, -0.2, 0.15, 0.05, -0.1]
    column = {
        CROSS_ENTROPY: reference,
        up: {s: v + 5 + noise[s] for s, v in reference.items()},
        down: {s: v - 5 + noise[s] for s, v in reference.items()},
        same: {s: v + noise[s] for s, v in reference.items()},
    }
    assert comparison.beside_cross_entropy({"c": column}) == {("c", "up"): "better", ("c", "down"): "worse"}
    assert comparison.best_row(column) == up


def test_arrows_along_an_axis_compare_with_the_first_value_of_the_noise() -> None:
    row = Row("MLNT 1 student", "meta1", "student", "")
    first = {s: 80.0 + s for s in range(5)}
    noise = [0.1, -0.2, 0.15, 0.05, -0.1]
    up = {s: v + 3 + noise[s] for s, v in first.items()}
    low = {s: v - 30 + noise[s] for s, v in first.items()}
    columns = {label: {row: v} for label, v in (("A, M=0", first), ("A, M=5", up), ("B, M=0", low), ("B, M=5", low))}
    assert comparison.beside_first_of_noise(columns) == {("A, M=5", row.title): "better"}


def test_the_highest_is_not_bold_beside_an_equal() -> None:
    first, second = Row("a", "a", "student", ""), Row("b", "b", "student", "")
    assert comparison.best_row({first: {0: 81.0, 1: 79.0, 2: 80.5}, second: {0: 79.0, 1: 81.0, 2: 80.0}}) is None
    assert comparison.best_row({first: {0: 81.0}}) is None


def test_a_cell_says_its_n_its_error_and_the_papers_number() -> None:
    full = pages.Entry(Mean(90.0, 0.4, 5), "better", True, (87.0, 0.3))
    assert full.text == "90.0 ± 0.4 (5) ↑"
    assert full.beside == "87 (+3.0; +6 se)"
    assert pages.Entry(Mean(90.0, 0.0, 2), "", False, (87.0, 0.0)).beside == "87 (+3.0)"
    assert pages.Entry(Mean(90.0, 0.4, 5), "", False, (87.0, None)).beside == "87 (+3.0)"
    assert pages.Entry(Mean(90.0, None, 1), "", False, (87.0, None)).beside == "87 (+3.0)"
    assert pages.Entry(None, "", False, (87.0, None)).text == ""


def test_bold_is_never_worse_on_the_seeds_that_both_have() -> None:
    first, second = Row("a", "a", "student", ""), Row("b", "b", "student", "")
    column = {first: {0: 70.0, 1: 70.1, 2: 70.0, 3: 95.0, 4: 95.0}, second: {0: 75.0, 1: 75.2, 2: 75.1}}
    assert comparison.best_row(column) is None


# What of a commit belongs to its parameters


def test_results_of_other_code_count_are_marked_and_give_way_to_those_of_todays() -> None:
    sweep = SWEEPS["figure3"]
    cell = sweep.cells[0]
    old = experiment(cell, 0, 0.5, time=2, stages=FIRST_ITERATION, code="other")
    new = experiment(cell, 0, 0.6, time=1, stages=FIRST_ITERATION)
    found = comparison.runs_of(sweep, cell, [old], BASE, DIGITS, "digits")
    assert found.outdated() == found.outdated("meta1") == [0]
    assert plan("figure3", [old], seeds=1).done == 1
    assert len(plan("figure3", [old], seeds=1, outdated=True).open) == 1
    found = comparison.runs_of(sweep, cell, [new, old], BASE, DIGITS, "digits")
    assert found.outdated() == []
    assert found.accuracies("pretrain", "student", "last") == pytest.approx({0: 60.0})


def wanted(**changes: Any) -> dict[str, Any]:
    return past.plain(changed(BASE, {key.replace("__", "."): value for key, value in changes.items()}))


@pytest.mark.parametrize(
    ("stage", "spoil", "expected"),
    [
        ("meta1", lambda records: None, True),
        ("meta1", lambda records: records.pop("noise"), False),
        ("meta1", lambda records: records["pretrain"].params.update({"train.lr": 7.0}), False),
        ("meta1", lambda records: records["pretrain"].inputs.update(noise="other labels"), False),
        ("meta1", lambda records: records["features"].inputs.update(pretrain="another network"), False),
        ("meta1", lambda records: records["meta2"].params.update({"mlnt.M": 7}), True),
        ("meta1", lambda records: records["meta1"].params.update({"mlnt.M": 7}), False),
        ("pretrain", lambda records: records["meta1"].params.update({"mlnt.M": 7}), True),
    ],
    ids=["whole", "no labels", "upstream parameter", "other labels", "other network", "later", "own", "not its own"],
)
def test_a_result_counts_if_all_that_it_comes_from_is_there_and_fits(stage: str, spoil: Any, expected: bool) -> None:
    records = records_of(BASE, ("meta2",))
    spoil(records)
    found = Finished("exp", 0, records, {"pretrain": [], "meta1": [], "meta2": []})
    assert found.belongs(stage, wanted()) is expected


def test_a_parameter_that_is_added_later_counts_as_neutral_in_older_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here `train.momentum` plays the new one."""
    records = records_of(BASE, ("pretrain",))
    del records["pretrain"].params["train.momentum"]
    found = Finished("exp", 0, records, {"pretrain": []})
    assert not found.belongs("pretrain", wanted())
    monkeypatch.setattr(past, "neutral_values", lambda: {"train.momentum": 0.9})
    assert found.belongs("pretrain", wanted(train__momentum=0.9))
    assert not found.belongs("pretrain", wanted(train__momentum=0.5))


def test_a_divergence_with_other_code_is_forgotten_and_one_of_a_baseline_is_known(tmp_path: Path) -> None:
    cells = SWEEPS["table1"].cells
    for stage, cell, code in (("cnn_crf", cells[0], ""), ("forward", cells[1], ""), ("meta1", cells[2], "old")):
        folder = tmp_path / "checkpoints" / stage / "0123"
        folder.mkdir(parents=True)
        write_divergence(folder, stage, check(values_of(BASE, DIGITS, "digits", cell, 0), Path("params.yaml")), code)
    assert plan("table1", []).diverged == 2
    assert plan("table1", [experiment(cells[0], 0)]).diverged == 1  # it has finished since
    (tmp_path / "checkpoints/my_method/0123").mkdir(parents=True)  # of another branch
    Path(folder / "diverged.json").rename(tmp_path / "checkpoints/my_method/0123/diverged.json")
    assert plan("table1", []).diverged == 2


def test_whole_numbers_and_floats_are_the_same_parameters() -> None:
    whole, point = changed(BASE, {"noise.rate": 0}), changed(BASE, {"noise.rate": 0.0})
    assert identity(whole, FIRST_ITERATION) == identity(point, FIRST_ITERATION)
    assert identity(changed(BASE, {"mlnt.eta_ramp_length": "5 epochs"}), ("meta1",)) == identity(
        changed(BASE, {"mlnt.eta_ramp_length": 5}), ("meta1",)
    )


# Writing


def test_figure_3_of_data_without_a_test_split_shows_the_rest() -> None:
    found = experiment(SWEEPS["figure3"].cells[0], 0, stages=FIRST_ITERATION)
    for rows in found.histories.values():
        for row in rows:
            del row["student_test_accuracy"], row["teacher_test_accuracy"]
    assert "noisy training labels" in progress(comparison.Runs({0: found}, {}))


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tables of some experiments: one cell of Table 1 with three seeds, one of Figure 4, one that diverged."""
    cells = SWEEPS["table1"].cells
    found = [experiment(cells[3], seed, 0.5 + 0.02 * seed) for seed in range(3)]
    found += [experiment(cell, 0, 0.6, stages=FIRST_ITERATION) for cell in SWEEPS["figure4"].cells[0:3:2]]
    assert SWEEPS["table1"].stages == ALL_STAGES
    folder = tmp_path / "checkpoints/meta2/0123"
    folder.mkdir(parents=True)
    write_divergence(folder, "meta2", check(values_of(BASE, DIGITS, "digits", cells[5], 4), Path("params.yaml")))
    monkeypatch.setattr(past, "finished", lambda: found)
    monkeypatch.setattr(past, "belongs_here", lambda stage, values: stage == "meta2")
    image = np.zeros((1, 8, 8), dtype=np.uint8)
    pictures = [Filtered(image, "3", 0.01, "<8>", 0.97, "<8>"), Filtered(image, "1", 0.02, "7", 0.9, "2")]
    monkeypatch.setattr(figure7, "filtered", lambda params: pictures)
    tables.run("digits", tmp_path / "out")
    return tmp_path


def test_tables_are_written_for_what_was_run_alone(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {path.name for path in (written / "out").iterdir()}
    assert {"table1.md", "table1.csv", "figure4.svg", "figure7.svg"} <= names
    drawing = (written / "out/figure7.svg").read_text(encoding="utf-8")
    assert "&lt;8&gt; 0.97 ✓" in drawing
    assert "7 0.90 (2)" in drawing
    assert "table2.md" not in names
    text = (written / "out/table1.md").read_text(encoding="utf-8")
    # At r = 0.3 the experiments of Figure 4 count too: cross entropy does not read M.
    assert "| Cross Entropy |  |  | 60.0 (1) | 52.0 ± 1.2 (3) |  |  |" in text
    assert "r=0.9, seed 4: meta2 diverged (<nan> at step 3)" in text
    rows = past.csv.DictReader((written / "out/table1.csv").read_text(encoding="utf-8").splitlines())
    first = next(row for row in rows if row["cell"] == "r=0.5")
    assert (first["system"], first["n"], first["test_accuracy"]) == ("Cross Entropy", "3", "52.0")
    assert first["seeds"] == "0:50.00 1:52.00 2:54.00"
    assert "than Cross Entropy by a paired t-test" in text
    along = (written / "out/figure4.md").read_text(encoding="utf-8")
    assert "than the first column of the same noise by a paired t-test" in along
    assert "Cross Entropy" not in along
    assert "The run of params.yaml" in (written / "out/figure7.md").read_text(encoding="utf-8")


def test_the_page_is_one_file_and_escapes_what_it_shows(written: Path) -> None:
    page = (written / "out/index.html").read_text(encoding="utf-8")
    assert "&lt;nan&gt; at step 3" in page
    assert "<nan>" not in page
    assert "<svg" in page
    assert not re.search(r"<(script|img|link|iframe)", page)


# The paper's numbers


@pytest.mark.parametrize(("preset", "beside"), [("cifar10", True), ("digits", True), ("cifar100", False)])
def test_the_papers_numbers_stand_beside_all_but_cifar_100(
    preset: str, beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = read_yaml(ROOT / f"presets/{preset}.yaml")
    found = [
        experiment(SWEEPS[name].cells[0], 0, stages=SWEEPS[name].stages, preset=chosen, preset_name=preset)
        for name in ("table1", "table2", "table3")
    ]
    monkeypatch.setattr(past, "finished", lambda: found)
    monkeypatch.setattr(tables, "read_bases", lambda _: (BASE, chosen))
    tables.run(preset, tmp_path)
    for name, number in (("table1", "91.84"), ("table2", "91.04"), ("table3", "90.57")):
        assert (number in (tmp_path / f"{name}.md").read_text(encoding="utf-8")) is beside
        assert (number in (tmp_path / "index.html").read_text(encoding="utf-8")) is beside
        rows = past.csv.DictReader((tmp_path / f"{name}.csv").read_text(encoding="utf-8").splitlines())
        assert (number in {row["paper"] for row in rows}) is beside


def test_figure_7_is_left_out_where_the_run_has_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = read_yaml(ROOT / "presets/cifar100.yaml")
    cell = SWEEPS["table1"].cells[0]
    monkeypatch.setattr(past, "finished", lambda: [experiment(cell, 0, preset=chosen, preset_name="cifar100")])
    monkeypatch.setattr(past, "belongs_here", lambda *_: True)
    monkeypatch.setattr(figure7, "filtered", lambda _: [Filtered(np.zeros((1, 8, 8), np.uint8), "3", 0.0, "8", 1, "8")])
    tables.run("cifar100", tmp_path)
    assert not list(tmp_path.glob("figure7*"))
    assert "figure7: left out" in capsys.readouterr().err


# Presets


@pytest.mark.parametrize("text", ["# only a comment\n", "- a list\n", "text\n"])
def test_a_preset_that_has_no_sections_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/mine.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError, match=r"presets/mine.yaml: expected sections such as `train:`, found"):
        grid.read_bases("mine")
