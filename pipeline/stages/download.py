"""Stage download: the data set's source → data/dataset.h5."""

from __future__ import annotations

import stat
from pathlib import Path

from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.base.files import GIB
from pipeline.decoding.decode import ImageOptions
from pipeline.params.load import values_of
from pipeline.params.schema import Data, Params, Run
from pipeline.sources import cifar, clothing1m, digits, imagefolder
from pipeline.sources.labelled_files.to_dataset import FileOptions
from pipeline.sources.limit import limit_dataset
from pipeline.sources.places.archive import unpack
from pipeline.sources.places.fetch import fetch
from pipeline.sources.places.folder import file_type
from pipeline.sources.seen import check_folder, content
from pipeline.store.dataset import SPLITS, Dataset, write_dataset
from pipeline.store.record import Record
from pipeline.store.sizes import Sizes, read_sizes, sizes_of
from pipeline.systems.registry import sections


def run(params: Params) -> str:
    """Write the data set; returns a line that says what it is.

    Raises:
        UserError: the data is missing, damaged or laid out in another way.
    """
    if params.data.storage == "files" and not params.data.has_image_files:
        raise UserError(
            f"data.storage: found files, with data.source {params.data.source}, which has none; expected memory, or "
            "data.source imagefolder or clothing1m"
        )
    dataset = SOURCES[params.data.source](params.data, params.run)
    digest = write_dataset(dataset)
    own = values_of(params, sections("download"))
    root, inputs = params.data.root, {}
    if root is not None and params.data.has_image_files:  # those of CIFAR have known sums
        inputs["data.root"] = content(files.resolve(root))
    Record.of("download", own, [__name__], inputs, {"dataset": digest}).write()
    counts = [f"{int((dataset.split == i).sum())} {name}" for i, name in enumerate(SPLITS)]
    channels, height, width = dataset.images.shape[1:]
    size = f"{width}×{height}×{channels}"
    return f"{dataset.source}: {' + '.join(counts)} images of {size}, {len(dataset.class_names)} classes"


def _digits(data: Data, _: Run) -> Dataset:
    return limit_dataset(digits.load(), data.limit, data.limit_test)


def _cifar(data: Data, run: Run) -> Dataset:
    root = files.resolve(data.root) if data.root else files.raw()
    limits = _bytes(run.max_download_gib), _bytes(run.max_unpacked_gib)
    whole = cifar.load(data.source, root, data.url, data.sha256, files.raw(), *limits)
    return limit_dataset(whole, data.limit, data.limit_test)


def _imagefolder(data: Data, run: Run) -> Dataset:
    return imagefolder.load(_local(data, run), _options(data, run))


def _clothing1m(data: Data, run: Run) -> Dataset:
    return clothing1m.load(_local(data, run), _options(data, run))


def sizes(params: Params) -> Sizes | None:
    """What the data set holds, its validation split taken off; None where only the stage itself finds it out. Folders
    and lists are asked themselves, for data/dataset.h5 may be of another one.

    Raises:
        UserError: what the stage would find as well.
    """
    data, read = params.data, read_sizes()
    found = read[0] if read is not None and _is_of(data, *read) else None
    if found is None or data.has_image_files:
        try:
            found = _sizes_at_source(data, params.run) or found
        except UserError:  # a first image that does not decode
            if found is None or data.on_bad_image != "skip":
                raise
    return None if found is None else found.with_validation(params.noise.validation_fraction)


def _is_of(data: Data, found: Sizes, source: str) -> bool:
    """As far as it shows: whether the file was made with these parameters."""
    pixels = data.crop or data.resize
    fits = data.limit is None or found.train <= max(data.limit, found.classes)
    return source == data.source and (pixels is None or found.shape[1:] == (pixels, pixels)) and fits


def _sizes_at_source(data: Data, run: Run) -> Sizes | None:
    if data.source == "digits":
        return sizes_of(_digits(data, run))
    if (classes := cifar.NUM_CLASSES.get(data.source)) is not None:
        train, test = (min(size, most or size) for size, most in ((50_000, data.limit), (10_000, data.limit_test)))
        return Sizes((3, 32, 32), classes, train, 0, test)
    root = None if data.root is None else files.resolve(data.root)
    if root is None or (root.suffix.lower() != ".csv" and file_type(root) == stat.S_IFREG):
        return None  # an archive
    look = clothing1m.look if data.source == "clothing1m" else imagefolder.look
    return look(root, _options(data, run))


SOURCES = {
    "digits": _digits,
    **dict.fromkeys(cifar.NUM_CLASSES, _cifar),
    "imagefolder": _imagefolder,
    "clothing1m": _clothing1m,
}


def _options(data: Data, run: Run) -> FileOptions:
    return FileOptions(
        image=ImageOptions(
            data.channels, data.resize, data.crop, data.max_image_mpixels, data.background, data.interpolation
        ),
        on_bad_image=data.on_bad_image,
        limit=data.limit,
        limit_test=data.limit_test,
        storage=data.storage,
        workers=run.num_workers,
    )


def _local(data: Data, run: Run) -> Path:
    """The folder or .csv file with the data; an archive is unpacked, after it was fetched if `data.url` names it.

    Raises:
        UserError: neither `data.root` nor `data.url` is set, or `fetch` or `unpack` fails.
    """
    if data.root is not None:
        path = files.resolve(data.root)
    elif data.url is not None:
        known_hash = None if data.sha256 is None else f"sha256:{data.sha256}"
        path = fetch(data.url, known_hash, files.raw(), _bytes(run.max_download_gib))
    else:
        raise UserError("data.root: found null, expected the path of your folder, archive or .csv file")
    if path.suffix.lower() == ".csv" or file_type(path) == stat.S_IFDIR:
        check_folder(path, data.sha256)
    elif file_type(path) == stat.S_IFREG:
        return unpack(path, files.raw(), _bytes(run.max_unpacked_gib), data.sha256)
    return path


def _bytes(gib: float) -> int:
    return int(gib * GIB)
