"""Stage download: the data set's source → data/dataset.h5."""

from __future__ import annotations

import stat
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import GIB
from pipeline.images.decode import ImageOptions
from pipeline.params.schema import Data, Params, Run
from pipeline.sources import cifar10, clothing1m, digits, imagefolder
from pipeline.sources.archive import unpack
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
    dataset = _load(params)
    write_dataset(dataset)
    counts = [f"{int((dataset.split == i).sum())} {name}" for i, name in enumerate(SPLITS)]
    channels, height, width = dataset.images.shape[1:]
    size = f"{width}×{height}×{channels}"
    return f"{dataset.source}: {' + '.join(counts)} images of {size}, {len(dataset.class_names)} classes"


def _load(params: Params) -> Dataset:
    data, limits = params.data, params.run
    if data.source == "digits":
        return limit_dataset(digits.load(), data.limit, data.limit_test)
    if data.source == "cifar10":
        root = Path(data.root).expanduser() if data.root else RAW
        whole = cifar10.load(
            root, data.url, data.sha256, RAW, _bytes(limits.max_download_gib), _bytes(limits.max_unpacked_gib)
        )
        return limit_dataset(whole, data.limit, data.limit_test)
    options = FileOptions(
        image=ImageOptions(data.channels, data.resize, data.crop, data.max_image_mpixels),
        on_bad_image=data.on_bad_image,
        limit=data.limit,
        limit_test=data.limit_test,
        storage=data.storage,
        workers=limits.num_workers,
    )
    if data.source == "imagefolder":
        return imagefolder.load(_local(data, limits), options)
    return clothing1m.load(_local(data, limits), options)


def _local(data: Data, limits: Run) -> Path:
    """The folder or .csv file; an archive is fetched, where it is at `data.url`, and unpacked.

    Raises:
        UserError: there is none, or what `fetch` and `unpack` find.
    """
    if data.root is not None:
        path = Path(data.root).expanduser()
    elif data.url is not None:
        known_hash = None if data.sha256 is None else f"sha256:{data.sha256}"
        path = fetch(data.url, known_hash, RAW, _bytes(limits.max_download_gib))
    else:
        raise UserError("data.root: found null, expected the path of your folder, archive or .csv file")
    if file_type(path) == stat.S_IFREG and path.suffix.lower() != ".csv":
        return unpack(path, RAW, _bytes(limits.max_unpacked_gib), data.sha256)
    return path


def _bytes(gib: float) -> int:
    return int(gib * GIB)
