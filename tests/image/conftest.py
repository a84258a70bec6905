from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from engine import Docker, LackingError, started

ROOT = Path(__file__).parents[2]
LACKING = pytest.StashKey[str]()
FIGURES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--may-lack-engine", action="store_true", help="skip, loudly, where no Docker engine can be had")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "short: part of the short form that CI runs")
    config.stash[FIGURES] = []
    # Fixtures are torn down after an interrupt, not after a SIGTERM.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[FIGURES]:
        terminalreporter.write_line(line)
    if LACKING in config.stash:
        terminalreporter.section("THE IMAGE WAS NOT TESTED", sep="!", red=True, bold=True)
        terminalreporter.write_line(config.stash[LACKING])


@pytest.fixture(scope="session")
def docker(request: pytest.FixtureRequest) -> Iterator[Docker]:
    with contextlib.ExitStack() as stack:
        try:
            engine = stack.enter_context(started())
        except LackingError as error:
            request.config.stash[LACKING] = str(error)
            if request.config.getoption("--may-lack-engine"):
                pytest.skip(str(error))
            pytest.exit(f"the image cannot be tested here: {error}", returncode=3)
        yield engine


@dataclass(frozen=True)
class Image:
    docker: Docker
    name: str

    def run(self, *command: str, options: tuple[str, ...] = (), expect: int = 0) -> str:
        """Run a container to its end; its output.

        Raises:
            AssertionError: another exit status than expected.
        """
        done = self.docker("run", "--rm", *options, self.name, *command)
        assert done.returncode == expect, f"status {done.returncode}, expected {expect}\n{done.stdout}"
        return done.stdout

    def start(self, *command: str, options: tuple[str, ...] = ()) -> str:
        """Start a container; its name."""
        return self.docker.must("run", "--detach", *options, self.name, *command).split()[-1]


def log_has(docker: Docker, container: str, pattern: str, seconds: float = 120) -> None:
    """Wait until the container's log has the pattern."""
    end = time.monotonic() + seconds
    while not re.search(pattern, log := docker("logs", container).stdout):
        assert time.monotonic() < end, f"no {pattern!r} after {seconds} s in\n{log}"
        time.sleep(0.2)


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> list[str]:
    """Lines for the end of the terminal's output: sizes and build times."""
    return request.config.stash[FIGURES]


@pytest.fixture(scope="session")
def image(docker: Docker, figures: list[str]) -> Image:
    """Built from the working tree; in an engine that was started for this test, from an empty cache."""
    start = time.monotonic()
    docker.build("mlnt-image-test", ROOT)
    size = int(docker.must("image", "inspect", "--format", "{{.Size}}", "mlnt-image-test"))
    figures.append(f"image: {size / 1e9:.2f} GB, built in {time.monotonic() - start:.0f} s")
    return Image(docker, "mlnt-image-test")
