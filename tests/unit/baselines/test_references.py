"""The references' steps beside plain transcriptions of their papers, loops over samples in float64; their losses by
hand; and what they go on with after a stop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from layers import Layers
from torch import Tensor, nn
from torch.func import functional_call
from trainings import (
    NUM_CLASSES,
    OPTIMIZER,
    RATES,
    assert_same_state,
    make_data,
    make_network,
    make_training,
    stopped_before,
)

from mlnt.baselines.elr import EarlyLearning, ELRMetaStep, ELRStep, early_learning_regularizer
from mlnt.baselines.gce import GCEStep, TruncatedGCEStep, generalized_cross_entropy
from mlnt.baselines.loss_step import LossStep
from mlnt.baselines.meta_weight_net import MetaWeightNetStep, weight_net, weights_of
from mlnt.baselines.sop import SOPStep
from mlnt.method.step import MLNTStep
from mlnt.training.loop import Training
from mlnt.training.state import Batch, EpochContext, TrainState

SIZE, BATCH = 14, 6
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> nn.Module:
    """With BatchNorm in train mode, as the loop has it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, NUM_CLASSES))
        return Layers(*layers).double()


IMAGES = random(SIZE, 1, 6, 6, seed=1)
LABELS = torch.randint(NUM_CLASSES, (SIZE,), generator=torch.Generator().manual_seed(2))
# Each sample twice at least, standing elsewhere in D than in the batch.
POSITIONS = [[7, 2, 9, 0, 4, 5], [9, 7, 1, 3, 13, 0], [2, 0, 7, 9, 8, 6]]


def batches(**draws: Sequence[Tensor]) -> list[Batch]:
    return [
        Batch(IMAGES[at], LABELS[at], positions=torch.tensor(at), draws={name: of[i] for name, of in draws.items()})
        for i, at in enumerate(POSITIONS)
    ]


def ran(step: LossStep, **draws: Sequence[Tensor]) -> list[Tensor]:
    """The student's parameters after a step on each batch."""
    state = TrainState(network())
    for batch in batches(**draws):
        step(state, batch, RATES)
    return state.student.parameters


class Plain:
    """A network and SGD with momentum and weight decay, written out."""

    def __init__(self) -> None:
        self.network = network().train()
        self.parameters = list(self.network.parameters())
        self.velocity = [torch.zeros_like(each) for each in self.parameters]

    def descend(self, loss: Tensor) -> None:
        gradient = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            for parameter, velocity, each in zip(self.parameters, self.velocity, gradient, strict=True):
                velocity.copy_(0.9 * velocity + each + 1e-3 * parameter)
                parameter.sub_(RATES.lr * velocity)


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


# GCE


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_gce_is_its_plain_transcription(q: float) -> None:
    plain = Plain()
    for at in POSITIONS:
        probs = plain.network(IMAGES[at]).softmax(1)
        plain.descend(torch.stack([(1 - probs[i, LABELS[n]] ** q) / q for i, n in enumerate(at)]).sum() / BATCH)
    assert_close(ran(GCEStep(**OPTIMIZER, q=q)), plain.parameters)


def test_gce_lies_between_cross_entropy_and_the_mean_absolute_error() -> None:
    logits = random(5, NUM_CLASSES, seed=3)
    labels = LABELS[:5]
    given = logits.softmax(1)[torch.arange(5), labels]
    torch.testing.assert_close(generalized_cross_entropy(logits, labels, 1.0), 1 - given, **CLOSE)
    torch.testing.assert_close(generalized_cross_entropy(logits, labels, 1e-9), -given.log(), rtol=1e-6, atol=0)


def test_gce_of_a_network_that_is_sure_and_wrong_has_a_finite_gradient() -> None:
    logits = torch.tensor([[500.0, -500.0]], requires_grad=True)
    loss = generalized_cross_entropy(logits, torch.tensor([1]), 0.7).sum()
    assert loss.item() == pytest.approx(1 / 0.7)
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def truncated(kept: Tensor, **changes: Any) -> TruncatedGCEStep:
    options = {"q": 0.7, "threshold": 0.5, "first_pruning": 2, "pruning_every": 3}
    return TruncatedGCEStep(**OPTIMIZER, **(options | changes), kept=kept)


def test_truncated_gce_is_its_plain_transcription() -> None:
    kept = torch.arange(SIZE) % 3 > 0
    plain = Plain()
    for at in POSITIONS:
        probs = plain.network(IMAGES[at]).softmax(1)
        terms = [(1 - (probs[i, LABELS[n]] if kept[n] else torch.tensor(0.5)) ** 0.7) / 0.7 for i, n in enumerate(at)]
        plain.descend(torch.stack(terms).sum() / BATCH)
    step = truncated(kept)
    assert_close(ran(step), plain.parameters)
    state = TrainState(network())
    expected = [(1 - p**0.7) / 0.7 for p in (0.5,) * BATCH]
    step.kept.fill_(False)
    assert step.loss(state, batches()[0])[0].item() == pytest.approx(sum(expected) / BATCH, rel=1e-12)


def test_truncated_gce_prunes_what_the_network_gives_at_most_k_when_it_is_time() -> None:
    labels = torch.tensor([0, 1, 1])
    probs = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
    step = truncated(torch.ones(3, dtype=torch.bool))
    state, found = TrainState(network()), []
    for number in range(7):
        step.kept.fill_(True)
        step.begin_epoch(EpochContext(number, state, labels, lambda _: probs.log()))
        found.append(step.kept.tolist())
    everything, pruned = [True, True, True], [True, False, True]
    assert found == [everything, everything, pruned, everything, everything, pruned, everything]


# ELR


def early_learning(size: int, regularization: float = 3.0, dtype: torch.dtype = torch.float32) -> EarlyLearning:
    return EarlyLearning(regularization, 0.7, torch.zeros(size, NUM_CLASSES, dtype=dtype))


def elr(size: int = SIZE, dtype: torch.dtype = torch.float32) -> ELRStep:
    return ELRStep(**OPTIMIZER, early_learning=early_learning(size, dtype=dtype))


def test_elr_is_its_plain_transcription() -> None:
    plain, targets = Plain(), [[0.0] * NUM_CLASSES for _ in range(SIZE)]
    for at in POSITIONS:
        probs, total = plain.network(IMAGES[at]).softmax(1), torch.zeros((), dtype=torch.float64)
        for i, n in enumerate(at):
            targets[n] = [0.7 * t + 0.3 * p for t, p in zip(targets[n], probs[i].tolist(), strict=True)]
            agreement = torch.stack([probs[i, c] * targets[n][c] for c in range(NUM_CLASSES)]).sum()
            total = total - probs[i, LABELS[n]].log() + 3.0 * (1 - agreement).log()
        plain.descend(total / BATCH)
    step = elr(dtype=torch.float64)
    assert_close(ran(step), plain.parameters)
    torch.testing.assert_close(step.early_learning.targets, torch.tensor(targets, dtype=torch.float64), **CLOSE)


def test_elr_stays_finite_where_prediction_and_target_have_long_agreed() -> None:
    logits = torch.tensor([[400.0, 0.0]], requires_grad=True)
    value = early_learning_regularizer(logits, torch.tensor([[1.0, 0.0]]))
    assert value.item() == pytest.approx(math.log(1e-4))
    assert torch.autograd.grad(value, logits)[0].isfinite().all()


def test_a_filter_takes_labels_from_elr_and_leaves_its_regularizer() -> None:
    step = elr(dtype=torch.float64)
    batch = batches()[0]
    assert batch.positions is not None
    state = TrainState(network())
    whole = step.loss(state, batch)[0]
    step.early_learning.targets.zero_()
    kept = torch.tensor([True, False, True, True, False, True])
    filtered, logits = step.loss(state, Batch(batch.images, batch.labels, batch.positions, kept))
    log_probs = logits.log_softmax(1)[torch.arange(BATCH), batch.labels]
    torch.testing.assert_close(filtered - whole, log_probs.mean() - log_probs[kept].mean(), **CLOSE)
    assert step.early_learning.targets[batch.positions].ne(0).all()


# SOP


def test_sop_is_its_plain_transcription() -> None:
    """u and v as the paper has them, [N, C] both, each entry by its own derivative."""
    u, v = 0.3 * random(SIZE, NUM_CLASSES, seed=4), 0.3 * random(SIZE, NUM_CLASSES, seed=5)
    at_label = u[torch.arange(SIZE), LABELS].clone()
    step = SOPStep(**OPTIMIZER, u_lr=2.0, v_lr=3.0, u=at_label, v=v.clone())
    plain = Plain()
    for at in POSITIONS:
        probs = plain.network(IMAGES[at]).softmax(1)
        loss = torch.zeros((), dtype=torch.float64)
        for i, n in enumerate(at):
            y = [float(c == LABELS[n]) for c in range(NUM_CLASSES)]
            noise = [u[n, c] ** 2 * y[c] - v[n, c] ** 2 * (1 - y[c]) for c in range(NUM_CLASSES)]
            explained = [max(probs[i, c] + noise[c], torch.tensor(1e-4)) for c in range(NUM_CLASSES)]
            loss = loss - (explained[LABELS[n]] / sum(explained)).log() / BATCH
            for c in range(NUM_CLASSES):
                given, everything = explained[LABELS[n]].item(), sum(explained).item()
                to_noise = (-y[c] / given + 1 / everything) / BATCH
                u[n, c] = min(max(u[n, c] - 2.0 * to_noise * 2 * u[n, c] * y[c], torch.tensor(-1.0)), torch.tensor(1.0))
                error = probs[i, c].item() + noise[c] - y[c]
                slope = 2 * error * -2 * v[n, c] * (1 - y[c]) / BATCH
                v[n, c] = min(max(v[n, c] - 3.0 * slope, torch.tensor(-1.0)), torch.tensor(1.0))
        plain.descend(loss)
    assert_close(ran(step), plain.parameters)
    assert_close([step.u, step.v], [u[torch.arange(SIZE), LABELS], v])


def test_what_sop_takes_up_stays_within_bounds() -> None:
    step = SOPStep(**OPTIMIZER, u_lr=1e3, v_lr=1e3, u=torch.full((SIZE,), 0.9).double(), v=0.9 * torch.ones(SIZE, 4))
    step.v = step.v.double()
    ran(step)
    assert step.u.abs().max() == 1
    assert step.v.abs().max() == 1


# Meta-Weight-Net

CLEAN = random(5, 1, 6, 6, seed=6)
CLEAN_LABELS = torch.tensor([3, 0, 1, 2, 0])
CHOSEN = [torch.tensor(chosen) for chosen in ([0, 4, 4, 1], [2, 3, 0, 1], [1, 1, 2, 0])]


def net() -> list[Tensor]:
    return [each.double() for each in weight_net(7, torch.Generator().manual_seed(8))]


def make_meta(**changes: Any) -> MetaWeightNetStep:
    options = {"net_lr": 20.0, "clean_images": CLEAN, "clean_labels": CLEAN_LABELS, "weight_net": net()}
    return MetaWeightNetStep(**OPTIMIZER, **(options | changes))


def test_meta_weight_net_is_its_plain_transcription() -> None:
    """By the paper's formula for the gradient: −α/k Σᵢ ⟨∇Lᵢ(θ), g⟩ ∂V(Lᵢ)/∂Θ, g the clean loss's gradient at θ̂."""
    plain, theta = Plain(), [each.requires_grad_() for each in net()]
    names = [name for name, _ in plain.network.named_parameters()]
    for at, chosen in zip(POSITIONS, CHOSEN, strict=True):
        logits = plain.network(IMAGES[at])
        losses = [-logits[i].log_softmax(0)[LABELS[n]] for i, n in enumerate(at)]
        each = [torch.autograd.grad(loss, plain.parameters, retain_graph=True) for loss in losses]
        weights = [weight(loss, theta) for loss in losses]
        tried = [
            (p - RATES.lr / BATCH * sum(w.detach() * g[j] for w, g in zip(weights, each, strict=True))).detach()
            for j, p in enumerate(plain.parameters)
        ]
        tried = [each.requires_grad_() for each in tried]
        other = copy.deepcopy(plain.network)  # whose running statistics may move
        outputs = functional_call(other, dict(zip(names, tried, strict=True)), (CLEAN[chosen],))
        clean = sum(-outputs[j].log_softmax(0)[CLEAN_LABELS[n]] for j, n in enumerate(chosen)) / len(chosen)
        g = torch.autograd.grad(clean, tried)
        products = [sum((a * b).sum() for a, b in zip(gradient, g, strict=True)) for gradient in each]
        slopes = [torch.autograd.grad(w, theta, retain_graph=True) for w in weights]
        with torch.no_grad():
            for j, parameter in enumerate(theta):
                total = sum(product * slope[j] for product, slope in zip(products, slopes, strict=True))
                parameter.sub_(20.0 * -RATES.lr / BATCH * total)
        plain.descend(sum(weight(loss, theta).detach() * loss for loss in losses) / BATCH)
    step = make_meta()
    assert_close(ran(step, clean=CHOSEN), plain.parameters)
    assert_close([each.detach() for each in step.weight_net], [each.detach() for each in theta])
    assert not torch.allclose(step.weight_net[0], net()[0], rtol=1e-3)


def weight(loss: Tensor, theta: Sequence[Tensor]) -> Tensor:
    """V of one loss, unit by unit."""
    hidden_weight, hidden_bias, output_weight, output_bias = theta
    hidden = [(hidden_weight[h, 0] * loss.detach() + hidden_bias[h]).clamp_min(0) for h in range(len(hidden_bias))]
    return 1 / (1 + (-output_bias[0] - sum(output_weight[0, h] * each for h, each in enumerate(hidden))).exp())


def test_running_statistics_move_once_a_step_and_by_the_mini_batch_alone() -> None:
    one, other = TrainState(network()), network().train()
    make_meta()(one, batches(clean=CHOSEN)[0], RATES)
    other(IMAGES[POSITIONS[0]])
    for ours, theirs in zip(one.student.module.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_a_weight_net_that_is_always_sure_makes_it_cross_entropy() -> None:
    step = make_meta(net_lr=0.0)
    for parameter in step.weight_net:
        parameter.zero_()
    step.weight_net[3].fill_(50.0)
    plain = Plain()
    for at in POSITIONS:
        plain.descend(nn.functional.cross_entropy(plain.network(IMAGES[at]), LABELS[at]))
    assert_close(ran(step, clean=CHOSEN), plain.parameters)
    assert weights_of(torch.tensor([0.0, 9.0]).double(), step.weight_net).min() > 1 - 1e-12


# In the loop: a stop at any step changes no bit


def gce_in_the_loop() -> Training:
    return make_training(truncated(torch.ones(27, dtype=torch.bool), threshold=0.25, first_pruning=1, pruning_every=2))


def elr_in_the_loop() -> Training:
    return make_training(elr(27))


def sop_in_the_loop() -> Training:
    u, v = 0.1 * random(27, seed=1).float(), 0.1 * random(27, NUM_CLASSES, seed=2).float()
    return make_training(SOPStep(**OPTIMIZER, u_lr=5.0, v_lr=5.0, u=u, v=v))


def meta_in_the_loop() -> Training:
    data = make_data()
    clean = data.evaluation["validation"]
    images = data.images.batch(clean.indices)
    theta = weight_net(5, torch.Generator().manual_seed(8))
    return make_training(make_meta(clean_images=images, clean_labels=clean.labels, weight_net=theta), data)


def elr_meta(num_synthetic: int = 2, regularization: float = 3.0) -> Training:
    options = {"replace_fraction": 0.5, "num_neighbors": 3, "inner_lr": 0.1, "early_learning": early_learning(27)}
    options["early_learning"].regularization = regularization
    return make_training(ELRMetaStep(num_synthetic, **OPTIMIZER, **options))


@pytest.mark.parametrize("make", [gce_in_the_loop, elr_in_the_loop, elr_meta, sop_in_the_loop, meta_in_the_loop])
def test_a_reference_goes_on_with_the_same_bits(make: Callable[[], Training]) -> None:
    whole = make()
    rows = list(whole.epochs())
    assert all(math.isfinite(row["class_loss"] or math.nan) for row in rows)
    remembered = {name: tensor.clone() for name, tensor in make()._step.tensors().items()}
    assert any(not torch.equal(whole._step.tensors()[name], tensor) for name, tensor in remembered.items())
    for step in (0, 2, 3, 7, 12):  # before, in and between epochs
        second = make()
        second.load_state_dict(*stopped_before(make(), step))
        list(second.epochs())
        assert_same_state(whole, second)


# What they reduce to


def test_elr_without_its_regularizer_is_cross_entropy() -> None:
    step = elr(27)
    step.early_learning.regularization = 0.0
    plain, reference = make_training(MLNTStep(0, 0.5, 3, 0.1, momentum=0.9, weight_decay=1e-3)), make_training(step)
    list(plain.epochs()), list(reference.epochs())
    for name in ("student", "teacher"):
        for one, other in zip(plain.module(name).parameters(), reference.module(name).parameters(), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_elr_under_the_meta_update_is_elr_without_it_and_mlnt_without_its_regularizer() -> None:
    mlnt = make_training(MLNTStep(2, 0.5, 3, 0.1, momentum=0.9, weight_decay=1e-3))
    both = elr_meta()
    for one, other in ((elr_meta(regularization=0.0), mlnt), (elr_meta(num_synthetic=0), elr_in_the_loop())):
        list(one.epochs()), list(other.epochs())
        for name in ("student", "teacher"):
            for mine, expected in zip(one.module(name).parameters(), other.module(name).parameters(), strict=True):
                torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    list(both.epochs())
    assert not torch.allclose(both.state.student.parameters[0], mlnt.state.student.parameters[0], atol=1e-3)


@pytest.mark.parametrize("make", [lambda: truncated(torch.ones(4).bool()), elr, lambda: sop_in_the_loop()._step])
def test_a_step_that_remembers_samples_refuses_a_batch_without_positions(make: Callable[[], LossStep]) -> None:
    with pytest.raises(ValueError, match="positions"):
        make()(TrainState(make_network()), Batch(torch.zeros(4, 1, 8, 8), LABELS[:4]), RATES)
