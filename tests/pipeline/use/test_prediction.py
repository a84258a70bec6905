"""`mlnt predict`, and the same as a function: a trained model in use, from its folder alone."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from projects import ROOT, digests, invoke, save_model, write_picture
from runs import Run
from safetensors.torch import save_file

from mlnt.networks import create_model
from pipeline.base.errors import UserError
from pipeline.store.dataset import TEST, read_dataset, read_labels
from pipeline.systems.registry import FINAL
from pipeline.training.session import Session
from pipeline.use.prediction.predict import predict


def table(path: str = "predictions.csv") -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def model(own: Run, project: Path) -> Path:
    """A trained model of photographs, copied to an empty folder: the current one."""
    return Path(shutil.copytree(own.folder / "models/meta3", project / "model"))


def judged(run: Run, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Image file → probabilities, as the run's own evaluation has them."""
    with monkeypatch.context() as patch:
        patch.chdir(run.folder)
        session = Session.open(run.params)
        network, _ = session.best_network(FINAL)
        names, found = session.dataset.names, {}
        for split in range(3):
            (logits,) = session.logits([network], split, "test")
            rows = session.split(split).indices.tolist()
            found |= dict(zip((names[row] for row in rows), logits.softmax(dim=1), strict=True))
        session.close()
    return found


# The same numbers as in the run


def test_photographs_get_the_probabilities_that_the_run_gives_them(
    own: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several sizes, transparent ones, grey ones, resized and cropped: decoded as stage download does it."""
    expected = judged(own, monkeypatch)
    shutil.copytree(own.folder / "own", "photos")
    found = predict(["photos"], "model", topk=3)
    assert (found.skipped, found.remarks) == ({}, {})
    assert len(found.found) == len(expected)
    for path, labels, probabilities in found.found:
        by_class = dict(zip(labels, probabilities, strict=True))
        assert list(probabilities) == sorted(probabilities, reverse=True)
        wanted = dict(zip(("cat", "dog", "owl"), expected[path.removeprefix("photos/")].tolist(), strict=True))
        assert by_class == pytest.approx(wanted, abs=1e-5)


def test_scans_of_the_default_data_get_the_classes_of_the_evaluation(finished: Run, project: Path) -> None:
    shutil.copytree(finished.folder / "models/meta3", "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished.folder)
        dataset = read_dataset()
        rows = read_labels(dataset).rows(TEST)
    for row in rows:
        path = Path(f"scans/{row:04}.png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(dataset.images[row][0]).save(path)
    found = predict(["scans"], "model")
    expected = [row["predicted"] for row in finished.table("plots/confusion.csv")]
    assert [each.labels[0] for each in found.found] == expected


def test_a_model_without_files_of_its_own_resizes_what_it_is_given_and_says_so(
    finished: Run, project: Path, said: list[str]
) -> None:
    shutil.copytree(finished.folder / "models/meta3", "model")
    write_picture(Path("large.png"), 0, size=(300, 200))
    write_picture(Path("right.png"), 1, size=(8, 8), mode="L")
    assert invoke("predict", "large.png", "right.png", "--model", "model").exit_code == 0
    (warning,) = [line for line in said if "another size than the 8×8 pixels" in line]
    assert "1 of 2 images" in warning
    assert "large.png" in warning
    assert len(table()) == 2


def test_the_example_of_the_readme_runs(own: Run, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## As a library")[1]
    example = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[1]
    shutil.copytree(own.folder / "models", "models")
    write_picture(Path("photos/a.png"), 0)
    exec(example, {})  # noqa: S102
    path, label, probability = capsys.readouterr().out.split()
    assert path == "photos/a.png"
    assert label in ("cat", "dog", "owl")
    assert 1 / 3 < float(probability) <= 1


# What is named, and what is written


def test_the_table_has_timms_columns(model: Path) -> None:
    write_picture(Path("a.png"), 0)
    assert invoke("predict", "a.png", "--model", "model").exit_code == 0
    (row,) = table()
    assert list(row) == ["filename", "label_0", "label_1", "label_2", "prob_0", "prob_1", "prob_2"]
    assert sum(float(row[f"prob_{i}"]) for i in range(3)) == pytest.approx(1, abs=1e-5)
    assert invoke("predict", "a.png", "--model", "model", "--topk", "1", "--out", "new/one.csv").exit_code == 0
    (one,) = table("new/one.csv")
    assert list(one) == ["filename", "label", "prob"]
    assert (one["label"], one["prob"]) == (row["label_0"], row["prob_0"])
    assert invoke("predict", "a.png", "--model", "model", "--topk", "99").exit_code == 0
    assert len(table()[0]) == 7  # there are three classes


def test_files_folders_and_lists_can_be_mixed_and_each_image_comes_once(model: Path) -> None:
    for name in ("f/b.PNG", "f/deep/a.jpg", "f/.hidden.png", "lists/x.png", "no_suffix"):
        write_picture(Path("written.png"), len(name))
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("written.png", name)
    Path("f/notes.txt").write_text("no image", encoding="utf-8")
    Path("lists/list.csv").write_text("id;path\n1;x.png\n2;../f/b.PNG\n", encoding="utf-8")
    assert invoke("predict", "no_suffix", "f", "lists/list.csv", "f/b.PNG", "--model", "model").exit_code == 0
    names = [row["filename"] for row in table()]
    assert names == ["no_suffix", "f/b.PNG", "f/deep/a.jpg", "lists/x.png", "lists/../f/b.PNG"]


def test_images_that_do_not_decode_are_named_and_skipped(model: Path, said: list[str]) -> None:
    write_picture(Path("f/good.png"), 0)
    Path("f/broken.png").write_bytes(b"no image")
    whole = Path("f/good.png").read_bytes()
    Path("f/cut.png").write_bytes(whole[: len(whole) // 2])
    Path("f/empty.jpg").touch()
    result = invoke("predict", "f", "--model", "model")
    assert result.exit_code == 1
    assert [row["filename"] for row in table()] == ["f/good.png"]
    (warning,) = [line for line in said if "3 of 4 images could not be read" in line]
    for name in ("f/broken.png", "f/cut.png", "f/empty.jpg"):
        assert name in warning
    assert set(predict(["f"], "model").skipped) == {"f/broken.png", "f/cut.png", "f/empty.jpg"}


def test_more_images_than_a_batch(model: Path) -> None:
    for i in range(70):
        write_picture(Path(f"f/{i:02}.png"), i)
    together = predict(["f"], "model").found
    assert [each.path for each in together] == [f"f/{i:02}.png" for i in range(70)]
    alone = predict(["f/69.png"], "model").found[0]
    assert together[69].probabilities == pytest.approx(alone.probabilities, abs=1e-6)


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a.png", "--model", "nosuch"], "nosuch: no such folder; expected the folder of a trained model"),
        (["a.png"], "models/meta3: no such folder"),
        (["a.png", "--model", "f"], "f: no model.json in it"),
        (["a.png", "nosuch.png", "--model", "model"], "nosuch.png: no such file or folder"),
        (["empty", "--model", "model"], "empty: no images in it"),
        (["wrong.csv", "--model", "model"], "wrong.csv: expected the columns path, found file"),
        (["gone.csv", "--model", "model"], "gone.csv, line 3: no such file: b.png"),
        (["photos.tar", "--model", "model"], "photos.tar: found an archive"),
        (["f/broken.png", "--model", "model"], "none of 1 images could be read: f/broken.png"),
        (["list.csv", "--model", "model", "--out", "list.csv"], "--out: list.csv is one of the files to predict"),
        (["list.csv", "--model", "model", "--out", "."], "--out: . is a folder"),
        (["list.csv", "--model", "model", "--out", "a.png"], "--out: a.png is one of the files to predict"),
        (["g", "--model", "model", "--out", "link"], "--out: link is one of the files to predict"),
        (["list.csv", "--model", "model", "--out", "pipe"], "--out: pipe is a device or a pipe"),
        (["list.csv", "--model", "model", "--out", "decisions.csv"], "--out: decisions.csv is there, and no table of"),
        (["list.csv", "--model", "newer"], "newer/model.json: damaged, or of another version"),
        (["none.csv", "--model", "model"], "none.csv: lists no images"),
        (["n" * 300, "--model", "model"], "n" * 300 + ": no such file or folder"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    arguments: list[str], expected: str, model: Path, said: list[str]
) -> None:
    write_picture(Path("a.png"), 0)
    Path("f").mkdir()
    Path("f/broken.png").write_bytes(b"no image")
    Path("empty").mkdir()
    Path("wrong.csv").write_text("file\na.png\n", encoding="utf-8")
    Path("gone.csv").write_text("path\na.png\nb.png\n", encoding="utf-8")
    Path("list.csv").write_text("path\na.png\n", encoding="utf-8")
    Path("none.csv").write_text("path\n", encoding="utf-8")
    with tarfile.open("photos.tar", "w") as archive:
        archive.add("a.png")
    write_picture(Path("g/b.png"), 1)
    Path("link").symlink_to("g/b.png")
    Path("decisions.csv").write_text("path,given_label,decision,label\n", encoding="utf-8")
    shutil.copytree("model", "newer")
    card = json.loads(Path("newer/model.json").read_text())
    Path("newer/model.json").write_text(json.dumps(card | {"of_tomorrow": 1}))
    os.mkfifo("pipe")
    before = digests(Path())
    result = invoke("predict", *arguments)
    assert result.exit_code == 2
    assert said[-1].startswith(expected)
    assert digests(Path()) == before
    assert Path("pipe").is_fifo()


def test_a_table_that_cannot_be_written_is_found_before_anything_is_predicted(
    model: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_picture(Path("a.png"), 0)
    monkeypatch.setattr("pipeline.use.prediction.predict._predictions", lambda *_: pytest.fail("predicted"))
    assert invoke("predict", "a.png", "--model", "model", "--out", "a.png/new.csv").exit_code == 1
    assert "a.png/new.csv: could not be written" in said[-1]


def test_a_link_to_the_table_stays_one(model: Path) -> None:
    write_picture(Path("a.png"), 0)
    Path("elsewhere").mkdir()
    Path("link.csv").symlink_to("elsewhere/table.csv")
    assert invoke("predict", "a.png", "--model", "model", "--out", "link.csv").exit_code == 0
    assert Path("link.csv").is_symlink()
    assert [row["filename"] for row in table("elsewhere/table.csv")] == ["a.png"]


def _damage_weights(folder: Path) -> None:
    path = folder / f"{json.loads((folder / 'model.json').read_text())['mentor']}_best.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _change_card(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        values = {key: value for key, value in {**card, **changes}.items() if value is not ...}
        (folder / "model.json").write_text(json.dumps(values), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_damage_weights, "damaged (its checksum does not fit)"),
        (lambda folder: (folder / "input.safetensors").unlink(), "input.safetensors: no such file"),
        (_change_card(class_names=...), "of another version of mlnt"),
        (_change_card(class_names=None), "class_names"),
        (_change_card(shape=[3]), "shape"),
        (_change_card(network=5), "network"),
        (_change_card(mentor="neither"), "mentor"),
        (_change_card(options={"a": 1}), "options.resize"),
        (lambda folder: save_file({"a": torch.zeros(1)}, folder / "input.safetensors"), "input.safetensors: damaged"),
        (_change_card(network="nosuch"), "no network is called 'nosuch'"),
        (_change_card(system="nosuch"), "found system 'nosuch'"),
        (_change_card(class_names=["cat", "dog"]), "not the weights of this network"),
        (_change_card(shape=[1, 8, 8]), "not the weights of this network"),
        (lambda folder: (folder / "model.json").write_text("{", encoding="utf-8"), "model.json: damaged"),
    ],
)
def test_a_spoiled_model_is_named(spoil: Callable[[Path], object], expected: str, model: Path) -> None:
    write_picture(Path("a.png"), 0)
    spoil(model)
    with pytest.raises(UserError) as error:
        predict(["a.png"], "model")
    assert expected in str(error.value)


# Models of all kinds


def test_a_network_of_timm_with_one_channel(project: Path) -> None:
    network = save_model("resnet10t", [1, 32, 32], "channel")
    write_picture(Path("a.png"), 0, size=(32, 32))
    (found,) = predict(["a.png"], "models/meta3", topk=2).found
    grey = np.asarray(Image.open("a.png").convert("L"), np.float32) / 255
    with torch.no_grad():
        logits = network.eval()((torch.from_numpy(grey)[None, None] - 0.25) / 0.5)
    assert list(found.probabilities) == pytest.approx(logits.softmax(dim=1)[0].sort(descending=True)[0][:2].tolist())


def test_a_baseline_that_is_more_than_a_network(project: Path) -> None:
    """CNN-CRF's clean label: its network has two outputs a class, and a table beside them."""
    from mlnt.baselines.cnn_crf import CRFNetwork

    backbone = create_model("preact_resnet_tiny", num_classes=6, in_chans=3, seed=0)
    crf = CRFNetwork(backbone, 3)
    torch.nn.init.normal_(crf.pairwise, generator=torch.Generator().manual_seed(0))
    save_model("preact_resnet_tiny", [3, 8, 8], "channel", system="cnn_crf", network=crf)
    write_picture(Path("a.png"), 0, size=(8, 8))
    (found,) = predict(["a.png"], "models/cnn_crf", topk=3).found
    pixels = torch.from_numpy(np.array(Image.open("a.png"))).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = crf.eval()((pixels - 0.25) / 0.5).softmax(dim=1)[0]
    assert list(found.probabilities) == pytest.approx(expected.sort(descending=True)[0].tolist())
