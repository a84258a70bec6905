"""Class batches from D′, as the paper has them, beside the package's: batches of D, the loss over their kept samples.

    python bench/accuracy/filtered_batches.py --out docs/results/filtered_batches_digits.csv

Iteration 2 of MLNT, and of CE + filter, on digits, with the same mentor, seeds and number of steps. In the variant the
meta part of a step (Algorithm 1, lines 5-11) works on the same batch of D, the class part on another, drawn from D′
without replacement until D′ is used up. Test accuracy: a choice between the two is not made here.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from runs import checked, paired, read_changed, test_accuracies
from torch import Tensor

from mlnt import seeding
from mlnt.images.batches import ImageStore
from mlnt.method import teacher
from mlnt.method.losses import classification_loss
from mlnt.method.step import MLNTStep
from mlnt.training.foreach import add_scaled_, sgd_
from mlnt.training.state import Batch, Metrics, Rates, TrainState, correct
from pipeline.base import files
from pipeline.base.files import write_csv
from pipeline.paper.statistics import standard_error
from pipeline.params.schema import Params
from pipeline.stages import download, features, noise, train
from pipeline.store.dataset import TRAIN
from pipeline.systems.mlnt import step_options
from pipeline.systems.registry import BY_STAGE
from pipeline.training.filtering import kept_by
from pipeline.training.session import Session

ROOT = Path(__file__).resolve().parents[2]
NOISES = (("symmetric", 0.5, 0.2), ("asymmetric", 0.4, 0.1))
"""Kind, rate and τ, as in the tables."""


@dataclass
class FromKept(MLNTStep):
    """A step in two parts: the meta part on the batch of D, the class part on the next batch of D′."""

    images: ImageStore | None = None
    rows: Tensor | None = None
    labels: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._left = torch.empty(0, dtype=torch.int64)
        self._rounds = 0

    def _next(self, size: int) -> tuple[Tensor, Tensor]:
        assert self.images is not None
        assert self.rows is not None
        assert self.labels is not None
        while len(self._left) < size:
            order = torch.randperm(len(self.rows), generator=seeding.generator(self.seed, "kept", self._rounds))
            self._left, self._rounds = torch.cat([self._left, order]), self._rounds + 1
        chosen, self._left = self._left[:size], self._left[size:]
        return self.images.batch(self.rows[chosen]), self.labels[chosen]

    def __call__(self, state: TrainState, batch: Batch, rates: Rates) -> Metrics:
        student = state.student
        teacher_logits = self._teacher_logits(state, batch, needed=True)
        assert teacher_logits is not None
        if self.num_synthetic and rates.meta:
            target = self._target(teacher_logits, batch, rates)
            with student.frozen_statistics():
                _, _, gradient = self._at_theta(student, batch, target)
            assert gradient is not None
            add_scaled_(student.parameters, gradient, -rates.meta_lr)
        images, labels = self._next(len(batch.labels))
        logits = student(images)
        loss = classification_loss(logits, labels)
        gradient = list(torch.autograd.grad(loss, student.parameters))
        sgd_(student.parameters, gradient, state.momentum, rates.lr, self.momentum, self.weight_decay)
        teacher.update_average_(state.teacher.parameters, student.parameters, rates.ema_decay)
        return {"class_loss": loss.detach(), "student_correct": correct(logits, labels)}


Found = dict[tuple[str, str], dict[tuple[str, str], float]]
"""(stage, kind of batches) → (model, choice) → accuracy."""


def from_kept(params: Params, stage: str) -> dict[tuple[str, str], float]:
    """The stage with class batches from D′: accuracies by model and epoch."""
    with closing(Session.open(params)) as session:
        assert (params.mlnt.update, params.teacher.batch_norm) == ("sequential", "own")
        assert (params.train.crop_padding, params.train.horizontal_flip) == (0, False)
        system = BY_STAGE[stage]
        network, _ = session.best_network(BY_STAGE[system.mentor or ""])
        kept = kept_by(session, BY_STAGE[system.mentor or ""])
        plan = system.build(session, network)
        train_set = session.split(TRAIN)
        step = FromKept(
            **step_options(params, plan.meta),
            mentor=network,
            images=session.images,
            rows=train_set.indices[kept],
            labels=train_set.labels[kept],
            seed=params.seed,
        )
        training = session.training(system, replace(plan, step=step))
        return test_accuracies(list(training.epochs()))


def run_seed(task: tuple[str, float, float, int, Path]) -> Found:
    kind, rate, tau, seed, folder = task
    torch.set_num_threads(1)
    changes = [f'noise.kind="{kind}"', f"noise.rate={rate}", f"filter.tau={tau}", "compute.threads=1"]
    params = checked(read_changed(ROOT / "params.yaml", changes), seed)
    folder.mkdir()
    os.chdir(folder)
    download.run(params)
    noise.run(params)
    for stage in ("pretrain", "features", "meta1"):
        features.run(params) if stage == "features" else train.run(params, stage)
    found: Found = {}
    for stage in ("meta2", "control2"):
        train.run(params, stage)
        found[stage, "masked"] = test_accuracies(files.read_csv(files.PLOTS / f"{stage}.csv"))
        found[stage, "from D′"] = from_kept(params, stage)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        tasks = [(*n, seed, Path(folder) / f"{n[0]}-{seed}") for n in NOISES for seed in range(arguments.seeds)]
        with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = dict(zip(tasks, pool.map(run_seed, tasks), strict=True))
    for noise_kind in NOISES:
        runs = [found[task] for task in tasks if task[:3] == noise_kind]
        for stage in ("meta2", "control2"):
            for key in runs[0][stage, "masked"]:
                values = {how: [run[stage, how][key] for run in runs] for how in ("masked", "from D′")}
                difference = paired(values["from D′"], values["masked"])
                row: dict[str, Any] = {"noise": noise_kind[0], "rate": noise_kind[1]}
                row |= {"stage": stage, "model": ", ".join(key)}
                for how, of_seeds in values.items():
                    row |= {how: round(mean(of_seeds), 2), f"{how} se": round(standard_error(of_seeds), 2)}
                row |= {"difference": round(mean(difference), 2), "se": round(standard_error(difference), 2)}
                table.append({**row, "n": len(runs)})
                print(table[-1])
    write_csv(out, table)


if __name__ == "__main__":
    main()
