"""A Docker engine to build and run the image with: the machine's own, or one that is started for the test alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
FREE_GIB = 30
DEBIAN_CLIENT = "/usr/bin/docker"
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
CERTIFICATES = Path("/usr/local/share/ca-certificates")
BASE_PACKAGES = "ca-certificates,python3,python3-venv"
BASE_DOCKERFILE = """\
FROM scratch
ADD base.tar /
COPY certificates /usr/local/share/ca-certificates
COPY pip.conf /etc/pip.conf
RUN update-ca-certificates
"""


class LackingError(Exception):
    """This machine cannot build images: nothing is said about the image."""


@dataclass
class Docker:
    """The client, talking to one engine.

    Attributes:
        base_image: what the image is built on; None for the Dockerfile's own base, from its registry.
    """

    client: str
    host: str | None = None
    base_image: str | None = None

    def __call__(self, *args: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """Run to its end, whatever its exit status; standard error is part of the output."""
        environment = os.environ | {"DOCKER_BUILDKIT": "1"} | ({"DOCKER_HOST": self.host} if self.host else {})
        return subprocess.run(
            [self.client, *args],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def must(self, *args: str) -> str:
        done = self(*args)
        assert done.returncode == 0, f"docker {' '.join(args)}: status {done.returncode}\n{done.stdout}"
        return done.stdout

    def volume(self) -> str:
        return self.must("volume", "create", "--label", LABEL).strip()

    def add_to_base(self, package: str) -> None:
        """Another package in a base image that was made here; a registry's stays as it is."""
        if self.base_image:
            install = f"apt-get update && apt-get install --yes --no-install-recommends {package}"
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "Dockerfile").write_text(f"FROM {self.base_image}\nRUN {install}\n")
                self.build(self.base_image, Path(folder))

    def build(self, tag: str, context: Path, *args: str) -> str:
        """The log of the build, plain."""
        base = ["--build-arg", f"BASE_IMAGE={self.base_image}"] if self.base_image else []
        return self.must(
            "build",
            "--progress",
            "plain",
            "--network",
            "host",
            "--label",
            LABEL,
            *base,
            *args,
            "--tag",
            tag,
            str(context),
        )


LABEL = f"mlnt.image-test={os.getpid()}"


@contextlib.contextmanager
def started() -> Iterator[Docker]:
    """An engine and a base image; afterwards nothing of either is left.

    Raises:
        LackingError: there is none, and none can be started.
    """
    free = shutil.disk_usage(tempfile.gettempdir()).free / GIB
    if free < FREE_GIB:
        raise LackingError(f"{tempfile.gettempdir()}: {free:.0f} GiB free; the image needs {FREE_GIB}")
    ambient = shutil.which("docker")
    if ambient and Docker(ambient)("info").returncode == 0:
        with _tidied(Docker(ambient)) as docker:
            yield docker
        return
    missing = [tool for tool in ("dockerd", "mmdebstrap", "setpriv", DEBIAN_CLIENT) if shutil.which(tool) is None]
    if missing or os.getuid() != 0 or not SOURCES.exists():
        raise LackingError(
            f"no Docker engine answers, and to start one takes root on Debian 12 with its packages docker.io, iptables "
            f"and mmdebstrap; missing: {', '.join(missing) or 'root or ' + str(SOURCES)}"
        )
    folder = Path(tempfile.mkdtemp(prefix="mlnt-image-test-"))
    try:
        with _daemon(folder) as host, _tidied(Docker(DEBIAN_CLIENT, host)) as docker:
            docker.base_image = _base(docker, folder / "base")
            yield docker
    finally:
        subprocess.run(["umount", folder / "exec/netns/default"], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(folder)


@contextlib.contextmanager
def _daemon(folder: Path) -> Iterator[str]:
    """dockerd on a socket in `folder`, without networks of its own: builds and runs use the host's or none."""
    host = f"unix://{folder}/socket"
    options = [
        "--data-root",
        folder / "data",
        "--exec-root",
        folder / "exec",
        "--pidfile",
        folder / "pid",
        "--host",
        host,
    ]
    log = folder / "log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            # The daemon ends with this process, however this one ends.
            [
                "setpriv",
                "--pdeathsig",
                "TERM",
                "dockerd",
                *options,
                "--iptables=false",
                "--ip6tables=false",
                "--bridge=none",
            ],
            stdout=output,
            stderr=output,
        )
    try:
        client = Docker(DEBIAN_CLIENT, host)
        for _ in range(60):
            if client("info").returncode == 0:
                break
            if daemon.poll() is not None:
                raise LackingError(f"dockerd ended with {daemon.returncode}:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
        else:
            raise LackingError(f"dockerd does not answer:\n{log.read_text()[-2000:]}")
        yield host
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)


@contextlib.contextmanager
def _tidied(docker: Docker) -> Iterator[Docker]:
    """Afterwards no container, volume or image of this test is left."""
    try:
        yield docker
    finally:
        for kind in ("container", "volume", "image"):
            listing = ["--all"] if kind != "volume" else []
            found = docker(kind, "ls", "--quiet", *listing, "--filter", f"label={LABEL}").stdout.split()
            if found:
                docker(kind, "rm", "--force", *found)


def _base(docker: Docker, folder: Path) -> str:
    """Debian with Python, in place of the registry's image: this machine's sources and certificates, nothing else."""
    (folder / "certificates").mkdir(parents=True)
    try:
        subprocess.run(
            [
                "mmdebstrap",
                "--quiet",
                "--variant=minbase",
                f"--include={BASE_PACKAGES}",
                "bookworm",
                folder / "base.tar",
                SOURCES,
            ],
            check=True,
            capture_output=True,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        raise LackingError(f"mmdebstrap: {error.stderr[-2000:]}") from error
    for certificate in CERTIFICATES.glob("*.crt"):
        shutil.copy(certificate, folder / "certificates")
    (folder / "pip.conf").write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
    (folder / "Dockerfile").write_text(BASE_DOCKERFILE)
    done = docker("build", "--network", "host", "--label", LABEL, "--tag", "mlnt-image-test-base", str(folder))
    if done.returncode != 0:
        raise LackingError(f"the base image: {done.stdout[-2000:]}")
    return "mlnt-image-test-base"
