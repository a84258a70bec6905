"""`run.processes`: a command of this package starts itself several times, under the launcher of torch."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import NoReturn

from pipeline.base import console
from pipeline.base.errors import RunError

PATIENCE_S = 120
"""Seconds that processes have, after a signal, to end a step and save."""
STOPPED = tuple(128 + number for number in (signal.SIGINT, signal.SIGTERM))


def run(processes: int, stage: Callable[[], str]) -> None:
    """Run a stage in so many processes, and say what it gives. Of those that a launcher has already started, all run
    it, or where it is worth but one, rank 0.

    Raises:
        RunError, SystemExit: as `launch`; and what the stage raises.
    """
    launched = {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    if processes > 1 and not launched:
        launch(processes)
    elif processes > 1 or not launched or os.environ["RANK"] == "0":
        console.say(stage())


def launch(processes: int) -> None:
    """Run the command of this process in others, on this machine, and wait for them; they write what it would say.

    Signals reach them all. When one ends badly, so do the others.

    Raises:
        RunError: one was killed.
        SystemExit: they ended with another status than 0: with theirs.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if sys.platform.startswith("linux"):  # else gloo asks for the address of the host's name, which may have none
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    logging.disable(logging.CRITICAL)  # they speak for themselves
    with tempfile.TemporaryDirectory(prefix="mlnt-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id="mlnt",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            shutdown_timeout=PATIENCE_S,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "pipeline", *sys.argv[1:])
        except SignalException as error:
            raise SystemExit(128 + error.sigval) from None
        except ChildFailedError as error:
            _end(processes, [failure.exitcode for failure in error.failures.values()])


def _end(processes: int, statuses: list[int]) -> NoReturn:
    """
    Raises:
        SystemExit: with the status of those that have told why, or else have been stopped.
        RunError: no process could tell why.
    """
    told = [status for status in statuses if status > 0 and status not in STOPPED]
    killed = [-status for status in statuses if status < 0]
    if killed and not told:
        names = ", ".join(sorted({signal.Signals(number).name for number in killed}))
        raise RunError(
            f"{len(killed)} of {processes} processes ended by {names}; out of memory? The same command goes on from "
            "what is saved"
        )
    raise SystemExit(max(told or statuses))
