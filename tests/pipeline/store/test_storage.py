"""`data.storage: files` beside memory: the same pixels, the same weights; and files that change under a run."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from projects import STAGES, copy_outputs, digests, make_params, run_stage, write_picture

from mlnt.images.files import FileImages
from mlnt.images.statistics import input_statistics, statistics_of
from pipeline.base import console, files
from pipeline.base.errors import RunError, UserError
from pipeline.decoding.decode import ImageOptions
from pipeline.decoding.image_files import ImageFiles
from pipeline.paper import figure7
from pipeline.sources import imagefolder
from pipeline.sources.labelled_files.to_dataset import FileOptions
from pipeline.stages import download
from pipeline.store.dataset import TRAIN, VALIDATION, Dataset, Labels, read_dataset, read_labels, write_dataset
from pipeline.store.features import write_features
from pipeline.training.image_store import image_store

MODES = ("RGB", "L", "RGBA", "P", "LA", "1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of bright and dark pictures of different sizes and modes, with a validation and a test part."""
    root = tmp_path_factory.mktemp("photos")
    number = 0
    for split, count in (("train", 20), ("val", 6), ("test", 5)):
        for label in ("day", "night"):
            for i in range(count):
                number += 1
                mode = MODES[number % len(MODES)] if split == "train" else "RGB"
                path = root / split / label / f"{i}.png"
                image = write_picture(path, number, (10 + i % 3, 9), mode)
                if mode == "RGB":
                    image.point(lambda value, light=label == "day": value // 2 + 120 * light).save(path)
    return root


def own(root: Path, **changes: Any) -> Any:
    keys = {
        "data__source": "imagefolder",
        "data__root": str(root),
        "data__limit": None,
        "data__limit_test": None,
        "data__resize": 9,
        "data__crop": 8,
        "run__workers": 0,
        "noise__kind": "none",
        "train__batch_size": 16,
        "evaluate__label_issue_threshold": 0.9,  # so that the report shows images
    }
    return make_params(**{**keys, **changes})


def load(root: Path, storage: Any, workers: int = 0, on_bad_image: Any = "error", **options: Any) -> Dataset:
    image = ImageOptions("auto", 9, 8, 100, "white")._replace(**options)
    return imagefolder.load(root, FileOptions(image, on_bad_image, None, None, storage, workers))


def workers_of_this_process() -> list[psutil.Process]:
    """Those that read images: below the server that forks them."""
    servers = [p for p in psutil.Process().children() if "forkserver" in " ".join(p.cmdline())]
    return [worker for server in servers for worker in server.children()]


# The same pixels


@pytest.mark.parametrize("channels", ["auto", 1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_files_give_the_pixels_labels_and_statistics_of_memory(channels: Any, workers: int, photos: Path) -> None:
    memory, files = (load(photos, storage, workers, channels=channels) for storage in ("memory", "files"))
    assert isinstance(files.images, ImageFiles)
    assert files.images.shape == memory.images.shape
    rows = np.arange(len(memory.labels))
    assert np.array_equal(files.images[rows], memory.images[rows])
    assert np.array_equal(files.images[7], memory.images[7])
    for name in ("labels", "split", "source_index"):
        assert np.array_equal(getattr(files, name), getattr(memory, name))
    assert list(files.names) == list(memory.names)
    for normalize in ("mean_image", "channel"):
        training = torch.from_numpy(memory.images[memory.split == TRAIN])
        expected = input_statistics(training, normalize)
        found = statistics_of(files.images.sums, normalize)
        assert torch.equal(found.mean, expected.mean)
        assert torch.equal(found.std, expected.std)


def test_grey_images_stay_grey(tmp_path: Path) -> None:
    for i, label in enumerate(("cat", "dog")):
        write_picture(tmp_path / "train" / label / "1.png", i, mode="L")
    images = load(tmp_path, "files", resize=None, crop=None).images
    assert images.shape == (2, 1, 5, 6)
    assert np.array_equal(images[1], load(tmp_path, "memory", resize=None, crop=None).images[1])


def test_a_csv_lists_files_too(photos: Path, tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for path in sorted(photos.rglob("*.png")):
        split, label, _ = path.relative_to(photos).parts
        lines.append(f"{os.path.relpath(path, tmp_path)},{label},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    memory, files = (load(tmp_path / "labels.csv", storage) for storage in ("memory", "files"))
    rows = np.arange(len(memory.labels))
    assert np.array_equal(files.images[rows], memory.images[rows])


@pytest.mark.parametrize("key", ["data__root", "data__url"])
def test_the_files_of_an_archive_are_used_where_they_are_unpacked(key: str, photos: Path, project: Path) -> None:
    path = Path(shutil.make_archive(str(project / "photos"), "zip", photos))
    place = {"data__root": None, key: str(path) if key == "data__root" else path.as_uri()}
    download.run(own(photos, data__storage="files", **place))
    files, memory = read_dataset(), load(photos, "memory")
    assert isinstance(files.images, ImageFiles)
    assert np.array_equal(files.images[np.arange(len(files.labels))], memory.images)
    assert list(files.names) == list(memory.names)


def test_an_archive_that_is_no_longer_unpacked_is_unpacked_by_the_command_that_is_named(
    photos: Path, project: Path
) -> None:
    path = shutil.make_archive(str(project / "photos"), "zip", photos)
    params = own(Path(path), data__storage="files")
    download.run(params)
    before = files.DATASET.read_bytes()
    shutil.rmtree(files.raw())
    with pytest.raises(UserError, match=r"^data\.root: .*/data/raw/.*No such file.*`mlnt download`"):
        read_dataset().images[0]
    download.run(params)
    assert files.DATASET.read_bytes() == before
    assert np.array_equal(read_dataset().images[0], load(photos, "memory").images[0])


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_an_archives_name_and_a_limit_that_none_exceeds_are_no_part_of_the_digest(
    storage: str, photos: Path, project: Path
) -> None:
    found = set()
    for place, changes in (
        (photos, {}),
        (Path(shutil.make_archive("photos", "zip", photos)), {}),
        (Path(shutil.copy("photos.zip", "pictures.zip")), {"data__max_image_mpixels": 200}),
    ):
        download.run(own(place, data__storage=storage, **changes))
        dataset = read_dataset(str(place))
        found.add(dataset.digest)
        assert dataset.images[np.arange(3)].shape == (3, 3, 8, 8)
    assert dataset.options is not None
    assert dataset.options.max_mpixels == 200
    assert len(found) == 1
    download.run(own(photos, data__storage=storage, data__background="black"))
    assert read_dataset(str(photos)).digest not in found


def test_a_data_set_of_files_is_read_as_it_was_written(photos: Path, project: Path) -> None:
    dataset = load(photos, "files")
    write_dataset(dataset)
    found = read_dataset(str(photos))
    assert found.images.shape == dataset.images.shape
    assert np.array_equal(found.images[3], dataset.images[3])
    assert list(found.names) == list(dataset.names)
    assert np.array_equal(found.images.sums.total, dataset.images.sums.total)
    assert np.array_equal(found.images.sums.levels, dataset.images.sums.levels)
    assert found.images.sums.count == 40
    (photos.parent / "elsewhere").symlink_to(photos)
    write_dataset(load(photos.parent / "elsewhere", "files"))
    assert read_dataset().digest == found.digest  # moved files are the same data


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_the_order_asked_for(workers: int, photos: Path) -> None:
    memory, files = (load(photos, storage) for storage in ("memory", "files"))
    batches = [torch.tensor([5, 0, 17]), torch.tensor([40]), torch.arange(20, 31), torch.tensor([5, 5])]
    store = file_store(files, workers)
    try:
        for _ in range(2):  # the workers live from one fetch to the next
            found = [pixels.numpy() for pixels in store.fetch(batches)]
            assert all(np.array_equal(f, memory.images[b.numpy()]) for f, b in zip(found, batches, strict=True))
            next(store.fetch(batches))  # one that is not gone through
            if workers:
                pids = [p.pid for p in workers_of_this_process()]
                assert len(pids) == workers
    finally:
        store.close()
    gone(workers_of_this_process())


def file_store(dataset: Dataset, workers: int) -> FileImages:
    assert isinstance(dataset.images, ImageFiles)
    statistics = statistics_of(dataset.images.sums, "channel")
    return FileImages(
        dataset.images, statistics, torch.device("cpu"), channels_last=True, workers=workers, lost=RunError
    )


def gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=120)
    assert alive == []


def test_an_older_fetch_is_refused_after_a_newer_one(photos: Path) -> None:
    store = file_store(load(photos, "files"), 0)
    older = store.fetch([torch.tensor([0]), torch.tensor([1])])
    next(older)
    next(store.fetch([torch.tensor([0])]))
    with pytest.raises(RuntimeError, match="ended by another"):
        next(older)


# The same weights


@pytest.fixture(scope="module")
def in_memory(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_all(tmp_path_factory.mktemp("memory"), own(photos))


def run_all(folder: Path, params: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in STAGES:
            run_stage(stage, params)
    return folder


def results(folder: Path) -> dict[str, str]:
    """All that does not name the data set by its digest."""
    found = digests(folder, "models", "metrics", "plots", "reports")
    return {name: digest for name, digest in found.items() if Path(name).name not in ("model.json", "index.html")}


def test_every_stage_gives_the_same_with_files(in_memory: Path, photos: Path, tmp_path: Path) -> None:
    """The source has a validation part, so that the statistics are those of the same images."""
    run_all(tmp_path, own(photos, data__storage="files"))
    assert results(tmp_path) == results(in_memory)
    assert len(results(tmp_path)) > 40
    pages = [(folder / "reports/index.html").read_text(encoding="utf-8") for folder in (in_memory, tmp_path)]
    images = [re.findall(r"data:image/webp;base64,[^\"]*", page) for page in pages]
    assert images[0] == images[1] != []


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(
    workers: int, in_memory: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy_outputs(in_memory, tmp_path)
    before = results(tmp_path)
    params = own(photos, data__storage="files", run__workers=workers)
    for stage in ("download", "noise", "pretrain", "features", "meta1"):
        run_stage(stage, params)
    assert results(tmp_path) == before
    gone(workers_of_this_process())


def test_without_a_validation_part_the_statistics_are_those_of_all_training_images(photos: Path, project: Path) -> None:
    for label in ("day", "night"):
        shutil.copytree(photos / "train" / label, project / "own" / "train" / label)
    params = own(project / "own", data__storage="files")
    for stage in ("download", "noise"):
        run_stage(stage, params)
    dataset = read_dataset(params.data.root)
    labels = read_labels(dataset)
    assert len(labels.rows(VALIDATION)) == 8
    _, found = image_store(params, dataset, labels.rows(TRAIN), torch.device("cpu"))
    expected = input_statistics(torch.from_numpy(dataset.images[np.arange(40)]), params.model.normalize)
    assert torch.equal(found.mean, expected.mean)


def test_noise_that_depends_on_the_images_reads_files(photos: Path, project: Path) -> None:
    found = []
    for storage in ("memory", "files"):
        params = own(photos, data__storage=storage, noise__kind="instance", noise__sampling="bernoulli")
        for stage in ("download", "noise"):
            run_stage(stage, params)
        found.append(read_labels(read_dataset()))
    assert found[0].labels.tolist() == found[1].labels.tolist()
    assert found[0].labels.tolist() != read_dataset().labels.tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_features_on_the_disk_train_as_those_in_memory(
    dtype: str, in_memory: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_outputs(in_memory, tmp_path)
    monkeypatch.chdir(tmp_path)
    found = []
    for limit in (1.0, 0.0):
        params = own(photos, features__dtype=dtype, run__max_features_gib=limit)
        for stage in ("features", "meta1"):
            run_stage(stage, params)
        found.append(results(tmp_path))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("dtype", "number", "expected"),
    [
        ("float16", -70_000.0, "float16 holds up to 65504, found 70000; set it to float32"),
        ("float16", np.inf, "found inf; lower train.lr"),
        ("float32", np.nan, "found nan; lower train.lr"),
    ],
)
def test_features_that_their_type_cannot_hold_are_refused_and_the_file_stays(
    dtype: str, number: float, expected: str, project: Path
) -> None:
    labels = Labels(np.zeros(4, np.int64), None, np.zeros(4, np.uint8), None, "", "digest")
    good = np.full((2, 3), 65_504, np.float32)
    bad = good.copy()
    bad[1, 2] = number
    write_features([good, good], 4, 3, dtype, labels, "network")
    before = files.FEATURES.read_bytes()
    with pytest.raises(UserError, match=f"^features.dtype: .*{expected}"):
        write_features([good, bad], 4, 3, dtype, labels, "another network")
    assert files.FEATURES.read_bytes() == before
    assert [path.name for path in files.FEATURES.parent.iterdir()] == [files.FEATURES.name]


def test_the_gallery_of_figure_7_reads_files(
    in_memory: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_outputs(in_memory, tmp_path)
    monkeypatch.chdir(tmp_path)
    expected = figure7.filtered(own(photos, filter__tau=0.99))
    assert expected
    params = own(photos, data__storage="files", filter__tau=0.99)
    for stage in STAGES:
        if stage not in ("evaluate", "report"):
            run_stage(stage, params.model_copy(update={"filter": own(photos).filter}))
    found = figure7.filtered(params)
    assert [entry.given_score for entry in found] == [entry.given_score for entry in expected]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(found, expected, strict=True))


# What can be wrong


@pytest.mark.parametrize("source", ["digits", "cifar10"])
def test_sources_that_are_no_files_are_refused(source: str, photos: Path, project: Path) -> None:
    with pytest.raises(UserError, match=f"^data.storage: found files, with data.source {source}.*imagefolder"):
        download.run(own(photos, data__storage="files", data__source=source))


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_do_not_decode_are_named_all(workers: int, tmp_path: Path) -> None:
    for i in range(70):
        write_picture(tmp_path / "train" / ("cat" if i % 2 else "dog") / f"{i}.png", i)
    whole = (tmp_path / "train/cat/1.png").read_bytes()
    (tmp_path / "train/cat/1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train/dog/68.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2 of 70 images do not decode: train/cat/1.png.*; train/dog/68.png.*; mend"):
        load(tmp_path, "files", workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_do_not_decode_may_be_left_out(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "warn", said.append)
    for i in range(70):
        write_picture(tmp_path / "train" / ("cat" if i % 2 else "dog") / f"{i}.png", i)
    write_picture(tmp_path / "train/cat/13.png", 1, (90, 90)).close()
    (tmp_path / "train/dog/68.png").write_bytes(b"no image")
    changes = {"on_bad_image": "skip", "max_mpixels": 0.008}
    memory, files = (load(tmp_path, storage, workers, **changes) for storage in ("memory", "files"))
    memory_said, files_said = (re.sub("0x[0-9a-f]+", "", text) for text in said)
    assert memory_said == files_said
    assert "2 of 70 images do not decode: train/cat/13.png (90×90 pixels, more than" in said[1]
    assert list(files.names) == list(memory.names)
    assert np.array_equal(files.images[np.arange(68)], memory.images)
    assert np.array_equal(files.labels, memory.labels)
    assert np.array_equal(files.images.sums.total, memory.images.sum(axis=0, dtype=np.int64))
    assert files.images.sums.count == 68


def test_a_file_that_is_not_there_is_named_before_anything_is_decoded(tmp_path: Path) -> None:
    for i in range(4):
        write_picture(tmp_path / f"{i}.png", i)
    lines = ["path,label", *(f"{i}.png,{i % 2}" for i in range(5))]
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=r"4\.png"):
        load(tmp_path / "labels.csv", "files")


def test_images_of_different_sizes_need_a_common_one(tmp_path: Path) -> None:
    for i, size in enumerate(((6, 5), (6, 5), (7, 5))):
        write_picture(tmp_path / "train" / ("cat" if i else "dog") / f"{i}.png", i, size)
    message = r"^data.resize: the images differ in size: train/cat/1.png is 6×5, train/cat/2.png is 7×5"
    with pytest.raises(UserError, match=message):
        load(tmp_path, "files", resize=None, crop=None)
    with pytest.raises(UserError, match=r"^data.crop: 8 is larger"):
        load(tmp_path, "files", resize=None)


@pytest.fixture
def prepared(photos: Path, project: Path) -> Iterator[Path]:
    """A copy of the files that can be spoiled; the project has data and labels of them."""
    root = Path(shutil.copytree(photos, project.parent / "copy"))
    for stage in ("download", "noise"):
        run_stage(stage, own(root, data__storage="files"))
    yield root
    gone(workers_of_this_process())


DAMAGES = {
    "vanished": (lambda path: path.unlink(), "has changed.*cannot be read.*No such file"),
    "changed": (lambda path: path.write_bytes(b"other"), "has changed.*found 5 bytes, expected [0-9]+"),
    "damaged": (
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        "has changed.*cannot be read.*of no known image",
    ),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "has changed.*cannot be read.*it is no file"),
    "resized": (
        lambda path: path.write_bytes(smaller(path.stat().st_size)),
        r"has changed.*found an image of shape \(3, 4, 4\), expected \(3, 8, 8\)",
    ),
}


def smaller(size: int) -> bytes:
    """An image of 4×4 pixels, filled up to so many bytes."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue().ljust(size, b"\0")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "resized"])
def test_a_file_that_is_another_one_is_named(damage: str, workers: int, prepared: Path) -> None:
    spoil, expected = DAMAGES[damage]
    spoil(prepared / "train/day/3.png")
    params = own(prepared, data__storage="files", run__workers=workers)
    with pytest.raises(UserError, match=f"^data.root: .*train/day/3.png {expected}.*`dvc repro`$") as caught:
        run_stage("pretrain", params)
    assert "\n" not in str(caught.value)


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    for i, label in enumerate(("cat", "dog")):
        write_picture(tmp_path / "train" / label / "1.png", i, (8, 8))
    dataset = load(tmp_path, "files", resize=None, crop=None)
    spoil, expected = DAMAGES["resized"]
    spoil(tmp_path / "train/cat/1.png")
    with pytest.raises(UserError, match=f"train/cat/1.png {expected}"):
        dataset.images[0]


def test_a_worker_that_dies_is_said(photos: Path) -> None:
    store = file_store(load(photos, "files"), 2)
    batches = [torch.tensor([i % 40]) for i in range(400)]
    fetch = store.fetch(batches)
    next(fetch)
    for process in workers_of_this_process():
        process.kill()
    with pytest.raises(RunError, match=r"a process that reads images failed .*/dev/shm.* 2 of them"):
        list(fetch)
    gone(workers_of_this_process())
    assert len(list(store.fetch(batches[:3]))) == 3  # it starts others
    store.close()
    gone(workers_of_this_process())
