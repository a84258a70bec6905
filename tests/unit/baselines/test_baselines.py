"""The baselines' losses by hand, by enumeration and by what they reduce to; label correction beside a plain list."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainings import (
    BATCH_SIZE,
    NUM_CLASSES,
    OPTIMIZER,
    RATES,
    SYMMETRIC,
    assert_same_state,
    label_correction,
    make_crf,
    make_data,
    make_network,
    make_training,
    stopped_before,
)

from mlnt.baselines.cnn_crf import (
    CRFNetwork,
    CRFStep,
    auxiliary_from_clean_set,
    auxiliary_from_transition,
    certain_where_known,
    clean_posterior,
    crf_loss,
)
from mlnt.baselines.forward import ForwardStep, estimate_transition_matrix, forward_loss
from mlnt.baselines.joint_optimization import SoftLabelStep, prior_loss, soft_label_loss
from mlnt.baselines.loss_step import LossStep, entropy
from mlnt.method.step import MLNTStep
from mlnt.training.loop import Training
from mlnt.training.state import Batch, EpochContext, TrainState

ASYMMETRIC = torch.tensor(
    [[0.7, 0.3, 0.0, 0.0], [0.0, 0.9, 0.1, 0.0], [0.2, 0.0, 0.8, 0.0], [0.1, 0.1, 0.1, 0.7]], dtype=torch.float64
)


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
LOGITS = random_logits(len(LABELS), NUM_CLASSES)


# Forward


def test_forward_loss_is_the_cross_entropy_of_the_noisy_distribution() -> None:
    probs = LOGITS.softmax(1)
    expected = -np.mean([math.log(sum(probs[i, c] * SYMMETRIC[c, y] for c in range(4))) for i, y in enumerate(LABELS)])
    assert forward_loss(LOGITS, LABELS, SYMMETRIC).item() == pytest.approx(expected, rel=1e-12)


def test_forward_loss_without_noise_is_cross_entropy() -> None:
    loss = forward_loss(LOGITS, LABELS, torch.eye(NUM_CLASSES, dtype=torch.float64))
    torch.testing.assert_close(loss, F.cross_entropy(LOGITS, LABELS), rtol=1e-12, atol=0)


def test_forward_loss_survives_a_network_that_is_sure_and_wrong() -> None:
    """Asymmetric noise has zeros in T; the network is certain of a class that never gives this label."""
    matrix = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    logits = torch.tensor([[300.0, -300.0]], requires_grad=True)
    loss = forward_loss(logits, torch.tensor([1]), matrix)
    gradient = torch.autograd.grad(loss, logits)[0]
    assert loss.item() == pytest.approx(600 - math.log(0.5), rel=1e-6)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -1.0]]))


def test_estimated_matrix_takes_the_surest_sample_below_the_percentile() -> None:
    probs = np.array([[0.99, 0.01], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.05, 0.95]])
    # The highest score of each class is left out (index 0 for the first, 4 for the second).
    np.testing.assert_allclose(estimate_transition_matrix(probs, 97), [[0.8, 0.2], [0.3, 0.7]])
    np.testing.assert_allclose(estimate_transition_matrix(probs * 2, 97), [[0.8, 0.2], [0.3, 0.7]])


def test_estimated_matrix_of_a_network_without_opinion_has_rows_that_sum_to_one() -> None:
    np.testing.assert_allclose(estimate_transition_matrix(np.full((6, 3), 1 / 3), 97), np.full((3, 3), 1 / 3))


# Joint Optimization


def test_soft_label_loss_with_one_hot_labels_is_cross_entropy() -> None:
    one_hot = F.one_hot(LABELS, NUM_CLASSES).double()
    torch.testing.assert_close(soft_label_loss(LOGITS, one_hot), F.cross_entropy(LOGITS, LABELS), rtol=1e-12, atol=0)


def test_prior_loss_and_entropy_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]], dtype=torch.float64).log()  # (3/4, 1/4) and (1/2, 1/2)
    uniform = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert prior_loss(logits, uniform).item() == pytest.approx(-0.5 * (math.log(5 / 8) + math.log(3 / 8)))
    expected = 0.5 * (-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) + math.log(2))
    assert entropy(logits).item() == pytest.approx(expected)


def test_prior_loss_has_a_finite_gradient_when_a_class_is_never_predicted() -> None:
    logits = torch.tensor([[500.0, -500.0]], requires_grad=True)
    loss = prior_loss(logits, torch.tensor([0.5, 0.5]))
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_labels_follow_the_mean_prediction_of_the_last_epochs() -> None:
    """Beside a list of every epoch's predictions, kept by hand from the student's logits."""
    data = make_data()
    labels = data.train.labels
    step = label_correction(len(labels), labels)
    seen: list[tuple[Tensor, Tensor]] = []
    original = step.loss

    def watched(state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, logits = original(state, batch)
        assert batch.positions is not None
        seen.append((batch.positions, logits.detach().softmax(1)))
        return loss, logits

    step.loss = watched  # type: ignore[method-assign]
    training = make_training(step, data, epochs=6)
    history: list[Tensor] = []
    latest = F.one_hot(labels, NUM_CLASSES).float()
    for epoch, _ in enumerate(training.epochs()):
        # Epoch 0 and 1 train on the given labels, epoch e ≥ 2 on the mean of up to three epochs before.
        for positions, probs in seen:
            latest[positions] = probs
        seen.clear()
        history.append(latest.clone())
        expected = torch.stack(history[-3:]).mean(0) if epoch + 1 >= 2 else F.one_hot(labels, NUM_CLASSES).float()
        torch.testing.assert_close(step.corrected_labels(epoch + 1), expected, rtol=1e-6, atol=1e-7)
    assert len(labels) % BATCH_SIZE  # the case of a sample that an epoch leaves out is in it
    assert not torch.equal(step.soft_labels.argmax(1), labels)


def label_correcting() -> Training:
    return make_training(label_correction(27, make_data().train.labels), epochs=6)


def crf_annealing() -> Training:
    """Its auxiliary weight is another one in each of the six epochs."""
    known = torch.where(torch.arange(27) < 5, make_data().train.labels, -1)
    auxiliary = auxiliary_from_transition(SYMMETRIC.float())
    step = CRFStep(**OPTIMIZER, auxiliary=auxiliary, known=known, weight_start=4.0, weight_end=1.0, weight_epochs=5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_training(step, network=make_crf(), epochs=6)


@pytest.mark.parametrize("make", [label_correcting, crf_annealing])
def test_what_changes_from_epoch_to_epoch_goes_on_with_the_same_bits(make: Callable[[], Training]) -> None:
    whole = make()
    list(whole.epochs())
    for step in range(19):
        second = make()
        second.load_state_dict(*stopped_before(make(), step))
        list(second.epochs())
        assert_same_state(whole, second)


def test_soft_labels_without_positions_are_refused() -> None:
    step = SoftLabelStep(**OPTIMIZER, soft_labels=torch.eye(NUM_CLASSES))
    with pytest.raises(ValueError, match="positions"):
        step(TrainState(make_network()), Batch(torch.zeros(4, 1, 8, 8), LABELS[:4]), RATES)


# CNN-CRF

SCORES = random_logits(len(LABELS), NUM_CLASSES, NUM_CLASSES, seed=1)


def joint(scores: Tensor) -> Tensor:
    """p(ŷ, y | x) by enumeration."""
    weights = scores.exp()
    return weights / weights.sum(dim=(1, 2), keepdim=True)


def test_without_auxiliary_the_posterior_is_the_models() -> None:
    table = joint(SCORES)[torch.arange(len(LABELS)), :, LABELS]
    expected = table / table.sum(1, keepdim=True)
    actual = clean_posterior(SCORES, LABELS, auxiliary_from_transition(SYMMETRIC), 0.0)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("weight", [0.5, 5.0])
def test_posterior_is_the_geometric_mean_with_the_auxiliary(weight: float) -> None:
    auxiliary = auxiliary_from_transition(ASYMMETRIC).clamp_min(1e-8)
    table = joint(SCORES)[torch.arange(len(LABELS)), :, LABELS]
    model = table / table.sum(1, keepdim=True)
    expected = (model * auxiliary.T[LABELS] ** weight) ** (1 / (weight + 1))
    expected = expected / expected.sum(1, keepdim=True)
    torch.testing.assert_close(clean_posterior(SCORES, LABELS, auxiliary, weight), expected, rtol=1e-10, atol=0)


def test_an_overwhelming_weight_leaves_the_auxiliary_distribution() -> None:
    auxiliary = auxiliary_from_transition(ASYMMETRIC)
    actual = clean_posterior(SCORES, LABELS, auxiliary, 1e9)
    torch.testing.assert_close(actual, auxiliary.T[LABELS], rtol=1e-6, atol=2e-8)


def test_the_gradient_under_the_models_posterior_is_that_of_the_likelihood() -> None:
    """What EM rests on: ∇ E_q[−log p(ŷ, y)] = ∇ −log p(y) where q = p(ŷ | y)."""
    scores = SCORES.clone().requires_grad_()
    posterior = clean_posterior(scores.detach(), LABELS, auxiliary_from_transition(SYMMETRIC), 0.0)
    actual = torch.autograd.grad(crf_loss(scores, LABELS, posterior), scores)[0]
    likelihood = -joint(scores).sum(1)[torch.arange(len(LABELS)), LABELS].log().mean()
    expected = torch.autograd.grad(likelihood, scores)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)


def test_a_known_label_makes_the_loss_that_of_the_pair() -> None:
    known = torch.tensor([2, -1, -1, 3, -1, 0])
    posterior = certain_where_known(torch.full((6, 4), 0.25, dtype=torch.float64), known)
    expected = torch.full((6, 4), 0.25, dtype=torch.float64)
    for row, label in ((0, 2), (3, 3), (5, 0)):
        expected[row] = F.one_hot(torch.tensor(label), 4)
    assert torch.equal(posterior, expected)
    one = crf_loss(SCORES[:1], LABELS[:1], posterior[:1])
    torch.testing.assert_close(one, -joint(SCORES)[0, 2, LABELS[0]].log())


def test_auxiliary_distributions_by_hand() -> None:
    true, given = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    # One added to each count: columns (3, 1) and (2, 2).
    torch.testing.assert_close(auxiliary_from_clean_set(true, given, 2), torch.tensor([[0.75, 0.5], [0.25, 0.5]]))
    matrix = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    expected = torch.tensor([[0.4, 0.0, 1 / 3], [0.2, 1.0, 1 / 3], [0.4, 0.0, 1 / 3]])
    torch.testing.assert_close(auxiliary_from_transition(matrix), expected)


def test_the_crf_network_gives_the_marginal_of_the_clean_label() -> None:
    network = make_crf().double().eval()
    nn.init.normal_(network.pairwise)
    images = random_logits(5, 1, 8, 8)
    expected = joint(network.scores(images)).sum(dim=2)
    torch.testing.assert_close(network(images).softmax(1), expected, rtol=1e-10, atol=0)


def test_the_auxiliary_weight_goes_from_start_to_end() -> None:
    step = CRFStep(
        **OPTIMIZER, auxiliary=torch.eye(2), known=torch.zeros(1), weight_start=40, weight_end=5, weight_epochs=7
    )
    found = []
    for epoch in (0, 1, 7, 20):
        step.begin_epoch(EpochContext(epoch, TrainState(make_network()), LABELS, lambda _: LOGITS))
        found.append(step._weight.item())
    assert found == [40.0, 35.0, 5.0, 5.0]


def test_crf_training_moves_network_and_pairwise_term() -> None:
    data = make_data()
    step = CRFStep(
        **OPTIMIZER,
        auxiliary=auxiliary_from_transition(SYMMETRIC.float()),
        known=torch.where(torch.arange(27) < 5, data.train.labels, -1),
        weight_start=4.0,
        weight_end=1.0,
        weight_epochs=2,
    )
    training = make_training(step, data, make_crf())
    rows = list(training.epochs())
    assert all(math.isfinite(row["class_loss"] or math.nan) for row in rows)
    student = training.module("student")
    assert isinstance(student, CRFNetwork)
    assert student.pairwise.abs().sum() > 0


# Every baseline's step: its loss beside the formula, for samples that stand elsewhere in D than in the batch

POSITIONS = torch.tensor([7, 2, 9, 0, 4, 5])
IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
SOFT = torch.rand(10, NUM_CLASSES, generator=torch.Generator().manual_seed(4)).softmax(1)


def eval_state(network: nn.Module) -> TrainState:
    """Without what moves from call to call: dropout and batch statistics."""
    state = TrainState(network)
    network.eval()
    return state


def test_the_loss_of_step_1_of_joint_optimization() -> None:
    step = label_correction(10, LABELS[torch.zeros(10, dtype=torch.int64)])
    step.soft_labels.copy_(SOFT)
    state = eval_state(make_network())
    loss, logits = step.loss(state, Batch(IMAGES, LABELS, positions=POSITIONS))
    probs = state.student.module(IMAGES).softmax(1)
    class_term = -(SOFT[POSITIONS] * probs.log()).sum(1).mean()
    prior_term = -(probs.mean(0).log() / NUM_CLASSES).sum()
    entropy_term = -(probs * probs.log()).sum(1).mean()
    torch.testing.assert_close(loss, class_term + 1.2 * prior_term + 0.8 * entropy_term)
    torch.testing.assert_close(logits.softmax(1), probs)
    assert loss.item() != pytest.approx((class_term + 0.8 * prior_term + 1.2 * entropy_term).item(), rel=1e-3)


def test_the_loss_of_step_2_of_joint_optimization() -> None:
    state = eval_state(make_network())
    step = SoftLabelStep(**OPTIMIZER, soft_labels=SOFT)
    loss, _ = step.loss(state, Batch(IMAGES, LABELS, positions=POSITIONS))
    expected = -(SOFT[POSITIONS] * state.student.module(IMAGES).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)


def test_the_loss_of_cnn_crf_by_enumeration() -> None:
    """Value, gradient and logits, with some true labels known and a posterior that is held fixed."""
    network = make_crf()
    nn.init.normal_(network.pairwise, generator=torch.Generator().manual_seed(5))
    state = eval_state(network)
    known = torch.full((10,), -1)
    known[POSITIONS[0]], known[POSITIONS[3]] = 2, 1
    auxiliary = auxiliary_from_transition(ASYMMETRIC.float())
    step = CRFStep(**OPTIMIZER, auxiliary=auxiliary, known=known, weight_start=2.0, weight_end=2.0, weight_epochs=1)
    loss, logits = step.loss(state, Batch(IMAGES, LABELS, positions=POSITIONS))
    table = joint(network.scores(IMAGES))
    terms = []
    for i, label in enumerate(LABELS.tolist()):
        pair = table[i, :, label]
        posterior = (pair / pair.sum() * auxiliary[:, label].clamp_min(1e-8) ** 2) ** (1 / 3)
        posterior = (posterior / posterior.sum()).detach()
        if i in (0, 3):
            posterior = F.one_hot(torch.tensor(2 if i == 0 else 1), NUM_CLASSES).float()
        terms.append(-(posterior * pair.log()).sum())
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits.softmax(1), table.sum(2))
    for ours, theirs in zip(
        torch.autograd.grad(loss, state.student.parameters),
        torch.autograd.grad(expected, state.student.parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_teachers_statistics_may_follow_the_students() -> None:
    steps = [ForwardStep(**{**OPTIMIZER, "teacher_bn": bn}, transition_matrix=torch.eye(4)) for bn in ("ema", "own")]
    plain = make_training(MLNTStep(0, 0.5, 3, 0.1, momentum=0.9, weight_decay=1e-3, teacher_bn="ema"))
    ema, own = (make_training(step) for step in steps)
    for training in (plain, ema, own):
        list(training.epochs())
    statistics = [dict(t.module("teacher").named_buffers())["1.running_mean"] for t in (plain, ema, own)]
    torch.testing.assert_close(statistics[1], statistics[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(statistics[2], statistics[0])


# What a baseline reduces to


def forward_without_noise() -> LossStep:
    return ForwardStep(**OPTIMIZER, transition_matrix=torch.eye(NUM_CLASSES))


def soft_labels_given() -> LossStep:
    return SoftLabelStep(**OPTIMIZER, soft_labels=F.one_hot(make_data().train.labels, NUM_CLASSES).float())


def correction_that_never_comes() -> LossStep:
    step = label_correction(27, make_data().train.labels, first_update=100)
    step.prior_weight = step.entropy_weight = 0.0
    return step


@pytest.mark.parametrize("make", [forward_without_noise, soft_labels_given, correction_that_never_comes])
def test_a_baseline_without_its_correction_is_cross_entropy(make: Callable[[], LossStep]) -> None:
    """Student, teacher and momentum after four epochs, beside the method with M = 0."""
    plain = make_training(MLNTStep(0, 0.5, 3, 0.1, momentum=0.9, weight_decay=1e-3))
    baseline = make_training(make())
    list(plain.epochs()), list(baseline.epochs())
    expected, actual = plain.state_dict()[0], baseline.state_dict()[0]
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
