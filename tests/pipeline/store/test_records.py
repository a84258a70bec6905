"""Records: the digest of the code, what a checkpoint continues, what is pruned."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from projects import ROOT, git, make_params, run_stage, write_picture

from pipeline.paper.history import Finished, identity_of
from pipeline.params.load import values_of
from pipeline.params.schema import Params
from pipeline.stages.look import WITH_CODE
from pipeline.store import checkpoints, code
from pipeline.store import record as records
from pipeline.store.record import Record
from pipeline.systems.registry import BY_STAGE, code_now
from pipeline.workspace import prune


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the code, to be changed."""
    for name in code.PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "ROOT", tmp_path)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    for remembered in (code._tree, code._imported, code._module_digest, code_now):
        remembered.cache_clear()


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        ("mlnt/method/step.py", "# line 14", "# the last line", set()),
        ("mlnt/method/step.py", '"""One training step', '"""A step', set()),
        ("pipeline/base/console.py", "warning: ", "beware: ", set()),
        ("pipeline/params/schema.py", "class Features(Section):", "class Features(Section):\n    more: int", set()),
        ("mlnt/method/step.py", "-rates.meta_lr", "-2 * rates.meta_lr", {"pretrain", "meta1", "control2", "forward"}),
        ("mlnt/baselines/cnn_crf.py", "1e-8", "1e-9", {"cnn_crf"}),
        ("pipeline/systems/forward.py", "matrix.float()", "matrix.double()", {"forward", "forward_estimated"}),
        ("pipeline/sources/digits.py", "0.4", "0.5", {"download"}),
    ],
)
def test_a_changed_line_counts_for_the_stages_that_run_it_and_a_comment_for_none(
    file: str, old: str, new: str, stages: set[str], sources: Path
) -> None:
    known = ("download", "noise", "features", *BY_STAGE)
    before = {stage: code_now(stage) for stage in known}
    path = sources / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    forget()
    changed = {stage for stage in known if code_now(stage) != before[stage]}
    assert changed >= stages
    assert bool(changed) == bool(stages)
    assert "features" not in changed or file != "mlnt/method/step.py"  # it imports what trains for its types alone
    if stages in ({"cnn_crf"}, {"download"}):
        assert changed == stages


def test_a_template_or_table_counts_for_the_report_alone(sources: Path) -> None:
    listed = git(ROOT, "ls-files", *code.PACKAGES).split()
    beside = [name for name in listed if not name.endswith(".py")]
    assert {Path(name).suffix for name in beside} == set(code.BESIDE)
    for name in beside:
        before = {stage: code_now(stage) for stage in WITH_CODE}
        with (sources / name).open("a", encoding="utf-8") as file:
            file.write("\n")
        code_now.cache_clear()
        changed = {stage for stage in WITH_CODE if code_now(stage) != before[stage]}
        assert changed == (set() if name.startswith("pipeline/paper/") else {"report"})


def test_a_new_module_of_another_method_changes_nothing(sources: Path) -> None:
    before = {stage: code_now(stage) for stage in BY_STAGE}
    (sources / "mlnt/baselines/bootstrapping.py").write_text("DECAY = 0.7\n", encoding="utf-8")
    (sources / "pipeline/systems/bootstrapping.py").write_text(
        "from mlnt.baselines import bootstrapping\n", encoding="utf-8"
    )
    registry = sources / "pipeline/systems/registry.py"
    registry.write_text(
        registry.read_text().replace("import cnn_crf,", "import cnn_crf, bootstrapping,"), encoding="utf-8"
    )
    forget()
    assert {stage: code_now(stage) for stage in BY_STAGE} == before


def record(stage: str) -> Record:
    return Record(stage, {"seed": 0}, {"labels": "l"}, {}, code_now(stage), {})


def test_a_checkpoint_is_that_of_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLNT_CHECKPOINT_DIR", str(tmp_path))
    one = record("pretrain")
    with checkpoints.opened(one) as saved:
        saved.save({"a": torch.ones(2)}, {"b": 1})
    with checkpoints.opened(one) as saved:
        assert saved.load() is not None
    for other in (
        Record("pretrain", {"seed": 1}, one.inputs, {}, one.code, {}),
        Record("pretrain", one.params, {"labels": "others"}, {}, one.code, {}),
        Record("pretrain", one.params, one.inputs, {}, "other code", {}),
        Record("pretrain", one.params, one.inputs, {}, one.code, {"torch": "9"}),
    ):
        with checkpoints.opened(other) as saved:
            assert saved.load() is None


def test_what_nothing_will_continue_is_pruned_and_the_rest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLNT_CHECKPOINT_DIR", str(tmp_path))
    today = record("pretrain")
    for each in (today, Record("meta1", today.params, today.inputs, {}, "other code", {})):
        with checkpoints.opened(each) as saved:
            saved.note_divergence({"seed": 0}, "nan")
    (tmp_path / "meta2/old").mkdir(parents=True)
    (tmp_path / "resnet/best").mkdir(parents=True)
    (tmp_path / "resnet/best/weights.pt").write_text("another program's")
    assert "2 checkpoints" in prune.run(dry_run=True)
    assert len(list(tmp_path.glob("*/*/"))) == 4
    prune.run(dry_run=False)
    assert {path.parent.name for path in tmp_path.glob("*/*/")} == {"pretrain", "resnet"}


def test_what_another_process_trains_with_is_not_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It began before the code was changed, in a sweep at an earlier commit for instance."""
    monkeypatch.setenv("MLNT_CHECKPOINT_DIR", str(tmp_path))
    other = Record("meta1", {}, {}, {}, "other code", {})
    with checkpoints.opened(other) as saved:
        saved.note_divergence({"seed": 0}, "nan")
        assert "0 checkpoints" in prune.run(dry_run=False)
        assert list(tmp_path.glob("*/*/diverged.json"))
    assert "1 checkpoints" in prune.run(dry_run=False)
    assert not list(tmp_path.glob("*/*/"))


# Places


@pytest.fixture
def moved(project: Path) -> Path:
    """A folder with data and a noise matrix, `one`; the same elsewhere, under another name; and others."""
    for folder, seed in (("one", 0), ("others", 100)):
        for i in range(20):
            write_picture(project / f"{folder}/photos/{('train', 'test')[i % 5 // 4]}/{'ab'[i % 2]}/{i}.png", seed + i)
        np.savetxt(project / f"{folder}/matrix.csv", [[0.8, 0.2], [0.2, 0.8 + seed]], fmt="%g", delimiter=",")
    (project / "others/matrix.csv").write_text("0.7,0.3\n0.2,0.8\n")
    shutil.copytree(project / "one/photos", project / "two/pictures")
    shutil.copy(project / "one/matrix.csv", project / "two/noise.csv")
    return project


def of(folder: Path, photos: str = "one/photos", matrix: str = "one/matrix.csv", **changes: Any) -> Params:
    return make_params(
        data__source="imagefolder",
        data__root=str(folder / photos),
        noise__kind="matrix",
        noise__matrix_file=str(folder / matrix),
        **changes,
    )


def made(params: Params) -> dict[str, Record]:
    found = {}
    for stage in ("download", "noise"):
        run_stage(stage, params)
        written = records.read(stage)
        assert written is not None
        found[stage] = written
    return found


def belongs(found: dict[str, Record], wanted: Params) -> bool:
    return Finished("exp", 0, found, {"noise": []}).belongs("noise", values(wanted))


def values(params: Params) -> dict[str, Any]:
    return values_of(params, Params.model_fields)


def test_data_that_were_moved_are_the_same_experiment_and_others_at_their_place_are_another(
    moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = of(moved, "two/pictures", "two/noise.csv")
    found = made(of(moved))
    assert str(moved) not in "".join(path.read_text(encoding="utf-8") for path in Path("records").iterdir())
    assert made(there) == found
    assert belongs(found, of(moved))
    assert belongs(found, there)
    assert not belongs(found, of(moved, "others/photos"))
    assert len({identity_of(values(each), ["noise"]) for each in (of(moved), of(moved, "others/photos"))}) == 2
    assert not belongs(found, of(moved, matrix="others/matrix.csv"))
    assert not belongs(found, of(moved, noise__corrections=str(moved / "one/matrix.csv")))
    assert not capsys.readouterr().err.count("nothing to read")
    assert belongs(found, of(moved, "nowhere"))  # a clone without the data
    assert "data.root: nothing to read at " in capsys.readouterr().err


def test_records_that_have_places_go_on_to_count(moved: Path) -> None:
    here, there = of(moved), of(moved, "two/pictures", "two/noise.csv")
    raw = values(here)
    found = {stage: replace(each, params={key: raw[key] for key in each.params}) for stage, each in made(here).items()}
    found["download"] = replace(found["download"], inputs={})
    assert belongs(found, here)
    assert belongs(found, of(moved, matrix="two/noise.csv"))  # whose digest they have
    assert not belongs(found, there)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"model.weights": "/a/w"}, {"model.weights": "/b/v"}, True),
        ({"model.weights": "/a/w"}, {"model.weights": None}, False),
        (
            {"data.url": "https://a/x.zip", "data.sha256": "0"},
            {"data.url": "https://b/y.zip", "data.sha256": "0"},
            True,
        ),
        (
            {"data.url": "https://a/x.zip", "data.sha256": None},
            {"data.url": "https://b/x.zip", "data.sha256": None},
            False,
        ),
    ],
)
def test_a_record_has_no_place(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    assert (Record.of("pretrain", one, [], {}) == Record.of("pretrain", other, [], {})) is same
