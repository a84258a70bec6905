"""Fitting a network, whatever the system: the loop with its checkpoints, and what it leaves behind."""

from __future__ import annotations

import math
import platform
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mlnt.training.distributed import Ranks
from mlnt.training.loop import MODELS, DivergedError, HistoryRow, Training
from pipeline.base import console, files, signals
from pipeline.base.errors import RunError
from pipeline.params.load import values_of
from pipeline.params.schema import Params
from pipeline.store import cards, models
from pipeline.store.record import Record
from pipeline.training.device import describe
from pipeline.training.folds import Fold, digest, gathered
from pipeline.training.plan import COMMON_SECTIONS, Plan, System
from pipeline.training.processes import SharedCheckpoint, opened, require_same
from pipeline.training.session import Session, steps_between

PROBABILITIES = "probabilities of the part"
LIVE_S = 1.0
"""Seconds between two writes of a history that grows: a write takes some milliseconds."""


def fit(
    session: Session,
    system: System,
    plan: Plan,
    training: Training,
    mentor: Mapping[str, str],
    folds: Sequence[Fold],
    seconds: float | None = None,
) -> str:
    """Train, or go on from a checkpoint; write models, history, card and record; return a line that sums it up.

    Of several processes all train, and rank 0 writes.

    Args:
        mentor: the digest of the weights of its mentor, by its stage, and of what filters its samples, where that is
            something else; empty without a mentor.
        folds: the trainings that leave a part of the samples out, made before the one of all.
        seconds: how long the stage will take, where that is known.

    Raises:
        UserError: another process is training the same run, or the ranks do not train the same.
        RunError: the loss was not finite.
    """
    params, stage, title, ranks = session.params, system.stage, system.title, session.ranks
    record = Record.of(
        stage,
        values_of(params, [*COMMON_SECTIONS, *system.sections]),
        ["pipeline.stages.train", system.build.__module__],
        {"labels": session.labels.digest, **session.start(), **plan.inputs, **mentor},
    )
    require_same(ranks, record)
    kept, purity = training.kept, session.correct()
    if purity is not None and kept is not None:
        purity = purity[kept]
    with opened(record, ranks) as saved, measured(stage, session.device, ranks) as clock:
        about = "" if seconds is None else f": about {console.duration(seconds)}"
        times = f"{ranks.size} × " if ranks.size > 1 else ""
        console.say(f"{title} on {times}{describe(session.device)}{about}")
        try:
            pieces = [_fold(fold, stage, saved, clock) for fold in folds]
            _train(training, session, stage, saved, clock, len(folds))
        except DivergedError as error:
            lower = plan.lower or {"train.lr": params.train.lr}
            saved.note_divergence(values_of(params, Params.model_fields), str(error))
            raise RunError(
                f"{stage}: {error}; lower {' or '.join(f'{key} ({value})' for key, value in lower.items())}"
            ) from error
        if ranks.rank:
            return ""
        dataset = session.dataset
        card = cards.ModelCard(
            network=params.model.name,
            system=stage,
            class_names=dataset.class_names,
            shape=list(dataset.images.shape[1:]),
            options=None if dataset.options is None else dataset.options._asdict(),
            labels_digest=session.labels.digest,
            mentor=training.mentor(),
            best_epoch={name: best.epoch for name, best in training.best.items()},
            validation_accuracy={name: best.accuracy for name, best in training.best.items()},
            kept_fraction=1.0 if kept is None else float(kept.double().mean()),
            kept_purity=None if purity is None else float(purity.double().mean()),
            folds=len(folds),
        )
        weights: dict[tuple[str, str], Mapping[str, Tensor]] = {}
        for name in MODELS:
            weights[name, "last"] = session.whole(training.module(name).state_dict())
            weights[name, "best"] = session.whole(training.best[name].weights)
        models.save_models(stage, weights, session.statistics, card, _of_folds(stage, folds, pieces))
        files.write_csv(files.PLOTS / f"{stage}.csv", training.history)
        best = files.file_digest(models.weights_file(stage, card.mentor, "best"))
        history = files.file_digest(files.PLOTS / f"{stage}.csv")
        outputs = {stage: best, f"history of {stage}": history, **digest(stage), **plan.finish()}
        replace(record, outputs=outputs).write()
        saved.remove()
    accuracy, epoch = card.validation_accuracy[card.mentor], card.best_epoch[card.mentor]
    line = f"{title}: best on validation is the {card.mentor} of epoch {round(epoch, 2):g}, {accuracy:.2%}"
    of_test = {row["epoch"]: row.get(f"{card.mentor}_test_accuracy") for row in training.history}[epoch]
    return line if of_test is None else f"{line}; on test it has {of_test:.2%}"


def _fold(fold: Fold, stage: str, saved: SharedCheckpoint, clock: Clock) -> tuple[Mapping[str, Tensor], Tensor]:
    """The weights of the network that leaves this part out, and its probabilities for the part."""
    if not saved.has_piece(fold.number):
        training = fold.training()
        _train(
            training, fold.session, stage, saved, clock, fold.number, f"{stage}, part {fold.number + 1}/{fold.count}"
        )
        weights = training.best[training.mentor()].weights
        saved.save_piece(fold.number, {**weights, PROBABILITIES: fold.judge(weights)})
    piece = saved.load_piece(fold.number)
    return piece, piece.pop(PROBABILITIES)


def _of_folds(
    stage: str, folds: Sequence[Fold], pieces: Sequence[tuple[Mapping[str, Tensor], Tensor]]
) -> dict[Path, Mapping[str, Tensor]]:
    """What the trainings in parts leave behind, by file."""
    if not folds:
        return {}
    whole = gathered([(fold, probs) for fold, (_, probs) in zip(folds, pieces, strict=True)])
    found: dict[Path, Mapping[str, Tensor]] = {
        models.fold_file(stage, fold.number): weights for fold, (weights, _) in zip(folds, pieces, strict=True)
    }
    return found | {models.out_of_fold_file(stage): whole}


def _train(
    training: Training,
    session: Session,
    stage: str,
    saved: SharedCheckpoint,
    clock: Clock,
    number: int,
    title: str | None = None,
) -> None:
    """Train to the end, or go on from the checkpoint of this training.

    Args:
        number: which of the stage's trainings it is; a checkpoint of another one is none.
        title: of the progress bar, for one that leaves a part out; the history of others is there to be watched.
    """
    if (state := saved.load()) is not None and state[1].pop("training") == number:
        training.load_state_dict(*state)
    started = training.steps_done
    clock.steps += training.num_steps - started
    every = steps_between(session.params.run.checkpoint_every, training.steps_per_epoch)
    live = None if title or session.ranks.rank else History(stage)
    if live:
        live.write(training.history)

    def save() -> None:
        tensors, values = training.state_dict()
        with clock.saving():
            saved.save(tensors, {**values, "training": number})

    def before(step: int) -> None:
        bar.at(step)
        signal = session.ranks.largest(stop.requested)  # so that all ranks stop before the same step
        if step > started and (signal or step % every == 0):
            save()
        if signal:
            console.say(
                f"{title or stage}: stopped before step {step} of {training.num_steps}; run the same command again to "
                "continue"
            )
            signals.end(signal)

    with signals.deferred() as stop, console.progress(title or stage, training.num_steps, "step") as bar:
        if started:
            console.say(f"{title or stage}: going on after step {training.steps_done} of {training.num_steps}")
        for row in training.epochs(on_step=before):
            if live:
                live.write(training.history)
            bar.note(
                f"epoch {round(row['epoch'] or 0, 2):g}/{training.num_epochs}, loss {row['class_loss']:.3f}, "
                f"validation {row['student_validation_accuracy']:.1%} / {row['teacher_validation_accuracy']:.1%}"
            )
        if signal := session.ranks.largest(stop.requested):  # in the last evaluation
            save()
            console.say(f"{title or stage}: stopped after its last step; run the same command again to continue")
            signals.end(signal)


@dataclass
class History:
    """plots/<stage>.csv while it grows, for people who watch. What counts is written at the end, and its errors too."""

    stage: str
    written: float = -math.inf

    def write(self, rows: Sequence[HistoryRow]) -> None:
        """The rows so far, at most once in `LIVE_S`, and not waiting for the disk.

        Where the models of an earlier run are still there, which DVC would have removed, their history stays too.
        """
        if rows and time.monotonic() - self.written >= LIVE_S and not cards.is_there(self.stage):
            with suppress(RunError):
                files.write_csv(files.PLOTS / f"{self.stage}.csv", rows, synced=False)
            self.written = time.monotonic()


@dataclass
class Clock:
    """What a stage reports about its time, for `measured`.

    Attributes:
        steps: training steps that this process has to make.
        checkpoint_seconds: seconds spent on writing checkpoints.
    """

    steps: int = 0
    checkpoint_seconds: float = 0.0

    @contextmanager
    def saving(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.checkpoint_seconds += time.perf_counter() - start


@contextmanager
def measured(stage: str, device: torch.device, ranks: Ranks) -> Iterator[Clock]:
    """Write timings/<stage>.json when the block ends well. Failing to write it is only a warning: the stage's
    results are complete without it.

    The peak of memory is that of the process, of several that of rank 0: with reading the data, and where the time was
    estimated, with its steps.
    """
    clock = Clock()
    start = time.perf_counter()
    yield clock
    if ranks.rank:
        return
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    values = {
        "seconds": seconds,
        "checkpoint_seconds": clock.checkpoint_seconds,
        "milliseconds_per_step": 1000 * seconds / clock.steps if clock.steps else None,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "processes": ranks.size,
        "device": describe(device),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    try:
        files.write_json(files.TIMINGS / f"{stage}.json", values)
    except RunError as error:
        console.warn(f"{error}; the timing of {stage} is lost, its results are complete")
