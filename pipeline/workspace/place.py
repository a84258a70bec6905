"""Whether a workspace fits into a folder, and where a person's images are, seen from there."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.sources.places.folder import first_few, printable
from pipeline.workspace.layout import PARAMS

WRITTEN = (
    "data", "models", "metrics", "plots", "records", "reports", "timings", "checkpoints", "exports", "presets",
    "baselines", "references",
)  # fmt: skip
"""Folders in a workspace that stages write into, or that are laid out."""


def require_room(folder: Path, images: Path | None) -> None:
    """Look whether the folder is not there yet, is empty, or is a workspace. Hidden files, a Python environment and the
    images may be there.

    Args:
        folder, images: absolute paths.

    Raises:
        UserError: it is anything else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: found a file, expected a folder for the workspace, as in `mlnt init NEW`")
    if (folder / PARAMS).exists():
        return
    own = images.relative_to(folder).parts[:1] if images is not None and images.is_relative_to(folder) else ()
    others = sorted(
        path.name
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name not in own and not (path / "pyvenv.cfg").exists()
    )
    if others:
        raise UserError(
            f"{folder}: found {first_few(map(printable, others), ', ')}, expected an empty folder for the workspace, "
            f"or one that is not there: mlnt init --images {images or folder} NEW"
        )


def root_from(folder: Path, images: Path, as_named: Path) -> str:
    """The images as `data.root`: relative to the workspace where they lie in it, or were named by a relative path.

    Raises:
        UserError: the workspace lies in the images, or they lie where stages write.
    """
    if folder.is_relative_to(images):
        raise UserError(
            f"--images: {images}: the workspace would lie in it, at {folder}, and its files among the images; name "
            f"another folder, as in `mlnt init --images {as_named} {images.parent / 'workspace'}`"
        )
    if images.is_relative_to(folder):
        inside = images.relative_to(folder)
        if inside.parts[0] in WRITTEN:
            raise UserError(
                f"--images: {images}: {inside.parts[0]}/ is a folder that a workspace writes into; rename it, for "
                "instance to photos"
            )
        return str(inside)
    return str(images) if as_named.is_absolute() else os.path.relpath(images, folder)
