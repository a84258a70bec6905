"""All systems, in the order of the tables. A new one is a module beside this one and two words here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pipeline.base import files
from pipeline.store.code import code_digest
from pipeline.systems import (
    cnn_crf,
    co_teaching,
    divide_mix,
    elr,
    forward,
    gce,
    joint_optimization,
    meta_weight_net,
    mlnt,
    sop,
)
from pipeline.training.plan import COMMON_SECTIONS, System

DEFAULT = (*mlnt.CONTROLS, *mlnt.MLNT)
"""What `dvc repro` trains."""
BASELINES = (*forward.SYSTEMS, *joint_optimization.SYSTEMS, *cnn_crf.SYSTEMS)
"""What the paper compares with."""
REFERENCES = (
    *gce.SYSTEMS,
    *meta_weight_net.SYSTEMS,
    *elr.SYSTEMS,
    *sop.SYSTEMS,
    *co_teaching.SYSTEMS,
    *divide_mix.SYSTEMS,
)
"""What has come since, or is compared with today."""
SYSTEMS = (*mlnt.CONTROLS, *BASELINES, *REFERENCES, *mlnt.MLNT)
BY_STAGE = {system.stage: system for system in SYSTEMS}

GroupName = Literal["baselines", "references"]


@dataclass(frozen=True)
class Group:
    """Systems beside the default run: `dvc repro NAME/dvc.yaml` trains and judges them, into files of their own. The
    name of each is its stage."""

    name: GroupName
    systems: tuple[System, ...]

    @property
    def dvc_yaml(self) -> str:
        return f"{self.name}/dvc.yaml"

    @property
    def stage(self) -> str:
        """What the stages of its dvc.yaml that train are called."""
        return self.name.removesuffix("s")

    @property
    def evaluation(self) -> Path:
        return files.METRICS / f"{self.name}.json"

    @property
    def confusions(self) -> Path:
        return files.REPORTS / f"{self.name}_confusions.csv"

    @property
    def label_issues(self) -> Path:
        return files.REPORTS / f"{self.name}_label_issues.csv"

    @property
    def report(self) -> Path:
        return files.REPORTS / f"{self.name}.html"


GROUPS: dict[GroupName, Group] = {
    "baselines": Group("baselines", BASELINES),
    "references": Group("references", REFERENCES),
}
CROSS_ENTROPY = mlnt.CONTROLS[0]
MLNT = mlnt.MLNT
FINAL = MLNT[-1]
SECTIONS = {
    "download": ("data",),
    "noise": ("seed", "noise"),
    "embed": ("model", "compute", "features"),
    "features": ("model", "compute", "features"),
}
"""What the stages before and beside training read."""


def stages_before(stage: str, head: bool = False) -> tuple[str, ...]:
    """The stages that a stage's result directly comes from; `head`: where `model.train` is head."""
    if stage not in BY_STAGE:
        others = {"noise": ("download",), "embed": ("download",), "features": ("noise", "pretrain")}
        return others.get(stage, ())
    system = BY_STAGE[stage]
    embed = ("embed",) if head else ()
    features = ("features",) if "mlnt" in system.sections else ()
    return ("noise", *embed, *features, *system.needs, *([system.mentor] if system.mentor else []))


def chain(stage: str, head: bool = False) -> set[str]:
    """A stage, and all that its result comes from."""
    return {stage}.union(*(chain(before, head) for before in stages_before(stage, head)))


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
