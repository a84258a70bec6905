"""Embeddings, features and evaluation by several processes: the bytes of one, however often they are stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from projects import copy_outputs, digests, make_params, run_pipeline, run_stage, write_params
from safetensors.torch import save_file

from mlnt import networks
from mlnt.networks import create_model, pre_logit_features
from pipeline.stages import embed, evaluate, features
from pipeline.store.dataset import read_dataset

ONCE: dict[str, Any] = {"train__epochs": 1, "train__lr_drop_epochs": [], "compute__eval_batch_size": 16}
"""In many batches, the last one short."""
KILL = "os.kill(os.getpid(), signal.{})"
WRITTEN = ("data", "metrics", "records", "reports")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What comes before the features and the evaluation of a baseline."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("download", "noise", "pretrain", "forward"):
            run_stage(stage, make_params(**ONCE))
    return folder


IN_A_BATCH = """
import os
if os.environ.get("RANK") == "{rank}":
    import itertools, signal
    from mlnt import networks
    from pipeline.base.errors import RunError
    exact, calls = networks.pre_logit_features, itertools.count()
    def acting(module, images):
        if next(calls) == {batch}:  # the first one is tried, before all
            {act}
        return exact(module, images)
    networks.pre_logit_features = acting
"""


def acting(folder: Path, rank: int, batch: int, act: str) -> dict[str, str]:
    """Variables by which one rank does this in one of its batches."""
    code = IN_A_BATCH.format(rank=rank, batch=batch, act=act)
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def test_features_are_those_of_one_process_and_an_error_is_said_once(
    trained: Path, project: Path, tmp_path: Path
) -> None:
    copy_outputs(trained, project)
    run_stage("features", make_params(**ONCE))
    expected = digests(project, *WRITTEN)
    Path("data/features.h5").unlink()
    Path("records/features.json").unlink()
    before = digests(project, *WRITTEN)
    write_params(project, **ONCE, run__processes=2)

    ended = run_pipeline(project, "extract-features", **acting(tmp_path, 1, 3, 'raise RunError("this rank alone")'))
    assert ended.returncode == 1, ended.stderr
    assert [line for line in ended.stderr.splitlines() if line] == ["error: this rank alone"]
    assert digests(project, *WRITTEN) == before

    done = run_pipeline(project, "extract-features")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("features: ")
    assert done.stderr.count("\n") == 1
    assert digests(project, *WRITTEN) == expected


def test_an_evaluation_is_that_of_one_process(trained: Path, project: Path) -> None:
    copy_outputs(trained, project)
    evaluate.run(make_params(**ONCE), "baselines")
    expected = digests(project, *WRITTEN)
    made = list(Path().glob("*/baselines*"))
    assert len(made) == 3
    for path in made:
        path.unlink()
    write_params(project, **ONCE, run__processes=2)
    done = run_pipeline(project, "evaluate", "--group", "baselines")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("evaluate: 1 baselines")
    assert digests(project, *WRITTEN) == expected


def head_params(weights: Path) -> dict[str, Any]:
    """For 1,797 images, four pieces."""
    return {"model__train": "head", "model__weights": str(weights), "data__limit": None, "data__limit_test": None}


def test_embedding_goes_on_with_another_number_of_processes_to_the_same_bits(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "start.safetensors"
    save_file(create_model("preact_resnet_tiny", num_classes=3, in_chans=1, seed=5).state_dict(), weights)
    changes = head_params(weights)
    for stage in ("download", "embed"):
        run_stage(stage, make_params(**changes))
    expected = digests(project, *WRITTEN)
    Path("data/embeddings.h5").unlink()
    Path("records/embed.json").unlink()
    write_params(project, **changes, run__processes=2)

    def pieces() -> set[str]:
        return {path.name for path in Path("checkpoints").glob("embed/*/piece-*")}

    ended = run_pipeline(project, "embed", **acting(tmp_path, 1, 4, KILL.format("SIGTERM")))
    assert (ended.returncode, ended.stderr) == (143, "")
    assert pieces() == {"piece-0.safetensors"}

    ended = run_pipeline(project, "embed", **acting(tmp_path, 0, 16 + 4, KILL.format("SIGKILL")))
    assert ended.returncode == 1, ended.stderr
    (said,) = [line for line in ended.stderr.splitlines() if line]
    assert said.startswith("error: ")
    assert "The same command goes on" in said
    assert pieces() == {f"piece-{at}.safetensors" for at in (0, 512, 1024)}
    assert not Path("data/embeddings.h5").exists()

    done: list[int] = []

    def counted(*args: Any) -> Any:
        done.append(len(args[1]))
        return pre_logit_features(*args)

    monkeypatch.setattr(networks, "pre_logit_features", counted)
    run_stage("embed", make_params(**changes))
    assert sum(done) == 2 + len(read_dataset().labels) - 3 * embed.PIECE  # two images are tried
    assert digests(project, *WRITTEN) == expected
    assert not list(Path("checkpoints").glob("embed/*"))


def test_what_has_nothing_to_divide_is_run_by_one(tmp_path: Path) -> None:
    heads, networks = make_params(**head_params(tmp_path), run__processes=2), make_params(run__processes=2)
    assert [stage.processes(networks) for stage in (embed, features, evaluate)] == [1, 2, 2]
    assert [stage.processes(heads) for stage in (embed, features, evaluate)] == [2, 1, 1]
