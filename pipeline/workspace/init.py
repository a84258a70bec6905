"""`mlnt init`: lay out a workspace, for a person's own images if there are some, and say what will happen."""

from __future__ import annotations

import contextlib
import glob
import os
import shlex
import stat
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.base import console, files
from pipeline.base.errors import UserError
from pipeline.params import presets
from pipeline.params.load import changed, leaves, load, parse_yaml
from pipeline.sources.places.folder import file_type
from pipeline.training.start_weights.pretrained import weights_file
from pipeline.workspace import layout, outlook, place, repository, survey

PRESET = "imagefolder-quick"
OTHER = "imagefolder"
"""The one that fine-tunes."""


def run(named: Path, images: Path | None) -> None:
    """Lay out a workspace in the folder `named`; with `images`, a folder, .csv file or archive, for these.

    Raises:
        UserError: there is no room, or nothing that can be trained on; nothing was written.
        RunError: a file could not be written.
    """
    out = Console(highlight=False)
    folder = Path(os.path.realpath(named))
    before = layout.original()
    wanted = before | {name: layout.without_code(before[name]) for name in layout.STAGES}
    if images is None:
        place.require_room(folder, None)
    else:
        absolute = Path.cwd() / files.expanded(images)
        absolute = Path(os.path.normpath(absolute))  # not resolved: a link to another disk stays one
        root = place.root_from(folder, absolute, images)
        place.require_room(folder, absolute)
        wanted[layout.PARAMS] = _params(before, absolute, root, out)
        if absolute.is_relative_to(folder):
            wanted[layout.IGNORED] += f"/{glob.escape(root)}\n"
    if not repository.has_git():
        wanted[layout.CONFIG] += "    no_scm = true\n"
    if (folder / ".dvc").exists():
        wanted = {name: text for name, text in wanted.items() if name not in layout.DVC}
    left = layout.missing(folder, wanted, before)
    for name, text in left.items():
        files.write_text(folder / name, text)
    if left:
        tops = dict.fromkeys(f"{top}/" if below else top for top, _, below in (name.partition("/") for name in left))
        _say(out, f"{folder}: wrote {', '.join(tops)}")
        _say(out, f"git: {repository.commit(folder, left)}")
    else:
        _say(out, f"{folder}: is laid out already; nothing was changed")
    go = [] if folder == Path.cwd() else [f"cd {shlex.quote(str(named))}"]
    if images is None or _say_what_follows(folder, out):
        _say(out, f"next: {' && '.join([*go, 'dvc repro', 'mlnt show'])}")


def _say(out: Console, text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)


def _params(before: Mapping[str, str], images: Path, root: str, out: Console) -> str:
    """params.yaml with the preset and the images, after a look at them.

    Raises:
        UserError: they cannot be trained on.
    """
    defaults, preset = (parse_yaml(before[name]) for name in (layout.PARAMS, f"presets/{PRESET}.yaml"))
    changes: dict[str, Any] = {"data.root": root}
    try:
        if images.suffix.lower() != ".csv" and file_type(images) == stat.S_IFREG:
            if not (tarfile.is_tarfile(images) or zipfile.is_zipfile(images)):
                raise UserError(
                    f"data.root: {images}: found a file that is neither a .csv file nor a tar or zip archive; expected "
                    "one of these, or a folder with train/CLASS/FILE or CLASS/FILE"
                )
            _say(out, f"{images}: an archive; what is in it is seen when stage download unpacks it")
        else:
            counts = survey.survey(images, defaults["data"]["max_image_mpixels"], out)
            size = presets.batch_size(leaves(preset), counts["train"], counts["validation"])
            if size < preset["train"]["batch_size"]:
                console.warn(
                    f"{counts['train']} images to train on are few: train.batch_size is {size}, less than the preset's"
                )
                changes["train.batch_size"] = size
    except UserError as error:
        raise UserError(str(error).replace("data.root", "--images", 1)) from None
    return presets.merged(before[layout.PARAMS], changed(preset, changes), f"params.yaml with {PRESET}.yaml")[0]


def _say_what_follows(folder: Path, out: Console) -> bool:
    """What `dvc repro` will do, and how long it takes; returns whether nothing is known that would stop it."""
    with contextlib.chdir(folder):  # where a relative data.root starts
        params = load(Path(layout.PARAMS))
        for line in outlook.lines(params):
            _say(out, line)
        _say(
            out,
            f"afterwards `mlnt preset {OTHER} --from-list` fine-tunes the whole network without the labels that are "
            "listed; `mlnt preset` lists all presets",
        )
        try:
            weights_file(params.model)
        except UserError as error:
            console.warn(f"`dvc repro` cannot begin yet: {error}")
            return False
    return True
