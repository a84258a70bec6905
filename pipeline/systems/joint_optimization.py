"""Joint Optimization in its two steps (`mlnt.baselines.joint_optimization`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.base import console, files
from pipeline.training.plan import Plan, Recipe, System

if TYPE_CHECKING:
    from torch import Tensor

    from mlnt.training.passes import Network
    from pipeline.training.session import Session

FIRST = "joint_optimization_1"
SOFT_LABELS = files.MODELS / FIRST / "soft_labels.h5"
PRIOR = "the distribution of the true classes"


def _label_correction(session: Session, _: Network | None) -> Plan:
    """Step 1: its soft labels are kept for step 2."""
    import torch.nn.functional as F

    from mlnt.baselines.joint_optimization import LabelCorrectionStep
    from pipeline.store.dataset import TRAIN, write_soft_labels

    chosen = session.params.joint_optimization
    files.remove(SOFT_LABELS)  # those of an earlier run must not stay beside this run's models
    labels = session.split(TRAIN).labels
    step = LabelCorrectionStep(
        *session.optimizer,
        soft_labels=F.one_hot(labels, len(session.dataset.class_names)).float().to(session.device),
        prior_weight=chosen.alpha,
        entropy_weight=chosen.beta,
        prior=_prior(session).to(session.device),
        first_update=chosen.first_update,
        average_epochs=chosen.average_epochs,
    )

    def keep_soft_labels() -> dict[str, str]:
        write_soft_labels(SOFT_LABELS, step.corrected_labels(chosen.epochs).cpu().numpy(), session.labels)
        return {"soft_labels": files.file_digest(SOFT_LABELS)}

    return Plan(
        step,
        recipe=Recipe(chosen.epochs, chosen.lr, ()),
        lower={"joint_optimization.lr": chosen.lr},
        finish=keep_soft_labels,
    )


def _soft_labels(session: Session, _: Network | None) -> Plan:
    """Step 2: a fresh network on those labels."""
    import torch

    from mlnt.baselines.joint_optimization import SoftLabelStep
    from pipeline.store.dataset import read_soft_labels

    table = read_soft_labels(SOFT_LABELS, session.labels)
    step = SoftLabelStep(*session.optimizer, soft_labels=torch.from_numpy(table).to(session.device))
    train = session.params.train
    recipe = Recipe(train.epochs, train.lr, session.params.joint_optimization.lr_drop_epochs)
    return Plan(step, {"soft_labels": files.file_digest(SOFT_LABELS)}, recipe=recipe)


def _prior(session: Session) -> Tensor:
    """p: the distribution of the true classes where it is known, else uniform."""
    import torch

    classes = len(session.dataset.class_names)
    true = session.true_labels()
    if true is None:
        console.warn("joint_optimization: the distribution of the true classes is not known; taken as uniform")
        return torch.full((classes,), 1.0 / classes)
    return torch.bincount(true, minlength=classes).float() / len(true)


SYSTEMS = (
    System(
        FIRST,
        "Joint Optimization, step 1",
        _label_correction,
        sections=("joint_optimization",),
        prior=PRIOR,
        in_tables=False,
        epochs=lambda params: params.joint_optimization.epochs,
    ),
    System(
        "joint_optimization",
        "Joint Optimization",
        _soft_labels,
        sections=("joint_optimization",),
        iteration=2,  # step 2 starts from other weights than step 1
        needs=(FIRST,),
        prior=PRIOR,
        paper=("Joint Optimization [24]", ""),
    ),
)
