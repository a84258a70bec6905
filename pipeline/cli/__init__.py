"""The commands: they read params.yaml, call a stage, and turn errors into one message and an exit status.

Stages and the schema are imported inside the commands, so that `mlnt --help` waits for neither torch nor pydantic.
"""

from __future__ import annotations

from pipeline.cli import stages, comparison, use, helpers  # isort: skip  # in the order of their panels
from pipeline.cli.shared import app as app

__all__ = ["app", "comparison", "helpers", "stages", "use"]
