"""A SLURM cluster of one node, this machine, for as long as a test needs it; its files lie in one folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
PATIENCE_S = 60

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={port}
SlurmdPort={next_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
KillWait=30
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class CannotStartError(Exception):
    """Why there is no SLURM here."""


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons; yields the variables that SLURM's commands need, and ends the daemons.

    Raises:
        CannotStartError: SLURM is not installed, this user is not root, or a daemon does not answer.
    """
    if os.getuid() != 0:
        raise CannotStartError("its daemons need root")
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        raise CannotStartError(f"{missing[0]} is not installed (Debian: slurm-wlm, munge)")
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "munge").chmod(0o711)
    host, port = socket.gethostname().partition(".")[0], free_port()
    names = {"host": host, "folder": folder, "port": port, "next_port": port + 1}
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(**names), encoding="utf-8")
    variables = {"SLURM_CONF": str(configuration)}
    munge = [f"--socket={folder}/munge/socket", f"--pid-file={folder}/munge/pid"]
    key = folder / "munge/key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    logs = [f"--key-file={key}", f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed", "--force"]
    command("munged", *munge, *logs)
    try:
        command("slurmctld", "-c", **variables)
        command("slurmd", "-c", **variables)
        wait_for("the node is idle", lambda: "idle" in command("sinfo", "--noheader", "--format=%T", **variables))
        yield variables
    finally:
        for arguments in (("scancel", "--user=root"), ("scontrol", "shutdown"), ("munged", *munge, "--stop")):
            subprocess.run(arguments, env={**os.environ, **variables}, capture_output=True, check=False)
        for name in ("slurmctld", "slurmd"):
            wait_for(f"{name} has ended", lambda name=name: not (folder / f"{name}.pid").exists())  # type: ignore[misc]


def command(*arguments: str, **variables: str) -> str:
    done = subprocess.run(
        arguments, env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    if done.returncode:
        raise CannotStartError(f"{arguments[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def wait_for(what: str, there: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            raise CannotStartError(f"waited {seconds:g} s, and not: {what}")
        time.sleep(0.2)


def free_port() -> int:
    """One that is free, as is the next."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
