"""The systems of a run by their names: which stage trains each, in which iteration, under which mentor."""

from __future__ import annotations

from typing import NamedTuple


class System(NamedTuple):
    """One training stage.

    Attributes:
        name: in metrics and tables.
        title: for people; the number is the iteration.
        stage: in dvc.yaml, and the folder below models/.
        iteration: 1, 2 or 3.
        meta: whether the meta update is made; without it, cross entropy with an EMA as teacher.
        mentor_stage: whose best model filters the samples; None in iteration 1.
    """

    name: str
    title: str
    stage: str
    iteration: int
    meta: bool
    mentor_stage: str | None


SYSTEMS = (
    System("cross_entropy", "Cross Entropy", "pretrain", 1, False, None),
    System("ce_filter_2", "CE + filter 2", "control2", 2, False, "pretrain"),
    System("ce_filter_3", "CE + filter 3", "control3", 3, False, "control2"),
    System("mlnt_1", "MLNT 1", "meta1", 1, True, None),
    System("mlnt_2", "MLNT 2", "meta2", 2, True, "meta1"),
    System("mlnt_3", "MLNT 3", "meta3", 3, True, "meta2"),
)

BY_STAGE = {system.stage: system for system in SYSTEMS}
FINAL = SYSTEMS[-1]


class Baseline(NamedTuple):
    """A system that the paper compares with.

    Attributes:
        title: for people.
        section: of params.yaml, with what it alone reads.
        prior: what it is told beside images and labels.
    """

    title: str
    section: str
    prior: str


BASELINES = {
    "forward": Baseline("Forward, true T", "forward", "the noise matrix"),
    "forward_estimated": Baseline("Forward, estimated T", "forward", "nothing"),
    "joint_optimization_1": Baseline(
        "Joint Optimization, step 1", "joint_optimization", "the distribution of the true classes"
    ),
    "joint_optimization": Baseline("Joint Optimization", "joint_optimization", "the distribution of the true classes"),
    "cnn_crf": Baseline("CNN-CRF (own version)", "cnn_crf", "a small clean set, or the noise matrix"),
}


def model_title(system: System, model: str) -> str:
    """How tables call one of the two models of a system; the student's EMA under cross entropy is CE-EMA."""
    if system.meta:
        return f"{system.title} {model}"
    return {"cross_entropy": "CE-EMA"}.get(system.name, f"{system.title} EMA") if model == "teacher" else system.title
