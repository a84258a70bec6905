"""What changes while training: every schedule is a function of the step, `step` counting from 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mlnt.training.state import Rates


@dataclass(frozen=True)
class Schedule:
    """All schedules of one iteration; lengths in steps.

    Attributes:
        lr: β before the first drop.
        lr_drop_steps: steps at which β is multiplied by `lr_drop_factor`.
        meta_lr: η after its ramp.
        meta_lr_ramp: `linear`, or `sigmoid` for exp(−5(1 − u)²) as in the released code.
        meta_lr_ramp_steps: length of the ramp; 0 for none.
        meta_lr_decays: whether η drops with β (released code) or is kept (paper).
        ema_decay_start: γ during the first `ema_decay_start_steps` steps.
        ema_decay: γ afterwards.
        teacher_weight: the value that λ reaches at the last step.
        teacher_weight_ramp: `linear` from 0, or `constant`.
        num_steps: steps in the iteration.
    """

    lr: float
    lr_drop_steps: tuple[int, ...]
    lr_drop_factor: float
    meta_lr: float
    meta_lr_ramp: Literal["linear", "sigmoid"]
    meta_lr_ramp_steps: int
    meta_lr_decays: bool
    ema_decay_start: float
    ema_decay_start_steps: int
    ema_decay: float
    teacher_weight: float
    teacher_weight_ramp: Literal["linear", "constant"]
    num_steps: int

    def at(self, step: int) -> Rates:
        """The rates of step `step`."""
        drop = self.lr_drop_factor ** sum(step >= at for at in self.lr_drop_steps)
        ramp = ramp_up(step, self.meta_lr_ramp_steps, self.meta_lr_ramp)
        return Rates(
            lr=self.lr * drop,
            meta_lr=self.meta_lr * ramp * (drop if self.meta_lr_decays else 1.0),
            ema_decay=self.ema_decay_start if step < self.ema_decay_start_steps else self.ema_decay,
            teacher_weight=self.teacher_weight
            * (ramp_up(step, self.num_steps - 1, "linear") if self.teacher_weight_ramp == "linear" else 1.0),
        )


def ramp_up(step: int, length: int, shape: Literal["linear", "sigmoid"]) -> float:
    """From about 0 at step 0 to 1 at step `length` and after: u, or exp(−5(1 − u)²), with u = step / length.

    `length` 0 is no ramp: 1 from the start.
    """
    if length <= 0 or step >= length:
        return 1.0
    u = step / length
    return u if shape == "linear" else math.exp(-5.0 * (1.0 - u) ** 2)
