"""All systems, in the order of the tables. A new one is a module beside this one and a line here."""

from __future__ import annotations

from pipeline.systems import cnn_crf, forward, joint_optimization, mlnt

SYSTEMS = (*mlnt.CONTROLS, *forward.SYSTEMS, *joint_optimization.SYSTEMS, *cnn_crf.SYSTEMS, *mlnt.MLNT)
BY_STAGE = {system.stage: system for system in SYSTEMS}
DEFAULT = tuple(system for system in SYSTEMS if system.default)
"""What `dvc repro` trains."""
BASELINES = tuple(system for system in SYSTEMS if not system.default)
"""What `dvc repro baselines/dvc.yaml` trains."""
CROSS_ENTROPY = mlnt.CONTROLS[0]
MLNT = mlnt.MLNT
FINAL = MLNT[-1]
