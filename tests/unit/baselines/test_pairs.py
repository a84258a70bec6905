"""Two networks that teach each other: Co-teaching and DivideMix beside plain loops, by hand, stopped and recorded."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from recordings import NothingIsRead, Recorder, assert_replayed_as_step_by_step, training_in_float64
from scipy import stats
from torch import Tensor, nn
from trainings import (
    BATCH_SIZE,
    NUM_CLASSES,
    OPTIMIZER,
    RATES,
    assert_same_state,
    make_data,
    make_network,
    make_training,
    stopped_before,
)

from mlnt import seeding
from mlnt.baselines.co_teaching import CoTeachingStep, remember_rate, small_losses
from mlnt.baselines.divide_mix import DivideMixStep, clean_probabilities, refine, semi_supervised_loss, sharpen
from mlnt.baselines.pair import PairNetwork, mean_prediction
from mlnt.method.step import MLNTStep
from mlnt.training.loop import Training
from mlnt.training.passes import Network
from mlnt.training.state import Batch, Rates, TrainState

SIZE = 27
CPU = torch.device("cpu")


def make_pair(first: int = 0, second: int = 1) -> PairNetwork:
    return PairNetwork(make_network(first), make_network(second))


def without_dropout(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def co_teaching(**changes: Any) -> CoTeachingStep:
    return CoTeachingStep(**(OPTIMIZER | {"noise_rate": 0.4, "ramp_epochs": 2, "device": CPU} | changes))


def divide_mix(**changes: Any) -> DivideMixStep:
    options = {
        "num_samples": SIZE,
        "device": CPU,
        "warm_up": 1,
        "confidence_penalty": False,
        "threshold": 0.5,
        "augmentations": 2,
        "temperature": 0.5,
        "beta": 4.0,
        "unlabeled_weight": 7.5,
        "ramp_steps": 5,
    }
    return DivideMixStep(**(OPTIMIZER | options | changes))


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The pair


def test_a_pair_predicts_the_mean_of_both() -> None:
    pair = make_pair().double().eval()
    images = random_logits(5, 1, 8, 8)
    expected = sum(network(images).softmax(1) for network in pair.networks) / 2
    torch.testing.assert_close(pair(images).exp(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(pair(images).softmax(1), expected, rtol=1e-12, atol=0)


def test_the_mean_survives_networks_that_are_sure() -> None:
    logits = torch.tensor([[900.0, -900.0]], requires_grad=True)
    found = mean_prediction(logits, logits.flip(1))
    torch.testing.assert_close(found.exp(), torch.tensor([[0.5, 0.5]]))
    assert torch.autograd.grad(found.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize("step", [co_teaching(), divide_mix()])
def test_a_single_network_is_refused(step: Any) -> None:
    batch = Batch(torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(ValueError, match="needs a PairNetwork, got a Layers"):
        step(TrainState(make_network()), batch, RATES)


# Stopped, recorded


def co_teaching_training() -> Training:
    return make_training(co_teaching(), network=make_pair(), epochs=6)


def divide_mix_training() -> Training:
    return make_training(divide_mix(warm_up=2), network=make_pair(), epochs=6)


@pytest.mark.parametrize("make", [co_teaching_training, divide_mix_training])
def test_training_that_was_stopped_goes_on_with_the_same_bits(make: Callable[[], Training]) -> None:
    whole = make()
    list(whole.epochs())
    for step in (0, 4, 5, 6, 7, 9, 18):  # the warm-up of two epochs ends with step 5
        second = make()
        second.load_state_dict(*stopped_before(make(), step))
        list(second.epochs())
        assert_same_state(whole, second)


def co_teaching_recorded() -> Training:
    return training_in_float64(co_teaching(), network=make_pair())


def divide_mix_recorded() -> Training:
    step = divide_mix()
    step._clean = step._clean.double()
    return training_in_float64(step, network=make_pair())


@pytest.mark.parametrize(("make", "phases"), [(co_teaching_recorded, 1), (divide_mix_recorded, 2)])
def test_a_pair_is_replayed_as_it_would_be_run(make: Callable[[], Training], phases: int, recorder: Recorder) -> None:
    """A recording with η = 0, in the first step alone, and one for each phase."""
    assert_replayed_as_step_by_step(make)
    assert recorder.recordings == 1 + phases


@pytest.mark.parametrize("make", [co_teaching_training, divide_mix_training])
@pytest.mark.parametrize("epoch", [0, 3])
def test_nothing_in_a_step_of_a_pair_looks_at_a_value(make: Callable[[], Training], epoch: int) -> None:
    training = make()
    positions = training._step.mini_batches(epoch, SIZE, BATCH_SIZE, seeding.generator(0, "order"))
    inputs, any_kept = training._inputs(positions, first=4)
    one = {name: values[0] for name, values in inputs.items()}
    one["fetched"] = training._data.train.indices[one["positions"]]
    rates = Rates(*torch.tensor([0.1, 0.1, 0.9, 0.0], dtype=torch.float64).unbind())
    with NothingIsRead():
        training._step_on(one, rates, any_kept[0])


# Co-teaching


def test_the_share_that_is_remembered() -> None:
    assert [remember_rate(epoch, 10, 0.4) for epoch in (0, 5, 10, 50)] == [1.0, 0.8, 0.6, 0.6]


@pytest.mark.parametrize(("share", "expected"), [(1.0, 40), (1 - 0.45, 22), (0.56, 23), (0.0, 1)])
def test_at_least_the_share_is_chosen(share: float, expected: int) -> None:
    chosen = small_losses(random_logits(40, 3), torch.zeros(40, dtype=torch.int64), share)
    assert chosen.sum() == expected


def test_of_equal_losses_the_first_are_chosen() -> None:
    chosen = small_losses(torch.zeros(6, 3), torch.zeros(6, dtype=torch.int64), 0.5)
    assert chosen.tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_co_teaching_beside_plain_loops(rate: float) -> None:
    """Three epochs of a step each, R(T) falling: every loss by itself, sorted as a list, two optimizers of torch."""
    step = co_teaching(noise_rate=rate, ramp_epochs=2)
    pair = without_dropout(make_pair()).double()
    plain = [copy.deepcopy(network) for network in pair.networks]
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3) for n in plain]
    state = TrainState(pair)
    for epoch in range(3):
        images, labels = random_logits(10, 1, 8, 8, seed=epoch), torch.arange(10) * 7 % NUM_CLASSES
        step._share.fill_(remember_rate(epoch, 2, rate))
        metrics = step(state, Batch(images, labels), RATES)
        kept = math.ceil(10 * (1 - min(epoch / 2 * rate, rate)) - 1e-9)
        losses = []
        for network in plain:
            logits = network(images)
            losses.append([-(z[y] - z.exp().sum().log()) for z, y in zip(logits, labels, strict=True)])
        easy = [sorted(range(10), key=lambda i, of=of: of[i].item())[:kept] for of in losses]
        assert kept == 10 or set(easy[0]) != set(easy[1])
        totals = [sum(losses[k][i] for i in easy[1 - k]) / kept for k in (0, 1)]
        for total, optimizer in zip(totals, optimizers, strict=True):
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        torch.testing.assert_close(metrics["class_loss"], (totals[0] + totals[1]).detach(), rtol=1e-10, atol=0)
    for expected, network in zip(plain, pair.networks, strict=True):
        for name, tensor in expected.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], tensor, rtol=1e-10, atol=1e-12)


def test_co_teaching_without_noise_is_cross_entropy_twice() -> None:
    network = make_pair()
    plain = make_training(
        MLNTStep(0, 0.5, 3, 0.1, momentum=0.9, weight_decay=1e-3), network=without_dropout(make_network(0))
    )
    both = make_training(co_teaching(noise_rate=0.0), network=without_dropout(network))
    list(plain.epochs()), list(both.epochs())
    for model in ("student", "teacher"):
        expected, found = plain.module(model).state_dict(), both.module(model).networks[0].state_dict()  # type: ignore[union-attr,operator,index]
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


# DivideMix


def test_two_humps_of_losses_are_told_apart() -> None:
    draw = np.random.default_rng(0)
    low, high = draw.normal(0.5, 0.2, 600), draw.normal(3.0, 0.6, 300)
    losses = torch.from_numpy(np.concatenate([low, high]))
    found = clean_probabilities(losses)
    # The posterior of the densities that they were drawn from.
    densities = [
        share * stats.norm(mean, deviation).pdf(losses.numpy())
        for share, mean, deviation in ((2, 0.5, 0.2), (1, 3, 0.6))
    ]
    expected = densities[0] / (densities[0] + densities[1])
    assert np.abs(found.numpy() - expected).mean() < 0.01
    # Neither where they lie nor their unit matters.
    torch.testing.assert_close(clean_probabilities(7 * losses + 3), found, rtol=1e-3, atol=1e-4)


def test_losses_without_humps_give_probabilities() -> None:
    for losses in (
        torch.zeros(9),
        torch.tensor([0.0, 5.0]),
        torch.linspace(0, 1, 50),
        torch.tensor([0.0] * 99 + [1e6]),
    ):
        found = clean_probabilities(losses)
        assert found.isfinite().all()
        assert ((found >= 0) & (found <= 1)).all()
    assert found[:99].min() > 0.9
    assert found[99] < 0.1


def test_refining_and_sharpening_by_hand() -> None:
    probs = torch.tensor([[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    refined = refine(torch.tensor([1, 2]), torch.tensor([0.5, 1.0]), probs)
    torch.testing.assert_close(refined, torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64))
    sharp = sharpen(probs, 0.5)
    torch.testing.assert_close(sharp[0], torch.tensor([36 / 52, 16 / 52, 0.0], dtype=torch.float64))
    torch.testing.assert_close(sharpen(probs, 1.0), probs)


def test_the_loss_has_a_finite_gradient_where_a_class_is_never_predicted() -> None:
    logits = torch.tensor([[500.0, -500.0], [500.0, -500.0]], requires_grad=True)
    loss = semi_supervised_loss(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 1, 2.0)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


@pytest.mark.parametrize("beta", [0.5, 4.0])
def test_shares_are_those_of_a_beta_distribution(beta: float) -> None:
    draws = divide_mix(beta=beta).draw(4000, torch.Generator().manual_seed(0))
    share = draws["share"].flatten().numpy()
    assert share.min() >= 0.5
    # λ′ = max(λ, 1 − λ): its distribution function is twice that of λ, less one.
    assert stats.kstest(share, lambda x: 2 * stats.beta(beta, beta).cdf(x) - 1).pvalue > 0.01
    for order in draws["partner"]:
        assert order.sort().values.tolist() == list(range(4000))
    assert not torch.equal(*draws["partner"])


def plain_order(batches: Tensor) -> list[list[int]]:
    return [batches[:, part].flatten().tolist() for part in (slice(0, 4), slice(4, 8), slice(8, 12), slice(12, 16))]


def test_mini_batches_come_from_the_sets_of_their_network() -> None:
    step = divide_mix()
    step._clean[0, :20] = 0.5  # τ itself counts as clean
    step._clean[1, 21:] = 1.0
    order = seeding.generator(3, "order")
    batches = step.mini_batches(1, SIZE, BATCH_SIZE, order)
    assert batches.shape == (3, 2 * BATCH_SIZE)
    first, second, third, fourth = plain_order(batches)
    assert len(set(first)) == 12
    assert set(first) < set(range(20))
    assert set(second) == set(range(20, 27))  # seven samples for twelve places
    assert second[7:] == second[:5]
    assert set(third) == set(range(21, 27))
    assert set(fourth) < set(range(21))
    again = step.mini_batches(1, SIZE, BATCH_SIZE, seeding.generator(3, "order"))
    assert torch.equal(again, batches)


def test_an_empty_set_is_all_of_the_data() -> None:
    step = divide_mix()
    step._clean.fill_(1.0)
    labeled, unlabeled, *_ = plain_order(step.mini_batches(1, SIZE, BATCH_SIZE, seeding.generator(3, "order")))
    assert len(set(labeled)) == len(set(unlabeled)) == 12


def test_both_networks_warm_up_on_all_samples_in_an_order_of_their_own() -> None:
    step = divide_mix(warm_up=2)
    batches = step.mini_batches(1, SIZE, BATCH_SIZE, seeding.generator(3, "order"))
    first, second = batches[:, :8].flatten(), batches[:, 8:].flatten()
    assert torch.equal(first, torch.randperm(SIZE, generator=seeding.generator(3, "order"))[:24])  # cross entropy's
    assert len(set(second.tolist())) == 24
    assert not torch.equal(first, second)


def test_each_network_divides_for_the_other_after_the_warm_up() -> None:
    """By the losses of eval mode on un-augmented images, before the epoch."""
    step, data = divide_mix(warm_up=2), make_data()
    training = make_training(step, data, make_pair(), epochs=3)
    found = []

    def watch(number: int) -> None:
        if number % 3 == 0:
            images = data.images.batch(data.train.indices)
            pair = copy.deepcopy(training.module("student")).eval()
            with torch.no_grad():
                logits = [network(images) for network in pair.networks]  # type: ignore[union-attr]
            losses = [nn.functional.cross_entropy(z.double(), data.train.labels, reduction="none") for z in logits]
            found.append((step._clean.clone(), torch.stack([clean_probabilities(loss) for loss in reversed(losses)])))

    list(training.epochs(watch))
    assert not found[0][0].any()
    assert not found[1][0].any()
    torch.testing.assert_close(found[2][0].double(), found[2][1], rtol=1e-4, atol=1e-5)
    assert not torch.equal(*found[2][0])


@pytest.mark.parametrize("penalty", [False, True])
def test_the_warm_up_beside_plain_loops(penalty: bool) -> None:
    step = divide_mix(confidence_penalty=penalty)
    pair = without_dropout(make_pair()).double()
    plain = copy.deepcopy(pair)
    images, labels = random_logits(16, 1, 8, 8), torch.arange(16) * 7 % NUM_CLASSES
    loss, logits = step.loss(TrainState(pair), Batch(images, labels))
    expected = torch.zeros((), dtype=torch.float64)
    for k, network in enumerate(plain.networks):
        probs = network(images[8 * k : 8 * k + 8]).softmax(1)
        for p, y in zip(probs, labels[8 * k : 8 * k + 8], strict=True):
            expected = expected - p[y].log() / 8 + (sum(q * q.log() for q in p) / 8 if penalty else 0)
        torch.testing.assert_close(logits[8 * k : 8 * k + 8].softmax(1), probs, rtol=1e-10, atol=0)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    ours, theirs = (
        torch.autograd.grad(loss, list(pair.parameters())),
        torch.autograd.grad(expected, list(plain.parameters())),
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def sharpened(p: list[float], temperature: float) -> list[float]:
    powers = [x ** (1 / temperature) for x in p]
    return [x / sum(powers) for x in powers]


def plain_divide_mix(
    networks: list[nn.Module], views: list[Tensor], labels: Tensor, clean: list[list[float]], draws: Any, weight: float
) -> list[Tensor]:
    """The losses of both networks, sample by sample; views[m] has x⁽¹⁾, u⁽¹⁾, x⁽²⁾, u⁽²⁾, five of each x and four u."""
    x, u, n, M, C = 5, 4, 9, len(views), NUM_CLASSES
    own = [[view[n * k : n * k + n] for view in views] for k in (0, 1)]
    predictions = []
    for k in (0, 1):
        asked = torch.cat([*own[k], *(view[x:] for view in own[1 - k])])
        before = copy.deepcopy(networks[k].state_dict())
        with torch.no_grad():
            predictions.append(networks[k](asked).softmax(1).tolist())
        networks[k].load_state_dict(before)  # its running statistics do not move
    totals = []
    for k in (0, 1):
        targets = []
        for b in range(n):
            mine = [sum(predictions[k][n * m + b][c] for m in range(M)) / M for c in range(C)]
            if b < x:
                y, w = int(labels[n * k + b]), clean[k][b]
                target = [w * (c == y) + (1 - w) * mine[c] for c in range(C)]
            else:
                theirs = [sum(predictions[1 - k][M * n + u * m + b - x][c] for m in range(M)) / M for c in range(C)]
                target = [(mine[c] + theirs[c]) / 2 for c in range(C)]
            targets.append(sharpened(target, 0.5))
        entries = [(own[k][m][b], targets[b]) for m in range(M) for b in range(x)]
        entries += [(own[k][m][b], targets[b]) for m in range(M) for b in range(x, n)]
        images, mixed = [], []
        for i, (image, target) in enumerate(entries):
            share, (other_image, other_target) = draws["share"][k][i].item(), entries[draws["partner"][k][i]]
            images.append(share * image + (1 - share) * other_image)
            mixed.append([share * p + (1 - share) * q for p, q in zip(target, other_target, strict=True)])
        probs = networks[k](torch.stack(images)).softmax(1)
        of_labeled = of_unlabeled = torch.zeros((), dtype=torch.float64)
        for i, p in enumerate(probs):
            if i < M * x:
                of_labeled = of_labeled - sum(mixed[i][c] * p[c].log() for c in range(C)) / (M * x)
            else:
                of_unlabeled = of_unlabeled + sum((mixed[i][c] - p[c]) ** 2 for c in range(C)) / (C * M * u)
        average = sum(probs) / len(probs)
        regularisation = sum(1 / C * math.log(1 / C) - 1 / C * average[c].log() for c in range(C))
        totals.append(of_labeled + weight * of_unlabeled + regularisation)
    return totals


@pytest.mark.parametrize("augmentations", [1, 2, 3])
def test_divide_mix_beside_plain_loops(augmentations: int) -> None:
    """Four steps with a batch size of nine, λ_u rising over the first two: weights, statistics, losses, average."""
    step = divide_mix(warm_up=0, augmentations=augmentations, ramp_steps=2)
    step._clean = torch.rand(2, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pair = without_dropout(make_pair()).double()
    state = TrainState(pair)
    plain = [copy.deepcopy(network).train() for network in pair.networks]
    average = copy.deepcopy(plain)
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3) for n in plain]
    generator = torch.Generator().manual_seed(5)
    for number in range(4):
        positions = torch.randint(SIZE, (18,), generator=generator)
        labels = torch.randint(NUM_CLASSES, (18,), generator=generator)
        views = [random_logits(18, 1, 8, 8, seed=10 * number + m) for m in range(augmentations)]
        draws = step.draw(18, generator)
        metrics = step(state, Batch(views[0], labels, positions, draws=draws, other_views=tuple(views[1:])), RATES)
        clean = [step._clean[k, positions[9 * k : 9 * k + 5]].tolist() for k in (0, 1)]
        correct = 0
        with torch.no_grad():
            for k, network in enumerate(average):
                correct += int((network(views[0][9 * k : 9 * k + 9]).argmax(1) == labels[9 * k : 9 * k + 9]).sum())
        losses = plain_divide_mix(plain, views, labels, clean, draws, 7.5 * min(number / 2, 1))
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            for network, mean in zip(plain, average, strict=True):
                for p, q in zip(network.parameters(), mean.parameters(), strict=True):
                    q.copy_(0.9 * q + 0.1 * p)
        torch.testing.assert_close(metrics["class_loss"], (losses[0] + losses[1]).detach(), rtol=1e-10, atol=0)
        assert metrics["teacher_correct"].item() == correct / 2
    for networks, module in ((plain, state.student.module), (average, state.teacher.module)):
        for expected, network in zip(networks, module.networks, strict=True):  # type: ignore[arg-type]
            for name, tensor in expected.state_dict().items():
                torch.testing.assert_close(network.state_dict()[name], tensor, rtol=1e-10, atol=1e-12)


def test_divide_mix_trains_in_mixed_precision() -> None:
    for step in (divide_mix(), co_teaching()):
        training = make_training(step, network=make_pair(), amp_dtype=torch.bfloat16)
        assert all(math.isfinite(row["class_loss"] or math.nan) for row in training.epochs())
        assert all(tensor.dtype != torch.bfloat16 for tensor in training.state.tensors())


def test_divide_mix_goes_on_without_positions() -> None:
    step = divide_mix(warm_up=0)
    batch = Batch(torch.zeros(16, 1, 8, 8), torch.zeros(16, dtype=torch.int64))
    with pytest.raises(ValueError, match="positions"):
        step(TrainState(make_pair()), batch, RATES)


def test_a_network_is_compiled_in_its_parts() -> None:
    compiled: list[str] = []
    pair = make_pair()
    for name, network in zip(("first", "second"), pair.networks, strict=True):
        network.compile = lambda name=name: compiled.append(name)  # type: ignore[assignment,misc]
    Network(pair).module.compile()
    assert compiled == ["first", "second"]
