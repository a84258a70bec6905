"""`mlnt prune`: checkpoints that nothing will continue."""

from __future__ import annotations

import shutil

from pipeline.base.files import MIB
from pipeline.store import checkpoints
from pipeline.systems.registry import code_now


def run(dry_run: bool) -> str:
    """Remove the folders of checkpoints that were made by other code; returns a line that says what went."""
    folders = checkpoints.abandoned(code_now)
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    for folder in folders:
        if not dry_run:
            shutil.rmtree(folder, ignore_errors=True)
    verb = "would be removed" if dry_run else "removed"
    return f"prune: {len(folders)} checkpoints of other code {verb}, {size / MIB:.1f} MiB"
