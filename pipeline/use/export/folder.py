"""The folder that an export leaves: whole, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.base.errors import RunError, UserError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`, which takes its place when the block ends well, and is removed otherwise. An
    empty folder at `out` is there until then.

    Nothing is replaced: an older export may have files that the new one lacks, and the folder may be a person's own.

    Raises:
        UserError: there is something at `out`.
        RunError: the disk is full, or the folder cannot be written.
    """
    try:
        empty = out.is_dir() and not out.is_mount() and not any(out.iterdir())
        if out.is_symlink() or (out.exists() and not empty):
            raise UserError(f"--out: {out} is there already; remove it, or name another folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            building.chmod(0o755)  # mkdtemp makes it for its owner alone
            yield building
            building.rename(out)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise RunError(f"{out}: could not be written: {error}") from error
