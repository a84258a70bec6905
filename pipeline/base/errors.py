"""The errors that a person can do something about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """One message: the key or file, what was found, what was expected, what to do. Exit status 2."""


class RunError(Exception):
    """A failure of the run itself, such as a network that diverged. Exit status 1."""


def damaged(path: Path, found: object) -> UserError:
    """To raise for a file of the run that cannot be used as it is, and that a run makes anew."""
    return UserError(f"{path}: damaged ({found}); delete it and run `dvc repro` again")


def unknown(path: Path, error: ValidationError) -> UserError:
    """To raise for such a file with other content than this version writes."""
    return UserError(
        f"{path}: damaged, or of another version of mlnt ({first_reason(error)}); delete it and run `dvc repro` again"
    )


def first_reason(error: ValidationError) -> str:
    """The first of the places that are wrong, and what is wrong there."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg'].lower()}"
