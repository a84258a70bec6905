"""CNN-CRF, with a small clean set or the noise matrix (`mlnt.baselines.cnn_crf`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.training.plan import Plan, System

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from mlnt.training.passes import Network
    from pipeline.training.session import Session


def _build(session: Session, _: Network | None) -> Plan:
    import torch

    from mlnt.baselines.cnn_crf import CRFStep, auxiliary_from_clean_set, auxiliary_from_transition
    from pipeline.store.dataset import TRAIN
    from pipeline.training.clean_set import revealed

    chosen = session.params.cnn_crf
    given = session.split(TRAIN).labels
    known = torch.full_like(given, -1)
    if chosen.clean_fraction > 0:
        known = revealed(session, "cnn_crf.clean_fraction", chosen.clean_fraction, "CNN-CRF")
    if chosen.auxiliary == "clean_set":
        clean = known >= 0
        auxiliary = auxiliary_from_clean_set(known[clean], given[clean], len(session.dataset.class_names))
    else:
        auxiliary = auxiliary_from_transition(session.transition_matrix("cnn_crf").float())
    step = CRFStep(
        *session.optimizer,
        auxiliary=auxiliary.to(session.device),
        known=known.to(session.device),
        weight_start=chosen.weight_start,
        weight_end=chosen.weight_end,
        weight_epochs=chosen.weight_epochs,
    )
    return Plan(step)


def _network(backbones: Sequence[nn.Module], num_classes: int) -> nn.Module:
    from mlnt.baselines.cnn_crf import CRFNetwork

    return CRFNetwork(backbones[0], num_classes)


SYSTEMS = (
    System(
        "cnn_crf",
        "CNN-CRF (own version)",
        _build,
        sections=("cnn_crf",),
        prior="a small clean set, or the noise matrix",
        paper=("CNN-CRF [27]", ""),
        outputs_per_class=2,
        wrap=_network,
    ),
)
