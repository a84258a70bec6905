"""What a process that works for another does first; without torch, which not every worker needs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def begin(*_: object) -> None:
    """Leave the parent's process group, and end when the parent ends."""
    # Ctrl-C, and whatever else is sent to the whole group, is for the main process, which may want to checkpoint.
    os.setpgrp()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # which the server of forkserver blocks
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has ended. A parent that is killed gives no notice: without this, a worker would
    wait for more work endlessly, and forkserver's server for its workers (torch's only watch for that server's end)."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
