"""Kinds of values that parameters have, and their ranges."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_serializer, model_validator


def _opaque_colour(value: str) -> str:
    from PIL import ImageColor

    try:
        opaque = len(ImageColor.getrgb(value)) == 3
    except ValueError:
        opaque = False
    if not opaque:
        raise ValueError("expected an opaque colour, such as white or '#c0c0c0' (in quotes)")
    return value


def _folds(value: int) -> int:
    if value == 1:
        raise ValueError("expected 0, or at least 2 parts")
    return value


def _tau(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    if not number and value != "auto":
        raise ValueError("expected a number from 0 to below 1, or auto")
    return value


def _processes(value: object) -> object:
    number = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if not number and value != "all":
        raise ValueError("expected a number of processes, from 1 on, or all")
    return value


MOST = 2**31 - 1
"""Numbers are bounded, so that an exponent too many is found here, and not as an overflow after the training began."""
_LARGEST = 1e30
"""float32 holds it."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=0)]
Folds = Annotated[Count, AfterValidator(_folds)]
Tau = Annotated[float | Literal["auto"], BeforeValidator(_tau)]
Positive = Annotated[int, Field(gt=0, le=MOST)]
Processes = Annotated[int | Literal["all"], BeforeValidator(_processes)]
Rate = Annotated[float, Field(ge=0, le=_LARGEST)]
PositiveRate = Annotated[float, Field(gt=0, le=_LARGEST)]
Name = Annotated[str, Field(min_length=1)]
Epochs = Annotated[
    tuple[Positive, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
]
Colour = Annotated[str, AfterValidator(_opaque_colour)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Length(Section):
    """A stretch of training: `20` is epochs, `2000 steps` is steps."""

    epochs: float | None = None
    steps: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST:
            return {"epochs": float(value)}
        if isinstance(value, str):
            number, _, unit = value.strip().partition(" ")
            if number.isdigit() and int(number) <= MOST and unit.strip() in ("steps", "step", "epochs", "epoch"):
                steps = unit.strip().startswith("step")
                return {"steps": int(number)} if steps else {"epochs": float(number)}
        raise ValueError("expected a number of epochs, such as 20, or of steps, such as '2000 steps'")

    @model_serializer
    def _plain(self) -> int | float | str:
        """The value as params.yaml has it."""
        if self.steps is not None:
            return f"{self.steps} steps"
        epochs = self.epochs or 0.0
        return int(epochs) if epochs.is_integer() else epochs


def _some(value: Length) -> Length:
    if not (value.steps or value.epochs):
        raise ValueError("expected more than 0")
    return value


Every = Annotated[Length, AfterValidator(_some)]
"""How much training lies between two times that something is done."""
