"""`mlnt prune`: checkpoints that nothing will continue."""

from __future__ import annotations

import shutil

from pipeline.base.files import MIB
from pipeline.store import checkpoints
from pipeline.systems.registry import code_now


def run(dry_run: bool) -> str:
    """Remove the folders of checkpoints that were made by other code; returns a line that says what went."""
    count = size = 0
    for folder in checkpoints.abandoned(code_now):
        with checkpoints.unused(folder) as unused:  # a process that began before the code was changed may go on
            if unused:
                count, size = count + 1, size + sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                if not dry_run:
                    shutil.rmtree(folder, ignore_errors=True)
    verb = "would be removed" if dry_run else "removed"
    return f"prune: {count} checkpoints of other code {verb}, {size / MIB:.1f} MiB"
