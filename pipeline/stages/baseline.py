"""Stages baseline@…: the systems that the paper compares with, on the same data, noise, network and loop."""

from __future__ import annotations

from contextlib import closing
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlnt import seeding
from mlnt.cnn_crf import CRFNetwork, CRFStep, auxiliary_from_clean_set, auxiliary_from_transition
from mlnt.forward_correction import ForwardStep, estimate_transition_matrix
from mlnt.joint_optimization import LabelCorrectionStep, SoftLabelStep
from mlnt.noise import realised_matrix, stratified_split
from mlnt.state import StepFunction
from mlnt.teacher import TeacherBatchNorm
from pipeline import artifacts, console, files, runtime
from pipeline.artifacts import TRAIN
from pipeline.errors import UserError
from pipeline.fitting import fit
from pipeline.params import Params
from pipeline.systems import BASELINES
from pipeline.workspace import Recipe, Workspace

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
    with closing(Workspace.open(params)) as workspace:
        return _train(workspace, name)


def _train(workspace: Workspace, name: str) -> str:
    plan = {
        "forward": _forward,
        "forward_estimated": _forward_estimated,
        "joint_optimization_1": _label_correction,
        "joint_optimization": _soft_labels,
        "cnn_crf": _cnn_crf,
    }[name](workspace)
    iteration = 2 if name == "joint_optimization" else 1  # its step 2 starts from other weights than its step 1
    student = _network(workspace, name, iteration)
    training = workspace.training(
        student, plan.step, workspace.training_data(), iteration=iteration, recipe=plan.recipe
    )

    def write_soft_labels() -> None:
        if isinstance(plan.step, LabelCorrectionStep):
            plan.step.begin_epoch(training.num_epochs)
            artifacts.write_soft_labels(SOFT_LABELS, plan.step.soft_labels.cpu().numpy(), workspace.labels)

    key = "joint_optimization.lr" if isinstance(plan.step, LabelCorrectionStep) else "train.lr"
    rate = (plan.recipe or workspace.recipe).lr
    return fit(workspace, name, BASELINES[name].title, training, plan.inputs, {key: rate}, write_soft_labels)


def _network(workspace: Workspace, name: str, iteration: int) -> nn.Module:
    params, dataset = workspace.params, workspace.dataset
    if name != "cnn_crf":
        return runtime.build_network(params, dataset, workspace.device, iteration)
    classes = len(dataset.class_names)
    backbone = runtime.build_network(params, dataset, workspace.device, iteration, num_outputs=2 * classes)
    return CRFNetwork(backbone, classes).to(workspace.device)


def _forward(workspace: Workspace) -> Plan:
    return _forward_with(workspace, _transition_matrix(workspace, "forward"), [])


def _forward_estimated(workspace: Workspace) -> Plan:
    """T from the cross-entropy network: its best model on validation."""
    network, digest = workspace.best_network("pretrain")
    (logits,) = workspace.logits([network], TRAIN, "estimated T")
    probs = logits.double().softmax(dim=1).numpy()
    matrix = estimate_transition_matrix(probs, workspace.params.forward.percentile)
    return _forward_with(workspace, torch.from_numpy(matrix), [digest])


def _forward_with(workspace: Workspace, matrix: Tensor, inputs: list[str]) -> Plan:
    given = workspace.split(TRAIN).labels
    unexplained = (matrix.sum(dim=0) == 0)[given]
    if unexplained.any():
        label = workspace.dataset.class_names[int(given[unexplained][0])]
        raise UserError(
            f"forward: the noise matrix never gives the label {label!r}, which {int(unexplained.sum())} training "
            "samples have; expected a column that is not all zeros for each label"
        )
    return Plan(ForwardStep(*_optimizer(workspace), transition_matrix=matrix.float().to(workspace.device)), inputs)


def _label_correction(workspace: Workspace) -> Plan:
    """Step 1 of Joint Optimization."""
    chosen = workspace.params.joint_optimization
    files.remove(SOFT_LABELS)  # those of another run must not outlive this one
    classes = len(workspace.dataset.class_names)
    labels = workspace.split(TRAIN).labels
    step = LabelCorrectionStep(
        *_optimizer(workspace),
        soft_labels=F.one_hot(labels, classes).float().to(workspace.device),
        prior_weight=chosen.alpha,
        entropy_weight=chosen.beta,
        prior=_prior(workspace).to(workspace.device),
        first_update=chosen.first_update,
        average_epochs=chosen.average_epochs,
    )
    return Plan(step, [], Recipe(chosen.epochs, chosen.lr, ()))


def _soft_labels(workspace: Workspace) -> Plan:
    """Step 2 of Joint Optimization."""
    table = artifacts.read_soft_labels(SOFT_LABELS, workspace.labels)
    step = SoftLabelStep(*_optimizer(workspace), soft_labels=torch.from_numpy(table).to(workspace.device))
    train = workspace.params.train
    recipe = Recipe(train.epochs, train.lr, workspace.params.joint_optimization.lr_drop_epochs)
    return Plan(step, [files.file_digest(SOFT_LABELS)], recipe)


def _cnn_crf(workspace: Workspace) -> Plan:
    chosen = workspace.params.cnn_crf
    train = workspace.split(TRAIN)
    known = torch.full_like(train.labels, -1)
    true = workspace.true_labels()
    if chosen.clean_fraction > 0:
        if true is None:
            raise UserError(
                f"cnn_crf.clean_fraction: found {chosen.clean_fraction}, but no true labels are known for these data; "
                "CNN-CRF needs data whose true labels, or whose noise, are known"
            )
        generator = seeding.numpy_generator(workspace.params.seed, "clean set")
        revealed = torch.from_numpy(stratified_split(true.numpy(), chosen.clean_fraction, generator))
        known[revealed] = true[revealed]
    classes = len(workspace.dataset.class_names)
    if chosen.auxiliary == "clean_set":
        clean = known >= 0
        auxiliary = auxiliary_from_clean_set(known[clean], train.labels[clean], classes)
    else:
        auxiliary = auxiliary_from_transition(_transition_matrix(workspace, "cnn_crf").float())
    step = CRFStep(
        *_optimizer(workspace),
        auxiliary=auxiliary.to(workspace.device),
        known=known.to(workspace.device),
        weight_start=chosen.weight_start,
        weight_end=chosen.weight_end,
        weight_epochs=chosen.weight_epochs,
    )
    return Plan(step, [])


def _optimizer(workspace: Workspace) -> tuple[float, float, TeacherBatchNorm]:
    train = workspace.params.train
    return train.momentum, train.weight_decay, workspace.params.mlnt.teacher_bn


def _transition_matrix(workspace: Workspace, section: str) -> Tensor:
    """T as it was asked for; where it was not, counted from true and given labels."""
    if workspace.labels.intended_matrix is not None:
        return torch.from_numpy(workspace.labels.intended_matrix)
    true = workspace.true_labels()
    if true is None:
        raise UserError(
            f"{section}: needs the noise matrix, which nobody knows for noise.kind {workspace.params.noise.kind} on "
            "these data" + ("; the baseline forward_estimated does without" if section == "forward" else "")
        )
    given = workspace.split(TRAIN).labels
    classes = len(workspace.dataset.class_names)
    counted = torch.from_numpy(realised_matrix(true.numpy(), given.numpy(), classes))
    return torch.where(counted.isnan(), torch.eye(classes, dtype=counted.dtype), counted)  # a class without samples


def _prior(workspace: Workspace) -> Tensor:
    """p of Joint Optimization: the distribution of the true classes where it is known, else uniform."""
    classes = len(workspace.dataset.class_names)
    true = workspace.true_labels()
    if true is None:
        console.warn("joint_optimization: the distribution of the true classes is not known; taken as uniform")
        return torch.full((classes,), 1.0 / classes)
    return torch.bincount(true, minlength=classes).float() / len(true)
