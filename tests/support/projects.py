"""What the tests of the pipeline share: parameters of a run of seconds, and files read in plain ways."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from pipeline.params.load import changed, check, read_yaml
from pipeline.params.schema import Params, leaf_keys

ROOT = Path(__file__).resolve().parents[2]

STAGES: dict[str, Any] = read_yaml(ROOT / "dvc.yaml")["stages"]
"""In the order of a run."""
STAGES["look"] |= {"deps": [], "params": []}

OUTPUTS = ("data", "models", "metrics", "plots", "records", "reports")

TINY: dict[str, Any] = {
    "seed": 0,
    "data.source": "digits",
    "data.limit": 200,
    "data.limit_test": 60,
    "noise.kind": "symmetric",
    "noise.rate": 0.5,
    "noise.validation": "clean",
    "noise.validation_fraction": 0.2,
    "model.name": "preact_resnet_tiny",
    "train.epochs": 2,
    "train.batch_size": 32,
    "train.lr": 0.1,
    "train.lr_drop_epochs": [1],
    "compute.device": "cpu",
    "compute.threads": 1,
    "run.checkpoint_every": 1,
    "mlnt.M": 2,
    "mlnt.eta": 0.4,
    "filter.tau": 0.05,  # networks of two epochs are hardly sure of anything
    "evaluate.label_issue_threshold": None,
    "report.gallery": 12,
}
"""Everything that the tests rely on; the rest is as in params.yaml."""


def default_values() -> dict[str, Any]:
    """params.yaml as plain values."""
    values: dict[str, Any] = read_yaml(ROOT / "params.yaml")
    return values


def make_params(**changes: Any) -> Params:
    """The tiny parameters with changes; `mlnt__M=3` is mlnt.M."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return check(changed(default_values(), {**TINY, **dotted}), Path("params.yaml"))


def write_params(folder: Path, **changes: Any) -> None:
    """The same as a params.yaml in `folder`."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(changed(default_values(), {**TINY, **dotted}), file)


def edit_params(path: Path, changes: dict[str, Any]) -> None:
    """Change values of a parameter file, its comments kept."""
    yaml = YAML()
    yaml.width = 200
    document = yaml.load(path.read_text(encoding="utf-8"))
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(changed(document, changes), file)


def written_by(stage: str) -> list[str]:
    """Outs, metrics and plots of a stage."""
    kinds = ("outs", "metrics", "plots")
    entries = [entry for kind in kinds for entry in STAGES[stage].get(kind, [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def listed_params(stage: str) -> set[str]:
    """The parameters in the sections that dvc.yaml names for a stage; none for the report, which has all of them."""
    sections = {key for key in STAGES[stage]["params"] if isinstance(key, str)}
    return {key for key in leaf_keys() if key.partition(".")[0] in sections}


def digests(folder: Path, *below: str) -> dict[str, str]:
    """Path → SHA-256 of these files, and the files below these folders, of `folder`; all, if none is named."""
    starts = [folder / name for name in below or (".",)]
    found = [path for start in starts for path in ([start] if start.is_file() else sorted(start.rglob("*")))]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
        if path.is_file()
    }


def copy_outputs(source: Path, target: Path) -> None:
    """What stages have written, without their timings and checkpoints."""
    for name in OUTPUTS:
        if (source / name).exists():
            shutil.copytree(source / name, target / name)


def write_picture(path: Path, number: int, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Image.Image:
    """An image of noise that `number` determines, width × height; returns what was written."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 4)).astype(np.uint8)
    image = Image.fromarray(pixels)
    image = image if mode == "RGBA" else image.convert("RGB").convert(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return image


def save_model(
    name: str,
    shape: list[int],
    normalize: str,
    system: str = "meta3",
    network: Any = None,
    options: dict[str, Any] | None = None,
) -> Any:
    """A folder in models/ as a training stage leaves it, of a network that nobody has trained; it has seen images, so
    that its BatchNorm statistics are not those that it began with."""
    import torch

    from mlnt.images.statistics import InputStatistics
    from mlnt.networks import create_model
    from pipeline.store import cards, models

    def noise(seed: int, *size: int) -> torch.Tensor:
        return torch.rand(size, generator=torch.Generator().manual_seed(seed))

    if network is None:
        network = create_model(name, num_classes=3, in_chans=shape[0], seed=0)
    with torch.no_grad():
        network.train()(noise(1, 16, *shape))
    of_channels = InputStatistics(torch.full((shape[0], 1, 1), 0.25), torch.full((shape[0], 1, 1), 0.5))
    of_pixels = InputStatistics(noise(2, *shape), torch.ones(()))
    card = cards.ModelCard(
        network=name,
        system=system,
        class_names=["cat", "dog", "owl"],
        shape=shape,
        options=options,
        labels_digest="",
        mentor="student",
        best_epoch={},
        validation_accuracy={},
        kept_fraction=1.0,
        kept_purity=None,
        folds=0,
    )
    weights = {("student", "best"): network.state_dict()}
    models.save_models(system, weights, of_pixels if normalize == "mean_image" else of_channels, card, {})
    return network


def run_stage(stage: str, params: Params) -> str:
    """A stage of dvc.yaml in this process and folder."""
    from pipeline.stages import download, embed, evaluate, features, look, noise, report, train

    others = {
        "look": look,
        "download": download,
        "noise": noise,
        "embed": embed,
        "features": features,
        "evaluate": evaluate,
        "report": report,
    }
    return others[stage].run(params) if stage in others else train.run(params, stage)


def invoke(*arguments: str) -> Any:
    """A command in this process: its exit status and what it printed."""
    from typer.testing import CliRunner

    from pipeline.cli import app

    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def environment(**variables: str) -> dict[str, str]:
    """For processes: this Python first on PATH, one thread, nothing of the user's git and DVC settings."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_", "MLNT_"))}
    identity = {f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {
        **inherited,
        **identity,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "DVC_NO_ANALYTICS": "1",
        **variables,
    }


def run(cwd: Path, *command: str, timeout: float = 600, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process's exit status and what it said."""
    return subprocess.run(
        command, cwd=cwd, env=environment(**variables), capture_output=True, text=True, check=False, timeout=timeout
    )


def run_pipeline(
    cwd: Path, *arguments: str, timeout: float = 600, **variables: str
) -> subprocess.CompletedProcess[str]:
    return run(cwd, sys.executable, "-m", "pipeline", *arguments, timeout=timeout, **variables)


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, "-m", "dvc", *arguments, DVC_SITE_CACHE_DIR=str(folder.parent / "site-cache"))


def git(folder: Path, *arguments: str) -> str:
    result = run(folder, "git", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def copy_project(folder: Path, params: dict[str, Any]) -> None:
    """This project, as it is now and with these parameters, as a repository with one commit."""
    for name in git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    edit_params(folder / "params.yaml", params)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a copy")
