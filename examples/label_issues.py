"""Label issues from predictions of one's own: any model's probabilities for samples that it was not trained on.

Here: logistic regression in five folds on scikit-learn's digits, of which a fifth of the labels are replaced at random.
`python examples/label_issues.py`
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from mlnt.method.mentor import FilterQuality, filter_quality, filter_samples, given_label_probability
from mlnt.noise.matrices import symmetric_labels
from mlnt.seeding import numpy_generator

THRESHOLD = 0.1  # τ of (10): a label is an issue where it is given no more than this


def main() -> FilterQuality:
    images, true_labels = load_digits(return_X_y=True)
    labels = symmetric_labels(true_labels.astype(np.int64), 10, 0.2, False, "exact", numpy_generator(0, "noise"))

    model = LogisticRegression(C=0.1, max_iter=1000)
    probabilities = cross_val_predict(model, images / 16, labels, cv=5, method="predict_proba")

    pred_probs, given = torch.from_numpy(probabilities), torch.from_numpy(labels)
    scores = given_label_probability(pred_probs, given).numpy()
    kept = filter_samples(pred_probs, given, THRESHOLD).numpy()

    order = np.argsort(scores)  # the most doubtful first
    print(f"{(~kept).sum()} of {len(kept)} labels are issues; the first of them:")
    for i in order[:5]:
        predicted = probabilities[i].argmax()
        print(f"  image {i}: given {labels[i]} ({scores[i]:.1%}), predicted {predicted} ({probabilities[i].max():.1%})")

    quality = filter_quality(scores, kept, wrong_N=labels != true_labels)  # only where the truth is known
    print(f"precision {quality.precision:.1%}, recall {quality.recall:.1%}, area under the curve {quality.auc:.3f}")
    return quality


if __name__ == "__main__":
    main()
