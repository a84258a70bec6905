"""Commands and groups as Typer has them, but for the help of flags, and for arguments that a shell leaves half-made."""

from __future__ import annotations

import os
import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

_NOTHING = re.compile(r"(--[\w-]+=)?")
_HOME = re.compile(r"((?:--[\w-]+=)?)~(?=/)")


class Command(TyperCommand):
    """A command whose help does not say that `--help` takes a value, as Typer has it for every flag.

    An argument that is empty is refused: as a path it would be the current folder. `~/`, which a shell leaves as it is
    in `--out=~/x`, is the home, as in params.yaml.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if empty := [each for each in args if _NOTHING.fullmatch(each)]:
            ctx.fail(f"found {empty[0]!r}, which names nothing; is a variable of the shell not set?")
        home = os.path.expanduser("~")  # noqa: PTH111 (which raises where nobody knows it)
        return super().parse_args(ctx, [_expanded(each, home) for each in args])

    def get_help_option(self, ctx: Any) -> Any:
        return _flag(super().get_help_option(ctx))


class Group(TyperGroup):
    """The same for the group of all commands."""

    def get_help_option(self, ctx: Any) -> Any:
        return _flag(super().get_help_option(ctx))


def _expanded(argument: str, home: str) -> str:
    found = _HOME.match(argument)
    return argument if found is None else f"{found[1]}{home}{argument[found.end() :]}"


def _flag(option: Any) -> Any:
    if option is not None:
        option.metavar = ""
    return option
