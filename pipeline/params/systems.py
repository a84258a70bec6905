"""The sections of params.yaml that a system reads beside those that all of them do: the parameters of each method.

An entry of the registry names its sections (`System.sections`); a new one becomes a field of `Params` as well.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.params.values import Count, Epochs, Fraction, Length, Positive, PositiveRate, Rate, Section, Tau


class Mlnt(Section):
    M: Count
    rho: Fraction
    neighbors: Positive
    alpha: PositiveRate
    eta: Rate
    eta_ramp: Literal["linear", "sigmoid"]
    eta_ramp_length: Length
    eta_ramp_iterations: Annotated[int, Field(ge=0, le=3)]
    eta_decays: bool
    fast_weights: Literal["all", "classifier"] = Field(json_schema_extra={"neutral": "all"})
    order: Literal["first", "second"]
    update: Literal["sequential", "joint"]
    kl_reduction: Literal["batchmean", "mean"]


class Filter(Section):
    tau: Tau


class Mentor(Section):
    lambda_: Annotated[Fraction, Field(alias="lambda")]
    lambda_ramp: Literal["linear", "constant"]


class Forward(Section):
    percentile: Annotated[float, Field(gt=0, le=100)]


class JointOptimization(Section):
    epochs: Positive
    lr: PositiveRate
    lr_drop_epochs: Epochs
    alpha: Rate
    beta: Rate
    first_update: Positive
    average_epochs: Positive

    @model_validator(mode="after")
    def _corrects(self) -> JointOptimization:
        if self.first_update > self.epochs:
            raise ValueError(f"first_update is {self.first_update}, expected at most epochs, {self.epochs}")
        return self


class CnnCrf(Section):
    auxiliary: Literal["clean_set", "transition_matrix"]
    clean_fraction: Fraction
    weight_start: Rate
    weight_end: Rate
    weight_epochs: Count

    @model_validator(mode="after")
    def _clean_set(self) -> CnnCrf:
        if (self.auxiliary == "clean_set") != (self.clean_fraction > 0):
            raise ValueError(
                f"auxiliary is {self.auxiliary} and clean_fraction {self.clean_fraction}; expected a clean_fraction "
                "above 0 with clean_set, and 0 with transition_matrix"
            )
        return self


class Gce(Section):
    q: Annotated[float, Field(gt=0, le=1)]
    k: Annotated[float, Field(gt=0, lt=1)]
    first_pruning: Count
    pruning_every: Positive


class MetaWeightNet(Section):
    clean_fraction: Annotated[float, Field(gt=0, le=1)]
    hidden: Positive
    lr: Rate


class Elr(Section):
    lambda_: Annotated[Rate, Field(alias="lambda")]
    beta: Annotated[float, Field(ge=0, lt=1)]


class Sop(Section):
    u_lr: Rate
    v_lr: Rate


class CoTeaching(Section):
    noise_rate: Annotated[float, Field(ge=0, lt=1)] | None
    ramp_epochs: Positive


class DivideMix(Section):
    warm_up: Count
    confidence_penalty: bool
    threshold: Fraction
    augmentations: Positive
    temperature: Annotated[float, Field(gt=0, le=1)]
    beta: PositiveRate
    unlabeled_weight: Rate
    unlabeled_ramp_length: Length
