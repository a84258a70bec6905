"""What is written down twice must agree: dvc.yaml, the commands, the imports, the parameters, the presets."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from imports import closure
from projects import ROOT, STAGES, default_values, leaves, listed_params, run, written_by

from pipeline import cli
from pipeline.errors import UserError
from pipeline.params import presets
from pipeline.params.load import load, read_yaml
from pipeline.params.schema import leaf_keys
from pipeline.systems.registry import BASELINES, BY_STAGE, FINAL, SYSTEMS

DVC: dict[str, Any] = read_yaml(ROOT / "dvc.yaml")
BASELINE: dict[str, Any] = read_yaml(ROOT / "baselines" / "dvc.yaml")["stages"]["baseline"]
EACH, DO = BASELINE["foreach"], BASELINE["do"]
TRAINING = ("pretrain", "meta1", "meta2", "meta3", "control2", "control3")
MODULES = {
    "download": {"pipeline/stages/download.py"},
    "noise": {"pipeline/stages/noise.py"},
    **{stage: {"pipeline/stages/train.py"} for stage in TRAINING},
    "features": {"pipeline/stages/features.py"},
    "evaluate": {"pipeline/stages/evaluate.py"},
    "report": {"pipeline/stages/report.py"},
}
META_ONLY = {
    "mlnt.M",
    "mlnt.rho",
    "mlnt.neighbors",
    "mlnt.alpha",
    "mlnt.eta",
    "mlnt.eta_ramp",
    "mlnt.eta_ramp_length",
    "mlnt.eta_ramp_iterations",
    "mlnt.eta_decays",
    "mlnt.order",
    "mlnt.batched",
    "mlnt.update",
    "mlnt.kl_reduction",
    "mentor.lambda",
    "mentor.lambda_ramp",
}
CIFAR10 = {
    "data.source": "cifar10",
    "data.limit": None,
    "model.normalize": "mean_image",
    "noise.symmetric_excludes_true": False,
    "noise.sampling": "exact",
    "noise.validation": "clean",
    "noise.validation_fraction": 0.1,
    "model.name": "preact_resnet32",
    "model.pretrained": False,
    "train.epochs": 120,
    "train.batch_size": 128,
    "train.lr": 0.2,
    "train.lr_drop_epochs": [80],
    "train.lr_drop_factor": 0.1,
    "train.momentum": 0.9,
    "train.weight_decay": 1e-4,
    "train.crop_padding": 4,
    "train.horizontal_flip": True,
    "mlnt.M": 10,
    "mlnt.neighbors": 10,
    "mlnt.alpha": 0.2,
    "mlnt.eta": 0.4,
    "mlnt.eta_ramp": "linear",
    "mlnt.eta_ramp_length": 20,
    "mlnt.eta_ramp_iterations": 1,
    "mlnt.eta_decays": False,
    "teacher.gamma_start": 0.99,
    "teacher.gamma_start_length": 20,
    "teacher.gamma_start_iterations": 3,
    "teacher.gamma": 0.999,
    "mlnt.order": "first",
    "mlnt.update": "sequential",
    "mlnt.kl_reduction": "batchmean",
    "mentor.lambda": 0.5,
    "mentor.lambda_ramp": "linear",
}
RECIPES: dict[str, dict[str, Any]] = {
    "cifar10": {**CIFAR10, "noise.kind": "symmetric", "noise.rate": 0.5},
    "cifar10-asymmetric": {**CIFAR10, "noise.kind": "asymmetric", "noise.rate": 0.4, "noise.mapping": {}},
    "clothing1m": {
        "data.source": "clothing1m",
        "data.limit": None,
        "data.resize": 256,
        "data.crop": 224,
        "noise.kind": "none",
        "model.name": "resnet50",
        "model.pretrained": True,
        "train.epochs": 3,
        "train.batch_size": 32,
        "train.lr": 8e-4,
        "train.lr_drop_epochs": [],
        "train.momentum": 0.9,
        "train.weight_decay": 1e-3,
        "mlnt.M": 10,
        "mlnt.rho": 0.5,
        "mlnt.neighbors": 10,
        "mlnt.alpha": 0.02,
        "mlnt.eta": 8e-4,
        "mlnt.eta_ramp": "linear",
        "mlnt.eta_ramp_length": "2000 steps",
        "mlnt.eta_ramp_iterations": 1,
        "mlnt.eta_decays": False,
        "teacher.gamma_start": 0.99,
        "teacher.gamma_start_length": "2000 steps",
        "teacher.gamma_start_iterations": 1,
        "teacher.gamma": 0.999,
        "mlnt.order": "first",
        "mlnt.update": "sequential",
        "mlnt.kl_reduction": "batchmean",
        "filter.tau": 0.3,
        "mentor.lambda": 0.5,
        "mentor.lambda_ramp": "linear",
    },
}
CHANGE_NO_RESULT = {"run.checkpoint_every", "run.workers", "run.max_features_gib"}
PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


def command_of(stage: str) -> tuple[str, click.Context]:
    """The command's name, and its options as the app reads them."""
    python, dash_m, package, name, *arguments = shlex.split(STAGES[stage]["cmd"])
    assert (python, dash_m, package) == ("python", "-m", "pipeline")
    group: Any = typer.main.get_command(cli.app)
    return name, group.commands[name].make_context(name, arguments)


@pytest.fixture
def params_file(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path))


# Stages and commands


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_runs_a_command_with_options_that_exist(stage: str) -> None:
    name, context = command_of(stage)
    if stage in TRAINING and stage != "pretrain":
        assert name == "meta-train"
        kind = "control" if context.params["control"] else "meta"
        assert f"{kind}{context.params['iteration']}" == stage
    else:
        expected = {"noise": "inject-noise", "features": "extract-features"}
        assert name == expected.get(stage, stage)
    assert context.params["params"] == Path("params.yaml")


def test_every_command_of_the_pipeline_is_a_stage() -> None:
    panel = {command.name for command in cli.app.registered_commands if command.rich_help_panel == cli.STAGES}
    assert {command_of(stage)[0] for stage in STAGES} == panel


def test_the_systems_are_the_training_stages() -> None:
    assert [system.stage for system in SYSTEMS] == ["pretrain", "control2", "control3", "meta1", "meta2", "meta3"]
    assert set(TRAINING) == {system.stage for system in SYSTEMS}
    assert FINAL.stage == "meta3"
    for system in SYSTEMS:
        deps = STAGES[system.stage]["deps"]
        mentors = {"meta2": "meta1", "meta3": "meta2", "control2": "pretrain", "control3": "control2"}
        assert system.mentor_stage == mentors.get(system.stage)
        assert system.meta == system.stage.startswith("meta")
        assert system.stage.endswith(str(system.iteration)) or system.stage == "pretrain"
        # The features' digest is compared with the network that made them.
        models = {system.mentor_stage} - {None} | ({"pretrain"} if system.meta else set())
        assert {dep for dep in deps if dep.startswith("models/")} == {f"models/{stage}" for stage in models}
        assert ("data/features.h5" in deps) == system.meta
        assert written_by(system.stage) == [f"models/{system.stage}", f"plots/{system.stage}.csv"]


# Dependencies


def papers_tables() -> set[str]:
    """What `results.paper_column` reads."""
    text = (ROOT / "pipeline/results.py").read_text(encoding="utf-8")
    found = {f"pipeline/paper/{name}" for name in re.findall(r"\w+\.csv", text)}
    assert found
    assert all((ROOT / path).is_file() for path in found)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_below_deps_is_what_the_stage_imports(stage: str) -> None:
    extra = {"pipeline/report.html.jinja", *papers_tables()} if stage == "report" else set()
    code = {dep for dep in STAGES[stage]["deps"] if dep.startswith(("mlnt/", "pipeline/"))}
    assert code == closure(*MODULES[stage]) | extra


@pytest.mark.parametrize("stage", STAGES)
def test_the_other_deps_are_written_by_other_stages(stage: str) -> None:
    others = {path for other in STAGES if other != stage for path in written_by(other)}
    code = {dep for dep in STAGES[stage]["deps"] if dep.startswith(("mlnt/", "pipeline/"))}
    assert set(STAGES[stage]["deps"]) - code <= others


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_listed_twice(stage: str) -> None:
    for key in ("deps", "outs"):
        assert len(set(STAGES[stage][key])) == len(STAGES[stage][key])
    listed = [key for key in STAGES[stage]["params"] if isinstance(key, str)]
    assert len(set(listed)) == len(listed)


def test_what_people_are_told_to_force_is_forced_alone_and_followed_by_the_rest() -> None:
    """`dvc repro -f STAGE` would run all stages before it too, and none after it."""
    paths = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "pipeline").rglob("*.py")]
    found = [line for path in paths for line in re.findall(r"dvc repro -[^`]*", path.read_text(encoding="utf-8"))]
    stages = [re.fullmatch(r"dvc repro -f -s (\w+) && dvc repro", line) for line in found]
    assert {match and match[1] for match in stages} == {"download", "noise", "pretrain"}


# Parameters


@pytest.mark.parametrize("stage", STAGES)
def test_the_listed_parameters_exist(stage: str) -> None:
    assert listed_params(stage) <= set(leaf_keys())


def test_every_parameter_belongs_to_a_stage() -> None:
    listed = {key for stage in STAGES for key in listed_params(stage)}
    of_the_report = {key for key in leaf_keys() if key.startswith("report.")}
    of_the_baselines = {
        key for key in leaf_keys() if key.partition(".")[0] in {row["section"] for row in EACH.values()}
    }
    assert set(leaf_keys()) - listed - of_the_report - of_the_baselines == CHANGE_NO_RESULT
    assert STAGES["report"]["params"] == [{"params.yaml": None}]


@pytest.mark.parametrize("stage", ["pretrain", "control2", "control3"])
def test_cross_entropy_does_not_depend_on_the_meta_update(stage: str) -> None:
    assert listed_params(stage) & META_ONLY == set()
    assert ("filter.tau" in listed_params(stage)) == stage.startswith("control")


def test_the_meta_stages_depend_on_all_of_the_method() -> None:
    method = {key for key in leaf_keys() if key.startswith("mlnt.")}
    mentor = {key for key in leaf_keys() if key.startswith("mentor.")}
    assert listed_params("meta1") & (method | mentor) == method
    for stage in ("meta2", "meta3"):
        assert listed_params(stage) & (method | mentor) == method | mentor


def test_the_training_stages_share_their_other_parameters() -> None:
    common = {
        stage: {key for key in listed_params(stage) if not key.startswith(("mlnt.", "mentor."))} for stage in BY_STAGE
    }
    assert len({frozenset(keys) for keys in common.values()}) == 1
    assert {key for key in leaf_keys() if key.startswith("train.")} - common["meta1"] == {"run.checkpoint_every"}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "report"])
def test_the_code_of_a_stage_reads_the_parameters_that_it_lists(stage: str) -> None:
    files = closure(*MODULES[stage]) - {"pipeline/params.py"}
    text = "".join((ROOT / path).read_text(encoding="utf-8") for path in sorted(files))
    names = {key: key.rpartition(".")[2] for key in listed_params(stage)}
    names = {key: "lambda_" if name == "lambda" else name for key, name in names.items()}
    unread = {key for key, name in names.items() if not re.search(rf"\.{name}\b", text)}
    assert unread == set()


# The baselines' own dvc.yaml


def test_the_baselines_are_stages_that_run_the_command() -> None:
    assert list(EACH) == list(BASELINES)
    assert (DO["wdir"], DO["cmd"]) == ("..", "python -m pipeline baseline ${key}")
    assert DO["outs"] == ["models/${key}"]
    assert [list(plot) for plot in DO["plots"]] == [["plots/${key}.csv"]]
    assert [options["cache"] for plot in DO["plots"] for options in plot.values()] == [False]


def test_the_baselines_depend_on_their_code_and_on_stages() -> None:
    code = {dep for dep in DO["deps"] if dep.endswith(".py")}
    assert code == closure("pipeline/stages/baseline.py")
    assert set(DO["deps"]) - code == {"data/dataset.h5", "data/labels.h5", "${item.needs}"}
    written = {path for stage in STAGES for path in written_by(stage)} | {f"models/{name}" for name in EACH}
    assert {row["needs"] for row in EACH.values()} <= written


def test_the_baselines_list_the_parameters_of_cross_entropy_and_their_own() -> None:
    listed = set(DO["params"])
    assert listed - {"${item.section}"} == listed_params("pretrain")
    text = (ROOT / "pipeline/stages/baseline.py").read_text(encoding="utf-8")
    for section in {row["section"] for row in EACH.values()}:
        assert f"params.{section}" in text
        for key in leaf_keys():
            if key.startswith(f"{section}."):
                assert re.search(rf"\.{key.rpartition('.')[2]}\b", text), key


# Outputs


def test_outputs_stay_in_the_run_cache() -> None:
    for stage in STAGES.values():
        assert all(isinstance(out, str) for out in stage["outs"])  # no `cache: false`, no `persist`
        for entry in [*stage.get("metrics", []), *stage.get("plots", [])]:
            assert [options["cache"] for options in entry.values()] == [False]
            assert not any("persist" in options for options in entry.values())


def test_git_ignores_what_dvc_caches_and_nothing_else(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".gitignore", tmp_path)
    assert run(tmp_path, "git", "init").returncode == 0

    def ignored(path: str) -> bool:
        return run(tmp_path, "git", "check-ignore", "--no-index", path).returncode == 0

    for stage in STAGES:
        outs = STAGES[stage]["outs"]
        assert {path for path in written_by(stage) if ignored(path)} == set(outs)
    for path in ("data/raw/archive.zip", "checkpoints/meta1/0/state.safetensors", "timings/meta1.json"):
        assert ignored(path)
    for path in ("dvc.lock", "dvc.yaml", "params.yaml", "pipeline/sources/digits.py", "presets/own.yaml"):
        assert not ignored(path)


def test_the_plots_of_dvc_are_written_by_stages() -> None:
    written = {path for stage in STAGES for path in written_by(stage)}
    for plot in DVC["plots"]:
        for definition in plot.values():
            assert set(definition["y"]) <= written


# Presets


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_changes_its_keys_alone_and_keeps_every_comment(name: str, params_file: Path) -> None:
    before = params_file.read_text(encoding="utf-8")
    wanted = leaves(read_yaml(ROOT / "presets" / f"{name}.yaml"))
    lines = presets.apply(name, params_file)
    load(params_file)
    text = params_file.read_text(encoding="utf-8")
    values = leaves(read_yaml(params_file))
    assert values == {**leaves(default_values()), **wanted}
    assert re.findall(r"#.*", text) == re.findall(r"#.*", before)
    changed = {key for key, value in leaves(default_values()).items() if values[key] != value}
    assert {line.partition(":")[0] for line in lines if "→" in line} == changed


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_twice_changes_nothing_the_second_time(name: str, params_file: Path) -> None:
    presets.apply(name, params_file)
    before = params_file.read_bytes()
    assert presets.apply(name, params_file) == [f"{params_file} is {name} already"]
    assert params_file.read_bytes() == before


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("mlnt.M=3", {"mlnt.M": 3}),
        ("data.limit=300", {"data.limit": 300}),
        ("train.lr_drop_epochs=[]", {"train.lr_drop_epochs": []}),
        ("train.lr_drop_epochs=[10,15]", {"train.lr_drop_epochs": [10, 15]}),
        ("mlnt.eta_ramp_length='20 steps'", {"mlnt.eta_ramp_length": "20 steps"}),
        ("seed=1", {"seed": 1}),
    ],
)
def test_dvc_exp_run_s_changes_its_key_alone(override: str, expected: dict[str, Any], params_file: Path) -> None:
    from dvc.utils.hydra import apply_overrides

    before = params_file.read_text(encoding="utf-8")
    apply_overrides(params_file, [override])
    load(params_file)
    assert leaves(read_yaml(params_file)) == {**leaves(default_values()), **expected}
    text = params_file.read_text(encoding="utf-8")
    assert re.findall(r"#.*", text) == re.findall(r"#.*", before)
    other = set(text.splitlines()) ^ set(before.splitlines())
    names = {*(key.rpartition(".")[2] for key in expected), "-"}
    assert all(line.split(":")[0].split()[0] in names for line in other), other


def test_the_default_is_the_preset_digits(params_file: Path) -> None:
    assert presets.apply("digits", params_file) == [f"{params_file} is digits already"]
    assert params_file.read_bytes() == (ROOT / "params.yaml").read_bytes()


@pytest.mark.parametrize("name", PRESETS)
def test_the_preset_digits_leads_back_to_the_default(name: str, params_file: Path) -> None:
    presets.apply(name, params_file)
    presets.apply("digits", params_file)
    assert params_file.read_text(encoding="utf-8") == (ROOT / "params.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RECIPES)
def test_the_presets_hold_the_papers_recipes(name: str, params_file: Path) -> None:
    presets.apply(name, params_file)
    values = leaves(read_yaml(params_file))
    assert {key: values[key] for key in RECIPES[name]} == RECIPES[name]
    assert 0.3 <= values["mlnt.rho"] <= 0.5


def test_an_own_preset_is_found_and_a_wrong_one_leaves_the_file_alone(params_file: Path) -> None:
    own = params_file.parent / "presets" / "own.yaml"
    own.write_text("# Mine\nmlnt:\n  M: 3\n", encoding="utf-8")
    assert presets.available(own.parent)["own"] == "Mine"
    assert presets.apply("own", params_file) == [f"mlnt.M: {default_values()['mlnt']['M']} → 3"]
    before = params_file.read_bytes()
    for text, expected in (
        ("mlnt:\n  M: -3\n", "mlnt.M: found -3"),
        ("mlnt:\n  m: 3\n", "did you mean mlnt.M"),
        ("mlnt: [\n", "not readable as YAML"),
        ("", "own.yaml: expected sections"),
        ("- mlnt\n", "own.yaml: expected sections"),
        ("mlnt: 3\n", "mlnt: found 3"),
    ):
        own.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=re.escape(expected)):
            presets.apply("own", params_file)
        assert params_file.read_bytes() == before
