"""DivideMix: samples whose labels look wrong are taken as unlabeled (Li, Socher & Hoi, ICLR 2020, "DivideMix: Learning
with Noisy Labels as Semi-supervised Learning"). A reimplementation from the paper.

Two networks are warmed up by cross entropy. Before each later epoch the losses of all samples by one network, of which
right and wrong labels form a Gaussian each, divide D for the other one into labeled samples and unlabeled ones, on
which it is trained by MixMatch (Berthelot et al., NeurIPS 2019).

Prior knowledge: none. The paper's recipe on CIFAR-10 and 100: 10 and 30 of 300 epochs of warm-up; τ 0.5, M 2, T 0.5,
α 4; λ_u from 0, 25, 50 and 150 on validation.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mlnt.baselines.loss_step import LossStep, entropy
from mlnt.baselines.pair import pair_of
from mlnt.training.state import Batch, EpochContext, Metrics, Rates, TrainState

WARM_UP, DIVIDED = "warm-up", "divided"


@dataclass
class DivideMixStep(LossStep):
    """A step trains both networks of a `PairNetwork`, each on a mini-batch of its own.

    In the first `warm_up` epochs network k = 1, 2 has its own order of D, and

        L⁽ᵏ⁾ = 1/B Σ_b ℓ(f(x_b, θ⁽ᵏ⁾), y_b) − H(f(x_b, θ⁽ᵏ⁾)),

    where the entropy H, the confidence penalty, is there for asymmetric noise. After that, before each epoch,
    w⁽ᵏ⁾ᵢ = p(small-loss Gaussian | ℓᵢ), the losses ℓ those of the other network (co-divide, `clean_probabilities`). The
    labeled samples of network k are those with w⁽ᵏ⁾ᵢ ≥ τ. Of a mini-batch one half, x_b, is drawn from the labeled and
    one, u_b, from the unlabeled samples, each augmented M times:

        ŷ_b = Sharpen(w_b y_b + (1 − w_b) 1/M Σₘ f(x_bm, θ⁽ᵏ⁾), T)                    label co-refinement
        q_b = Sharpen(1/2M Σₘ f(u_bm, θ⁽¹⁾) + f(u_bm, θ⁽²⁾), T)                       label co-guessing
        x′ = λ′ x₁ + (1 − λ′) x₂,  p′ = λ′ p₁ + (1 − λ′) p₂,  λ′ = max(λ, 1 − λ),  λ ~ Beta(α, α)

    for each of the M B augmented samples x₁ and its partner x₂ in a random order of all of them; X′ are those with
    x₁ labeled, U′ the others:

        L_X = −1/|X′| Σ p′ · log f(x′),  L_U = 1/(C |U′|) Σ ‖p′ − f(x′)‖²,
        L_reg = Σ_c π_c log(π_c / f̄_c),  π_c = 1/C,  f̄ the mean of f(x′) over X′ and U′
        L⁽ᵏ⁾ = L_X + λ_u L_U + L_reg

    with λ_u linear from 0 over `ramp_steps`, as in MixMatch. `class_loss` is L⁽¹⁾ + L⁽²⁾; the counts are of each
    network on its own mini-batch, against the given labels.

    What the paper has otherwise or leaves open: it trains one network for an epoch, then the other; here both go on
    together, and all guesses of a step are made at the weights before it. An epoch has |D| / B steps, and a set that is
    too small for them is gone through again, in the same order; an empty one is taken to be D. The guesses come from
    one pass of each network in train mode, over all that it is asked about, which leaves BatchNorm's running
    statistics as they are; losses for the co-divide from eval mode, un-augmented.

    Attributes:
        num_samples: |D|.
        device: of the images.
        warm_up: epochs.
        confidence_penalty: whether H is there.
        threshold: τ.
        augmentations: M.
        temperature: T of Sharpen; 1 leaves labels as they are.
        beta: α.
        unlabeled_weight: λ_u after its ramp.
        ramp_steps: length of the ramp; 0 for none.
    """

    num_samples: int
    device: torch.device
    warm_up: int
    confidence_penalty: bool
    threshold: float
    augmentations: int
    temperature: float
    beta: float
    unlabeled_weight: float
    ramp_steps: int
    _clean: Tensor = field(init=False)
    _steps: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.views = self.augmentations
        self.phase = WARM_UP if self.warm_up else DIVIDED
        self._clean = torch.zeros(2, self.num_samples, device=self.device)  # w⁽¹⁾, w⁽²⁾
        self._steps = torch.zeros((), dtype=torch.int64, device=self.device)  # done after the warm-up

    def begin_epoch(self, epoch: EpochContext) -> None:
        """Co-divide: each network's losses give the clean probabilities of the other one's samples."""
        if epoch.number < self.warm_up:
            return
        for k, network in enumerate(pair_of(epoch.state.student).networks):
            loss_N = F.cross_entropy(epoch.predict(network).double(), epoch.labels, reduction="none")
            self._clean[1 - k] = clean_probabilities(loss_N)

    def mini_batches(self, epoch: int, num_samples: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """As [steps, 2 · batch_size]: network 1's, then network 2's; of each first the labeled, then the unlabeled."""
        self.phase = WARM_UP if epoch < self.warm_up else DIVIDED
        steps, unlabeled = num_samples // batch_size, max(1, batch_size // 2)
        parts = []
        for clean_N in self._clean.cpu():
            if self.phase == WARM_UP:
                parts.append(_drawn(torch.ones(num_samples, dtype=torch.bool), steps, batch_size, generator))
            else:
                is_labeled_N = clean_N >= self.threshold
                parts.append(_drawn(is_labeled_N, steps, (batch_size + 1) // 2, generator))
                parts.append(_drawn(~is_labeled_N, steps, unlabeled, generator))
        return torch.cat(parts, dim=1)

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """For each network: `partner`, the order of the mixed samples' x₂, and `share`, their λ′; [2, M B]."""
        from scipy.special import betaincinv  # here: nothing else in training needs it

        mixed = self.augmentations * (batch_size // 2)
        partner = torch.stack([torch.randperm(mixed, generator=generator) for _ in range(2)])
        uniform = torch.rand(2, mixed, dtype=torch.float64, generator=generator)
        share = torch.from_numpy(betaincinv(self.beta, self.beta, uniform.numpy()))  # a quantile of Beta(α, α)
        return {"partner": partner, "share": torch.maximum(share, 1 - share).float()}

    def tensors(self) -> dict[str, Tensor]:
        return {"clean": self._clean, "steps": self._steps}

    def __call__(self, state: TrainState, batch: Batch, rates: Rates) -> Metrics:
        metrics = super().__call__(state, batch, rates)
        # Counted on two mini-batches, one of each network.
        return {name: value / 2 if name.endswith("_correct") else value for name, value in metrics.items()}

    def teacher_logits(self, state: TrainState, batch: Batch) -> Tensor:
        """Of each network of the teacher for its own mini-batch."""
        with state.teacher.autocast(batch.images):
            return torch.cat(pair_of(state.teacher).each(*batch.images.chunk(2)))

    def loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        return self._warm_up_loss(state, batch) if self.phase == WARM_UP else self._divided_loss(state, batch)

    def _warm_up_loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        with state.student.autocast(batch.images):
            logits = pair_of(state.student).each(*batch.images.chunk(2))
        losses = [F.cross_entropy(*of_one) for of_one in zip(logits, batch.labels.chunk(2), strict=True)]
        if self.confidence_penalty:
            losses += [-entropy(of_one) for of_one in logits]
        return torch.stack(losses).sum(), torch.cat(logits)

    def _divided_loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.positions is None:
            raise ValueError("DivideMix needs the batch's positions, got none")
        pair, M = pair_of(state.student), self.augmentations
        # own[k][m]: the m-th view of network k's mini-batch, B images, its labeled ones first.
        own = [[view.chunk(2)[k] for view in batch.views] for k in (0, 1)]
        B = len(own[0][0])
        labeled = (B + 1) // 2
        with torch.no_grad(), state.student.frozen_statistics(), state.student.autocast(batch.images):
            asked = [torch.cat([*own[k], *(view[labeled:] for view in own[1 - k])]) for k in (0, 1)]
            probs = [logits.softmax(dim=1) for logits in pair.each(*asked)]
        guesses = [torch.stack(answers[: M * B].chunk(M)).mean(dim=0) for answers in probs]
        for_other = [torch.stack(answers[M * B :].chunk(M)).mean(dim=0) for answers in probs]
        mixed_images, mixed_targets = [], []
        for k in (0, 1):
            labels, at = batch.labels.chunk(2)[k][:labeled], batch.positions.chunk(2)[k][:labeled]
            refined = refine(labels, self._clean[k, at], guesses[k][:labeled])
            guessed = (guesses[k][labeled:] + for_other[1 - k]) / 2
            targets = [sharpen(probs_BC, self.temperature) for probs_BC in (refined, guessed)]
            images = torch.cat([view[:labeled] for view in own[k]] + [view[labeled:] for view in own[k]])
            share, partner = batch.draws["share"][k], batch.draws["partner"][k]
            mixed_images.append(mix(images, partner, share))
            mixed_targets.append(mix(torch.cat([targets[0]] * M + [targets[1]] * M), partner, share))
        with state.student.autocast(batch.images):
            logits = pair.each(*mixed_images)
        weight = self._squares_weight(mixed_targets[0].shape[1])
        losses = [semi_supervised_loss(*of, M * labeled, weight) for of in zip(logits, mixed_targets, strict=True)]
        return losses[0] + losses[1], torch.cat(guesses).log()

    def _squares_weight(self, classes: int) -> Tensor | float:
        """λ_u / C for this step; counts it."""
        weight = self.unlabeled_weight / classes
        if not self.ramp_steps:
            return weight
        share = (self._steps / self.ramp_steps).clamp(max=1)
        self._steps += 1
        return weight * share


def clean_probabilities(loss_N: Tensor) -> Tensor:
    """w = p(g | ℓ), g the Gaussian of the smaller mean in a mixture of two that is fitted to the losses by EM.

    The losses are scaled to [0, 1] before; EM starts from equal weights, the two ends as means, and the losses'
    variance, so that nothing is random.

    Args:
        loss_N: finite, on the CPU.

    Returns:
        [N], in float64.
    """
    from sklearn.exceptions import ConvergenceWarning  # here: it is slow to import
    from sklearn.mixture import GaussianMixture

    values = loss_N.double().numpy().reshape(-1, 1)
    values = (values - values.min()) / max(values.max() - values.min(), 1e-12)
    mixture = GaussianMixture(
        n_components=2,
        weights_init=[0.5, 0.5],
        means_init=[[0.0], [1.0]],
        precisions_init=[[[1 / max(values.var(), 1e-6)]]] * 2,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a hundred steps of EM are enough to divide by
        mixture.fit(values)
    return torch.from_numpy(mixture.predict_proba(values)[:, mixture.means_.argmin()])


def refine(labels_B: Tensor, clean_B: Tensor, probs_BC: Tensor) -> Tensor:
    """ȳ = w y + (1 − w) p: the given label as far as it is clean, else the network's prediction."""
    clean_B1 = clean_B.to(probs_BC.dtype).unsqueeze(1)
    return ((1 - clean_B1) * probs_BC).scatter_add(1, labels_B.unsqueeze(1), clean_B1)


def sharpen(probs_BC: Tensor, temperature: float) -> Tensor:
    """Sharpen(p, T)_c = p_c^{1/T} / Σ_c′ p_c′^{1/T}."""
    powers_BC = probs_BC.pow(1 / temperature)
    return powers_BC / powers_BC.sum(dim=1, keepdim=True)


def mix(values: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """λ′ v + (1 − λ′) v[partner], a λ′ for each row of `values`."""
    weight = share.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
    return torch.lerp(values[partner], values, weight)


def semi_supervised_loss(logits_BC: Tensor, targets_BC: Tensor, labeled: int, squares_weight: Tensor | float) -> Tensor:
    """L_X + λ_u L_U + L_reg, in nats but for L_U; the first `labeled` rows are X′, the others U′. `squares_weight` is
    λ_u / C, of 1/|U′| Σ ‖p′ − f(x′)‖²."""
    probs_BC, C = logits_BC.softmax(dim=1), logits_BC.shape[1]
    of_labeled = F.cross_entropy(logits_BC[:labeled], targets_BC[:labeled])
    squares = (targets_BC[labeled:] - probs_BC[labeled:]).square().sum(dim=1).mean()
    # The smallest normal number instead of 0, whose logarithm has no gradient.
    log_mean_C = probs_BC.mean(dim=0).clamp_min(torch.finfo(probs_BC.dtype).tiny).log()
    regularisation = -math.log(C) - log_mean_C.mean()
    return of_labeled + squares_weight * squares + regularisation


def _drawn(members_N: Tensor, steps: int, size: int, generator: torch.Generator) -> Tensor:
    """Of a set of samples, boolean [N], `size` for each step, in a random order; as positions [steps, size]."""
    order = torch.randperm(len(members_N), generator=generator)
    chosen = order[members_N[order]] if members_N.any() else order
    wanted = steps * size
    return chosen.repeat(-(-wanted // len(chosen)))[:wanted].view(steps, size)
