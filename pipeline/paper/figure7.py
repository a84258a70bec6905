"""Figure 7: images of the run in this folder whose labels the mentor of iteration 3 filters out."""

from __future__ import annotations

from contextlib import closing

import torch

from pipeline.paper.figures import Filtered
from pipeline.params.schema import Params
from pipeline.store.dataset import TRAIN
from pipeline.systems.mlnt import MLNT
from pipeline.training import filtering
from pipeline.training.session import Session

COUNT = 32


def filtered(params: Params) -> list[Filtered]:
    """The filtered images for which the mentor is most sure of another label, the surest first; at most `COUNT`.

    Raises:
        UserError: files are missing, damaged, or from another run.
    """
    with closing(Session.open(params)) as session:
        return _filtered(session)


def _filtered(session: Session) -> list[Filtered]:
    dataset, train = session.dataset, session.split(TRAIN)
    scores, kept = filtering.passes(session, MLNT[1], "gallery")
    names = dataset.class_names
    contradicted = ~kept & ~scores.agree
    order = torch.argsort(torch.where(contradicted, scores.highest, -1.0), descending=True, stable=True)
    true = session.true_labels()
    return [
        Filtered(
            image=dataset.images[int(train.indices[i])],
            given=names[int(train.labels[i])],
            given_score=float(scores.given[i]),
            predicted=names[int(scores.predicted[i])],
            predicted_score=float(scores.highest[i]),
            true=None if true is None else names[int(true[i])],
        )
        for i in order[: min(COUNT, int(contradicted.sum()))].tolist()
    ]
