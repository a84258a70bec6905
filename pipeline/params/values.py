"""Kinds of values that parameters have, and their ranges."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field


def _opaque_colour(value: str) -> str:
    from PIL import ImageColor

    try:
        opaque = len(ImageColor.getrgb(value)) == 3
    except ValueError:
        opaque = False
    if not opaque:
        raise ValueError("expected an opaque colour, such as white or '#c0c0c0' (in quotes)")
    return value


Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Epochs = Annotated[
    tuple[Positive, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
]
Colour = Annotated[str, AfterValidator(_opaque_colour)]
