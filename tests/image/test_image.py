"""The image, run in every way that the documentation names, with the pipeline on the default data."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT, Image, log_has
from engine import Docker
from ruamel.yaml import YAML
from sklearn.datasets import load_digits

SECONDS_TO_STOP = 10  # docker stop kills after that
ANYBODY = "4242:4242"
LOADER = """
import torch
from torch.utils.data import DataLoader, TensorDataset
batches = DataLoader(TensorDataset(torch.ones(50_000, 3, 32, 32)), batch_size=128, num_workers=2)
print(sum(int(images[:, 0, 0, 0].sum()) for images, in batches))
"""


def outputs(lock: str) -> dict[str, str]:
    """From dvc.lock, the digest of everything that the pipeline makes."""
    stages = YAML(typ="safe").load(lock)["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}


def read(image: Image, volume: str, file: str) -> str:
    return image.run("cat", file, options=("-v", f"{volume}:/workspace"))


def project(image: Image, folder: Path) -> Path:
    """A clone of the image's project on this machine."""
    container = image.docker.must("create", image.name).strip()
    image.docker.must("cp", f"{container}:/opt/mlnt", str(folder))
    return folder


@pytest.fixture(scope="session")
def default_run(image: Image, docker: Docker) -> tuple[str, str]:
    """The volume of a workspace in which the image ran without a command, and what it printed."""
    volume = docker.volume()
    return volume, image.run(options=("-v", f"{volume}:/workspace"))


@pytest.mark.short
def test_it_builds(image: Image, figures: list[str]) -> None:
    assert image.run("mlnt", "--version").startswith("mlnt ")


@pytest.mark.short
def test_without_a_command_it_runs_the_pipeline_and_prints_the_table(
    default_run: tuple[str, str], image: Image
) -> None:
    volume, output = default_run
    assert "Cross Entropy on CPU, 1 thread" in output
    assert re.search(r"│ MLNT 3 teacher +│ +\d\d\.\d │", output)
    status = image.run("dvc", "status", "dvc.yaml", options=("-v", f"{volume}:/workspace"))
    assert re.findall(r"^(\S+):$", status, re.MULTILINE) == ["look"]  # it always runs


@pytest.mark.short
def test_it_makes_the_same_bits_as_outside(default_run: tuple[str, str], image: Image, tmp_path: Path) -> None:
    outside = project(image, tmp_path / "project")
    here = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["dvc", "repro", "--quiet"], cwd=outside, env=here, check=True)
    made = outputs((outside / "dvc.lock").read_text())
    assert len(made) > 20
    assert outputs(read(image, default_run[0], "dvc.lock")) == made


@pytest.mark.short
def test_exit_statuses_pass_through(image: Image) -> None:
    assert "nosuch: not found" in image.run("nosuch", expect=127)
    image.run("sh", "-c", "exit 7", expect=7)
    assert "data/dataset.h5" in image.run("mlnt", "pretrain", expect=2)
    output = image.run(
        "sh",
        "-c",
        "sed -i 's/^  lr: .*/  lr: -1/' params.yaml && exec sh /opt/mlnt/container/entrypoint.sh",
        expect=255,
    )
    assert "train.lr: found -1" in output
    assert "MLNT 3 teacher" not in output


@pytest.mark.short
def test_the_doctor_is_content(image: Image) -> None:
    output = image.run("mlnt", "doctor")
    assert output.rstrip().endswith("Ready: dvc repro")
    assert "fail" not in output
    assert "not the locked version" not in output
    assert "docker run --gpus all" in output


@pytest.mark.short
def test_it_holds_what_it_should(image: Image, docker: Docker, figures: list[str]) -> None:
    assert image.run("id", "-u").strip() == "1000"
    assert image.run("git", "status", "--porcelain") == ""
    assert image.run("sh", "-c", "ls /opt/venv/bin | grep -E '^(pip|uv|pytest|mypy|ruff)$'", expect=1) == ""
    config = json.loads(docker.must("image", "inspect", image.name))[0]["Config"]
    assert "NVIDIA_VISIBLE_DEVICES=all" in config["Env"]
    history = docker.must("history", "--format", "{{.Size}} {{.CreatedBy}}", "--no-trunc", image.name).splitlines()
    layers = [line for line in history if not line.startswith("0B ")]
    figures.extend(f"layer: {line[:100]}" for line in layers)
    above = layers[: next(i for i, line in enumerate(layers) if "COPY /opt/venv" in line)]
    assert len(above) == 2
    assert all(re.match(r"[\d.]+(kB|MB) ", line) and float(re.split("[kM]B", line)[0]) < 1000 for line in above)


def test_a_parameter_on_the_command_line(default_run: tuple[str, str], image: Image, docker: Docker) -> None:
    volume = copy(docker, image, default_run[0])
    mount = ("-v", f"{volume}:/workspace")
    output = image.run("dvc", "exp", "run", "-S", "mlnt.M=15", options=mount)
    assert "Stage 'pretrain' didn't change, skipping" in output
    assert "Running stage 'meta1'" in output
    assert "Ran experiment" in output
    assert re.search(r"^  M: 15\b", image.run("cat", "params.yaml", options=mount), re.MULTILINE)
    assert read(image, volume, "metrics/summary.json") != read(image, default_run[0], "metrics/summary.json")
    assert "MLNT 3 teacher" in image.run("mlnt", "show", options=mount)


def copy(docker: Docker, image: Image, volume: str) -> str:
    other = docker.volume()
    image.run("cp", "-a", "/from/.", "/to", options=("-v", f"{volume}:/from", "-v", f"{other}:/to", "--user", "0"))
    return other


def test_mounted_folders_keep_everything_between_containers(
    default_run: tuple[str, str], image: Image, docker: Docker
) -> None:
    folders = (".dvc/cache", "data", "models", "checkpoints")
    mounts = tuple(part for folder in folders for part in ("-v", f"{docker.volume()}:/workspace/{folder}"))
    first = image.run(options=mounts)
    assert first.count("Running stage") == 11
    second = image.run(options=mounts)
    assert "Running stage" not in second
    assert second.splitlines()[-18:] == first.splitlines()[-18:] == default_run[1].splitlines()[-18:]


def test_a_clone_of_any_user(default_run: tuple[str, str], image: Image, tmp_path: Path) -> None:
    clone = project(image, tmp_path / "clone")
    subprocess.run(["chown", "-R", ANYBODY, clone], check=True)
    # The clone's code runs, not the image's.
    for file in ("pipeline/__init__.py", "mlnt/__init__.py"):
        with (clone / file).open("a") as code:
            code.write(f"\nimport sys; print('the clone: {file}', file=sys.stderr)\n")
    options = ("-v", f"{clone}:/workspace", "--user", ANYBODY)
    output = image.run(options=options)
    assert "the clone: mlnt/__init__.py" in output
    assert "the clone: pipeline/__init__.py" in image.run("mlnt", "--version", options=options)
    assert outputs((clone / "dvc.lock").read_text()) == outputs(read(image, default_run[0], "dvc.lock"))
    assert {path.stat().st_uid for path in clone.rglob("*")} == {4242}


def test_a_workspace_that_cannot_be_used_is_explained(image: Image, tmp_path: Path) -> None:
    clone = project(image, tmp_path / "clone")
    subprocess.run(["chown", "-R", "0:0", clone], check=True)
    subprocess.run(["chmod", "-R", "go-w", clone], check=True)
    assert "add --user" in image.run(options=("-v", f"{clone}:/workspace"), expect=2)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    assert "no dvc.yaml" in image.run(options=("-v", f"{other}:/workspace"), expect=2)
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


def empty(folder: Path) -> tuple[str, ...]:
    """A new folder of nobody in particular, as the workspace."""
    folder.mkdir()
    shutil.chown(folder, 4242, 4242)
    return "-v", f"{folder}:/workspace", "--user", ANYBODY


def test_an_empty_folder_becomes_a_workspace_of_the_installed_package(
    default_run: tuple[str, str], image: Image, tmp_path: Path
) -> None:
    options = empty(tmp_path / "empty")
    assert "Ready: dvc repro" in image.run("mlnt", "doctor", options=options)
    assert (tmp_path / "empty/params.yaml").exists()
    assert not (tmp_path / "empty/pipeline").exists()
    assert image.run("git", "status", "--porcelain", options=options) == ""
    image.run(options=options)
    here, there = outputs((tmp_path / "empty/dvc.lock").read_text()), outputs(read(image, default_run[0], "dvc.lock"))
    assert {path: digest for path, digest in here.items() if path != "data/seen/code"} == there


@pytest.mark.short
def test_a_workspace_for_ones_own_images(image: Image, tmp_path: Path) -> None:
    """In an empty folder, and in the image's own workspace."""
    digits = write_digits(tmp_path / "photos")
    photos = ("-v", f"{tmp_path / 'photos'}:/photos:ro")
    command = ("sh", "-c", "mlnt init --images /photos && cat params.yaml")
    for output in (
        image.run(*command, options=(*photos, *empty(tmp_path / "empty"))),
        image.run(*command, options=photos),
    ):
        assert f"{len(digits)} images of 10 classes" in output
        assert "root: /photos" in output


@pytest.mark.short
def test_a_model_predicts(default_run: tuple[str, str], image: Image, tmp_path: Path) -> None:
    digits = write_digits(tmp_path / "photos")
    options = ("-v", f"{default_run[0]}:/workspace", "-v", f"{tmp_path / 'photos'}:/photos:ro")
    output = image.run(
        "sh", "-c", "mlnt predict /photos --topk 1 --out /tmp/found.csv && cat /tmp/found.csv", options=options
    )
    found = dict(re.findall(r"^/photos/(\S+),(\d),", output, re.MULTILINE))
    assert found.keys() == digits.keys()
    assert sum(found[path] == label for path, label in digits.items()) > 0.8 * len(digits)


def write_digits(folder: Path) -> dict[str, str]:
    """100 image files, CLASS/FILE; path → class."""
    images, labels = load_digits(return_X_y=True)
    found = {}
    for i, (pixels, label) in enumerate(zip(images[:100].reshape(-1, 8, 8), labels, strict=False)):
        path = folder / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(path)
        found[f"{label}/{i}.png"] = str(label)
    return found


def test_read_only_without_network_and_privileges(default_run: tuple[str, str], image: Image, docker: Docker) -> None:
    volume = docker.volume()
    locked = (
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--network",
        "none",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
    )
    mount = ("-v", f"{volume}:/workspace", "--user", ANYBODY)
    output = image.run(options=(*locked, *mount))
    assert "warning" not in output.lower()
    assert outputs(read(image, volume, "dvc.lock")) == outputs(read(image, default_run[0], "dvc.lock"))
    # A volume for pretrained weights is found though the home is another one.
    weights = ("-v", f"{docker.volume()}:/home/mlnt/.cache")
    places = "import huggingface_hub.constants as c, torch; print(c.HF_HUB_CACHE, torch.hub.get_dir())"
    found = image.run("python", "-c", places, options=(*locked, *mount, *weights))
    assert found.split() == ["/home/mlnt/.cache/huggingface/hub", "/home/mlnt/.cache/torch/hub"]
    image.run("sh", "-c", "touch $XDG_CACHE_HOME/kept", options=(*locked, *mount, *weights))
    assert image.run("ls", "/home/mlnt/.cache", options=weights).split() == ["kept"]


def test_stopped_in_three_ways_it_goes_on_to_the_same_bits(
    default_run: tuple[str, str], image: Image, docker: Docker, figures: list[str]
) -> None:
    volume = docker.volume()
    mount = ("-v", f"{volume}:/workspace")
    ways = {"stop": (["stop"], "130"), "SIGTERM": (["kill", "--signal", "TERM"], "143"), "SIGKILL": (["kill"], "137")}
    for stage, (way, (command, status)) in zip(("meta1", "meta2", "meta3"), ways.items(), strict=True):
        container = image.start(options=mount)
        log_has(docker, container, f"Running stage '{stage}'")
        wait_for_checkpoint(docker, container, stage)
        start = time.monotonic()
        docker.must(*command, container)
        assert docker.must("wait", container).strip() == status
        seconds = time.monotonic() - start
        figures.append(f"{way}: ended after {seconds:.1f} s with status {status}")
        assert seconds < SECONDS_TO_STOP
        left = image.run("find", ".", "-name", ".*.tmp", options=("--entrypoint", "", *mount)).split()
        assert left == [], f"{way} left {left}"
        # Locks that a killed process leaves, here of one that runs in every container: process 1.
        image.run("sh", "-c", STALE_LOCK, options=("--entrypoint", "", *mount))
    output = image.run(options=mount)
    assert "meta3: going on after step" in output
    assert outputs(read(image, volume, "dvc.lock")) == outputs(read(image, default_run[0], "dvc.lock"))


STALE_LOCK = """echo '{"write": {"/workspace/models/meta1": {"pid": 1, "cmd": "x"}}, "read": {}}' > .dvc/tmp/rwlock"""


def wait_for_checkpoint(docker: Docker, container: str, stage: str) -> None:
    for _ in range(300):
        if docker("exec", container, "sh", "-c", f"ls checkpoints/{stage}/*/*.safetensors").returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError(docker("logs", container).stdout)


def test_a_second_container_does_not_disturb_the_first(image: Image, docker: Docker) -> None:
    mount = ("-v", f"{docker.volume()}:/workspace")
    first = image.start(options=mount)
    log_has(docker, first, "Running stage 'pretrain'")
    for command in ((), ("dvc", "repro"), ("dvc", "exp", "run", "-S", "mlnt.M=2")):
        assert "another container is at work here" in image.run(*command, options=mount, expect=2)
    assert "data/dataset.h5" in image.run("mlnt", "doctor", options=mount)
    assert docker.must("wait", first).strip() == "0"
    # What is started in a shell is not kept out, but its locks are left alone.
    image.start("sh", "-c", f"{STALE_LOCK}; sleep 60", options=mount)
    time.sleep(1)
    image.run("mlnt", "--version", options=mount)
    image.run("test", "-s", ".dvc/tmp/rwlock", options=mount)


def test_loader_workers_with_the_default_shared_memory(image: Image) -> None:
    assert "64M" in image.run("df", "-h", "/dev/shm")
    assert image.run("python", "-c", LOADER).strip() == "50000"


def test_a_changed_line_rebuilds_a_small_layer(
    image: Image, docker: Docker, tmp_path: Path, figures: list[str]
) -> None:
    changed = project(image, tmp_path / "changed")
    with (changed / "mlnt/__init__.py").open("a") as code:
        code.write("\nCHANGED = True\n")
    start = time.monotonic()
    log = docker.build(image.name + "-changed", changed)
    figures.append(f"built in {time.monotonic() - start:.0f} s after a changed line")
    copying = re.search(r"^(#\d+) \[runtime \d/\d\] COPY --from=deps", log, re.MULTILINE)
    assert copying is not None
    assert f"{copying[1]} CACHED" in log
    name = Image(docker, image.name + "-changed")
    assert name.run("python", "-c", "import mlnt; print(mlnt.CHANGED)").strip() == "True"


def test_torch_compile_needs_its_own_image(image: Image, docker: Docker, figures: list[str]) -> None:
    compiled = ("dvc", "exp", "run", "-S", "compute.compile=true", "-S", "train.epochs=1")
    compiled += ("-S", "mlnt.update=sequential", "-S", "mlnt.order=first", "-S", "train.lr_drop_epochs=[]")
    assert "--build-arg COMPILE=yes" in image.run(*compiled, "pretrain", expect=255)
    docker.add_to_base("libpython3-dev")  # Python.h, which a registry's Python image has
    docker.build("mlnt-image-test-compile", ROOT, "--build-arg", "COMPILE=yes")
    size = int(docker.must("image", "inspect", "--format", "{{.Size}}", "mlnt-image-test-compile"))
    figures.append(f"image with COMPILE=yes: {size / 1e9:.2f} GB")
    assert "Running stage 'meta1'" in Image(docker, "mlnt-image-test-compile").run(*compiled, "meta1")
