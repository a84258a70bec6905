"""`model.train: head`: embeddings, the heads that are trained on them, and the whole networks that are saved."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from projects import ROOT, copy_outputs, digests, edit_params, environment, invoke, make_params, run_stage
from runs import Run, run_all
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mlnt import networks
from mlnt.images.statistics import InputStatistics
from mlnt.networks import create_model, pre_logit_features
from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.params.load import load
from pipeline.params.schema import Params
from pipeline.stages import embed
from pipeline.store import models, record
from pipeline.store.dataset import SPLITS, TRAIN, read_dataset, read_labels
from pipeline.systems.registry import BY_STAGE, DEFAULT
from pipeline.training.session import Session
from pipeline.training.start_weights.pretrained import input_statistics
from pipeline.training.start_weights.start import started
from pipeline.use import from_list
from pipeline.use.export import labels as export_labels

EMBEDDINGS = Path("data/embeddings.h5")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's trained network: the convolutions are random, which features need no more than."""
    path = tmp_path_factory.mktemp("weights") / "start.safetensors"
    save_file(create_model("preact_resnet_tiny", num_classes=3, in_chans=1, seed=5).state_dict(), path)
    return path


def head_params(weights: Path, **changes: Any) -> Params:
    values = {"model__train": "head", "model__weights": str(weights), "train__epochs": 4, "train__lr": 0.1}
    return make_params(**{**values, "mlnt__alpha": 0.01, "mlnt__eta": 0.05, "filter__tau": 0.1, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Run:
    """A run of all stages."""
    return run_all(tmp_path_factory.mktemp("finished"), head_params(weights))


def logits_of(stage: str, file: Path, params: Params) -> tuple[Tensor, Tensor]:
    """What the head gives on the stored embeddings, and what the network in the file gives on the images."""
    with closing(Session.open(params)) as session:
        head = session.network(BY_STAGE[stage], file)
        rows = torch.arange(len(session.images))
        on_embeddings = head(session.images.batch(next(session.images.fetch([rows]))))
        images = torch.from_numpy(np.asarray(session.dataset.images)).float() / 255
    system = BY_STAGE[stage]
    build = partial(create_model, "preact_resnet_tiny", in_chans=1, seed=0)
    whole = system.network(lambda _, outputs: build(num_classes=outputs), 10)
    whole.load_state_dict(load_file(file))
    statistics = InputStatistics(**load_file(file.parent / "input.safetensors"))
    return on_embeddings.detach(), whole.eval()((images - statistics.mean) / statistics.std).detach()


@pytest.mark.parametrize("system", DEFAULT, ids=lambda system: system.stage)
def test_what_is_saved_gives_on_images_what_the_head_gives_on_embeddings(
    system: Any, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.folder)
    for model in ("student", "teacher"):
        for choice in models.CHOICES:
            file = models.weights_file(system.stage, model, choice)
            on_embeddings, on_images = logits_of(system.stage, file, finished.params)
            torch.testing.assert_close(on_images, on_embeddings, rtol=1e-4, atol=1e-4)
            assert on_images.std() > 1e-3  # a head that is trained: it began with zeros


def test_a_wrapped_head_is_saved_as_a_whole_too(finished: Run, project: Path) -> None:
    copy_outputs(finished.folder, project)
    run_stage("cnn_crf", finished.params)
    file = models.weights_file("cnn_crf", "student", "last")
    assert load_file(file)["pairwise"].abs().sum() > 0
    on_embeddings, on_images = logits_of("cnn_crf", file, finished.params)
    torch.testing.assert_close(on_images, on_embeddings, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", ["co_teaching", "divide_mix"])
def test_a_pair_of_heads_is_saved_as_two_networks(stage: str, finished: Run, project: Path) -> None:
    copy_outputs(finished.folder, project)
    params = head_params(Path(finished.params.model.weights or ""), divide_mix__warm_up=1)
    run_stage(stage, params)
    file = models.weights_file(stage, "student", "last")
    first, second = (load_file(file)[f"networks.{k}.fc.weight"] for k in (0, 1))
    assert (first - second).std() > 0.01 * first.std()  # they started apart, or saw other batches
    on_embeddings, on_images = logits_of(stage, file, params)
    torch.testing.assert_close(on_images, on_embeddings, rtol=1e-4, atol=1e-4)


def test_the_frozen_network_is_saved_as_it_was(finished: Run, weights: Path) -> None:
    saved, start = load_file(finished.folder / "models/meta3/teacher_best.safetensors"), load_file(weights)
    body = [name for name in start if not name.startswith("fc.")]
    assert all(torch.equal(saved[name], start[name]) for name in body)
    assert saved["fc.weight"].shape == (10, 32)


def test_training_learns_and_is_judged(finished: Run) -> None:
    metrics = finished.json("metrics/evaluate.json")
    assert metrics["cross_entropy"]["student"]["best"]["test_accuracy"] > 0.3
    assert len(finished.table("reports/label_issues.csv")) == sum(metrics["samples"].values())
    assert 0 < metrics["mlnt_3"]["kept_fraction"] < 1
    assert metrics["mlnt_3"]["label_issues"]["auc"] > 0.6


def test_the_embeddings_are_the_networks_features(finished: Run, weights: Path) -> None:
    network = started(make_params(model__weights=str(weights)).model, 10, 1, seed=1).eval()
    statistics = InputStatistics(**load_file(finished.folder / "models/pretrain/input.safetensors"))
    with h5py.File(finished.folder / "data/dataset.h5") as data, h5py.File(finished.folder / EMBEDDINGS) as found:
        images = torch.from_numpy(data["images"][:]).float() / 255
        with torch.no_grad():
            expected = pre_logit_features(network, (images - statistics.mean) / statistics.std)
        torch.testing.assert_close(torch.from_numpy(found["embeddings"][:]), expected)


def test_heads_are_trained_on_standardised_embeddings(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.folder)
    with closing(Session.open(finished.params)) as session:
        train = torch.from_numpy(session.labels.rows(TRAIN))
        rows = session.images.batch(train).double()
        varied = rows.std(dim=0, unbiased=False) > 0.01
        assert varied.sum() > 16
        torch.testing.assert_close(rows.mean(dim=0), torch.zeros(32).double(), rtol=0, atol=1e-4)
        deviations = rows.std(dim=0, unbiased=False)[varied]
        torch.testing.assert_close(deviations, torch.ones_like(deviations), rtol=1e-3, atol=0)
        assert torch.equal(session.heads.features(session.labels), session.images.batch(train))  # type: ignore[union-attr]


def test_cleanlab_gets_the_embeddings(finished: Run, project: Path) -> None:
    copy_outputs(finished.folder, project)
    export_labels.run(finished.params, "cleanlab", "review", False, Path("out"))
    found = np.load("out/cleanlab.npz")
    with closing(Session.open(finished.params)) as session:
        expected = session.images.batch(torch.from_numpy(found["index"]))
    assert np.array_equal(found["features"], expected.numpy())


def test_of_a_head_the_classifier_is_all_that_fast_weights_can_move(
    finished: Run, project: Path, weights: Path
) -> None:
    copy_outputs(finished.folder, project)
    run_stage("meta1", head_params(weights, mlnt__fast_weights="classifier"))
    for name in ("student_last", "teacher_best"):
        found = load_file(project / f"models/meta1/{name}.safetensors")
        expected = load_file(finished.folder / f"models/meta1/{name}.safetensors")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_cores_changes_no_bit(threads: int, finished: Run, project: Path, weights: Path) -> None:
    copy_outputs(finished.folder, project)
    before = torch.get_num_threads()
    try:
        run_stage("embed", head_params(weights, compute__threads=threads))
    finally:
        torch.set_num_threads(before)
    assert digests(project, "data") == digests(finished.folder, "data")


def test_a_table_that_is_read_from_the_disk_gives_the_same_bits(finished: Run, project: Path, weights: Path) -> None:
    copy_outputs(finished.folder, project)
    before = digests(project, "models/pretrain", "models/meta1")
    for stage in ("pretrain", "meta1"):
        run_stage(stage, head_params(weights, run__max_features_gib=0.0))
    assert digests(project, "models/pretrain", "models/meta1") == before


class _Killed(BaseException):
    pass


def test_embedding_goes_on_where_it_was_killed(
    finished: Run, project: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_outputs(finished.folder, project)
    whole = digests(project, "data", "records")
    EMBEDDINGS.unlink()
    monkeypatch.setattr(embed, "PIECE", 50)
    done: list[int] = []

    def counted(most: int) -> Any:
        def features(module: nn.Module, images: Tensor) -> Tensor:
            if sum(done) >= most:
                raise _Killed
            done.append(len(images))
            return pre_logit_features(module, images)

        return features

    params = head_params(weights)
    monkeypatch.setattr(networks, "pre_logit_features", counted(2 + 120))
    with pytest.raises(_Killed):
        run_stage("embed", params)
    assert not EMBEDDINGS.exists()
    done.clear()
    monkeypatch.setattr(networks, "pre_logit_features", counted(10_000))
    run_stage("embed", params)
    assert sum(done) == 2 + len(read_dataset().labels) - 100  # two pieces were there; two images are tried
    assert digests(project, "data", "records") == whole
    assert not list(Path("checkpoints").glob("embed/*"))


def test_for_whole_networks_the_stage_imports_no_torch(project: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from pipeline.params.load import load; from pipeline.stages import embed\n"
        f"embed.run(load(Path({str(ROOT / 'params.yaml')!r}))); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment(PYTHONPATH=str(ROOT)),
    )
    assert done.stdout.strip() == "False"
    first = digests(project, "data")
    run_stage("embed", make_params(seed=3, train__lr=0.3))
    assert digests(project, "data") == first


# Mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__train": "head"}, "model.train is head, but the network starts from nothing; .*model.weights"),
        ({"train__batch_norm": "start"}, "train.batch_norm is start, but the network starts from nothing"),
        ({"model__normalize": "pretrained"}, "model.normalize is pretrained, but the network starts from nothing"),
    ],
)
def test_a_network_that_starts_from_nothing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_params(**changes)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"train__crop_padding": 2}, "train.crop_padding is 2, expected 0"),
        ({"train__horizontal_flip": True}, "train.horizontal_flip is true, expected false"),
        ({"compute__compile": True}, "compute.compile is true, expected false"),
    ],
)
def test_what_heads_do_not_have(changes: dict[str, Any], key: str, weights: Path) -> None:
    with pytest.raises(UserError, match=key):
        head_params(weights, **changes)


def test_embeddings_of_another_network(finished: Run, project: Path, tmp_path: Path) -> None:
    copy_outputs(finished.folder, project)
    other = tmp_path / "other.safetensors"
    save_file(create_model("preact_resnet_tiny", num_classes=3, in_chans=1, seed=6).state_dict(), other)
    with pytest.raises(UserError, match=r"embeddings.h5: was made by other weights .*; run `mlnt embed` again"):
        run_stage("meta1", head_params(other))
    with pytest.raises(UserError, match=r"embeddings.h5: was made by .*mean_image.*; run `mlnt embed` again"):
        run_stage("meta1", head_params(other, model__normalize="channel"))


def test_embeddings_that_were_made_for_whole_networks(finished: Run, project: Path, weights: Path) -> None:
    copy_outputs(finished.folder, project)
    run_stage("embed", make_params())
    with pytest.raises(UserError, match=r"was made by no network, for model.train: all"):
        run_stage("pretrain", head_params(weights))


def test_embeddings_of_other_images(finished: Run, project: Path, weights: Path) -> None:
    copy_outputs(finished.folder, project)
    params = head_params(weights, data__limit=150)
    run_stage("download", params)
    run_stage("noise", params)
    with pytest.raises(UserError, match=r"embeddings.h5: was made from another dataset"):
        run_stage("pretrain", params)


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("train", ["all", "head"])
def test_weights_that_cannot_be_had_are_missed_before_anything_else(train: str, project: Path) -> None:
    params = make_params(model__name="resnet10t", model__pretrained=True, model__train=train)
    with pytest.raises(
        UserError, match=r"model.pretrained: .*model.safetensors of timm/resnet10t.c3_in1k.*model.weights"
    ):
        run_stage("look", params)
    assert not list(project.iterdir())


@pytest.mark.usefixtures("no_hub")
def test_a_network_without_trained_weights(project: Path) -> None:
    with pytest.raises(
        UserError, match=r"model.pretrained: found true, but timm knows of no trained weights of preact"
    ):
        run_stage("look", make_params(model__pretrained=True))


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet10t.foo", r"Invalid pretrained tag \(foo\) for resnet10t"),
        ("resnet1ot", r"no network is called 'resnet1ot'; near it: .*resnet10t"),
    ],
)
def test_a_misspelt_network_of_trained_weights(name: str, message: str, project: Path) -> None:
    with pytest.raises(UserError, match=f"^model.name: {message}"):
        run_stage("look", make_params(model__name=name, model__pretrained=True))
    with pytest.raises(UserError, match=f"^model.name: {message}"):
        input_statistics(name, 3)


class Hub:
    """The cache of the hub's client, with the weights of resnet10t as they were fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def gives(self, seed: int) -> str:
        """Other weights; returns the digest of the file."""
        place = self.folder / "models--timm--resnet10t.c3_in1k"
        snapshot = place / "snapshots" / f"{seed:040}"
        for made in (snapshot, place / "refs"):
            made.mkdir(parents=True, exist_ok=True)
        (place / "refs/main").write_text(snapshot.name)
        network = create_model("resnet10t", num_classes=1000, in_chans=3, seed=seed)
        save_file(network.state_dict(), snapshot / "model.safetensors")
        return digests(snapshot)["model.safetensors"]


@pytest.fixture
def hub(no_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return Hub(tmp_path / "hub")


FROM_HUB: dict[str, Any] = {"model__name": "resnet10t", "model__pretrained": True, "model__weights": None}


def test_weights_of_the_hub_are_recorded_and_embeddings_of_others_are_refused(
    finished: Run, project: Path, weights: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_outputs(finished.folder, project)
    params = head_params(weights, **FROM_HUB)
    made, outputs = [], []
    for seed in (1, 2):
        made.append(hub.gives(seed))
        run_stage("look", params)
        assert made[-1] in Path("data/seen/weights.csv").read_text()
        if seed == 2:
            with pytest.raises(
                UserError, match=rf"embeddings.h5: .*{made[0][:12]}, expected {made[1][:12]}.*mlnt embed"
            ):
                run_stage("pretrain", params)
        run_stage("embed", params)
        found = record.read("embed")
        assert found is not None
        assert found.inputs["weights"] == made[-1]
        outputs.append(found.outputs["embeddings"])
        run_stage("pretrain", params)
        trained = record.read("pretrain")
        assert trained is not None
        assert trained.inputs["embeddings"] == outputs[-1]
    assert made[0] != made[1]
    assert outputs[0] != outputs[1]
    # Elsewhere the embeddings are enough; the same file may be named too.
    file = next(hub.folder.rglob(f"{2:040}/model.safetensors"))
    Session.open(head_params(file, model__name="resnet10t")).close()
    shutil.rmtree(hub.folder)
    Session.open(params).close()


def test_whole_networks_record_the_weights_of_the_hub(finished: Run, project: Path, weights: Path, hub: Hub) -> None:
    copy_outputs(finished.folder, project)
    made = hub.gives(3)
    params = head_params(weights, **FROM_HUB, model__train="all", train__epochs=1, train__lr_drop_epochs=[])
    run_stage("pretrain", params)
    found = record.read("pretrain")
    assert found is not None
    assert found.inputs["weights"] == made
    with closing(Session.open(params)) as session:
        hub.gives(4)
        assert session.start()["weights"] not in ("", made)


def test_a_network_with_another_head(project: Path, tmp_path: Path) -> None:
    name, path = "deit_tiny_distilled_patch16_224", tmp_path / "weights.safetensors"
    save_file(create_model(name, num_classes=3, in_chans=1, seed=0).state_dict(), path)
    params = head_params(path, model__name=name)
    run_stage("download", params)
    with pytest.raises(UserError, match=r"model.name: deit.* has no head to train: its classifier is not one linear"):
        run_stage("embed", params)


def test_images_of_a_size_that_the_network_does_not_take(project: Path, tmp_path: Path) -> None:
    name, path = "test_vit", tmp_path / "vit.safetensors"
    save_file(create_model(name, num_classes=3, in_chans=1, seed=0).state_dict(), path)
    params = head_params(path, model__name=name)
    run_stage("download", params)
    with pytest.raises(UserError, match=r"model.name: test_vit does not embed images of 8 × 8 .*data.resize"):
        run_stage("embed", params)


# The data configuration of a pretrained network


def test_images_are_normalised_as_timm_says(project: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(create_model("resnet10t", num_classes=3, in_chans=1, seed=0).state_dict(), path)
    params = make_params(model__name="resnet10t", model__weights=str(path), model__normalize="pretrained")
    for stage in ("download", "noise"):
        run_stage(stage, params)
    with closing(Session.open(params)) as session:
        # ImageNet's, of three channels, for grey images.
        assert session.statistics.mean.flatten().tolist() == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
        assert session.statistics.std.flatten().tolist() == pytest.approx([(0.229 + 0.224 + 0.225) / 3])
        pixel = read_dataset().images[0, 0, 3, 3] / 255
        found = session.images.batch(torch.tensor([0]))[0, 0, 3, 3].item()
        assert found == pytest.approx((pixel - 0.449) / 0.226, abs=1e-5)


def test_a_network_that_timm_does_not_know(project: Path, weights: Path) -> None:
    params = make_params(model__weights=str(weights), model__normalize="pretrained")
    for stage in ("download", "noise"):
        run_stage(stage, params)
    with pytest.raises(UserError, match=r"model.normalize: found pretrained, but timm knows of no trained weights"):
        run_stage("pretrain", params)


# What is read


@pytest.mark.parametrize("stage", ["noise", "pretrain", "meta3", "cnn_crf", "evaluate"])
def test_no_stage_after_the_embedding_reads_an_image(stage: str, finished: Run, project: Path, weights: Path) -> None:
    copy_outputs(finished.folder, project)
    before = digests(project, "data", "models", "metrics", "reports")
    with h5py.File("data/dataset.h5", "r+") as file:
        at = int(file["images"].id.get_chunk_info(0).byte_offset)
    content = bytearray(Path("data/dataset.h5").read_bytes())
    content[at] ^= 0xFF
    Path("data/dataset.h5").write_bytes(content)
    run_stage(stage, finished.params)
    after = digests(project, "data", "models", "metrics", "reports")
    assert {name for name in before if after[name] != before[name]} == {"data/dataset.h5"}
    with pytest.raises(UserError, match=r"data/dataset.h5: damaged"):
        run_stage("embed", head_params(weights))


@pytest.mark.parametrize("classes", [10, 1000])
def test_networks_start_alike_from_the_hub_and_from_its_file(classes: int, hub: Hub) -> None:
    """With a classifier of PyTorch's initialisation, or with that of the weights, where it has as many classes."""
    hub.gives(3)
    file = next(hub.folder.rglob("model.safetensors"))
    from_hub = make_params(**FROM_HUB).model
    from_file = from_hub.model_copy(update={"pretrained": False, "weights": str(file)})
    one, other = (started(model, classes, 3, seed=5).state_dict() for model in (from_hub, from_file))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert torch.equal(one["fc.weight"], load_file(file)["fc.weight"]) == (classes == 1000)


# From the list to fine-tuning: `mlnt preset NAME --from-list`

FINE_TUNING = """\
# Seconds
data: {source: imagefolder, resize: 96, limit: , limit_test: }
noise: {kind: none, rate: 0.0, validation: noisy}
model: {name: resnet18, pretrained: true, train: all, normalize: mean_image}
train: {epochs: 2}
"""


@pytest.fixture
def fine_tuning(finished: Run, project: Path) -> Path:
    """A finished run of heads with its params.yaml, and a preset."""
    copy_outputs(finished.folder, project)
    values = finished.params.model_dump(mode="json", by_alias=True)
    files.write_text(project / "params.yaml", json.dumps(values))
    files.write_text(project / "presets/small.yaml", FINE_TUNING)
    return project


def test_fine_tuning_begins_with_the_classifier_and_without_what_it_lists(fine_tuning: Path, finished: Run) -> None:
    assert invoke("preset", "small", "--from-list").exit_code == 0
    params = load(Path("params.yaml"))
    assert (params.model.name, params.data.resize, params.train.epochs) == ("preact_resnet_tiny", None, 2)
    for stage in ("download", "noise", "embed", "pretrain"):
        run_stage(stage, params)
    judged = [row["epoch"] for row in files.read_csv(Path("plots/pretrain.csv"))]
    assert judged == ["2"]  # so that the last weights are the best

    rows = finished.table("reports/label_issues.csv")
    expected = Counter(
        (row["split"], row["given_label"]) for row in rows if row["split"] == "test" or row["is_label_issue"] != "True"
    )
    dataset = read_dataset(params.data.root)
    labels = read_labels(dataset)
    found = Counter(
        (SPLITS[split], dataset.class_names[label]) for split, label in zip(labels.split, labels.labels, strict=True)
    )
    assert found == expected
    assert expected.total() < len(rows)

    mentor = finished.json("models/meta3/model.json")["mentor"]
    made_the_list = load_file(finished.folder / f"models/meta3/{mentor}_best.safetensors")
    start = started(params.model, 10, 1, seed=params.seed).state_dict()
    assert all(torch.equal(start[name], value) for name, value in made_the_list.items())


def listed_but(left: int, validation: bool = False) -> None:
    """All labels are listed, but so many of those for training of each class, and perhaps those for validation."""
    kept: Counter[str] = Counter()
    rows = files.read_csv(files.LABEL_ISSUES)
    for row in rows:
        stays = validation if row["split"] != "train" else kept[row["given_label"]] < left
        row["is_label_issue"] = str(not stays)
        kept[row["given_label"]] += row["split"] == "train"
    files.write_csv(files.LABEL_ISSUES, rows)


@pytest.mark.parametrize(("left", "validation", "size"), [(3, False, 12), (2, False, 16), (2, True, 20)])
def test_where_few_labels_are_left_mini_batches_are_smaller(
    left: int, validation: bool, size: int, fine_tuning: Path
) -> None:
    """Of ten classes; where validation has no label left, a fifth of what is goes there. Each batch has more samples
    than neighbours."""
    listed_but(left, validation)
    assert invoke("preset", "small", "--from-list").exit_code == 0
    params = load(Path("params.yaml"))
    assert params.train.batch_size == size
    for stage in ("download", "noise", "embed", "pretrain"):
        run_stage(stage, params)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        ("few", "--from-list: the list leaves 10 training images, of which 8"),
        ("preset", "--from-list: expected a preset that fine-tunes"),
        ("name", "--from-list: expected a preset's name"),
        ("run", "--from-list: there is no finished run of params.yaml as it is now"),
        ("decisions", "--from-list: there is no finished run of params.yaml as it is now"),
        ("another folder", "--from-list: found --params ../params.yaml"),
        ("exports", "--from-list: exports/from_list is there already"),
        ("list", "reports/label_issues.csv: no such file"),
        ("class", "no training image of 3 would be left"),
        ("model", "models/meta3"),
    ],
)
def test_what_fine_tuning_cannot_begin_from_is_named(
    spoil: str, expected: str, fine_tuning: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["preset", "small", "--from-list"]
    if spoil == "preset":
        files.write_text(Path("presets/small.yaml"), "# No own images\ndata: {source: digits}\n")
    elif spoil == "run":
        edit_params(Path("params.yaml"), {"model.train": "all"})
    elif spoil == "name":
        arguments.remove("small")
    elif spoil == "decisions":
        files.write_text(Path("decisions.csv"), "path,given_label,decision,label\n")
        edit_params(Path("params.yaml"), {"noise.corrections": "decisions.csv"})
    elif spoil == "another folder":
        monkeypatch.chdir(fine_tuning / "presets")
        arguments.append("--params=../params.yaml")
    elif spoil == "exports":
        files.write_text(Path("exports/from_list/mine.txt"), "mine")
    elif spoil == "list":
        Path("reports/label_issues.csv").unlink()
    elif spoil == "class":
        rows = files.read_csv(files.LABEL_ISSUES)
        files.write_csv(
            files.LABEL_ISSUES,
            (
                {**row, "is_label_issue": str(row["given_label"] == "3" or row["is_label_issue"] == "True")}
                for row in rows
            ),
        )
    elif spoil == "few":
        listed_but(1)
    elif spoil == "model":
        shutil.rmtree("models/meta3")
    before = digests(fine_tuning)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert expected in capsys.readouterr().err + result.stderr
    assert digests(fine_tuning) == before


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.train", "all", "found model.train: all; expected a run of"),
        (
            "data.root",
            "exports/from_list/csv/labels.csv",
            "found data.root: exports/from_list/csv/labels.csv, of an earlier list",
        ),
    ],
)
def test_a_run_that_has_no_list_to_begin_with_is_named(key: str, value: str, expected: str, fine_tuning: Path) -> None:
    edit_params(Path("params.yaml"), {key: value})
    before = digests(fine_tuning)
    with pytest.raises(UserError, match=expected):
        from_list.apply("small", Path("params.yaml"), Path("models/meta3"))
    assert digests(fine_tuning) == before
