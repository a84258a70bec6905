"""`MLNTStep` against the plain transcription of Algorithm 1, and what its special cases reduce to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import algorithm1
import pytest
import torch
import torch.nn.functional as F
from algorithm1 import Hyper
from layers import Layers
from torch import Tensor, nn
from torch.func import functional_call

from mlnt.method.step import MLNTStep
from mlnt.networks import create_model
from mlnt.training.passes import Network
from mlnt.training.state import Batch, Metrics, Rates, TrainState

NUM_CLASSES = 4
BATCH_SIZE = 12
FAST = ["all", "classifier"]
KEPT = {
    "all": None,
    "some": torch.arange(BATCH_SIZE) % 3 > 0,
    "none": torch.zeros(BATCH_SIZE, dtype=torch.bool),
}


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def preact(seed: int) -> nn.Module:
    """The default network, in double precision."""
    return create_model("preact_resnet_tiny", num_classes=NUM_CLASSES, in_chans=1, seed=seed).double()


def smooth(seed: int) -> nn.Module:
    """A small network with BatchNorm whose loss has all derivatives, for finite differences."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Layers(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, NUM_CLASSES)).double()


def make_state(build: Callable[[int], nn.Module] = preact) -> TrainState:
    """A state in mid-training: momentum, statistics and a teacher unlike the student."""
    generator = torch.Generator().manual_seed(1)
    state = TrainState(build(0))
    with torch.no_grad():
        for network in (state.student, state.teacher):
            for parameter in network.parameters:
                parameter.add_(normal(generator, *parameter.shape), alpha=0.1)
            for buffer in network.module.buffers():
                if buffer.is_floating_point():
                    buffer.add_(normal(generator, *buffer.shape) ** 2, alpha=0.1)
        for momentum in state.momentum:
            momentum.add_(normal(generator, *momentum.shape), alpha=0.01)
    return state


def make_batch(seed: int = 2, kept: Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=normal(generator, BATCH_SIZE, 1, 8, 8),
        labels=torch.randint(NUM_CLASSES, (BATCH_SIZE,), generator=generator),
        kept=kept,
        any_kept=kept is None or bool(kept.any()),
        features=normal(generator, BATCH_SIZE, 6),
    )


def make_step(h: Hyper, mentor: nn.Module | None = None) -> MLNTStep:
    return MLNTStep(
        num_synthetic=h.M,
        replace_fraction=h.rho,
        num_neighbors=h.K,
        inner_lr=h.alpha,
        momentum=h.momentum,
        weight_decay=h.wd,
        fast_weights=h.fast,
        order=h.order,
        update=h.update,
        kl_reduction=h.kl,
        teacher_bn=h.teacher_bn,
        mentor=None if mentor is None else Network(mentor),
    )


def make_rates(h: Hyper) -> Rates:
    return Rates(lr=h.beta, meta_lr=h.eta, ema_decay=h.gamma, teacher_weight=h.lam)


def run_step(
    h: Hyper,
    state: TrainState,
    batch: Batch,
    mentor: nn.Module | None = None,
    seed: int = 2,
) -> Metrics:
    step = make_step(h, mentor)
    draws = step.draw(BATCH_SIZE, torch.Generator().manual_seed(seed))
    return step(state, replace(batch, draws=draws), make_rates(h))


def snapshot(state: TrainState) -> dict[str, Tensor]:
    """Everything that a step may change, by name."""
    tensors = {f"student.{k}": v for k, v in state.student.module.state_dict().items()}
    tensors |= {f"teacher.{k}": v for k, v in state.teacher.module.state_dict().items()}
    tensors |= {f"momentum.{k}": v for k, v in zip(state.student.names, state.momentum, strict=True)}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    """Relative to the largest entry of each tensor: entries near 0 are differences of large ones."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (actual[name] - tensor).abs().max()
        assert error <= rtol * tensor.abs().max(), f"{name}: {error}"


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


# The transcription


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("with_mentor", [False, True], ids=["alone", "mentor"])
@pytest.mark.parametrize("teacher_bn", ["own", "ema"])
@pytest.mark.parametrize("kl", ["batchmean", "mean"])
@pytest.mark.parametrize("update", ["sequential", "joint"])
@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("fast", FAST)
def test_step_equals_algorithm_1(
    fast: str, order: str, update: str, kl: str, teacher_bn: str, with_mentor: bool, kept: str
) -> None:
    h = Hyper(fast=fast, order=order, update=update, kl=kl, teacher_bn=teacher_bn)
    mentor = make_state(lambda _: preact(9)).student.module.eval() if with_mentor else None
    state = make_state()
    for seed in (2, 3):
        reference = copy.deepcopy(state)
        batch = make_batch(seed, KEPT[kept])
        metrics = run_step(h, state, batch, mentor, seed)
        class_loss, meta_loss = algorithm1.step(
            reference.student.module,
            reference.teacher.module,
            dict(zip(reference.student.names, reference.momentum, strict=True)),
            mentor,
            (batch.images, batch.labels, batch.features, batch.kept),
            torch.Generator().manual_seed(seed),
            h,
        )
        assert metrics["class_loss"].item() == pytest.approx(class_loss, rel=1e-10, abs=1e-12)
        assert metrics["meta_loss"].item() == pytest.approx(meta_loss, rel=1e-10)
        assert_close(snapshot(state), snapshot(reference), rtol=1e-10)


@pytest.mark.parametrize(
    "change",
    [
        {"fast": "classifier"},
        {"order": "second"},
        {"update": "joint"},
        {"kl": "mean"},
        {"teacher_bn": "ema"},
        {"M": 1},
        {"rho": 0.25},
        {"K": 5},
        {"alpha": 0.1},
        {"momentum": 0.5},
        {"wd": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("fast", FAST)
def test_every_switch_changes_the_result(change: dict[str, object], fast: str) -> None:
    # Without this, equality with the transcription could mean that both ignore a switch.
    if change.get("fast") == fast:
        change = {"fast": "all"}
    plain, changed = make_state(), make_state()
    run_step(Hyper(fast=fast), plain, make_batch())
    run_step(replace(Hyper(fast=fast), **change), changed, make_batch())
    before, after = snapshot(plain), snapshot(changed)
    assert any(not torch.allclose(before[name], after[name], rtol=1e-9) for name in before)


# The meta gradient


@dataclass(frozen=True)
class Inner:
    """One synthetic mini-batch as functions of a parameter list: the inner loss, the fast parameters, J."""

    student: nn.Module
    images: Tensor
    labels: Tensor
    target: Tensor
    alpha: float
    first_moved: int  # the parameters from here on have fast weights

    def logits(self, parameters: list[Tensor]) -> Tensor:
        names = [name for name, _ in self.student.named_parameters()]
        return algorithm1.forward(self.student, dict(zip(names, parameters, strict=True)), self.images)

    def loss(self, parameters: list[Tensor]) -> Tensor:
        return F.cross_entropy(self.logits(parameters), self.labels)

    def fast(self, parameters: list[Tensor]) -> list[Tensor]:
        gradient = torch.autograd.grad(self.loss(parameters), parameters)
        return [
            (p - self.alpha * g if at >= self.first_moved else p).detach().requires_grad_()
            for at, (p, g) in enumerate(zip(parameters, gradient, strict=True))
        ]

    def consistency(self, fast: list[Tensor]) -> Tensor:
        log_probs = self.logits(fast).log_softmax(1)
        return (self.target * (self.target.log() - log_probs)).sum() / len(self.labels)


def meta_gradient(order: str, build: Callable[[int], nn.Module], fast: str) -> tuple[Inner, list[Tensor], list[Tensor]]:
    """(the inner problem at θ, θ, the gradient that the step took), for M = 1."""
    # With β = 0 and η = 1 the student moves by −∇L_meta and by nothing else.
    h = Hyper(M=1, fast=fast, order=order, eta=1.0, beta=0.0, momentum=0.0, wd=0.0)
    state, batch = make_state(build), make_batch()
    assert batch.features is not None
    labels = algorithm1.synthetic_labels(batch.labels, batch.features, h, torch.Generator().manual_seed(2))[0]
    theta_teacher = dict(state.teacher.module.named_parameters())
    target = algorithm1.forward(state.teacher.module, theta_teacher, batch.images).softmax(1)
    theta = [p.detach().clone().requires_grad_() for p in state.student.parameters]
    first_moved = len(theta) - 2 if fast == "classifier" else 0
    inner = Inner(copy.deepcopy(state.student.module), batch.images, labels, target, h.alpha, first_moved)
    run_step(h, state, batch)
    taken = [(before - after).detach() for before, after in zip(theta, state.student.parameters, strict=True)]
    return inner, theta, taken


def assert_gradients_close(actual: list[Tensor], expected: list[Tensor], rtol: float) -> None:
    norm = torch.cat([e.flatten() for e in expected]).norm()
    difference = torch.cat([(a - e).flatten() for a, e in zip(actual, expected, strict=True)]).norm()
    assert norm > 1e-3
    assert difference <= rtol * norm


@pytest.mark.parametrize("fast_weights", FAST)
@pytest.mark.parametrize("build", [preact, smooth])
def test_first_order_is_the_gradient_of_j_at_detached_fast_parameters(
    build: Callable[[int], nn.Module], fast_weights: str
) -> None:
    inner, theta, taken = meta_gradient("first", build, fast_weights)
    fast = inner.fast(theta)
    assert_gradients_close(taken, list(torch.autograd.grad(inner.consistency(fast), fast)), rtol=1e-10)


@pytest.mark.parametrize("build", [preact, smooth])
def test_second_order_is_one_minus_alpha_hessian_times_first_order(build: Callable[[int], nn.Module]) -> None:
    inner, theta, taken = meta_gradient("second", build, "all")
    fast = inner.fast(theta)
    first = torch.autograd.grad(inner.consistency(fast), fast)
    gradient = torch.autograd.grad(inner.loss(theta), theta, create_graph=True)
    hessian_times_first = torch.autograd.grad(gradient, theta, grad_outputs=first)
    expected = [v - inner.alpha * hv for v, hv in zip(first, hessian_times_first, strict=True)]
    assert_gradients_close(taken, expected, rtol=1e-10)


@pytest.mark.parametrize("fast_weights", FAST)
def test_second_order_is_the_derivative_of_l_meta_by_finite_differences(fast_weights: str) -> None:
    inner, theta, taken = meta_gradient("second", smooth, fast_weights)
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        direction = [normal(generator, *p.shape) for p in theta]

        def l_meta(shift: float, along: list[Tensor] = direction) -> float:
            moved = [(p + shift * d).detach().requires_grad_() for p, d in zip(theta, along, strict=True)]
            return float(inner.consistency(inner.fast(moved)).detach())

        slope = (l_meta(1e-5) - l_meta(-1e-5)) / 2e-5
        expected = sum(float((g * d).sum()) for g, d in zip(taken, direction, strict=True))
        assert slope == pytest.approx(expected, rel=1e-6)


def test_meta_gradient_is_the_mean_over_m() -> None:
    # ρ = 0 makes all M synthetic mini-batches the same, so their mean does not depend on M.
    states = []
    for num_synthetic in (1, 5):
        state = make_state()
        run_step(Hyper(M=num_synthetic, rho=0.0), state, make_batch())
        states.append(snapshot(state))
    assert_close(states[0], states[1], rtol=1e-12)


# Reductions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_m_0_is_torch_sgd_on_cross_entropy_to_the_bit(dtype: torch.dtype, weight_decay: float) -> None:
    state = TrainState(preact(0).to(dtype))
    student = copy.deepcopy(state.student.module)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=weight_decay)
    for seed in range(3):
        batch = make_batch(seed)
        images = batch.images.to(dtype)
        optimizer.zero_grad()
        loss = F.cross_entropy(student(images), batch.labels)
        loss.backward()
        optimizer.step()
        metrics = run_step(Hyper(M=0, beta=0.1, wd=weight_decay), state, replace(batch, images=images))
        assert torch.equal(metrics["class_loss"], loss.detach())
        assert_same_bits(state.student.module.state_dict(), student.state_dict())


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("update", ["sequential", "joint"])
@pytest.mark.parametrize("teacher_bn", ["own", "ema"])
@pytest.mark.parametrize("kept", KEPT)
def test_m_0_and_eta_0_are_the_same_to_the_bit(kept: str, teacher_bn: str, update: str, fast: str) -> None:
    results = []
    for h in (Hyper(M=0), Hyper(M=3, eta=0.0, update=update, fast=fast)):
        state = make_state()
        for seed in (2, 3):
            metrics = run_step(replace(h, teacher_bn=teacher_bn), state, make_batch(seed, KEPT[kept]))
            assert "meta_loss" not in metrics
        results.append(snapshot(state))
    assert_same_bits(*results)


def test_m_0_needs_no_features_and_no_draws() -> None:
    step = make_step(Hyper(M=0))
    assert not step.needs_features
    assert step.draw(BATCH_SIZE, torch.Generator()) == {}
    batch = replace(make_batch(), features=None)
    assert step(make_state(), batch, make_rates(Hyper()))["class_loss"].isfinite()


def test_missing_features_are_named() -> None:
    assert make_step(Hyper()).needs_features
    with pytest.raises(ValueError, match="need the batch's features and draws"):
        run_step(Hyper(), make_state(), replace(make_batch(), features=None))


@pytest.mark.parametrize("h", [Hyper(M=0), Hyper()], ids=["cross entropy", "mlnt"])
def test_gamma_1_keeps_the_teacher_and_gamma_0_copies_the_student(h: Hyper) -> None:
    kept, copied = make_state(), make_state()
    before = [p.clone() for p in kept.teacher.parameters]
    run_step(replace(h, gamma=1.0), kept, make_batch())
    run_step(replace(h, gamma=0.0), copied, make_batch())
    assert all(torch.equal(p, b) for p, b in zip(kept.teacher.parameters, before, strict=True))
    pairs = zip(copied.teacher.parameters, copied.student.parameters, strict=True)
    assert all(torch.equal(mine, other) for mine, other in pairs)


def test_teacher_is_the_average_of_the_updated_student() -> None:
    state = make_state()
    before = [p.clone() for p in state.teacher.parameters]
    run_step(Hyper(gamma=0.75), state, make_batch())
    for old, new, student in zip(before, state.teacher.parameters, state.student.parameters, strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * student, rtol=1e-13, atol=1e-14)


def test_mentor_with_teacher_weight_1_is_no_mentor() -> None:
    results = []
    for mentor in (None, preact(9).eval()):
        state = make_state()
        run_step(Hyper(lam=1.0), state, make_batch(), mentor)
        results.append(snapshot(state))
    assert_same_bits(*results)


def test_only_the_classifier_has_fast_weights() -> None:
    # Where the body is its own constant, both kinds of fast weights are the same.
    results = []
    for fast in FAST:
        state = make_state()
        for name, parameter in state.student.module.named_parameters():
            parameter.requires_grad_(name.startswith("fc."))
        frozen = TrainState(state.student.module)
        run_step(Hyper(M=3, fast=fast, order="second"), frozen, make_batch())
        results.append(snapshot(frozen))
    assert_close(*results, rtol=1e-12)


def test_a_classifier_without_bias() -> None:
    def build(seed: int) -> nn.Module:
        module = smooth(seed)
        module[-1] = nn.Linear(5, NUM_CLASSES, bias=False).double()
        with torch.no_grad():
            module[-1].weight.copy_(normal(torch.Generator().manual_seed(3), NUM_CLASSES, 5))
        return module.requires_grad_(False)

    results = []
    for fast in FAST:
        state = make_state(build)
        state.student.module[-1].requires_grad_()
        frozen = TrainState(state.student.module)
        run_step(Hyper(M=3, fast=fast), frozen, make_batch())
        results.append(snapshot(frozen))
    assert_close(*results, rtol=1e-12)


class TwoHeads(Layers):
    def get_classifier(self) -> Any:
        return (self[1], self[-1])


@pytest.mark.parametrize(
    "module", [TwoHeads(*smooth(0)), nn.Sequential(*smooth(0))], ids=["two classifiers", "none that it names"]
)
def test_a_network_without_one_linear_classifier_is_refused(module: nn.Module) -> None:
    with pytest.raises(ValueError, match="expected one linear layer"):
        run_step(Hyper(fast="classifier"), TrainState(module), make_batch())


# Isolation


# η so small that adding η ∇L_meta rounds to nothing: whatever changes, the fast passes have changed it.
NO_META_STEP = {"eta": 1e-300}


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("update", ["sequential", "joint"])
def test_fast_passes_change_nothing(order: str, update: str, fast: str) -> None:
    with_meta, without = make_state(), make_state()
    h = Hyper(M=3, order=order, update=update, fast=fast, **NO_META_STEP)
    metrics = run_step(h, with_meta, make_batch())
    run_step(Hyper(M=0), without, make_batch())
    assert metrics["meta_loss"] > 0
    assert_same_bits(snapshot(with_meta), snapshot(without))
    assert all(p.grad is None for p in with_meta.student.parameters)


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("num_synthetic", [0, 1, 4])
@pytest.mark.parametrize("update", ["sequential", "joint"])
def test_running_statistics_move_once_by_the_classification_forward(update: str, num_synthetic: int, fast: str) -> None:
    h = Hyper(
        M=num_synthetic, fast=fast, update=update, momentum=0.0, wd=0.0, beta=0.0 if update == "sequential" else 0.1
    )
    state, batch = make_state(), make_batch()
    expected = copy.deepcopy(state.student.module)
    run_step(h, state, batch)
    if update == "sequential":  # with β = 0 the student is left where the classification loss was taken
        expected.load_state_dict(dict(state.student.module.named_parameters()), strict=False)
    expected(batch.images)
    assert_same_bits(dict(state.student.module.named_buffers()), dict(expected.named_buffers()))


def test_mentor_and_batch_are_left_alone() -> None:
    mentor = preact(9).eval()
    before = {name: tensor.clone() for name, tensor in mentor.state_dict().items()}
    batch, same = make_batch(), make_batch()
    run_step(Hyper(), make_state(), batch, mentor)
    assert_same_bits(dict(mentor.state_dict()), before)
    assert torch.equal(batch.images, same.images)
    assert torch.equal(batch.labels, same.labels)


@pytest.mark.parametrize("order", ["first", "second"])
def test_step_draws_nothing_and_its_draws_come_from_their_generator_alone(order: str) -> None:
    before, own = torch.get_rng_state(), torch.Generator().manual_seed(5)
    seeded = own.get_state()
    draws = [make_step(Hyper()).draw(BATCH_SIZE, g) for g in (own, torch.Generator().manual_seed(5))]
    assert draws[0].keys() == draws[1].keys() == {"replaced_MB", "pick_MB"}
    assert all(torch.equal(one, draws[1][name]) for name, one in draws[0].items())
    assert not torch.equal(own.get_state(), seeded)
    run_step(Hyper(order=order), make_state(), make_batch())
    assert torch.equal(torch.get_rng_state(), before)


def test_statistics_are_unfrozen_after_an_error() -> None:
    network = Network(preact(0))
    buffers = {name: b.clone() for name, b in network.module.named_buffers()}
    images = make_batch().images

    def forward_and_fail() -> None:
        network(images)
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), network.frozen_statistics():
        forward_and_fail()
    assert_same_bits(dict(network.module.named_buffers()), buffers)
    network(images)
    moved = dict(network.module.named_buffers())
    assert all(not torch.equal(moved[name], buffer) for name, buffer in buffers.items())


# No kept sample


def test_without_kept_samples_nothing_but_the_meta_update_moves_the_student() -> None:
    state, unfiltered = make_state(), make_state()
    momentum = [m.clone() for m in state.momentum]
    batch = make_batch(kept=KEPT["none"])
    metrics = run_step(Hyper(), state, batch)
    # β = 0 with neither momentum nor weight decay leaves the meta update alone there, too.
    run_step(Hyper(beta=0.0), unfiltered, make_batch())
    assert metrics["class_loss"] == 0
    assert metrics["meta_loss"] > 0
    assert all(torch.equal(a, b) for a, b in zip(state.student.parameters, unfiltered.student.parameters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(state.momentum, momentum, strict=True))


def test_without_kept_samples_and_meta_update_the_student_stays() -> None:
    state = make_state()
    before = [p.clone() for p in state.student.parameters]
    run_step(Hyper(M=0), state, make_batch(kept=KEPT["none"]))
    assert all(torch.equal(a, b) for a, b in zip(state.student.parameters, before, strict=True))


def test_samples_outside_the_filtered_set_keep_their_part_in_the_meta_update() -> None:
    # Only the labels of samples outside D′ differ, and with them the neighbours' labels that are drawn.
    results = []
    for shift in (0, 1):
        state, batch = make_state(), make_batch(kept=KEPT["some"])
        labels = torch.where(~batch.kept, (batch.labels + shift) % NUM_CLASSES, batch.labels)
        results.append(run_step(Hyper(M=4, **NO_META_STEP), state, replace(batch, labels=labels)))
    assert torch.equal(results[0]["class_loss"], results[1]["class_loss"])
    assert not torch.equal(results[0]["meta_loss"], results[1]["meta_loss"])


# Metrics


def test_metrics_are_those_before_the_update() -> None:
    state, batch = make_state(), make_batch()
    student, teacher = copy.deepcopy(state.student.module), copy.deepcopy(state.teacher.module)
    metrics = run_step(Hyper(M=0), state, batch)
    logits = student(batch.images)
    assert torch.equal(metrics["class_loss"], F.cross_entropy(logits, batch.labels))
    assert metrics["student_correct"] == (logits.argmax(1) == batch.labels).sum()
    assert metrics["teacher_correct"] == (teacher(batch.images).argmax(1) == batch.labels).sum()


@pytest.mark.parametrize(("teacher_bn", "has_value"), [("own", True), ("ema", False)])
def test_teacher_makes_a_forward_pass_only_when_one_is_needed(teacher_bn: str, has_value: bool) -> None:
    metrics = run_step(Hyper(M=0, teacher_bn=teacher_bn), make_state(), make_batch())
    assert ("teacher_correct" in metrics) == has_value


@pytest.mark.parametrize("num_synthetic", [0, 3])
@pytest.mark.parametrize("teacher_bn", ["own", "ema"])
def test_teacher_statistics_come_from_its_one_forward_pass_or_from_the_average(
    teacher_bn: str, num_synthetic: int
) -> None:
    state = make_state()
    old = {k: v.clone() for k, v in state.teacher.module.named_buffers()}
    teacher = copy.deepcopy(state.teacher.module)
    batch = make_batch()
    run_step(Hyper(M=num_synthetic, teacher_bn=teacher_bn), state, batch)
    teacher(batch.images)
    new = dict(state.teacher.module.named_buffers())
    if teacher_bn == "own":
        assert_same_bits(new, dict(teacher.named_buffers()))
    else:
        student = dict(state.student.module.named_buffers())
        floats = [name for name in new if new[name].is_floating_point()]
        expected = {name: 0.9 * old[name] + 0.1 * student[name] for name in floats}
        assert_close({name: new[name] for name in floats}, expected, rtol=1e-13)


# The functional network


def test_parameters_can_be_frozen() -> None:
    module = preact(0)
    module.stem.weight.requires_grad_(False)
    state = TrainState(module)
    before = module.stem.weight.detach().clone()
    run_step(Hyper(), state, make_batch())
    assert "stem.weight" not in state.student.names
    assert torch.equal(module.stem.weight, before)


def test_network_at_its_own_parameters_is_the_network() -> None:
    network = Network(preact(0))
    images = make_batch().images
    with network.frozen_statistics():
        assert torch.equal(network.at(network.parameters, images), network(images))
        moved = [p + 1.0 for p in network.parameters]
        named = dict(zip(network.names, moved, strict=True))
        assert torch.equal(network.at(moved, images), functional_call(network.module, named, (images,)))


def test_mixed_precision_gives_float32_logits() -> None:
    network = Network(preact(0).float(), torch.bfloat16)
    images = make_batch().images.float()
    for logits in (network(images), network.at(network.parameters, images)):
        assert logits.dtype == torch.float32
        assert torch.equal(logits, logits.bfloat16().float())  # bfloat16 inside
