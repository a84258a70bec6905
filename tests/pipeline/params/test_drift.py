"""What is written down twice must agree: dvc.yaml, the commands, the imports, the parameters, the presets."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from imports import closure
from projects import ROOT, STAGES, default_values, run, written_by

from pipeline import cli
from pipeline.base.errors import UserError
from pipeline.params import presets
from pipeline.params.load import leaves, load, read_yaml
from pipeline.params.schema import leaf_keys
from pipeline.systems.mlnt import MLNT
from pipeline.systems.registry import BY_STAGE, DEFAULT, GROUPS, SYSTEMS, Group
from pipeline.training.plan import COMMON_SECTIONS, System

DVC: dict[str, Any] = read_yaml(ROOT / "dvc.yaml")
BESIDE: dict[str, dict[str, Any]] = {name: read_yaml(ROOT / group.dvc_yaml)["stages"] for name, group in GROUPS.items()}
"""The stages of the groups beside the default run."""
EACH = {name: stages[GROUPS[name].stage]["foreach"] for name, stages in BESIDE.items()}
DO = {name: stages[GROUPS[name].stage]["do"] for name, stages in BESIDE.items()}
MODULES = {
    "look": "pipeline/stages/look.py",
    "download": "pipeline/stages/download.py",
    "noise": "pipeline/stages/noise.py",
    "embed": "pipeline/stages/embed.py",
    **{system.stage: "pipeline/stages/train.py" for system in DEFAULT},
    "features": "pipeline/stages/features.py",
    "evaluate": "pipeline/stages/evaluate.py",
    "report": "pipeline/stages/report.py",
}
CHANGES_NO_NUMBER = {
    "mlnt/__init__.py",
    "pipeline/base/console.py",
    "pipeline/base/errors.py",
    "pipeline/base/locks.py",
    "pipeline/base/signals.py",
    "pipeline/params/load.py",
    "pipeline/params/schema.py",
    "pipeline/params/systems.py",
    "pipeline/params/values.py",
    "pipeline/systems/registry.py",
    "pipeline/before_training/estimate.py",
    "pipeline/before_training/timing.py",
    "pipeline/before_training/trial.py",
}
"""What a stage imports and dvc.yaml leaves out: messages, the schema, the list of systems, what is known before
training. So are the docstrings of packages."""
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
    if stage in BY_STAGE and stage != "pretrain":
        assert name == "meta-train"
        kind = "control" if context.params["control"] else "meta"
        assert f"{kind}{context.params['iteration']}" == stage
    else:
        expected = {"noise": "inject-noise", "features": "extract-features"}
        assert name == expected.get(stage, stage)
    assert context.params["params"] == Path("params.yaml")


def test_every_command_of_the_pipeline_is_a_stage() -> None:
    panel = {command.name for command in cli.app.registered_commands if command.rich_help_panel == cli.stages.STAGES}
    assert {command_of(stage)[0] for stage in STAGES} == panel


@pytest.mark.parametrize("system", DEFAULT, ids=lambda system: system.stage)
def test_a_training_stage_depends_on_what_its_system_reads(system: System) -> None:
    entry = STAGES[system.stage]
    # The features' digest is compared with the network that made them.
    models = {*system.needs, *([system.mentor] if system.mentor else [])}
    assert {dep for dep in entry["deps"] if dep.startswith("models/")} == {f"models/{stage}" for stage in models}
    assert ("data/features.h5" in entry["deps"]) == (system in MLNT)
    assert entry["params"] == [*COMMON_SECTIONS, *system.sections]
    assert written_by(system.stage) == [
        f"models/{system.stage}",
        f"records/{system.stage}.json",
        f"plots/{system.stage}.csv",
    ]


# Dependencies


def code_deps(entry: dict[str, Any]) -> set[str]:
    return {dep for dep in entry["deps"] if dep.startswith(("mlnt/", "pipeline/"))}


def covered(path: str, deps: set[str]) -> bool:
    return any(path == dep or path.startswith(f"{dep}/") for dep in deps)


def needed(module: str) -> set[str]:
    """What a stage's numbers may come from. A training stage knows its system by the registry; the report shows the
    titles of all."""
    if module == "pipeline/stages/report.py":
        titles = {str(path.relative_to(ROOT)) for path in (ROOT / "pipeline/systems").glob("*.py")}
        titles.add("pipeline/training/plan.py")
        found = closure(module, stop=titles - {"pipeline/systems/registry.py"})
        return {path for path in found if path not in CHANGES_NO_NUMBER and not only_a_docstring(path)} | titles
    found = closure(module, stop=frozenset({"pipeline/systems/registry.py"}))
    return {path for path in found if path not in CHANGES_NO_NUMBER and not only_a_docstring(path)}


def only_a_docstring(path: str) -> bool:
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    return path.endswith("__init__.py") and all(isinstance(node, ast.Expr) for node in body)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "look"])  # which runs always
def test_the_code_below_deps_is_what_the_stage_imports(stage: str) -> None:
    deps, needs = code_deps(STAGES[stage]), needed(MODULES[stage])
    if stage in BY_STAGE:
        needs |= needed("pipeline/systems/mlnt.py")
    assert {path for path in needs if not covered(path, deps)} == set()
    assert all((ROOT / dep).exists() for dep in deps)
    assert {dep for dep in deps if not any(covered(path, {dep}) for path in needs)} == set()


@pytest.mark.parametrize(
    "path",
    [
        "base/console.py",
        "workspace/doctor.py",
        "cli/stages.py",
        "report/page.html.jinja",
        "params/schema.py",
        "params/systems.py",
        "before_training/trial.py",
    ],
)
def test_what_changes_no_number_reruns_no_training(path: str) -> None:
    assert (ROOT / "pipeline" / path).exists()
    stages = [entry for name, entry in STAGES.items() if name != "report"]
    stages += [*DO.values(), *(beside["evaluate"] for beside in BESIDE.values())]
    assert not any(covered(f"pipeline/{path}", code_deps(entry)) for entry in stages)


def test_dvc_yaml_can_be_read() -> None:
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 250
    for group in GROUPS.values():
        assert len((ROOT / group.dvc_yaml).read_text(encoding="utf-8").splitlines()) <= 70


@pytest.mark.parametrize("stage", STAGES)
def test_the_other_deps_are_written_by_other_stages(stage: str) -> None:
    others = {path for other in STAGES if other != stage for path in written_by(other)}
    assert set(STAGES[stage]["deps"]) - code_deps(STAGES[stage]) <= others


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_listed_twice(stage: str) -> None:
    for key in ("deps", "outs"):
        assert len(set(STAGES[stage][key])) == len(STAGES[stage][key])
    listed = [key for key in STAGES[stage]["params"] if isinstance(key, str)]
    assert len(set(listed)) == len(listed)


def test_nobody_is_told_to_force_a_stage() -> None:
    """What a result comes from is known: the command is `dvc repro`, without options."""
    paths = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "pipeline").rglob("*.py")]
    assert not [line for path in paths for line in re.findall(r"dvc repro -[^`]*", path.read_text(encoding="utf-8"))]


# Parameters


@pytest.mark.parametrize("stage", STAGES)
def test_the_listed_sections_exist(stage: str) -> None:
    listed = {key for key in STAGES[stage]["params"] if isinstance(key, str)}
    assert listed <= {key.partition(".")[0] for key in leaf_keys()} - {"run"}


def test_every_section_belongs_to_a_stage_but_run() -> None:
    listed = {key for stage in STAGES for key in STAGES[stage]["params"] if isinstance(key, str)}
    beside = {key for system in SYSTEMS if not system.default for key in system.sections}
    assert listed | beside | {"report", "run"} == {key.partition(".")[0] for key in leaf_keys()}
    assert STAGES["report"]["params"] == [{"params.yaml": None}]


# The dvc.yaml of the groups beside the default run

OF_A_GROUP = [(group, system) for group in GROUPS.values() for system in group.systems]


def test_a_system_is_in_the_default_run_or_in_one_group() -> None:
    assert sorted(system.name for system in (*DEFAULT, *(system for _, system in OF_A_GROUP))) == sorted(
        system.name for system in SYSTEMS
    )
    assert [system for system in SYSTEMS if system.default] == list(DEFAULT)
    assert all(system.stage == system.name for _, system in OF_A_GROUP)


@pytest.mark.parametrize("group", GROUPS.values(), ids=lambda group: group.name)
def test_the_systems_of_a_group_are_stages_that_run_the_command(group: Group) -> None:
    do = DO[group.name]
    assert list(EACH[group.name]) == [system.stage for system in group.systems]
    assert (do["wdir"], do["cmd"]) == ("..", "python -m pipeline baseline ${key}")
    assert do["outs"] == [{"models/${key}": {"cache": False}}]
    assert [list(plot) for plot in do["plots"]] == [["plots/${key}.csv"]]
    assert [options["cache"] for plot in do["plots"] for options in plot.values()] == [False]


@pytest.mark.parametrize(("group", "system"), OF_A_GROUP, ids=lambda of: of.stage if isinstance(of, System) else "")
def test_a_system_of_a_group_depends_on_its_code_its_section_and_on_stages(group: Group, system: System) -> None:
    item, do = EACH[group.name][system.stage], DO[group.name]
    method, mlnts = item["method"], "mlnt" in system.sections
    deps = {dep.replace("${item.method}", method).replace("${item.needs}", item["needs"]) for dep in do["deps"]}
    own = do["params"][len(COMMON_SECTIONS) :]
    assert do["params"] == [*COMMON_SECTIONS, *own]
    assert {item[section.removeprefix("${item.").removesuffix("}")] for section in own} == {*system.sections}
    code = {dep for dep in deps if dep.startswith(("mlnt/", "pipeline/"))}
    needs = needed("pipeline/stages/train.py") | needed(f"pipeline/systems/{method}.py")
    # For the name of cross entropy's stage, whose results it reads as files.
    assert {path for path in needs if not covered(path, code)} <= {"pipeline/systems/mlnt.py"}
    inputs = {"data/seen/weights.csv", "data/dataset.h5", "data/labels.h5", "data/embeddings.h5"}
    assert deps - code == {*inputs, item["needs"]}
    # Features come from the network of pretrain, whose digest is compared.
    assert ("data/features.h5" in deps) == mlnts
    models = {*system.needs, *([system.mentor] if system.mentor else [])} - ({"pretrain"} if mlnts else set())
    assert {f"models/{stage}" for stage in models} <= deps


@pytest.mark.parametrize("group", GROUPS.values(), ids=lambda group: group.name)
def test_the_systems_of_a_group_are_judged_together(group: Group) -> None:
    judged = [system.stage for system in group.systems if system.in_tables]
    evaluate, report = (BESIDE[group.name][name] for name in ("evaluate", "report"))
    assert [dep for dep in evaluate["deps"] if dep.startswith("models/")] == [f"models/{stage}" for stage in judged]
    assert code_deps(evaluate) - code_deps(STAGES["evaluate"]) == {"mlnt/baselines", "pipeline/systems"}
    assert code_deps(evaluate) >= code_deps(STAGES["evaluate"])
    assert evaluate["params"] == STAGES["evaluate"]["params"]
    assert evaluate["cmd"].endswith(f"evaluate --group {group.name}")
    assert [next(iter(out)) for out in evaluate["outs"]] == [
        str(path) for path in (group.evaluation, group.confusions, group.label_issues)
    ]
    own = {str(group.evaluation), *(f"plots/{stage}.csv" for stage in judged)}
    assert set(report["deps"]) == {*STAGES["report"]["deps"], *own}
    assert report["cmd"].endswith(f"report --group {group.name}")
    assert [next(iter(out)) for out in report["outs"]] == [str(group.report)]


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


def test_the_recipe_for_cifar100_is_that_of_cifar10() -> None:
    ten, hundred = (leaves(read_yaml(ROOT / f"presets/{name}.yaml")) for name in ("cifar10", "cifar100"))
    published = {"gce.first_pruning": 80, "elr.lambda": 7.0, "elr.beta": 0.9, "sop.u_lr": 1.0, "divide_mix.warm_up": 30}
    assert hundred == {**ten, "data.source": "cifar100", **published}


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
