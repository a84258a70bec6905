"""`python -m pipeline …`, and the `mlnt` script: the same commands."""

from __future__ import annotations

import os

# Set before NumPy and torch are loaded: OpenMP's idle threads else spin beside DVC's next stage.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    """Run a command and end with its exit status: 0, 2 for what the user can mend, 1 else, 130/143 when stopped."""
    from pipeline import cli, stopping

    with stopping.at_once():
        cli.app(prog_name="mlnt")


if __name__ == "__main__":
    main()
