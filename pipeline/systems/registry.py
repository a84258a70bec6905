"""All systems, in the order of the tables. A new one is a module beside this one and two words here."""

from __future__ import annotations

from functools import cache

from pipeline.store.code import code_digest
from pipeline.systems import cnn_crf, forward, joint_optimization, mlnt
from pipeline.training.plan import COMMON_SECTIONS

SYSTEMS = (*mlnt.CONTROLS, *forward.SYSTEMS, *joint_optimization.SYSTEMS, *cnn_crf.SYSTEMS, *mlnt.MLNT)
BY_STAGE = {system.stage: system for system in SYSTEMS}
DEFAULT = tuple(system for system in SYSTEMS if system.default)
"""What `dvc repro` trains."""
BASELINES = tuple(system for system in SYSTEMS if not system.default)
"""What `dvc repro baselines/dvc.yaml` trains."""
CROSS_ENTROPY = mlnt.CONTROLS[0]
MLNT = mlnt.MLNT
FINAL = MLNT[-1]
SECTIONS = {
    "download": ("data",),
    "noise": ("seed", "noise"),
    "features": ("model", "compute", "features"),
}
"""What the stages before and beside training read."""


def stages_before(stage: str) -> tuple[str, ...]:
    """The stages that a stage's result directly comes from."""
    if stage not in BY_STAGE:
        return {"download": (), "noise": ("download",), "features": ("noise", "pretrain")}[stage]
    system = BY_STAGE[stage]
    features = ("features",) if system in MLNT else ()
    return ("noise", *features, *system.needs, *([system.mentor] if system.mentor else []))


def chain(stage: str) -> set[str]:
    """A stage, and all that its result comes from."""
    return {stage}.union(*(chain(before) for before in stages_before(stage)))


def sections(stage: str) -> tuple[str, ...]:
    """The sections of params.yaml that a stage reads."""
    return SECTIONS[stage] if stage in SECTIONS else (*COMMON_SECTIONS, *BY_STAGE[stage].sections)


def code_modules(stage: str) -> tuple[str, ...]:
    """The modules that a stage runs, by name."""
    if stage not in BY_STAGE:
        return (f"pipeline.stages.{stage}",)
    return "pipeline.stages.train", BY_STAGE[stage].build.__module__


@cache
def code_now(stage: str) -> str:
    """The digest of the code that a stage would run today, as its record would have it."""
    return code_digest(*code_modules(stage))
