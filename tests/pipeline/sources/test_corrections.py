"""What people decided about labels: how it is read, refused and counted, and what becomes of the samples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from projects import make_params, write_picture
from runs import run_all

from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.report.terminal import show
from pipeline.stages import download, look, noise
from pipeline.store.dataset import TEST, TRAIN, VALIDATION, Labels, read_dataset, read_labels

HEADER = "path,given_label,decision,label\n"
OWN = {"data__source": "imagefolder", "data__root": "images", "data__limit": None, "data__limit_test": None}
AS_GIVEN = {**OWN, "noise__kind": "none"}


@pytest.fixture
def own(project: Path) -> Path:
    """A data set of two classes: a has 0, 3, …, b has 1, 4, … and c 2, 5, …; ten each, of which test has two."""
    for i in range(30):
        write_picture(project / "images" / ("test" if i >= 24 else "train") / "abc"[i % 3] / f"{i}.png", i)
    download.run(make_params(**AS_GIVEN))
    return project


def decide(text: str | bytes, **changes: Any) -> tuple[Labels, dict[str, Any]]:
    """The labels and metrics after the noise stage with this file."""
    Path("decisions.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    noise.run(make_params(**{**AS_GIVEN, "noise__corrections": "decisions.csv", **changes}))
    return read_labels(read_dataset()), files.read_json(files.NOISE)


def refused(text: str | bytes, *expected: str, **changes: Any) -> None:
    before = Path("data/labels.h5").exists()
    with pytest.raises(UserError) as caught:
        decide(text, **changes)
    said = str(caught.value)
    assert said.startswith("noise.corrections: decisions.csv")
    assert [part for part in expected if part not in said] == [], said
    assert "\n" not in said
    assert Path("data/labels.h5").exists() == before


def row_of(name: str) -> int:
    return list(read_dataset().names).index(name)


def test_decisions_change_their_samples_and_no_other(own: Path) -> None:
    noise.run(make_params(**AS_GIVEN))
    before = read_labels(read_dataset())
    decisions = "train/a/0.png,a,keep,\ntrain/a/3.png,a,relabel,c\ntrain/b/4.png,b,drop,\ntest/c/26.png,c,relabel,a\n"
    after, metrics = decide(HEADER + decisions)
    names = ("train/a/0.png", "train/a/3.png", "train/b/4.png", "test/c/26.png")
    kept, moved, dropped, in_test = map(row_of, names)
    assert metrics["corrections"] == {"keep": 1, "relabel": 2, "drop": 1}
    assert [after.labels[row] for row in (kept, moved, in_test)] == [0, 2, 0]
    assert not any(dropped in after.rows(split) for split in (TRAIN, VALIDATION, TEST))
    assert np.flatnonzero(after.known).tolist() == sorted([kept, moved, in_test])
    others = np.setdiff1d(np.arange(30), [kept, moved, dropped, in_test])
    assert np.array_equal(after.labels[others], before.labels[others])
    assert np.array_equal(after.split[others], before.split[others])  # the validation split stays the one it was
    total = metrics["train_samples"] + metrics["validation_samples"] + len(after.rows(TEST))
    assert total == 29
    assert after.reviewed is not None
    assert np.array_equal(after.reviewed, before.labels)


def test_without_a_file_the_labels_keep_their_bits(own: Path) -> None:
    noise.run(make_params(**AS_GIVEN))
    digest = read_labels(read_dataset()).digest
    _, metrics = decide(HEADER)  # a file without rows
    assert metrics["corrections"] == {"keep": 0, "relabel": 0, "drop": 0}
    noise.run(make_params(**AS_GIVEN))
    labels = read_labels(read_dataset())
    assert labels.digest == digest
    assert (labels.decisions, labels.reviewed) == (None, None)
    assert not labels.known.any()
    assert "corrections" not in files.read_json(files.NOISE)


@pytest.mark.parametrize(
    "text",
    [
        "path;given_label;decision;label\r\ntrain/a/0.png;a;keep;\r\ntrain/a/3.png;a;relabel;c\r\n",
        "\ufeffpath,given_label,decision,label\ntrain/a/0.png,a,keep,a\ntrain/a/3.png,a,relabel,c\n",
        "label,note,decision,given_label,path\n,,keep,a,train/a/0.png\nc,sure,relabel ,a,train/a/3.png\n\n,,,,\n",
        HEADER + "train/a/0.png,a,keep,\n" * 2 + "train/a/3.png,a,relabel,c\n",
    ],
    ids=["spreadsheet", "mark", "order", "twice"],
)
def test_what_a_spreadsheet_made_of_the_file_is_read(text: str, own: Path) -> None:
    labels, metrics = decide(text)
    assert metrics["corrections"] == {"keep": 1, "relabel": 1, "drop": 0}
    assert labels.labels[row_of("train/a/3.png")] == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEADER + "train/a/99.png,a,keep,\ntrain/a/0.png,a,keep,\n", ["1 of 2 rows", "line 2: 'train/a/99.png'"]),
        (HEADER + "train/a/0.png,a,relabel,d\n", ["1 of 1 rows name classes", "line 2: 'd'", "are a, b, c"]),
        (HEADER + "train/a/0.png,z,keep,\n", ["line 2: 'z'"]),
        (HEADER + "train/a/0.png,a,keep,\ntrain/a/0.png,a,drop,\n", ["lines 2 and 3: contradict", "kept", "dropped"]),
        (HEADER + "train/a/0.png,a,relabel,b\ntrain/a/0.png,a,relabel,c\n", ["lines 2 and 3", "'b'", "'c'"]),
        (HEADER + "train/a/0.png,b,keep,\n", ["1 of 1 rows have another given_label", "is 'b' there, and 'a' here"]),
        (HEADER + "train/a/0.png,a,keep,b\n", ["line 2: contradicts itself"]),
        (HEADER + "train/a/0.png,a,relabel,a\n", ["line 2: relabels", "expected another class, or keep"]),
        (HEADER + "train/a/0.png,a,relabel,\n", ["line 2: relabels"]),
        (HEADER + "train/a/0.png,a,remove,\n", ["line 2", "one of keep, relabel, drop"]),
        (HEADER + "train/a/0.png,a,,\n", ["line 2", "one of keep, relabel, drop"]),
        (HEADER + "train/a/0.png,a,keep\n", ["line 2: found 3 fields"]),
        ("path,label\ntrain/a/0.png,a\n", ["expected the columns path,given_label,decision,label"]),
        ("", ["expected the columns path,given_label,decision,label"]),
        (HEADER.encode() + b"train/\xff.png,a,keep,\n", ["another encoding"]),
        (
            HEADER + "".join(f"train/b/{i}.png,b,drop,\n" for i in range(1, 24, 3)),
            ["no training sample is left of: 'b'"],
        ),
    ],
    ids=str,
)
def test_what_the_file_must_not_say(text: str | bytes, expected: list[str], own: Path) -> None:
    refused(text, *expected)


def test_nothing_to_validate_on_is_refused(own: Path) -> None:
    noise.run(make_params(**AS_GIVEN))
    dataset = read_dataset()
    rows = read_labels(dataset).rows(VALIDATION)
    text = "".join(f"{dataset.names[i]},{dataset.class_names[dataset.labels[i]]},drop,\n" for i in rows)
    refused(HEADER + text, "drops all validation samples")


def test_a_missing_file_is_named_by_the_first_stage(own: Path) -> None:
    with pytest.raises(UserError, match=r"^noise\.corrections: decisions\.csv: no such file"):
        look.run(make_params(**AS_GIVEN, noise__corrections="decisions.csv"))
    with pytest.raises(UserError, match=r"^noise\.corrections: decisions\.csv: no such file"):
        noise.run(make_params(**AS_GIVEN, noise__corrections="decisions.csv"))


def test_the_look_sees_the_file_and_nothing_of_its_place(own: Path) -> None:
    decide(HEADER)
    look.run(make_params(**AS_GIVEN, noise__corrections="decisions.csv"))
    assert re.fullmatch(
        rf"name,size,sha256\ndecisions\.csv,{len(HEADER)},[0-9a-f]{{64}}\n", Path("data/seen/noise.csv").read_text()
    )


def test_one_file_with_two_labels_is_decided_label_by_label(project: Path) -> None:
    for i in range(12):
        write_picture(project / f"{i}.png", i)
    rows = [f"{i}.png,{'ab'[i % 2]}" for i in range(12)]
    Path("list.csv").write_text("\n".join(["path,label", *rows, "0.png,b"]) + "\n")
    changes = {"data__root": "list.csv"}
    download.run(make_params(**{**AS_GIVEN, **changes}))
    labels, metrics = decide(HEADER + "0.png,b,drop,\n0.png,a,keep,\n", **changes)
    assert metrics["corrections"] == {"keep": 1, "relabel": 0, "drop": 1}
    assert [labels.labels[row] for row in np.flatnonzero(labels.known)] == [0]


# Injected noise


def injected(**changes: Any) -> dict[str, Any]:
    return {**OWN, "noise__kind": "symmetric", "noise__rate": 1.0, "noise__symmetric_excludes_true": True, **changes}


def test_noise_leaves_alone_what_people_decided_about_the_source(own: Path) -> None:
    decisions = HEADER + "train/a/0.png,a,keep,\ntrain/a/3.png,a,relabel,c\n"
    labels, metrics = decide(decisions, **injected())
    kept, moved = row_of("train/a/0.png"), row_of("train/a/3.png")
    assert (labels.labels[kept], labels.labels[moved]) == (0, 2)
    assert labels.true_labels is not None
    assert labels.true_labels[moved] == 2  # the source was wrong
    train = labels.rows(TRAIN)
    wrong = labels.labels[train] != labels.true_labels[train]
    assert np.array_equal(wrong, ~labels.known[train])  # all others are wrong, as noise.rate 1 says
    assert metrics["realised_rate"] == pytest.approx(wrong.mean(), abs=1e-6)


def test_decisions_leave_true_labels_alone_that_stand_beside_the_given_ones(project: Path) -> None:
    for i in range(12):
        write_picture(project / f"{i}.png", i)
    rows = [f"{i}.png,{'ab'[i % 2]},a" for i in range(12)]
    Path("list.csv").write_text("\n".join(["path,label,true_label", *rows]) + "\n")
    changes = {"data__root": "list.csv"}
    download.run(make_params(**{**AS_GIVEN, **changes}))
    before, _ = decide(HEADER, **changes)
    name = read_dataset().names[next(row for row in before.rows(TRAIN) if before.labels[row] == 0)]
    after, metrics = decide(HEADER + f"{name},a,relabel,b\n", **changes)
    assert after.true_labels is not None
    assert not after.true_labels.any()
    assert after.labels[row_of(name)] == 1
    assert metrics["realised_rate"] == pytest.approx(after.labels[after.rows(TRAIN)].mean(), abs=1e-6)


def test_decisions_about_injected_noise_leave_the_truth_alone(own: Path) -> None:
    noise.run(make_params(**injected()))
    dataset = read_dataset()
    before = read_labels(dataset)
    mended, confirmed = before.rows(TRAIN)[:2]
    name = {row: dataset.names[row] for row in (mended, confirmed)}
    given = {row: dataset.class_names[before.labels[row]] for row in (mended, confirmed)}
    true = dataset.class_names[dataset.labels[mended]]
    text = f"{name[mended]},{given[mended]},relabel,{true}\n{name[confirmed]},{given[confirmed]},keep,\n"
    after, metrics = decide(HEADER + text, **injected())
    assert after.true_labels is not None
    assert np.array_equal(after.true_labels, dataset.labels)
    assert after.labels[mended] == dataset.labels[mended]
    assert after.labels[confirmed] == before.labels[confirmed] != dataset.labels[confirmed]
    train = metrics["train_samples"]
    assert metrics["realised_rate"] == pytest.approx((train - 1) / train, abs=1e-6)
    # Noise of another seed made other labels: these decisions are about something else.
    refused(HEADER + text, "rows have another given_label", **injected(seed=5, noise__rate=0.5))


# What follows


def test_known_samples_are_kept_by_the_filter_and_no_issues_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A threshold of 1 calls every label an issue, and a τ near 1 keeps nothing by itself."""
    for i in range(60):
        write_picture(tmp_path / "images" / "train" / "abc"[i % 3] / f"{i}.png", i, size=(8, 8))
    write_picture(tmp_path / "images" / "train" / "b" / "same.png", 0, size=(8, 8))
    write_picture(tmp_path / "images" / "train" / "b" / "same2.png", 3, size=(8, 8))
    write_picture(tmp_path / "images" / "val" / "a" / "0.png", 100, size=(8, 8))
    decided = {0: "keep,", 6: "relabel,b", 9: "drop,", 3: "drop,"}
    text = HEADER + "".join(f"train/a/{i}.png,a,{what}\n" for i, what in decided.items())
    (tmp_path / "decisions.csv").write_text(text)
    params = make_params(
        **AS_GIVEN,
        noise__corrections="decisions.csv",
        evaluate__label_issue_threshold=1.0,
        filter__tau=0.999999,
        train__epochs=1,
    )
    run = run_all(tmp_path, params)
    table = run.table("reports/label_issues.csv")
    names = [row["name"] for row in table]
    assert len(names) == 61  # two dropped
    issues = {row["name"] for row in table if row["is_label_issue"] == "True"}
    assert issues == set(names) - {"train/a/0.png", "train/a/6.png"}
    assert set(names[-2:]) == {"train/a/0.png", "train/a/6.png"}  # the least suspicious
    # Copies with two labels lead; the copy that people dropped contradicts nothing any more.
    assert names[0] == "train/b/same.png"
    assert [row["name"] for row in table if row["also_labelled"]] == ["train/b/same.png", "train/a/0.png"]
    assert run.json("models/control2/model.json")["kept_fraction"] == pytest.approx(2 / 60, abs=1e-6)
    words = " ".join(run.text("reports/index.html").split())
    assert "1 confirmed, 1 relabelled, 2 dropped" in words
    monkeypatch.chdir(tmp_path)
    show()
    assert "1 confirmed, 1 relabelled, 2 dropped" in capsys.readouterr().out
