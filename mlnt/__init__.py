"""MLNT: learning to learn from noisy labeled data (Li et al., CVPR 2019), as a library.

`method` is the paper, `baselines` what it is compared with, `noise` makes wrong labels, `training` is the loop that any
step function runs in, `images` feeds it. Nothing here reads a parameter file, chooses a path or prints.

The names of `__all__` can be imported from here. Each module is imported when the first of its names is asked for, so
that what needs no torch, such as `mlnt.noise`, does not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlnt.baselines.loss_step import LossStep as LossStep
    from mlnt.images.batches import Augmentation as Augmentation
    from mlnt.images.batches import MemoryImages as MemoryImages
    from mlnt.images.statistics import input_statistics as input_statistics
    from mlnt.method.schedules import Schedule as Schedule
    from mlnt.method.step import MLNTStep as MLNTStep
    from mlnt.networks import create_model as create_model
    from mlnt.seeding import generator as generator
    from mlnt.training.data import LabeledSet as LabeledSet
    from mlnt.training.data import TrainingData as TrainingData
    from mlnt.training.distributed import ProcessRanks as ProcessRanks
    from mlnt.training.loop import Training as Training
    from mlnt.training.passes import Network as Network
    from mlnt.training.state import Batch as Batch
    from mlnt.training.state import EpochContext as EpochContext
    from mlnt.training.state import Metrics as Metrics
    from mlnt.training.state import Rates as Rates
    from mlnt.training.state import StepFunction as StepFunction
    from mlnt.training.state import TrainState as TrainState
else:
    _DEFINED_IN = {
        "LossStep": "mlnt.baselines.loss_step",
        "Augmentation": "mlnt.images.batches",
        "MemoryImages": "mlnt.images.batches",
        "input_statistics": "mlnt.images.statistics",
        "Schedule": "mlnt.method.schedules",
        "MLNTStep": "mlnt.method.step",
        "create_model": "mlnt.networks",
        "generator": "mlnt.seeding",
        "LabeledSet": "mlnt.training.data",
        "TrainingData": "mlnt.training.data",
        "ProcessRanks": "mlnt.training.distributed",
        "Training": "mlnt.training.loop",
        "Batch": "mlnt.training.state",
        "EpochContext": "mlnt.training.state",
        "Metrics": "mlnt.training.state",
        "Network": "mlnt.training.passes",
        "Rates": "mlnt.training.state",
        "StepFunction": "mlnt.training.state",
        "TrainState": "mlnt.training.state",
    }
    __all__ = list(_DEFINED_IN)

    def __getattr__(name: str) -> Any:
        """Import what `name` is defined in (PEP 562).

        Raises:
            AttributeError: this package exports no such name.
        """
        if name not in _DEFINED_IN:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_DEFINED_IN[name]), name)
