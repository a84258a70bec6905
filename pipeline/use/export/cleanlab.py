"""What cleanlab's Datalab wants of a model: the probabilities of all classes, and features."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import torch

from mlnt.training.evaluation import predict_logits
from pipeline.base import console, files
from pipeline.store.dataset import TRAIN
from pipeline.store.features import FeatureFile
from pipeline.systems.registry import CROSS_ENTROPY, FINAL
from pipeline.training import folds
from pipeline.training.build import best_weights
from pipeline.training.session import Session
from pipeline.use.export.policy import LabelExport

FILE = "cleanlab.npz"


def write(export: LabelExport) -> str:
    """cleanlab.npz, a row a sample: `index`, `name`, `split`; `labels` as class numbers, and `class_names`;
    `pred_probs` of the final model, of training samples out of fold where it was trained in folds; `features` of the
    pre-trained network, or the standardised embeddings of heads. Returns how to read it.

    Raises:
        UserError: the models or the features are missing, damaged or from another run.
    """
    params, samples = export.params, export.samples
    rows = np.array([each.row for each in samples], dtype=np.int64)
    with closing(Session.open(params)) as session:
        network, _ = session.best_network(FINAL)
        with console.progress("export", len(rows)) as bar:
            (logits,) = predict_logits(
                [network],
                session.images,
                torch.from_numpy(rows),
                params.compute.eval_batch_size,
                lambda done: bar.at(done - 1),
            )
        probs, train = logits.softmax(dim=1), session.labels.split[rows] == TRAIN
        if (out_of_fold := folds.out_of_fold(session, FINAL)) is not None:
            probs[train] = out_of_fold[np.searchsorted(session.labels.rows(TRAIN), rows[train])]
        if session.heads is None:
            made_by = files.file_digest(best_weights(params, session.labels, CROSS_ENTROPY.stage))
            features = FeatureFile(session.labels, made_by, rows).read()
        else:
            embedded = session.images.fetch([torch.from_numpy(rows)])
            features = torch.cat([session.images.batch(each) for each in embedded]).cpu()
        number = {name: i for i, name in enumerate(session.dataset.class_names)}
    np.savez(
        export.folder / FILE,
        index=rows,
        name=np.array([each.name for each in samples]),
        split=np.array([each.split for each in samples]),
        labels=np.array([number[each.label] for each in samples], dtype=np.int64),
        class_names=np.array(list(number)),
        pred_probs=probs.numpy(),
        features=features.numpy(),
    )
    return (
        f'd = numpy.load("{export.out / FILE}"); lab = Datalab({{"label": d["labels"]}}, label_name="label"); '
        'lab.find_issues(pred_probs=d["pred_probs"], features=d["features"])'
    )
