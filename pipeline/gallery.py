"""Figure 7: images of this workspace's last run whose labels the mentor of iteration 3 filters out."""

from __future__ import annotations

from contextlib import closing

import torch

from mlnt.mentor import filter_samples
from pipeline.artifacts import TRAIN
from pipeline.params import Params
from pipeline.sweep_figures import Filtered
from pipeline.systems import FINAL
from pipeline.workspace import Workspace

COUNT = 32


def filtered(params: Params) -> list[Filtered]:
    """The images that the mentor is most sure about, the most first.

    Raises:
        UserError: files that are missing, damaged, or of another run.
    """
    with closing(Workspace.open(params)) as workspace:
        return _filtered(workspace)


def _filtered(workspace: Workspace) -> list[Filtered]:
    params = workspace.params
    dataset, train = workspace.dataset, workspace.split(TRAIN)
    network, _ = workspace.best_network(FINAL.mentor_stage or "")
    (logits,) = workspace.logits([network], TRAIN, "gallery")
    probs = logits.softmax(dim=1)
    left_out = ~filter_samples(probs, train.labels, params.mentor.tau)
    scores, predicted = probs.max(dim=1)
    order = torch.argsort(torch.where(left_out, scores, -1.0), descending=True, stable=True)
    true = workspace.true_labels()
    names = dataset.class_names
    return [
        Filtered(
            image=dataset.images[int(train.indices[i])],
            given=names[int(train.labels[i])],
            given_score=float(probs[i, train.labels[i]]),
            predicted=names[int(predicted[i])],
            predicted_score=float(scores[i]),
            true=None if true is None else names[int(true[i])],
        )
        for i in order[: min(COUNT, int(left_out.sum()))].tolist()
    ]
