"""What a system is: one training stage, how its step is built, and what stands beside it in tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # reports and tables want the names alone, and shall not wait for torch
    import torch
    from torch import Tensor, nn

    from mlnt.method.teacher import TeacherBatchNorm
    from mlnt.training.data import FeatureRows
    from mlnt.training.passes import Network
    from mlnt.training.state import StepFunction
    from pipeline.params.schema import Params
    from pipeline.training.session import Session

COMMON_SECTIONS = ("seed", "model", "train", "teacher", "compute")
"""The sections of params.yaml that every system reads; the data and the labels come as files."""


def optimizer(params: Params) -> tuple[float, float, TeacherBatchNorm]:
    """The first arguments of a `LossStep`: momentum, weight decay, source of the teacher's BatchNorm statistics."""
    return params.train.momentum, params.train.weight_decay, params.teacher.batch_norm


class Recipe(NamedTuple):
    """How long a network is trained, and how fast."""

    epochs: int
    lr: float
    lr_drop_epochs: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What a system trains, for one run.

    Attributes:
        step: the step function.
        inputs: digests of what it depends on beside the labels, the start weights and the mentor, by name.
        features: what its neighbours are found by; None without neighbours.
        recipe: epochs and learning rates of its own; None for those of `train`.
        meta: whether η follows `mlnt.eta`; otherwise it is 0.
        lower: parameters to lower where training diverges, with their values; None for `train.lr` alone.
        finish: called after the last epoch, to write extra files; returns their digests by name.
    """

    step: StepFunction
    inputs: Mapping[str, str] = field(default_factory=dict)
    features: Tensor | FeatureRows | None = None
    recipe: Recipe | None = None
    meta: bool = False
    lower: Mapping[str, float] | None = None
    finish: Callable[[], Mapping[str, str]] = dict


TimedStep = Callable[["Params", int, "torch.device"], "StepFunction"]
"""Makes a step without data, of the parameters, a number of samples and the device."""


@dataclass(frozen=True)
class System:
    """An entry of the registry.

    Attributes:
        name: in metrics and tables.
        title: for people; a number is the iteration.
        build: makes the plan from the session and the mentor's network, None without a mentor.
        own_stage: its stage in dvc.yaml, and the folder below models/; None for `name`.
        model_titles: what tables call its student and its teacher; None for the title, and the title with ", EMA".
        sections: of params.yaml, those that it reads beside `COMMON_SECTIONS`.
        iteration: names its random streams and, for MLNT, the place in the schedule.
        mentor: the stage whose best model filters the samples; None keeps all of them.
        needs: the stages before it whose models it reads, beside the mentor's.
        prior: what it is told beside images and labels.
        paper: what the paper's tables call its student and its teacher; empty where they have no such row.
        default: whether `dvc repro` trains it; the others are those of baselines/dvc.yaml and references/dvc.yaml.
        in_tables: False for a stage that only prepares another one.
        outputs_per_class: how many outputs a backbone has for each class.
        epochs: how long it is trained, where that is not `train.epochs`.
        timed_step: makes a step that takes as long as its own; None where cross entropy's does.
        splits: over how many processes its step can be divided; None where it cannot.
        backbones: how many networks of `model.name` are in its network.
        wrap: makes the network of the backbones and the number of classes; None takes the one backbone as it is.
        predictions: how often a backbone predicts all of D between two epochs.
    """

    name: str
    title: str
    build: Callable[[Session, Network | None], Plan]
    sections: tuple[str, ...] = ()
    iteration: int = 1
    mentor: str | None = None
    needs: tuple[str, ...] = ()
    prior: str = "nothing"
    paper: tuple[str, str] = ("", "")
    default: bool = False
    in_tables: bool = True
    outputs_per_class: int = 1
    epochs: Callable[[Params], int] | None = None
    timed_step: TimedStep | None = None
    splits: Callable[[Params], int] | None = None
    backbones: int = 1
    wrap: Callable[[Sequence[nn.Module], int], nn.Module] | None = None
    predictions: int = 0
    own_stage: str | None = None
    model_titles: tuple[str, str] | None = None

    @property
    def stage(self) -> str:
        """Its stage in dvc.yaml, and the folder below models/."""
        return self.own_stage or self.name

    def address(self, number: int) -> tuple[int | str, ...]:
        """What names the random numbers that the backbone of a number, from 0, starts from."""
        return (self.iteration, f"network {number + 1}") if number else (self.iteration,)

    def network(self, backbone: Callable[[int, int], nn.Module], num_classes: int) -> nn.Module:
        """Its network, from what makes the backbone of a number, from 0, with so many outputs."""
        made = [backbone(number, self.outputs_per_class * num_classes) for number in range(self.backbones)]
        return made[0] if self.wrap is None else self.wrap(made, num_classes)

    @property
    def models(self) -> tuple[tuple[str, str, str], tuple[str, str, str]]:
        """(model, its title, the paper's name of it) for student and teacher."""
        student, teacher = self.model_titles or (self.title, f"{self.title}, EMA")
        return ("student", student, self.paper[0]), ("teacher", teacher, self.paper[1])
