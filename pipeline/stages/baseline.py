"""Stages baseline@…: the systems that the paper compares with, on the same data, noise, network and loop."""

from __future__ import annotations

from contextlib import closing
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlnt import seeding
from mlnt.baselines.cnn_crf import CRFNetwork, CRFStep, auxiliary_from_clean_set, auxiliary_from_transition
from mlnt.baselines.forward import ForwardStep, estimate_transition_matrix
from mlnt.baselines.joint_optimization import LabelCorrectionStep, SoftLabelStep
from mlnt.method.teacher import TeacherBatchNorm
from mlnt.noise.matrices import realised_matrix, stratified_split
from mlnt.training.state import StepFunction
from pipeline import console, files
from pipeline.errors import UserError
from pipeline.params.schema import Params
from pipeline.store.dataset import TRAIN, read_soft_labels, write_soft_labels
from pipeline.systems.registry import BASELINES
from pipeline.training.build import build_network
from pipeline.training.fit import fit
from pipeline.training.session import Recipe, Session

SOFT_LABELS = files.MODELS / "joint_optimization_1" / "soft_labels.h5"


class Plan(NamedTuple):
    """What a baseline trains: a step, what it depends on beside labels and parameters, and how long."""

    step: StepFunction
    inputs: list[str]
    recipe: Recipe | None = None


def run(params: Params, name: str) -> str:
    """Train one baseline; writes models/<name>/ and its history; returns a line that sums it up.

    Raises:
        UserError: parameters or inputs that do not fit, or prior knowledge that is not there.
        RunError: the loss was not finite.
    """
    with closing(Session.open(params)) as session:
        return _train(session, name)


def _train(session: Session, name: str) -> str:
    plan = {
        "forward": _forward,
        "forward_estimated": _forward_estimated,
        "joint_optimization_1": _label_correction,
        "joint_optimization": _soft_labels,
        "cnn_crf": _cnn_crf,
    }[name](session)
    iteration = 2 if name == "joint_optimization" else 1  # its step 2 starts from other weights than its step 1
    student = _network(session, name, iteration)
    training = session.training(student, plan.step, session.training_data(), iteration=iteration, recipe=plan.recipe)

    def keep_soft_labels() -> None:
        if isinstance(plan.step, LabelCorrectionStep):
            corrected = plan.step.corrected_labels(training.num_epochs)
            write_soft_labels(SOFT_LABELS, corrected.cpu().numpy(), session.labels)

    key = "joint_optimization.lr" if isinstance(plan.step, LabelCorrectionStep) else "train.lr"
    rate = (plan.recipe or session.recipe).lr
    return fit(session, name, BASELINES[name].title, training, plan.inputs, {key: rate}, keep_soft_labels)


def _network(session: Session, name: str, iteration: int) -> nn.Module:
    params, dataset = session.params, session.dataset
    if name != "cnn_crf":
        return build_network(params, dataset, session.device, iteration)
    classes = len(dataset.class_names)
    backbone = build_network(params, dataset, session.device, iteration, num_outputs=2 * classes)
    return CRFNetwork(backbone, classes).to(session.device)


def _forward(session: Session) -> Plan:
    return _forward_with(session, _transition_matrix(session, "forward"), [])


def _forward_estimated(session: Session) -> Plan:
    """T from the cross-entropy network: its best model on validation."""
    network, digest = session.best_network("pretrain")
    (logits,) = session.logits([network], TRAIN, "estimated T")
    probs = logits.double().softmax(dim=1).numpy()
    matrix = estimate_transition_matrix(probs, session.params.forward.percentile)
    return _forward_with(session, torch.from_numpy(matrix), [digest])


def _forward_with(session: Session, matrix: Tensor, inputs: list[str]) -> Plan:
    given = session.split(TRAIN).labels
    unexplained = (matrix.sum(dim=0) == 0)[given]
    if unexplained.any():
        label = session.dataset.class_names[int(given[unexplained][0])]
        raise UserError(
            f"forward: the noise matrix never gives the label {label!r}, which {int(unexplained.sum())} training "
            "samples have; expected a column that is not all zeros for each label"
        )
    return Plan(ForwardStep(*_optimizer(session), transition_matrix=matrix.float().to(session.device)), inputs)


def _label_correction(session: Session) -> Plan:
    """Step 1 of Joint Optimization."""
    chosen = session.params.joint_optimization
    files.remove(SOFT_LABELS)  # those of another run must not outlive this one
    classes = len(session.dataset.class_names)
    labels = session.split(TRAIN).labels
    step = LabelCorrectionStep(
        *_optimizer(session),
        soft_labels=F.one_hot(labels, classes).float().to(session.device),
        prior_weight=chosen.alpha,
        entropy_weight=chosen.beta,
        prior=_prior(session).to(session.device),
        first_update=chosen.first_update,
        average_epochs=chosen.average_epochs,
    )
    return Plan(step, [], Recipe(chosen.epochs, chosen.lr, ()))


def _soft_labels(session: Session) -> Plan:
    """Step 2 of Joint Optimization."""
    table = read_soft_labels(SOFT_LABELS, session.labels)
    step = SoftLabelStep(*_optimizer(session), soft_labels=torch.from_numpy(table).to(session.device))
    train = session.params.train
    recipe = Recipe(train.epochs, train.lr, session.params.joint_optimization.lr_drop_epochs)
    return Plan(step, [files.file_digest(SOFT_LABELS)], recipe)


def _cnn_crf(session: Session) -> Plan:
    chosen = session.params.cnn_crf
    train = session.split(TRAIN)
    known = torch.full_like(train.labels, -1)
    true = session.true_labels()
    if chosen.clean_fraction > 0:
        if true is None:
            raise UserError(
                f"cnn_crf.clean_fraction: found {chosen.clean_fraction}, but no true labels are known for these data; "
                "CNN-CRF needs data whose true labels, or whose noise, are known"
            )
        generator = seeding.numpy_generator(session.params.seed, "clean set")
        revealed = torch.from_numpy(stratified_split(true.numpy(), chosen.clean_fraction, generator))
        known[revealed] = true[revealed]
    classes = len(session.dataset.class_names)
    if chosen.auxiliary == "clean_set":
        clean = known >= 0
        auxiliary = auxiliary_from_clean_set(known[clean], train.labels[clean], classes)
    else:
        auxiliary = auxiliary_from_transition(_transition_matrix(session, "cnn_crf").float())
    step = CRFStep(
        *_optimizer(session),
        auxiliary=auxiliary.to(session.device),
        known=known.to(session.device),
        weight_start=chosen.weight_start,
        weight_end=chosen.weight_end,
        weight_epochs=chosen.weight_epochs,
    )
    return Plan(step, [])


def _optimizer(session: Session) -> tuple[float, float, TeacherBatchNorm]:
    train = session.params.train
    return train.momentum, train.weight_decay, session.params.mlnt.teacher_bn


def _transition_matrix(session: Session, section: str) -> Tensor:
    """T as it was asked for; where it was not, counted from true and given labels."""
    if session.labels.intended_matrix is not None:
        return torch.from_numpy(session.labels.intended_matrix)
    true = session.true_labels()
    if true is None:
        raise UserError(
            f"{section}: needs the noise matrix, which nobody knows for noise.kind {session.params.noise.kind} on "
            "these data" + ("; the baseline forward_estimated does without" if section == "forward" else "")
        )
    given = session.split(TRAIN).labels
    classes = len(session.dataset.class_names)
    counted = torch.from_numpy(realised_matrix(true.numpy(), given.numpy(), classes))
    return torch.where(counted.isnan(), torch.eye(classes, dtype=counted.dtype), counted)  # a class without samples


def _prior(session: Session) -> Tensor:
    """p of Joint Optimization: the distribution of the true classes where it is known, else uniform."""
    classes = len(session.dataset.class_names)
    true = session.true_labels()
    if true is None:
        console.warn("joint_optimization: the distribution of the true classes is not known; taken as uniform")
        return torch.full((classes,), 1.0 / classes)
    return torch.bincount(true, minlength=classes).float() / len(true)
