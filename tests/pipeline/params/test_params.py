from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
from projects import ROOT, default_values

from pipeline.base.errors import UserError
from pipeline.params.load import changed, check, leaves, load
from pipeline.params.schema import leaf_keys
from pipeline.params.values import Length
from pipeline.training.session import in_steps as in_steps_of

PATH = Path("params.yaml")


def message_of(values: Any) -> str:
    with pytest.raises(UserError) as caught:
        check(values, PATH)
    return str(caught.value)


def test_params_yaml_and_the_schema_have_the_same_keys_in_the_same_order() -> None:
    assert list(leaves(default_values())) == leaf_keys()


def test_params_yaml_is_valid_and_read_as_it_stands() -> None:
    dumped = load(ROOT / "params.yaml").model_dump(mode="json", by_alias=True)
    for key, value in leaves(default_values()).items():
        section, _, name = key.rpartition(".")
        if not key.endswith("_length"):
            assert (dumped[section] if section else dumped)[name] == value, key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", 1.5),
        ("seed", True),
        ("seed", "0"),
        ("data.source", "mnist"),
        ("data.root", 3),
        ("data.limit", 0),
        ("data.limit_test", 2.5),
        ("data.channels", 2),
        ("data.resize", 0),
        ("data.on_bad_image", "ignore"),
        ("data.max_image_mpixels", 0),
        ("run.max_unpacked_gib", -1),
        ("run.max_download_gib", None),
        ("data.sha256", "abc"),
        ("data.sha256", "A" * 64),
        ("model.normalize", "none"),
        ("data.storage", "disk"),
        ("run.workers", -1),
        ("noise.kind", "gaussian"),
        ("noise.rate", 1.5),
        ("noise.rate", -0.1),
        ("noise.rate", math.nan),
        ("noise.rate", "0.5"),
        ("noise.rate", None),
        ("noise.symmetric_excludes_true", 1),
        ("noise.mapping", ["cat", "dog"]),
        ("noise.human_labels", "clean_label"),
        ("noise.validation_fraction", 0.0),
        ("noise.validation_fraction", 1.0),
        ("model.name", ""),
        ("model.pretrained", "yes"),
        ("train.epochs", 0),
        ("train.epochs", 2.0),
        ("train.batch_size", -64),
        ("train.lr", 0.0),
        ("train.lr", math.inf),
        ("train.lr", "0.1"),
        ("train.lr_drop_epochs", 20),
        ("train.lr_drop_factor", 0.0),
        ("train.momentum", 1.0),
        ("train.weight_decay", -1e-4),
        ("train.crop_padding", -1),
        ("train.horizontal_flip", "no"),
        ("train.batch_norm", "own"),
        ("train.folds", 1),
        ("train.folds", -1),
        ("train.folds", 2.0),
        ("train.folds", True),
        ("train.folds", "five"),
        ("train.evaluate_every", 0),
        ("train.evaluate_every", "0 steps"),
        ("train.evaluate_every", "an epoch"),
        ("compute.device", "tpu"),
        ("compute.threads", 0),
        ("compute.amp", "float16"),
        ("run.checkpoint_every", 0),
        ("features.dtype", "int8"),
        ("run.max_features_gib", -1.0),
        ("mlnt.M", -1),
        ("mlnt.M", 2.5),
        ("mlnt.rho", 1.01),
        ("mlnt.neighbors", 0),
        ("mlnt.alpha", 0.0),
        ("mlnt.eta", -0.1),
        ("mlnt.eta_ramp", "cosine"),
        ("mlnt.eta_ramp_length", "20 minutes"),
        ("mlnt.eta_ramp_iterations", 4),
        ("teacher.gamma", 1.5),
        ("mlnt.order", "third"),
        ("mlnt.update", "both"),
        ("mlnt.kl_reduction", "sum"),
        ("teacher.batch_norm", "student"),
        ("filter.tau", 1.0),
        ("filter.tau", -0.1),
        ("filter.tau", math.nan),
        ("filter.tau", True),
        ("filter.tau", None),
        ("filter.tau", "automatic"),
        ("mentor.lambda", -0.5),
        ("mentor.lambda_ramp", "cosine"),
        ("evaluate.label_issue_threshold", 2),
        ("report.gallery", -1),
        ("report.review", -1),
        ("data.root", ""),
        ("noise.corrections", ""),
        ("model.weights", ""),
        ("data.max_image_mpixels", 1e308),
        ("run.max_unpacked_gib", 1e308),
        ("train.lr", 1e38),
        ("train.evaluate_every", 1e308),
        ("teacher.gamma_start_length", "99999999999 steps"),
        ("train.folds", 10**30),
        ("compute.threads", 10**30),
    ],
)
def test_a_wrong_value_is_named_with_its_key(key: str, value: object) -> None:
    message = message_of(changed(default_values(), {key: value}))
    assert message.startswith(f"params.yaml: {key}: found {value!r}; ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train.lr_drop_epochs": [10, 0]}, ["train.lr_drop_epochs", "found 0"]),
        ({"noise.mapping": {"cat": 1}}, ["noise.mapping", "cat", "found 1"]),
        ({"mlnt.neighbors": 32, "train.batch_size": 32}, ["mlnt.neighbors is 32", "train.batch_size, 32"]),
        ({"data.crop": 64, "data.resize": 32}, ["data.crop is 64", "data.resize, 32"]),
        ({"model.pretrained": True, "model.weights": "a.safetensors"}, ["model.pretrained", "model.weights"]),
        ({"compute.compile": True, "compute.cuda_graphs": True}, ["both true, expected one of them"]),
        ({"compute.compile": True, "mlnt.order": "second"}, ["compute.compile is true", "mlnt.order first"]),
        ({"compute.compile": True, "mlnt.update": "joint"}, ["compute.compile is true", "mlnt.update sequential"]),
        ({"noise.kind": "matrix", "noise.matrix_file": None}, ["noise", "matrix needs matrix_file"]),
        ({"noise.kind": "human", "noise.human_file": None}, ["noise", "human needs human_file"]),
        ({"noise.kind": "instance", "noise.sampling": "exact"}, ["noise", "sampling is exact, expected bernoulli"]),
        ({"train": None}, ["train: found None"]),
        ({"mlnt": [1]}, ["mlnt: found [1]"]),
    ],
)
def test_wrong_combinations_and_elements_are_named(changes: dict[str, Any], expected: list[str]) -> None:
    message = message_of(changed(default_values(), changes))
    assert message.startswith("params.yaml: ")
    assert all(part in message for part in expected), message


@pytest.mark.parametrize(
    "changes",
    [
        {"mlnt.M": 0, "mlnt.neighbors": 64, "train.batch_size": 32},
        {"data.crop": 32, "data.resize": 32},
        {"train.lr_drop_epochs": []},
        {"compute.threads": None},
        {"train.lr": 1},
        {"noise.rate": 0},
        {"mlnt.eta": 0},
        {"filter.tau": 0.0},
        {"filter.tau": 0},
        {"filter.tau": "auto"},
        {"train.folds": 2},
        {"evaluate.label_issue_threshold": 0.5},
        {"noise.kind": "matrix", "noise.matrix_file": "matrix.csv"},
        {"noise.mapping": {"cat": "dog"}},
    ],
)
def test_values_at_the_border_are_accepted(changes: dict[str, Any]) -> None:
    values = check(changed(default_values(), changes), PATH).model_dump(mode="json", by_alias=True)
    for key, value in changes.items():
        section, _, name = key.partition(".")
        assert values[section][name] == value


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("mlnt.m", "did you mean mlnt.M?"),
        ("train.learning_rate_drop_factor", "did you mean train.lr_drop_factor?"),
        ("mentor.lambda_", "did you mean mentor.lambda?"),
        ("noise.rates", "did you mean noise.rate?"),
    ],
)
def test_an_unknown_key_gets_the_nearest_known_one(key: str, hint: str) -> None:
    message = message_of(changed(default_values(), {key: 1}))
    assert message == f"params.yaml: {key}: no such parameter; {hint}"


def test_an_unknown_key_with_nothing_near_gets_no_hint() -> None:
    assert message_of(changed(default_values(), {"xyzzy": 1})) == "params.yaml: xyzzy: no such parameter"


def test_no_image_is_made_larger_than_one_may_be() -> None:
    """One of 100,000 pixels square takes 30 GB, before anybody sees how much memory all of them need."""
    message = message_of(changed(default_values(), {"data.resize": 100_000}))
    assert "data.resize is 100000" in message
    assert "data.max_image_mpixels" in message
    check(changed(default_values(), {"data.resize": 10_000}), PATH)


@pytest.mark.parametrize("key", leaf_keys())
def test_every_parameter_must_be_there(key: str) -> None:
    values = copy.deepcopy(default_values())
    section, _, name = key.rpartition(".")
    del (values[section] if section else values)[name]
    assert message_of(values).startswith(f"params.yaml: {key}: missing")


def test_all_that_is_wrong_is_said_at_once() -> None:
    lines = message_of(changed(default_values(), {"mlnt.M": -1, "train.lr": 0, "train.epoch": 3})).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["train.lr", "train.epoch", "mlnt.M"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: [1", "not readable as YAML"),
        ("seed: 1\nseed: 2\n", "not readable as YAML"),
        ("\tseed: 1", "not readable as YAML"),
        ("", "expected sections such as `train:`, found NoneType"),
        ("- seed", "expected sections such as `train:`, found list"),
        ("hello", "expected sections such as `train:`, found str"),
    ],
)
def test_a_file_that_holds_no_parameters(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


def test_a_file_of_another_encoding_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("seed: 0 # größer".encode("latin-1"))
    for path in (tmp_path / "latin.yaml", tmp_path):
        with pytest.raises(UserError, match="not readable as YAML"):
            load(path)


def test_a_missing_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nosuch\.yaml: no such file; .*--params"):
        load(tmp_path / "nosuch.yaml")


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{marker}]]",
        "!!python/object/apply:os.mkdir [{marker}]",
        "!!python/object/new:os.mkdir [{marker}]",
        "!!python/name:os.mkdir",
    ],
)
def test_yaml_tags_build_nothing(tag: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "params.yaml"
    path.write_text(f"seed: {tag.format(marker=marker)}\n", encoding="utf-8")
    with pytest.raises(UserError):
        load(path)
    assert not marker.exists()


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "1E-4", "0.0001"])
def test_numbers_may_be_written_with_an_exponent(number: str, tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    lines = [f"  weight_decay: {number}" if "weight_decay:" in line else line for line in text.splitlines()]
    path = tmp_path / "params.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert load(path).train.weight_decay == 1e-4


@pytest.mark.parametrize(
    ("value", "epochs", "steps", "in_steps"),
    [
        (20, 20.0, None, 1000),
        (0, 0.0, None, 0),
        (2.5, 2.5, None, 125),
        ("20 epochs", 20.0, None, 1000),
        ("1 epoch", 1.0, None, 50),
        ("2000 steps", None, 2000, 2000),
        (" 1  step ", None, 1, 1),
        ("0 steps", None, 0, 0),
    ],
)
def test_lengths_are_epochs_or_steps(value: object, epochs: float | None, steps: int | None, in_steps: int) -> None:
    length = Length.model_validate(value)
    assert (length.epochs, length.steps, in_steps_of(length, 50)) == (epochs, steps, in_steps)


@pytest.mark.parametrize(
    "value",
    [-1, -0.5, "-1", "-1 steps", "20 minutes", "steps", "20", "", "2.5 steps", True, None, [20], math.nan, math.inf],
)
def test_other_lengths_are_refused(value: object) -> None:
    assert message_of(changed(default_values(), {"mlnt.eta_ramp_length": value})).startswith(
        f"params.yaml: mlnt.eta_ramp_length: found {value!r}; expected a number of epochs, such as 20, or of steps"
    )
