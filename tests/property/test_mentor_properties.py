from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from mlnt.method.mentor import filter_by_margin, filter_quality, filter_samples, given_label_probability, merged_target


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    size, num_classes = draw(st.integers(1, 20)), draw(st.integers(2, 5))
    logits = draw(arrays(np.float64, (size, num_classes), elements=st.floats(-20, 20)))
    labels = draw(arrays(np.int64, size, elements=st.integers(0, num_classes - 1)))
    return torch.from_numpy(logits).softmax(1), torch.from_numpy(labels)


@given(predictions(), st.floats(-1, 2), st.floats(-1, 2))
def test_kept_samples_shrink_as_tau_grows(case: tuple[Tensor, Tensor], one: float, two: float) -> None:
    low, high = (filter_samples(*case, threshold) for threshold in sorted((one, two)))
    assert not (high & ~low).any()


@given(predictions(), st.floats(-10, -1e-9), st.floats(1, 10))
def test_tau_below_0_keeps_everything_and_from_1_on_nothing(
    case: tuple[Tensor, Tensor], low: float, high: float
) -> None:
    assert filter_samples(*case, low).all()
    assert not filter_samples(*case, high).any()


@given(predictions())
def test_a_threshold_at_a_samples_own_probability_removes_it(case: tuple[Tensor, Tensor]) -> None:
    for i, score in enumerate(given_label_probability(*case)):
        assert not filter_samples(*case, float(score))[i]
        assert filter_samples(*case, float(np.nextafter(float(score), -1)))[i]


def firmness(probs: Tensor, labels: Tensor) -> list[tuple[float, float]]:
    """How firmly each label is contradicted, and from where on that is as firmly as usual; worked out one by one."""
    logs, given = probs.log().tolist(), labels.tolist()
    agreeing = [(row, y) for row, y in zip(logs, given, strict=True) if row[y] == max(row)]

    def median(values: list[float]) -> float:
        return sorted(values)[(len(values) - 1) // 2] if values else float("inf")

    usual = median([row[y] - max(row[:y] + row[y + 1 :]) for row, y in agreeing])
    found = []
    for row, y in zip(logs, given, strict=True):
        i = max((j for j in range(len(row)) if j != y), key=row.__getitem__)
        found.append(
            (row[i] - row[y], min(usual, median([other[i] - other[y] for other, label in agreeing if label == i])))
        )
    return found


@given(predictions())
def test_the_filter_by_margin_is_what_its_definition_says(case: tuple[Tensor, Tensor]) -> None:
    kept = [found <= 0 or found < usual for found, usual in firmness(*case)]
    assert filter_by_margin(*case).tolist() == kept


@given(predictions(), st.floats(0.2, 5))
def test_how_sure_a_network_is_as_a_whole_does_not_matter(case: tuple[Tensor, Tensor], temperature: float) -> None:
    probs, labels = case
    clear = torch.tensor([abs(found) > 1e-6 and abs(found - usual) > 1e-6 for found, usual in firmness(*case)])
    other = filter_by_margin((probs.log() / temperature).softmax(dim=1), labels)
    assert torch.equal(other[clear], filter_by_margin(probs, labels)[clear])


@given(predictions())
def test_a_network_that_knows_nothing_filters_nothing(case: tuple[Tensor, Tensor]) -> None:
    probs, labels = case
    assert filter_by_margin(torch.full_like(probs, 1 / probs.shape[1]), labels).all()
    assert filter_by_margin(probs, probs.argmax(dim=1)).all()


@given(predictions(), st.floats(0, 1))
def test_merged_target_is_a_distribution_between_its_two(case: tuple[Tensor, Tensor], weight: float) -> None:
    teacher, mentor = case[0], case[0].roll(1, dims=1)
    merged = merged_target(teacher, mentor, weight)
    assert torch.allclose(merged.sum(1), torch.ones(len(merged), dtype=torch.float64))
    assert (merged >= torch.minimum(teacher, mentor) - 1e-15).all()
    assert (merged <= torch.maximum(teacher, mentor) + 1e-15).all()


@given(
    st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=2, max_size=30).filter(
        lambda samples: 0 < sum(wrong for _, wrong in samples) < len(samples)
    ),
    st.integers(0, 10),
)
def test_filter_quality_counts_pairs(samples: list[tuple[int, bool]], threshold: int) -> None:
    scores = np.array([score for score, _ in samples]) / 10
    wrong = np.array([is_wrong for _, is_wrong in samples])
    kept = scores > threshold / 10
    quality = filter_quality(scores, kept, wrong)
    pairs = [(w < c) + 0.5 * (w == c) for w in scores[wrong] for c in scores[~wrong]]
    assert np.isclose(quality.auc, np.mean(pairs))
    assert np.isclose(quality.recall, np.mean(~kept[wrong]))
    if kept.any():
        assert np.isclose(quality.purity, np.mean(~wrong[kept]))
    if not kept.all():
        assert np.isclose(quality.precision, np.mean(wrong[~kept]))


@given(predictions(), st.floats(0, 1))
def test_a_share_takes_the_least_firm_away_and_brings_nothing_back(case: tuple[Tensor, Tensor], at_most: float) -> None:
    usual, found = filter_by_margin(*case), filter_by_margin(*case, at_most)
    assert not (found & ~usual).any()
    logs = case[0].log()
    others = logs.scatter(1, case[1].unsqueeze(1), -torch.inf).amax(dim=1)
    margins = given_label_probability(logs, case[1]) - others
    if not (margins >= 0).any():  # it agrees with no label
        assert found.all()
        return
    wanted = min(max(1, round(at_most * len(usual))), int(usual.sum()))
    assert found.sum() >= wanted
    if len(margins.unique()) == len(margins):
        assert found.sum() == wanted
    if (usual & ~found).any():
        assert margins[found].min() > margins[usual & ~found].max()
