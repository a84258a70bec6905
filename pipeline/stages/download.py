"""Stage download: the data set's source → data/dataset.h5."""

from __future__ import annotations

import stat
from pathlib import Path

from pipeline.errors import UserError
from pipeline.images.decode import ImageOptions
from pipeline.params.schema import Params
from pipeline.sources import cifar10, clothing1m, digits, imagefolder
from pipeline.sources.archives import GIB
from pipeline.sources.containers import file_type, readable
from pipeline.sources.fetch import check_sha256, fetch
from pipeline.sources.limit import limit_dataset
from pipeline.sources.listing import FileOptions
from pipeline.store.dataset import SPLITS, Dataset, write_dataset

RAW = Path("data/raw")
"""Where downloaded archives stay, so that another `data.limit` needs no second download."""


def run(params: Params) -> str:
    """Write the data set; returns a line that says what it is.

    Raises:
        UserError: the data is missing, damaged or laid out in another way.
    """
    dataset = _load(params)
    write_dataset(dataset)
    counts = [f"{int((dataset.split == i).sum())} {name}" for i, name in enumerate(SPLITS)]
    channels, height, width = dataset.images.shape[1:]
    size = f"{width}×{height}×{channels}"
    return f"{dataset.source}: {' + '.join(counts)} images of {size}, {len(dataset.class_names)} classes"


def _load(params: Params) -> Dataset:
    data, limits = params.data, params.run
    if data.storage == "files" and (data.source not in ("imagefolder", "clothing1m") or data.root is None):
        raise UserError(
            f"data.storage: found files, with data.source {data.source}{'' if data.root else ' and no data.root'}; "
            "expected imagefolder or clothing1m with data.root a folder or .csv file (unpack an archive), or memory"
        )
    max_download = int(limits.max_download_gib * GIB)
    options = FileOptions(
        image=ImageOptions(data.channels, data.resize, data.crop, data.max_image_mpixels),
        on_bad_image=data.on_bad_image,
        max_unpacked=int(limits.max_unpacked_gib * GIB),
        limit=data.limit,
        limit_test=data.limit_test,
        storage=data.storage,
        workers=limits.num_workers,
    )
    if data.source == "digits":
        return limit_dataset(digits.load(), data.limit, data.limit_test)
    if data.source == "cifar10":
        root = Path(data.root).expanduser() if data.root else RAW
        whole = cifar10.load(root, data.url, max_download, data.sha256)
        return limit_dataset(whole, data.limit, data.limit_test)
    if data.source == "imagefolder":
        return imagefolder.load(_local(data.root, data.url, data.sha256, max_download), options)
    return clothing1m.load(_local(data.root, None, None, max_download), options)


def _local(root: str | None, url: str | None, sha256: str | None, max_download: int) -> Path:
    if root is not None:
        path = Path(root).expanduser()
        if sha256 is not None and file_type(path) == stat.S_IFREG:
            with readable(path):
                check_sha256(path, sha256, root)
        return path
    if url is not None:
        return fetch(url, sha256, RAW, max_download)
    raise UserError("data.root: found null, expected the path of your folder, archive or .csv file")
