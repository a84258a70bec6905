"""The errors that a person can do something about."""

from __future__ import annotations


class UserError(Exception):
    """One message: the key or file, what was found, what was expected, what to do. Exit status 2."""


class RunError(Exception):
    """A failure of the run itself, such as a network that diverged. Exit status 1."""
