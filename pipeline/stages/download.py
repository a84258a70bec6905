"""Stage download: the data set's source → data/dataset.h5."""

from __future__ import annotations

import stat
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import GIB
from pipeline.images.decode import ImageOptions
from pipeline.params.schema import Data, Params, Run
from pipeline.sources import cifar10, clothing1m, digits, imagefolder
from pipeline.sources.archive import check_sha256, unpack
from pipeline.sources.fetch import fetch
from pipeline.sources.folder import file_type
from pipeline.sources.limit import limit_dataset
from pipeline.sources.listing import FileOptions
from pipeline.store.dataset import SPLITS, Dataset, write_dataset

RAW = Path("data/raw")
"""Where fetched archives stay, and what archives unpack to, so that another `data.limit` needs neither again."""


def run(params: Params) -> str:
    """Write the data set; returns a line that says what it is.

    Raises:
        UserError: the data is missing, damaged or laid out in another way.
    """
    if params.data.storage == "files" and params.data.source not in ("imagefolder", "clothing1m"):
        raise UserError(
            f"data.storage: found files, with data.source {params.data.source}, which has none; expected memory, or "
            "data.source imagefolder or clothing1m"
        )
    dataset = SOURCES[params.data.source](params.data, params.run)
    write_dataset(dataset)
    counts = [f"{int((dataset.split == i).sum())} {name}" for i, name in enumerate(SPLITS)]
    channels, height, width = dataset.images.shape[1:]
    size = f"{width}×{height}×{channels}"
    return f"{dataset.source}: {' + '.join(counts)} images of {size}, {len(dataset.class_names)} classes"


def _digits(data: Data, _: Run) -> Dataset:
    return limit_dataset(digits.load(), data.limit, data.limit_test)


def _cifar10(data: Data, run: Run) -> Dataset:
    root = Path(data.root).expanduser() if data.root else RAW
    whole = cifar10.load(root, data.url, data.sha256, RAW, _bytes(run.max_download_gib), _bytes(run.max_unpacked_gib))
    return limit_dataset(whole, data.limit, data.limit_test)


def _imagefolder(data: Data, run: Run) -> Dataset:
    return imagefolder.load(_local(data, run), _options(data, run))


def _clothing1m(data: Data, run: Run) -> Dataset:
    return clothing1m.load(_local(data, run), _options(data, run))


SOURCES = {"digits": _digits, "cifar10": _cifar10, "imagefolder": _imagefolder, "clothing1m": _clothing1m}


def _options(data: Data, run: Run) -> FileOptions:
    return FileOptions(
        image=ImageOptions(data.channels, data.resize, data.crop, data.max_image_mpixels, data.background),
        on_bad_image=data.on_bad_image,
        limit=data.limit,
        limit_test=data.limit_test,
        storage=data.storage,
        workers=run.num_workers,
    )


def _local(data: Data, run: Run) -> Path:
    """The folder or .csv file; an archive is fetched, where it is at `data.url`, and unpacked.

    Raises:
        UserError: there is none, or what `fetch` and `unpack` find.
    """
    if data.root is not None:
        path = Path(data.root).expanduser()
    elif data.url is not None:
        known_hash = None if data.sha256 is None else f"sha256:{data.sha256}"
        path = fetch(data.url, known_hash, RAW, _bytes(run.max_download_gib))
    else:
        raise UserError("data.root: found null, expected the path of your folder, archive or .csv file")
    if path.suffix.lower() == ".csv":
        if data.sha256 is not None:
            check_sha256(path, data.sha256)
    elif file_type(path) == stat.S_IFREG:
        return unpack(path, RAW, _bytes(run.max_unpacked_gib), data.sha256)
    return path


def _bytes(gib: float) -> int:
    return int(gib * GIB)
