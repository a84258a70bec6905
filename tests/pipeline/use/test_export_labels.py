"""`mlnt export labels`: what the policies do, and what the tools that the formats are for read."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np
import projects
import pytest
from PIL import Image
from projects import make_params, run_stage, write_params
from runs import Run

from pipeline.base import console, files
from pipeline.base.errors import UserError
from pipeline.params.schema import Params
from pipeline.store.dataset import SPLITS, read_dataset, read_labels
from pipeline.use.export import labels as exporter
from pipeline.use.export.policy import samples

CLASSES = ["cat", "dog", "owl"]


@pytest.fixture
def copy(own: Run, project: Path) -> Run:
    """The finished run on a person's own pictures, in the current folder."""
    shutil.copytree(own.folder, project, dirs_exist_ok=True)
    return Run(project, own.params, own.written)


def export(params: Params, kind: Any, policy: Any = "review", changed_only: bool = False, out: str = "out") -> str:
    return exporter.run(params, kind, policy, changed_only, Path(out))


def names(folder: str = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def table(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def issues() -> dict[str, dict[str, str]]:
    """Name → row of the label issues that are listed."""
    rows = {row["name"]: row for row in table("reports/label_issues.csv")}
    return {name: row for name, row in rows.items() if row["is_label_issue"] == "True"}


def doubt_all(root: str) -> None:
    """Write label issues of the data set that was downloaded; the model takes all for cats."""
    dataset = read_dataset(root)
    labels = read_labels(dataset)
    judged = [
        {
            "index": row,
            "name": dataset.names[row],
            "split": SPLITS[labels.split[row]],
            "is_label_issue": True,
            "label_score": 0.1,
            "score_kind": "in sample",
            "given_label": dataset.class_names[labels.labels[row]],
            "predicted_label": "cat",
            "predicted_score": 0.9,
        }
        for row in range(len(dataset.names))
    ]
    files.write_csv(files.LABEL_ISSUES, judged)


# Policies


def test_the_run_has_what_the_policies_differ_in(copy: Run) -> None:
    found, rows = issues(), table("reports/label_issues.csv")
    assert 0 < len(found) < len(rows)
    assert any(row["given_label"] != row["predicted_label"] for row in found.values())


@pytest.mark.parametrize("changed_only", [False, True])
def test_review_changes_no_label(changed_only: bool, copy: Run) -> None:
    export(copy.params, "csv", "review", changed_only)
    rows, doubted = table("out/labels.csv"), issues()
    assert all(row["label"] == Path(row["path"]).parent.name for row in rows)  # the class folder
    assert len(rows) == (len(doubted) if changed_only else 60)
    marked = {Path(row["path"]).stem: row["suggested_label"] for row in rows if row["is_label_issue"] == "True"}
    assert marked == {Path(name).stem: row["predicted_label"] for name, row in doubted.items()}
    assert all(row["suggested_label"] == row["label"] for row in rows if row["is_label_issue"] == "False")


def test_drop_leaves_the_doubtful_out(copy: Run) -> None:
    export(copy.params, "csv", "drop")
    dropped = {Path(name).stem for name in issues()}
    assert {Path(row["path"]).stem for row in table("out/labels.csv")} == {str(i) for i in range(60)} - dropped


@pytest.mark.parametrize("changed_only", [False, True])
def test_relabel_takes_the_models_label_for_the_doubtful_alone(changed_only: bool, copy: Run) -> None:
    export(copy.params, "csv", "relabel", changed_only)
    doubted = {Path(name).stem: row for name, row in issues().items()}
    rows = {Path(row["path"]).stem: row for row in table("out/labels.csv")}
    for stem, row in rows.items():
        assert row["label"] == (doubted[stem]["predicted_label"] if stem in doubted else row["given_label"])
    if changed_only:
        assert set(rows) == {s for s, row in doubted.items() if row["given_label"] != row["predicted_label"]}
    else:
        assert len(rows) == 60


def test_doubtful_labels_of_validation_and_test_follow_the_policy_too(copy: Run) -> None:
    rows = table("reports/label_issues.csv")
    surest = {row["split"]: row for row in rows if row["split"] != "train"}
    for row in surest.values():
        row["is_label_issue"] = "True"
        row["predicted_label"] = CLASSES[(CLASSES.index(row["given_label"]) + 1) % 3]
    # It is read by the names of its columns.
    files.write_csv(files.LABEL_ISSUES, [{"new": 1, **dict(reversed(each.items()))} for each in rows])
    dataset = read_dataset(copy.params.data.root)
    changed = {each.name: each for each in samples(dataset, read_labels(dataset), "relabel", True)}
    assert set(surest) == {"validation", "test"}
    for split, row in surest.items():
        assert (changed[row["name"]].split, changed[row["name"]].label) == (split, row["predicted_label"])


@pytest.mark.parametrize("policy", ["drop", "relabel"])
def test_the_test_split_can_be_left_as_it_is(policy: Any, copy: Run) -> None:
    rows = table("reports/label_issues.csv")
    for row in rows:
        row["is_label_issue"] = str(row["split"] == "test" or row is rows[0])
        row["predicted_label"] = CLASSES[(CLASSES.index(row["given_label"]) + 1) % 3]
    files.write_csv(files.LABEL_ISSUES, rows)
    dataset = read_dataset(copy.params.data.root)
    labels = read_labels(dataset)
    of_test = {row["name"]: row["given_label"] for row in rows if row["split"] == "test"}
    kept = {each.name: each.label for each in samples(dataset, labels, policy, False, keep_test=True)}
    assert of_test.items() <= kept.items()
    if policy == "drop":
        assert not of_test.keys() & {each.name for each in samples(dataset, labels, policy, False)}


def test_a_class_that_a_policy_leaves_nothing_of_is_named(copy: Run, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table("reports/label_issues.csv")
    for lost in [], [CLASSES[0]]:
        for row in rows:
            row["is_label_issue"] = str(row["given_label"] in lost)
        files.write_csv(files.LABEL_ISSUES, rows)
        export(copy.params, "csv", "drop", out=f"out{len(lost)}")
        assert (f"no training image of {CLASSES[0]} " in capsys.readouterr().err) == bool(lost)


def test_what_people_dropped_is_not_handed_on(copy: Run) -> None:
    first = table("reports/label_issues.csv")[0]
    Path("decisions.csv").write_text(
        f"path,given_label,decision,label\n{first['name']},{first['given_label']},drop,\n", encoding="utf-8"
    )
    noise = copy.params.noise.model_copy(update={"corrections": "decisions.csv"})
    run_stage("noise", copy.params.model_copy(update={"noise": noise}))
    export(copy.params, "csv")
    rows = table("out/labels.csv")
    assert len(rows) == 59
    assert Path(first["name"]).stem not in {Path(row["path"]).stem for row in rows}


# Formats


@pytest.mark.parametrize("place", ["out", "own/inside", "deep/er/out"])
def test_data_root_reads_the_csv_back(place: str, copy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(copy.params, "csv", "relabel", out=place)
    expected = table(f"{place}/labels.csv")
    before = read_dataset(copy.params.data.root)
    again = copy.params.data.model_copy(update={"root": f"{place}/labels.csv"})
    run_stage("download", copy.params.model_copy(update={"data": again}))
    after = read_dataset(f"{place}/labels.csv")
    labels = [after.class_names[i] for i in after.labels]
    splits = [("train", "val", "test")[i] for i in after.split]
    found = sorted(zip(after.names, labels, splits, strict=True))
    assert found == sorted((row["path"], row["label"], row["split"]) for row in expected)
    pictures = {Path(name).stem: image.tobytes() for name, image in zip(before.names, before.images, strict=True)}
    assert all(pictures[Path(n).stem] == i.tobytes() for n, i in zip(after.names, after.images, strict=True))


def test_a_link_above_the_export_does_not_mislead_its_paths(copy: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    Path("link").symlink_to(tmp_path / "elsewhere/deep")
    export(copy.params, "csv", out="link/out")
    assert all(Path("link/out", row["path"]).is_file() for row in table("link/out/labels.csv"))


def test_hf_has_each_image_beside_the_table_of_its_split(copy: Run) -> None:
    """As `datasets` documents its image folders: metadata.csv, file_name relative to it, and no other files."""
    export(copy.params, "hf")
    splits = {split: table(f"out/{split}/metadata.csv") for split in names("out")}
    assert set(splits) == {"train", "validation", "test"}
    for split, rows in splits.items():
        assert all(list(row)[:3] == ["file_name", "label", "name"] for row in rows)
        there = {str(path.relative_to(f"out/{split}")) for path in Path(f"out/{split}").rglob("*") if path.is_file()}
        assert there == {row["file_name"] for row in rows} | {"metadata.csv"}
    # `datasets` guesses the types of columns, split by split, and wants them to be equal.
    assert {row["is_label_issue"] for rows in splits.values() for row in rows} == {"True", "False"}
    assert {row["suggested_label"] for rows in splits.values() for row in rows} == set(CLASSES)
    assert not any(word in row["file_name"] for rows in splits.values() for row in rows for word in splits)
    for row in splits["train"]:
        assert Path("out/train", row["file_name"]).read_bytes() == Path("own", row["name"]).read_bytes()
        assert not Path("out/train", row["file_name"]).samefile(Path("own", row["name"]))  # to be edited in place


def test_a_list_may_name_a_file_twice_and_files_anywhere(copy: Run) -> None:
    rows = table("reports/label_issues.csv")[:12]
    places = [f"own/{row['name']}" for row in rows]
    Path("lists").mkdir()
    listed = [f"../{place},{'cat' if i % 2 else 'dog'}" for i, place in enumerate(places)]
    listed += [f"{Path(places[0]).resolve()},owl", f"../{places[1]},owl"]
    Path("lists/list.csv").write_text("path,label\n" + "\n".join(listed) + "\n", encoding="utf-8")
    params = make_params(
        data__source="imagefolder",
        data__root="lists/list.csv",
        data__resize=8,
        data__limit=None,
        data__limit_test=None,
        noise__kind="none",
        noise__rate=0.0,
    )
    for stage in ("download", "noise"):
        run_stage(stage, params)
    doubt_all("lists/list.csv")
    export(params, "hf")
    written = [f"out/{s}/{row['file_name']}" for s in names("out") for row in table(f"out/{s}/metadata.csv")]
    assert len(written) == len(set(written)) == 14
    assert Counter(Path(name).read_bytes() for name in written).most_common(1)[0][1] == 2
    export(params, "csv", out="csv")
    assert all(Path("csv", row["path"]).is_file() for row in table("csv/labels.csv"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "None", "owl"], ["None"]),
        (["7", "cat", "owl"], ["7"]),
        (["01", "02", "3"], ["01", "02", "3"]),
        (["1", "2", "3"], []),
    ],
)
def test_classes_that_load_dataset_takes_for_something_else_are_named(
    names: list[str], expected: list[str], copy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.use.export import hf

    assert hf._misread(names) == expected


def test_fiftyone_finds_labels_and_files_by_the_same_keys(copy: Run) -> None:
    """As its importer reads them: keys without suffix, a class number, attributes; files relative to data.json."""
    export(copy.params, "fiftyone")
    doubted, total = {Path(name).stem for name in issues()}, 0
    for split in ("train", "validation", "test"):
        labels = json.loads(Path(f"out/{split}/labels.json").read_text(encoding="utf-8"))
        places = json.loads(Path(f"out/{split}/data.json").read_text(encoding="utf-8"))
        assert labels["classes"] == CLASSES
        assert list(labels["labels"]) == list(places)
        assert not any(Path(key).suffix for key in places)
        for key, entry in labels["labels"].items():
            path = Path(f"out/{split}", places[key])
            assert path.is_file()
            assert CLASSES[entry["label"]] == path.parent.name
            assert entry["attributes"]["is_label_issue"] == (path.stem in doubted)
            assert 0 <= entry["attributes"]["label_score"] <= 1
        total += len(places)
    assert total == 60


def test_label_studio_gets_open_tasks_for_doubtful_labels_and_closed_ones_for_the_others(copy: Run) -> None:
    export(copy.params, "label-studio")
    tasks, doubted = json.loads(Path("out/tasks.json").read_text(encoding="utf-8")), issues()
    view = ElementTree.parse("out/config.xml").getroot()  # noqa: S314 (we have just written it)
    choices = view.find("Choices")
    assert choices is not None
    assert [choice.get("value") for choice in choices] == CLASSES
    names = {"from_name": choices.get("name"), "to_name": choices.get("toName"), "type": "choices"}
    assert view.find("Image").attrib == {"name": names["to_name"], "value": "$image"}  # type: ignore[union-attr]
    scores = [task["data"]["label_score"] for task in tasks[: len(doubted)]]
    assert scores == sorted(scores)
    versions = set()
    for task in tasks:
        query = parse_qs(urlsplit(task["data"]["image"]).query)
        assert Path(query["d"][0]) == Path("own", task["data"]["name"])
        assert ("annotations" in task) == (task["data"]["name"] not in doubted)
        for kind, label in (("annotations", "given_label"), ("predictions", "suggested_label")):
            for entry in task.get(kind, ()):
                (result,) = entry["result"]
                assert names.items() <= result.items()
                if task["data"]["name"] in doubted or kind == "annotations":
                    assert result["value"] == {"choices": [task["data"][label]]}
        versions |= {entry["model_version"] for entry in task.get("predictions", ())}
    assert len(versions) == 1
    assert versions.pop().startswith("meta3 ")
    assert sum("predictions" in task for task in tasks) == len(table("reports/label_issues.csv"))
    export(copy.params, "label-studio", "relabel", True, "again")
    closed = json.loads(Path("again/tasks.json").read_text(encoding="utf-8"))
    chosen = [task["annotations"][0]["result"][0]["value"]["choices"][0] for task in closed]
    assert chosen == [task["data"]["suggested_label"] for task in closed]


def test_names_are_quoted_in_urls(copy: Run) -> None:
    from pipeline.use.export.label_studio import _url

    url = _url(Path("/data/own/50% of #1 & 2?.png"), Path("/data/own"))
    assert unquote(parse_qs(urlsplit(url).query)["d"][0]) == "own/50% of #1 & 2?.png"
    with pytest.raises(UserError, match="serves the files below one folder"):
        _url(Path("/data/own/../other/1.png"), Path("/data/own"))


def test_cleanlab_finds_label_issues_in_what_it_is_given(copy: Run) -> None:
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    export(copy.params, "cleanlab")
    found = np.load("out/cleanlab.npz")
    rows = table("reports/label_issues.csv")
    assert found["pred_probs"].shape == (60, 3)
    assert found["class_names"].tolist() == CLASSES
    scores = get_label_quality_scores(found["labels"], found["pred_probs"], method="self_confidence")
    by_name = dict(zip(found["name"].tolist(), scores.tolist(), strict=True))
    for row in rows:  # cleanlab's self-confidence is our label score
        assert by_name[row["name"]] == pytest.approx(float(row["label_score"]), abs=1e-5)
    assert find_label_issues(found["labels"], found["pred_probs"]).shape == (60,)
    import h5py

    with h5py.File("data/features.h5") as file:
        assert np.array_equal(file["features"][:], found["features"])


def test_cleanlab_gets_the_rows_that_a_policy_leaves(copy: Run) -> None:
    export(copy.params, "cleanlab", "review", True)
    found = np.load("out/cleanlab.npz")
    assert set(found["name"].tolist()) == set(issues())
    assert len(found["features"]) == len(found["pred_probs"]) == len(found["index"]) == len(issues())


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_archives_are_exported_from_what_they_are_unpacked_to(
    storage: str, own: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.make_archive("pictures", "zip", own.folder / "own")
    data = own.params.data.model_copy(update={"root": "pictures.zip", "storage": storage})
    params = own.params.model_copy(update={"data": data})
    for stage in ("download", "noise"):
        run_stage(stage, params)
    shutil.copy(own.folder / "reports/label_issues.csv", "reports")
    export(params, "csv")
    assert all(Path("out", row["path"]).is_file() for row in table("out/labels.csv"))


@pytest.mark.parametrize("kind", ["csv", "hf", "label-studio", "fiftyone"])
def test_images_without_files_are_written_out(kind: str, copied: Run) -> None:
    """The default data."""
    export(copied.params, kind)
    dataset = read_dataset()
    written = {int(path.stem): np.asarray(Image.open(path)) for path in Path("out").rglob("*.png")}
    assert set(written) == set(range(len(dataset.names)))
    assert all(np.array_equal(pixels, dataset.images[row][0]) for row, pixels in written.items())


# Mistakes


def test_a_missing_stale_or_damaged_table_is_named_and_nothing_is_written(copy: Run) -> None:
    good = files.LABEL_ISSUES.read_text(encoding="utf-8")
    first = good.splitlines()[1]
    swapped = first.replace(",cat,", ",x,").replace(",dog,", ",cat,").replace(",x,", ",dog,").replace(",owl,", ",cat,")
    for text, expected in (
        (None, "label_issues.csv: no such file; `dvc repro` makes it"),
        (good.replace(first, swapped), "was made from other labels"),
        (good.replace(first, "999" + first), "damaged"),
        (good.replace("label_score", "score", 1), "damaged"),
        (good.replace(first + "\n", ""), f"lacks 1 of 60 samples, {first.split(',')[1]} first"),
        (good.replace(",True,", ",VRAI,", 1), "has is_label_issue 'VRAI', expected True or False"),
    ):
        if text is None:
            files.LABEL_ISSUES.unlink()
        else:
            files.LABEL_ISSUES.write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as error:
            export(copy.params, "csv")
        assert expected in str(error.value)
        assert not Path("out").exists()
        assert not [name for name in names() if name.startswith(".out")]


def test_a_table_that_a_spreadsheet_has_saved_says_the_same(copy: Run) -> None:
    export(copy.params, "csv", "drop", out="before")
    text = files.LABEL_ISSUES.read_text(encoding="utf-8")
    files.LABEL_ISSUES.write_text(text.replace(",True,", ",TRUE,").replace(",False,", ",FALSE,"), encoding="utf-8")
    export(copy.params, "csv", "drop", out="after")
    assert table("after/labels.csv") == table("before/labels.csv")


def test_pictures_that_are_gone_are_named(copy: Run) -> None:
    (gone,) = Path("own").rglob("7.*")
    gone.unlink()
    with pytest.raises(UserError, match=f"1 of 60 listed files are missing: .*{gone.name}"):
        export(copy.params, "hf")
    assert not Path("out").exists()


@pytest.mark.parametrize("out", ["own/out", "own/train/dog/out", "./link/out"])
def test_images_are_not_exported_into_the_folder_that_they_come_from(out: str, copy: Run) -> None:
    Path("link").symlink_to("own")
    before = sorted(Path("own").rglob("*"))
    with pytest.raises(UserError, match=r"--out: .*data\.root"):
        export(copy.params, "hf", out=out)
    assert sorted(Path("own").rglob("*")) == before
    export(copy.params, "csv", out=out)  # a list adds no image


def test_a_class_that_a_list_would_rename_is_named(copy: Run) -> None:
    for folder in Path("own").glob("*/dog"):
        folder.rename(folder.with_name("cat "))
    for stage in ("download", "noise"):
        run_stage(stage, copy.params)
    doubt_all("own")
    with pytest.raises(UserError, match=r"--format: found csv, but the class 'cat ' has blanks around"):
        export(copy.params, "csv")
    assert not Path("out").exists()
    export(copy.params, "fiftyone")
    labels = json.loads(Path("out/train/labels.json").read_text(encoding="utf-8"))
    assert labels["classes"][:2] == ["cat", "cat "]
    assert {each["label"] for each in labels["labels"].values()} == {0, 1, 2}


def test_changed_only_of_drop_has_nothing_to_show(copy: Run) -> None:
    with pytest.raises(UserError, match="--changed-only: found --policy drop"):
        export(copy.params, "csv", "drop", changed_only=True)
    files.LABEL_ISSUES.write_text(
        files.LABEL_ISSUES.read_text(encoding="utf-8").replace(",True,", ",False,"), encoding="utf-8"
    )
    with pytest.raises(UserError, match="nothing to export"):
        export(copy.params, "csv", "review", changed_only=True)


def test_the_command(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(console, "say", lines.append)
    write_params(copied.folder)

    def invoke(*arguments: str) -> Any:
        return projects.invoke("export", "labels", *arguments)

    assert invoke("--format", "csv").exit_code == 0
    assert Path("exports/csv/labels.csv").is_file()
    assert lines[-1].endswith("data.root: exports/csv/labels.csv")
    assert invoke("--format", "csv").exit_code == 2  # it is there
    unknown = invoke("--format", "coco")
    assert unknown.exit_code == 2
    assert "'label-studio'" in unknown.output
    assert invoke("--format", "csv", "--policy", "guess").exit_code == 2
