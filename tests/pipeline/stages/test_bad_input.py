"""What goes wrong with people's files and parameters, in one table.

Every case runs a command in a finished run that was spoiled in one way: one line says which key or file it is, the
exit status whose fault it is, and nothing else has changed.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from projects import STAGES, copy_outputs, digests, make_params, run_stage, write_params, write_picture
from runs import Run, run_all
from safetensors.torch import save_file
from typer.testing import CliRunner

from pipeline.base.errors import UserError
from pipeline.cli import app
from pipeline.params.load import load
from pipeline.store import models
from pipeline.store.dataset import TRAIN, read_dataset, read_labels, write_soft_labels

Spoil = Callable[[], object]
AGAIN = "delete it and run `dvc repro` again"
COMMANDS = {
    "download": ["download"],
    "noise": ["inject-noise"],
    "pretrain": ["pretrain"],
    "features": ["extract-features"],
    **{f"meta{i}": ["meta-train", "--iteration", str(i)] for i in (1, 2, 3)},
    **{f"control{i}": ["meta-train", "--iteration", str(i), "--control"] for i in (2, 3)},
    "evaluate": ["evaluate"],
    "report": ["report"],
    "show": ["show"],
    **{name: ["baseline", name] for name in ("forward", "joint_optimization", "cnn_crf")},
}


@dataclass(frozen=True)
class Case:
    """A way to go wrong.

    Attributes:
        kind: what is counted together.
        name: the way.
        stage: the command that meets it.
        spoil: what is done to the finished run.
        params: other parameters than those of the run.
        expected: what the line has to contain.
        status: 2 for what the user can mend, 1 else.
    """

    kind: str
    name: str
    stage: str
    spoil: Spoil = lambda: None
    params: dict[str, Any] = field(default_factory=dict)
    expected: tuple[str, ...] = ()
    status: int = 2


# Files that the stages make


def write(path: str, content: bytes) -> Spoil:
    def spoil() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)

    return spoil


def edit(path: str, change: Callable[[bytes], bytes]) -> Spoil:
    return lambda: Path(path).write_bytes(change(Path(path).read_bytes()))


def remove(path: str) -> Spoil:
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def turned(content: bytes, at: int, count: int = 1) -> bytes:
    """One bit of each of these bytes."""
    return content[:at] + bytes(byte ^ 0x10 for byte in content[at : at + count]) + content[at + count :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "text": lambda _: b"something else\n" * 100,
    "other head": lambda content: turned(content, 0, 32),
    "half": lambda content: content[: len(content) // 2],
    "last byte lost": lambda content: content[:-1],
}


MATRICES = ("reports/noise_matrix.csv", "reports/noise_estimated.csv")
SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "header alone": lambda content: content.splitlines(keepends=True)[0],
    "lines lost": lambda content: b"".join(content.splitlines(keepends=True)[: content.count(b"\n") // 2]),
    "a line cut off": lambda content: content[: content.rindex(b",")],
    "other columns": lambda _: b"a,b\n1,2\n",
    "no number": lambda content: b"".join(
        line if i == 0 else line.replace(b"0.", b"x.").replace(b",1", b",x")
        for i, line in enumerate(content.splitlines(True))
    ),
}
"""Ways to spoil a table that read on as a table."""


def turn_chunk(path: str, name: str) -> Spoil:
    """A bit of a data set's first value."""

    def spoil() -> None:
        with h5py.File(path) as file:
            at = int(file[name].id.get_chunk_info(0).byte_offset)
        edit(path, lambda content: turned(content, at))()

    return spoil


HDF5 = {
    "data/dataset.h5": ("noise", {}, ("labels", "split", "source_index", "about")),
    "data/labels.h5": ("pretrain", {}, ("labels", "true_labels", "split", "intended_matrix", "about")),
    "data/features.h5": ("meta1", {}, ("features", "about")),
    "models/joint_optimization_1/soft_labels.h5": ("joint_optimization", {}, ("soft_labels", "about")),
}
BEST = "models/pretrain/best.safetensors"
"""Stands for the file of the better model."""


def best(stage: str = "pretrain") -> str:
    return f"models/{stage}/{json.loads(Path(f'models/{stage}/model.json').read_text())['mentor']}_best.safetensors"


def stop_training(stage: str, step: int = 6) -> None:
    """Leave a checkpoint, as a stage that was stopped."""

    def end(_: Any, number: int) -> None:
        if number == step:
            raise SystemExit(143)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pipeline.base.console.Lines.at",
            lambda _, number: (_ for _ in ()).throw(SystemExit(143)) if number == step else None,
        )
        with pytest.raises(SystemExit):
            run_stage(stage, make_params())
    shutil.rmtree(f"models/{stage}", ignore_errors=True)


def spoil_checkpoint(change: Callable[[bytes], bytes]) -> Spoil:
    def spoil() -> None:
        stop_training("meta1")
        (path,) = Path("checkpoints").rglob("state.safetensors")
        path.write_bytes(change(path.read_bytes()))

    return spoil


MADE = [
    *(
        Case("missing file", f"{stage}: {dep}", stage, remove(dep), expected=(dep, "no such file", "dvc repro"))
        for stage, definition in STAGES.items()
        for dep in definition["deps"]
        # Embeddings are for model.train: head (test_head.py).
        if "embed" not in stage + dep and not dep.startswith(("mlnt/", "pipeline/", "data/seen/"))
    ),
    Case(
        "missing file",
        "show: metrics",
        "show",
        remove("metrics/evaluate.json"),
        expected=("metrics/evaluate.json", "dvc repro"),
    ),
    *(
        Case("HDF5", f"{path}: {how}", stage, edit(path, change), params, (f"{path}: damaged", AGAIN))
        for path, (stage, params, _) in HDF5.items()
        for how, change in DAMAGE.items()
    ),
    *(
        Case("HDF5", f"{path}: a bit of {name}", stage, turn_chunk(path, name), params, (f"{path}: damaged", AGAIN))
        for path, (stage, params, names) in HDF5.items()
        for name in names
    ),
    Case(
        "HDF5",
        "data/dataset.h5: a bit of images",
        "pretrain",  # the first stage that looks at them
        turn_chunk("data/dataset.h5", "images"),
        expected=("data/dataset.h5: damaged", AGAIN),
    ),
    *(
        Case(
            "weights",
            how,
            "features",
            lambda change=change: edit(best(), change)(),
            expected=("_best.safetensors: damaged", AGAIN),
        )
        for how, change in {
            **DAMAGE,
            "a bit in the middle": lambda content: turned(content, len(content) // 2),
            "the last bit": lambda content: turned(content, len(content) - 1),
        }.items()
    ),
    Case(
        "weights",
        "of another architecture",
        "features",
        lambda: models.save_tensors(Path(best()), models.load_tensors(Path(best())) | {"fc.weight": torch.zeros(3, 5)}),
        expected=("_best.safetensors: not the weights of this network", "fc.weight"),
    ),
    Case(
        "weights",
        "with a tensor less",
        "features",
        lambda: models.save_tensors(Path(best()), {"stem.weight": torch.zeros(3)}),
        expected=("_best.safetensors: not the weights of this network",),
    ),
    *(
        Case(
            "checkpoint",
            how,
            "meta1",
            spoil_checkpoint(change),
            expected=("checkpoints/meta1/", "state.safetensors: damaged", AGAIN),
        )
        for how, change in {
            **DAMAGE,
            "a bit in the middle": lambda content: turned(content, len(content) // 2),
            "the last bit": lambda content: turned(content, len(content) - 1),
        }.items()
    ),
    *(
        Case(
            "card",
            text or "empty",
            "features",
            write("models/pretrain/model.json", text.encode()),
            expected=("models/pretrain/model.json: damaged", AGAIN),
        )
        for text in ("", '{"network": "preact', "[]", "{}", '{"network": 1, "unknown": 2}', "\0", "\xff")
    ),
    *(
        Case(
            "metrics",
            f"{path} {text!r}",
            "report",
            write(path, text.encode("latin1")),
            expected=(f"{path}: damaged", AGAIN),
        )
        for path in ("metrics/evaluate.json", "metrics/noise.json")
        for text in ("", '{"samples": {', "\0", "\xff\xfe")
    ),
    *(
        Case("tables", f"{path} {content!r}", "report", write(path, content), expected=(f"{path}: damaged", AGAIN))
        for path in (
            "reports/label_issues.csv",
            "reports/confusions.csv",
            "plots/pretrain.csv",
            "reports/noise_estimated.csv",
        )
        for content in (b"", b"\xff\xfe\x00")
    ),
    Case(
        "tables",
        "label_issues.csv of training alone",
        "report",
        write("reports/label_issues.csv", b"index,name,is_label_issue,label_score\n0,digit 0,True,0.1\n"),
        expected=("reports/label_issues.csv: damaged (lacks the column 'split')", AGAIN),
    ),
    *(
        Case(
            "metrics",
            f"{path} {text!r}, {command}",
            command,
            write(path, text.encode()),
            expected=(f"{path}: damaged, or of another version of mlnt", AGAIN),
        )
        for path in ("metrics/evaluate.json", "metrics/noise.json")
        for text in ("{}", "[]", "null", '{"a": 1}')
        for command in ("report", "show")
    ),
    *(
        Case(
            "metrics",
            f"evaluate.json with {old} as {new}",
            "show",
            edit("metrics/evaluate.json", lambda content, old=old, new=new: content.replace(old, new)),
            expected=("metrics/evaluate.json: damaged", key, AGAIN),
        )
        for old, new, key in (
            (b'"mlnt_3"', b'"mlnt_4"', "mlnt_3"),
            (b'"train": ', b'"train": "a" ,"_": ', "samples.train"),
            (b'"best"', b'"worst"', "cross_entropy.student.best"),
            (b'"mentor": "', b'"mentor": "x', "cross_entropy.mentor"),
        )
    ),
    *(
        Case(
            "tables",
            f"{path}: {name}",
            "report",
            edit(path, change),
            expected=(f"{path}: damaged", AGAIN),
        )
        for path in ("reports/label_issues.csv", "reports/confusions.csv", *MATRICES, "plots/meta3.csv")
        for name, change in SPOILED.items()
        if path != "plots/meta3.csv" or name not in ("lines lost", "header alone")  # of a stage that has not ended
    ),
    Case(
        "tables",
        "label_issues.csv of other labels",
        "report",
        edit("reports/label_issues.csv", lambda content: content.replace(b",digit", b",another digit")),
        expected=("reports/label_issues.csv: was made from other labels", "dvc repro"),
    ),
    Case(
        "tables",
        "label_issues.csv with a line twice",
        "report",
        edit("reports/label_issues.csv", lambda content: content + content.splitlines(keepends=True)[1]),
        expected=("reports/label_issues.csv: ", "dvc repro"),
    ),
]


# Files of another run


def rerun(stage: str, **changes: Any) -> Spoil:
    return lambda: run_stage(stage, make_params(**changes))


OTHER_RUN = [
    *(
        Case(
            "other run",
            f"labels of other data: {stage}",
            stage,
            rerun("download", data__limit=150),
            expected=("data/labels.h5: ", "another dataset", "mlnt inject-noise", "dvc repro"),
        )
        for stage in ("pretrain", "features", "meta1", "control2", "evaluate", "report", "forward", "cnn_crf")
    ),
    *(
        Case(
            "other run",
            f"models of other labels: {stage}",
            stage,
            rerun("noise", noise__rate=0.4),
            expected=(f"models/{model}/model.json: ", "other labels", "dvc repro"),
        )
        for stage, model in (
            ("features", "pretrain"),
            ("control2", "pretrain"),
            ("control3", "control2"),
            ("evaluate", "pretrain"),
        )
    ),
    *(
        Case(
            "other run",
            f"models of another network: {stage}",
            stage,
            params={"model__name": "preact_resnet32_narrow"},
            expected=("models/pretrain/model.json: ", "another network", "preact_resnet32_narrow", "dvc repro"),
        )
        for stage in ("features", "control2", "evaluate")
    ),
    Case(
        "other run",
        "features of other labels",
        "meta1",
        lambda: (run_stage("noise", make_params(noise__rate=0.4)), run_stage("pretrain", make_params())),
        expected=("data/features.h5: ", "other labels", "mlnt extract-features", "dvc repro"),
    ),
    Case(
        "other run",
        "features of another network",
        "meta1",
        rerun("pretrain", train__lr=0.05),
        expected=("data/features.h5: ", "another network", "mlnt extract-features"),
    ),
    Case(
        "other run",
        "features of another seed",
        "meta1",
        lambda: (run_stage("noise", make_params(seed=1)), run_stage("pretrain", make_params(seed=1))),
        {"seed": 1},
        expected=("data/features.h5: ", "other labels", "mlnt extract-features"),
    ),
    Case(
        "other run",
        "soft labels of other labels",
        "joint_optimization",
        rerun("noise", noise__rate=0.4),
        expected=("soft_labels.h5: ", "other labels", "baseline joint_optimization_1"),
    ),
]


# Parameters


def params_file(change: Callable[[str], str | bytes]) -> Spoil:
    def spoil() -> None:
        content = change(Path("params.yaml").read_text(encoding="utf-8"))
        Path("params.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


PARAMETERS = [
    Case(
        "params.yaml", "missing", "download", remove("params.yaml"), expected=("params.yaml: no such file", "--params")
    ),
    *(
        Case(
            "params.yaml",
            name,
            "download",
            params_file(lambda text, change=change: change(text)),
            expected=("params.yaml: ", expected),
        )
        for name, change, expected in (
            ("empty", lambda _: "", "expected sections such as `train:`, found NoneType"),
            ("a list", lambda _: "- 1\n", "found list"),
            ("a word", lambda _: "digits", "found str"),
            ("no YAML", lambda text: text + "\n  - [", "not readable as YAML"),
            ("tabs", lambda text: text.replace("  ", "\t", 1), "not readable as YAML"),
            ("not UTF-8", lambda text: text.encode() + b"\xff", "not readable as YAML"),
            ("a key twice", lambda text: text + "\nseed: 1\n", "not readable as YAML"),
            (
                "a tag that would run something",
                lambda text: text.replace("seed: 0", "seed: !!python/object/apply:os.system [touch owned]"),
                "not readable as YAML",
            ),
            (
                "an alias that grows",
                lambda text: text + "a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]\n",
                "no such parameter",
            ),
            (
                "a misspelt key",
                lambda text: text.replace("tau:", "tua:"),
                "filter.tua: no such parameter; did you mean filter.tau?",
            ),
            ("a section less", lambda text: text.replace("mentor:", "mentors:"), "mentor: missing"),
        )
    ),
    *(
        Case("value", f"{stage}: {key}={value!r}", stage, params={key.replace(".", "__"): value}, expected=expected)
        for stage, key, value, expected in (
            ("pretrain", "train.batch_size", 160, ("train.batch_size", "160", "159", "lower it")),
            ("pretrain", "train.folds", 1, ("train.folds: found 1", "0, or at least 2")),
            ("pretrain", "train.folds", "five", ("train.folds: found 'five'", "integer")),
            ("pretrain", "train.folds", 160, ("train.folds: found 160", "at most 159")),
            ("meta2", "filter.tau", 1.0, ("filter.tau: found 1.0", "a number from 0 to below 1, or auto")),
            ("pretrain", "model.name", "preact_resnet23", ("model.name: ", "'preact_resnet23'", "preact_resnet32")),
            (
                "pretrain",
                "model.name",
                "vit_tiny_patch16_224",
                ("model.name: vit_tiny_patch16_224", "8 × 8", "224 × 224", "data.resize (found null)", "data.crop"),
            ),
            ("pretrain", "model.weights", "start.safetensors", ("model.weights: start.safetensors: no such file",)),
            ("meta2", "filter.tau", 0.999, ("filter.tau: 0.999 keeps none of 159 training samples", "lower")),
            ("control2", "filter.tau", 0.999, ("filter.tau: 0.999 keeps none of 159 training samples", "lower")),
            ("noise", "noise.validation_fraction", 0.0, ("noise.validation_fraction: found 0.0",)),
            ("noise", "noise.rate", 1.5, ("noise.rate: found 1.5",)),
        )
    ),
    Case(
        "value",
        "neighbours of a whole batch",
        "meta1",
        params={"train__batch_size": 8, "mlnt__neighbors": 8},
        expected=("mlnt.neighbors is 8", "less than train.batch_size, 8"),
    ),
    Case(
        "value",
        "own data without classes to map",
        "noise",
        params={"noise__kind": "asymmetric", "noise__mapping": {"cat": "dog"}},
        expected=("noise.mapping", "cat"),
    ),
    Case(
        "value",
        "matrix without a file",
        "noise",
        params={"noise__kind": "matrix"},
        expected=("noise: ", "matrix needs matrix_file"),
    ),
    *(
        Case("start weights", name, "pretrain", spoil, {"model__weights": "start.safetensors"}, ("model", expected))
        for name, spoil, expected in (
            ("empty", write("start.safetensors", b""), "damaged or no safetensors file"),
            ("text", write("start.safetensors", b"no weights" * 9), "damaged or no safetensors file"),
            (
                "of another network",
                lambda: save_file({"conv1.weight": torch.zeros(3)}, "start.safetensors"),
                "model.weights: start.safetensors: does not fit",
            ),
            ("pickled", lambda: torch.save({"a": {1, 2}}, "start.safetensors"), "expected tensors alone"),
        )
    ),
    *(
        Case(
            "divergence",
            stage,
            stage,
            params={"train__lr": 1e6, "train__epochs": 30},
            expected=(stage, "at step ", "train.lr (1000000.0)"),
            status=1,
        )
        for stage in ("pretrain", "meta1", "control2", "forward", "cnn_crf")
    ),
]


# Noise from files


def matrix(text: str) -> Case:
    name = text.replace("\n", " / ")[:30] or "empty"
    return Case(
        "noise matrix",
        name,
        "noise",
        write("matrix.csv", text.encode()),
        {"noise__kind": "matrix", "noise__matrix_file": "matrix.csv"},
        ("noise.matrix_file: matrix.csv",),
    )


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("owned"),)


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def human(name: str, content: Any, expected: str) -> Case:
    data = content if isinstance(content, bytes) else saved(content)
    return Case(
        "human labels",
        name,
        "noise",
        write("human.pt", data),
        {"noise__kind": "human", "noise__human_file": "human.pt"},
        ("noise.human_file: human.pt", expected),
    )


def labels_of(values: int, count: int) -> np.ndarray:
    return np.full(count, values, dtype=np.int64)


NOISE = [
    *map(
        matrix,
        (
            "",
            "a,b\nc,d",
            "1,0\n0,1",
            "\n".join([",".join(["0.2"] * 10)] * 10),
            "\n".join([",".join(["0.1"] * 9)] * 10),
            "\n".join([",".join(["-1"] + ["0"] * 8 + ["2"])] * 10),
            "\n".join([",".join(["nan"] * 10)] * 10),
            "\n".join([",".join(["class", *"abcdefghij"])] + [",".join(["0", *["0.1"] * 10])] * 10),
        ),
    ),
    Case(
        "noise matrix",
        "missing",
        "noise",
        params={"noise__kind": "matrix", "noise__matrix_file": "matrix.csv"},
        expected=("noise.matrix_file: matrix.csv",),
    ),
    Case(
        "human labels",
        "missing",
        "noise",
        params={"noise__kind": "human", "noise__human_file": "human.pt"},
        expected=("noise.human_file: human.pt: no such file",),
    ),
    human("empty", b"", "not a readable label file"),
    human("text", b"no pickle", "not a readable label file"),
    human("half", saved({"clean_label": labels_of(0, 2000)})[:800], "not a readable label file"),
    human("an object that runs something", {"clean_label": Evil()}, "not a readable label file"),
    human("a plain pickle", pickle.dumps({"clean_label": labels_of(0, 5000)}), "not a readable label file"),
    human("a list", [1, 2], "expected a dict of arrays"),
    human("another label set", {"clean_label": labels_of(0, 5000)}, "it has no 'worse_label', only clean_label"),
    human(
        "labels out of range",
        {"clean_label": labels_of(0, 5000), "worse_label": labels_of(10, 5000)},
        "its labels go from 10 to 10, expected 0 to 9",
    ),
    human("too few", {"clean_label": labels_of(0, 20), "worse_label": labels_of(1, 20)}, "it belongs to other data"),
    human(
        "of other data",
        {"clean_label": labels_of(0, 5000), "worse_label": labels_of(1, 5000)},
        "it belongs to other data",
    ),
    human("fractions", {"clean_label": np.zeros(9), "worse_label": np.zeros(9)}, "expected a list of integers"),
]


# The user's own images


def write_tree(
    root: str = "images",
    classes: tuple[str, ...] = ("cat", "dog"),
    splits: tuple[str, ...] = ("train", "test"),
    each: int = 12,
) -> None:
    for split in splits:
        for c, name in enumerate(classes):
            for i in range(each):
                write_picture(Path(root) / split / name / f"{i}.png", 100 * c + i, size=(8, 8))


def archive(suffix: str, change: Callable[[bytes], bytes]) -> None:
    write_tree()
    made = shutil.make_archive("images", {"zip": "zip", "tar": "tar", "tar.gz": "gztar"}[suffix], "images")
    edit(made, change)()


def tree(name: str, spoil: Spoil, *expected: str, kind: str = "image folder", **params: Any) -> Case:
    return Case(
        kind,
        name,
        "download",
        lambda: (write_tree(), spoil()),
        {"data__source": "imagefolder", "data__root": "images", "data__limit": None, **params},
        ("data.", *expected),
    )


def csv_list(name: str, text: str | bytes, *expected: str) -> Case:
    content = text if isinstance(text, bytes) else text.encode()
    return tree(name, write("images/list.csv", content), *expected, kind="image list", data__root="images/list.csv")


OWN_IMAGES = [
    tree("missing", remove("images"), "data.root: images: no such folder or file"),
    tree("empty", lambda: (shutil.rmtree("images"), Path("images").mkdir()), "no images in it"),
    tree("one class", remove("images/train/dog"), "expected training images of two or more classes"),
    tree("only test images", remove("images/train"), "expected training images of two or more classes"),
    tree(
        "a class in test that train lacks",
        lambda: write_picture(Path("images/test/cow/1.png"), 1, size=(8, 8)),
        "test has the class 'cow'",
        "which train lacks",
    ),
    tree(
        "a class in val that train lacks",
        lambda: write_picture(Path("images/val/cow/1.png"), 1, size=(8, 8)),
        "validation has the class 'cow'",
    ),
    tree(
        "an empty class",
        lambda: [path.unlink() for path in Path("images/train/dog").iterdir()],
        "expected training images of two or more classes",
    ),
    tree(
        "outside of class folders",
        lambda: write_picture(Path("images/train/1.png"), 1, size=(8, 8)),
        "lies in no class folder",
    ),
    tree(
        "a class called like a split",
        lambda: (remove("images/test")(), write_picture(Path("images/cow/1.png"), 1, size=(8, 8))),
        "1 images in it lie in no split",
        "cow/1.png",
        "where the folder of a split is a class, rename its folder",
    ),
    tree(
        "beside the splits",
        lambda: write_picture(Path("images/unlabeled/1.png"), 1, size=(8, 8)),
        "1 images in it lie in no split",
        "unlabeled/1.png",
    ),
    tree(
        "other sizes",
        lambda: write_picture(Path("images/train/cat/1.png"), 1, size=(9, 8)),
        "the images differ in size",
        "set data.resize",
    ),
    tree("a crop larger than the images", lambda: None, "data.crop: 9", data__crop=9),
    tree("no root", lambda: None, "data.root: found null", data__root=None),
    *(
        tree(
            how,
            write("images/train/cat/3.png", content),
            "1 of 48 images do not decode: train/cat/3.png",
            kind="image that does not decode",
        )
        for how, content in {
            "empty": b"",
            "text": b"no image",
            "a cut PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x08",
            "HTML": b"<html>404</html>",
        }.items()
    ),
    *(
        tree(
            f"numbers of no known range: {dtype.__name__}",
            lambda dtype=dtype: Image.fromarray(np.zeros((8, 8), dtype)).save("images/train/cat/3.png", "TIFF"),
            "1 of 48 images do not decode: train/cat/3.png",
            "of no known range; save it with 8 or 16 bits",
            kind="image that does not decode",
        )
        for dtype in (np.int32, np.float32)
    ),
    tree(
        "half",
        edit("images/train/dog/5.png", lambda content: content[: len(content) // 2]),
        "train/dog/5.png",
        kind="image that does not decode",
    ),
    *(
        tree(
            f"{suffix}: {how}",
            lambda suffix=suffix, how=how: archive(suffix, DAMAGE[how]),
            f"images.{suffix}",
            kind="archive",
            data__root=f"images.{suffix}",
        )
        for suffix, hows in {
            "zip": ("empty", "text", "half"),
            "tar": ("empty", "text", "half", "other head"),
            "tar.gz": ("empty", "text", "half", "other head"),
        }.items()
        for how in hows
    ),
    *(
        tree(
            f"{suffix}: a bit",
            lambda suffix=suffix: archive(suffix, lambda content: turned(content, len(content) // 3)),
            f"images.{suffix}",
            "damaged",
            kind="archive",
            data__root=f"images.{suffix}",
        )
        for suffix in ("zip", "tar.gz")
    ),
    tree(
        "zip: without images",
        lambda: zipfile.ZipFile("images.zip", "w").close(),
        "images.zip-",
        "no images in it",
        kind="archive",
        data__root="images.zip",
    ),
    tree(
        "another file than its sha256 says",
        lambda: archive("zip", bytes),
        "data.sha256",
        "expected " + "0" * 64,
        kind="archive",
        data__root="images.zip",
        data__sha256="0" * 64,
    ),
    csv_list("empty", "", "expected the columns path,label"),
    csv_list("other columns", "file,class\na,b\n", "expected the columns path,label[,split]", "found file,class"),
    csv_list(
        "a file that is not there", "path,label\ntrain/cat/99.png,cat\n", "line 2", "no such file: train/cat/99.png"
    ),
    csv_list("without a label", "path,label\ntrain/cat/1.png,\n", "line 2"),
    csv_list("another split", "path,label,split\ntrain/cat/1.png,cat,dev\n", "line 2", "train"),
    csv_list("not UTF-8", b"path,label\n\xff\xfe,1\n", "not readable as CSV"),
    tree(
        "a folder",
        lambda: Path("images").rename("images.csv"),
        "data.root: images.csv: ends in .csv and is no file",
        kind="image list",
        data__root="images.csv",
    ),
    csv_list("one class", "path,label\ntrain/cat/1.png,cat\n", "two or more classes"),
    csv_list("a comma without quotes", "path,label\ntrain/cat/1.png,cat, black\n", "line 2: found 3 fields", "quotes"),
    csv_list("a column twice", "path,label,label\ntrain/cat/1.png,a,b\n", "more than one column called label"),
    csv_list("a quote left open", 'path,label\ntrain/cat/1.png,"cat\n', "not readable as CSV"),
    csv_list("UTF-16", "path,label\ntrain/cat/1.png,cat\n".encode("utf-16"), "another encoding", "expected UTF-8"),
    *(
        tree(url, lambda: None, "data.url", kind="URL", data__root=None, data__url=url)
        for url in (
            "ftp://localhost/a.zip",
            "gopher://x/a.zip",
            "javascript:alert(1)",
            "file:///nowhere/a.zip",
            "http://127.0.0.1:9/a.zip",
            "https://",
            "http://[bad/a.zip",
        )
    ),
]


# Folders that cannot be written


def in_the_way(name: str) -> Spoil:
    """A file where a folder should be."""
    return lambda: (shutil.rmtree(name, ignore_errors=True), Path(name).write_text("a file"))


FOLDERS = [
    Case(
        "unwritable folder",
        f"{stage}: {name}",
        stage,
        in_the_way(name),
        {},
        (f"{name}/", "could not be"),
        1,
    )
    for stage, name in (
        ("download", "data"),
        ("noise", "metrics"),
        ("pretrain", "models/pretrain"),
        ("meta1", "plots"),
        ("evaluate", "metrics"),
    )
] + [
    Case(
        "unwritable folder",
        f"{stage}: checkpoints",
        stage,
        in_the_way("checkpoints"),
        {},
        ("checkpoints/", "could not be written"),
        1,
    )
    for stage in ("pretrain", "meta1")
]

CASES = MADE + OTHER_RUN + PARAMETERS + NOISE + OWN_IMAGES + FOLDERS


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of all stages, and soft labels."""
    run = run_all(tmp_path_factory.mktemp("finished"), make_params())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run.folder)
        labels = read_labels(read_dataset())
        table = np.full((len(labels.rows(TRAIN)), 10), 0.1, dtype=np.float32)
        write_soft_labels(Path("models/joint_optimization_1/soft_labels.h5"), table, labels)
    return run


def test_there_are_cases_of_every_kind() -> None:
    assert len(CASES) >= 100
    assert len({(case.kind, case.name) for case in CASES}) == len(CASES)


def untouched(found: dict[str, str]) -> dict[str, str]:
    """What a run that fails must leave as it is: all but its checkpoints and the times of its steps."""
    beside = ("checkpoints/", "timings/steps.json")
    return {name: digest for name, digest in found.items() if not name.startswith(beside)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.name}")
def test_bad_input_is_one_line_that_names_it(
    case: Case, finished: Run, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    copy_outputs(finished.folder, project)
    write_params(project, **case.params)
    case.spoil()
    before = digests(project)
    capsys.readouterr()
    result = CliRunner().invoke(app, COMMANDS[case.stage])
    said = result.stderr + capsys.readouterr().err
    assert result.exit_code == case.status, said
    _, *errors = ("\n" + said).split("\nerror: ")
    assert len(errors) == 1, said
    assert all(part in errors[0] for part in case.expected), errors[0]
    # A list of wrong parameters, or a place in a YAML file, takes some lines.
    assert case.kind == "params.yaml" or errors[0].count("\n") == 1, said
    assert "Traceback" not in said
    after = digests(project)
    if f"models/{case.stage}/model.json" not in before:
        for found in (before, after):
            found.pop(f"plots/{case.stage}.csv", None)  # of the epochs until then
    assert untouched(after) == untouched(before)


# Random damage

WEIGHTS = "models/meta3/teacher_last.safetensors"


def dataset_bytes() -> bytes:
    return np.asarray(read_dataset().images).tobytes()


def label_bytes() -> bytes:
    return read_labels(read_dataset()).labels.tobytes()


def weight_bytes() -> bytes:
    return models.load_tensors(Path(WEIGHTS))["fc.weight"].numpy().tobytes()


KINDS = {
    "dataset": ("data/dataset.h5", dataset_bytes),
    "labels": ("data/labels.h5", label_bytes),
    "weights": (WEIGHTS, weight_bytes),
}


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Turn bits, cut, extend or overwrite, somewhere."""
    where = draw(st.floats(0, 1, exclude_max=True))
    how = draw(st.sampled_from(["turn", "cut", "extend", "insert", "overwrite", "lose"]))
    rubbish = draw(st.binary(min_size=1, max_size=64))

    def damage(content: bytes) -> bytes:
        at = int(where * len(content))
        return {
            "turn": turned(content, at),
            "cut": content[:at],
            "extend": content + rubbish,
            "insert": content[:at] + rubbish + content[at:],
            "overwrite": content[:at] + rubbish + content[at + len(rubbish) :],
            "lose": content[:at] + content[at + len(rubbish) :],
        }[how]

    return damage


@pytest.mark.parametrize("kind", KINDS)
@given(damage=damages())
def test_random_damage_is_refused_or_without_effect(kind: str, damage: Callable[[bytes], bytes], finished: Run) -> None:
    name, read = KINDS[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished.folder)
        path = Path(name)
        intact, values = path.read_bytes(), read()
        path.write_bytes(damage(intact))
        try:
            assert read() == values
        except UserError as error:
            assert name in str(error)  # noqa: PT017 (both ways are right)
        finally:
            path.write_bytes(intact)


@given(damage=damages())
def test_random_damage_to_params_yaml_raises_nothing_but_a_message(
    damage: Callable[[bytes], bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("params")
    write_params(folder)
    path = folder / "params.yaml"
    path.write_bytes(damage(path.read_bytes()))
    try:
        load(path)
    except UserError as error:
        assert all(line.startswith(f"{path}: ") for line in str(error).splitlines()[:1])  # noqa: PT017 (both ways are right)
