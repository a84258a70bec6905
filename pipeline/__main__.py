"""`python -m pipeline …`, and the `mlnt` script: the same commands."""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys

# Set before NumPy and torch are loaded: OpenMP's idle threads else spin beside DVC's next stage.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


NEAR = {"→": ">", "×": "x", "±": "~", "…": ".", "–": "-", "—": "-", "·": "-", "•": "*", "│": "|", "─": "-"}
"""One character for one, so that columns stay where they are."""


def _nearest(error: UnicodeError) -> tuple[str, int]:
    """For a character that the terminal's encoding lacks: one that looks like it, or its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(NEAR.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end


def _print_everything() -> None:
    """No message fails because a terminal cannot show one of its characters."""
    codecs.register_error("mlnt.nearest", _nearest)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="mlnt.nearest")


def _exit_a_moment_later(unraisable: sys.UnraisableHookArgs) -> None:
    """A signal whose SystemExit came up inside a destructor is swallowed there: raise it again, outside."""
    ending = unraisable.exc_value
    if not isinstance(ending, SystemExit):
        sys.__unraisablehook__(unraisable)
        return

    def end(*_: object) -> None:
        raise SystemExit(ending.code)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 0.05)


def main() -> None:
    """Run a command and end with its exit status: 0, 2 for what the user can mend, 1 else, 130/143 when stopped."""
    from pipeline.base import signals

    _print_everything()
    sys.unraisablehook = _exit_a_moment_later
    try:
        with signals.at_once():
            from pipeline import cli  # here: its imports take a fifth of a second, and Ctrl-C may come then

            cli.app(prog_name="mlnt")
    finally:
        if "RANK" in os.environ:  # the launcher, which ends all when one ends, would replace the exit status
            signals.ignore()


if __name__ == "__main__":
    main()
