"""The schema of params.yaml: every parameter, its type and its range. Nothing has a default here. The sections that
single systems read, those of the methods, are in `pipeline.params.systems`.

Every value stands in params.yaml, so that `dvc params diff` shows all that differs between two runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator
from pydantic.fields import FieldInfo

from pipeline.params import systems
from pipeline.params.values import (
    Colour,
    Count,
    Epochs,
    Every,
    Folds,
    Fraction,
    Length,
    Name,
    Positive,
    PositiveRate,
    Processes,
    Rate,
    Section,
    Seed,
)


class Data(Section):
    source: Literal["digits", "cifar10", "cifar100", "cifar100-coarse", "imagefolder", "clothing1m"]
    root: Name | None = Field(json_schema_extra={"place": "data.root"})
    url: Name | None = Field(json_schema_extra={"place": None})
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None
    limit: Positive | None
    limit_test: Positive | None
    channels: Literal["auto", 1, 3]
    resize: Positive | None
    interpolation: Literal["bilinear", "bicubic"] = Field(json_schema_extra={"neutral": "bilinear"})
    crop: Positive | None
    background: Colour = Field(json_schema_extra={"neutral": "white"})
    on_bad_image: Literal["error", "skip"]
    max_image_mpixels: PositiveRate
    storage: Literal["memory", "files"]

    @property
    def has_image_files(self) -> bool:
        """Whether the source is a person's own image files."""
        return self.source in ("imagefolder", "clothing1m")


class Noise(Section):
    kind: Literal["none", "symmetric", "asymmetric", "pairflip", "instance", "matrix", "human"]
    rate: Fraction
    symmetric_excludes_true: bool
    sampling: Literal["exact", "bernoulli"]
    mapping: dict[str, str]
    matrix_file: Name | None = Field(json_schema_extra={"place": "noise.matrix_file"})
    human_file: Name | None = Field(json_schema_extra={"place": "noise.human_file"})
    human_labels: Literal[
        "aggre_label",
        "random_label1",
        "random_label2",
        "random_label3",
        "worse_label",
        "noisy_label",
        "noisy_coarse_label",
    ]
    validation: Literal["clean", "noisy"]
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]
    corrections: Name | None = Field(json_schema_extra={"neutral": None, "place": "noise.corrections"})

    def files(self) -> dict[str, str]:
        """The files that the labels come from, by the names of their parameters."""
        wanted = {
            "noise.matrix_file": self.matrix_file if self.kind == "matrix" else None,
            "noise.human_file": self.human_file if self.kind == "human" else None,
            "noise.corrections": self.corrections,
        }
        return {key: name for key, name in wanted.items() if name is not None}

    @model_validator(mode="after")
    def _fits_kind(self) -> Noise:
        if self.kind == "instance" and self.sampling == "exact":
            raise ValueError("sampling is exact, expected bernoulli: kind instance draws each label on its own")
        for kind, key in (("matrix", "matrix_file"), ("human", "human_file")):
            if self.kind == kind and getattr(self, key) is None:
                raise ValueError(f"kind {kind} needs {key}: the path of a file")
        return self


class Model(Section):
    name: Name
    pretrained: bool
    weights: Name | None = Field(json_schema_extra={"place": "weights"})
    train: Literal["all", "head"] = Field(json_schema_extra={"neutral": "all"})
    normalize: Literal["mean_image", "channel", "pretrained"]

    @property
    def starts_trained(self) -> bool:
        """Whether the network starts from weights that somebody has trained."""
        return self.pretrained or self.weights is not None


class Train(Section):
    epochs: Positive
    batch_size: Positive
    lr: PositiveRate
    lr_drop_epochs: Epochs
    lr_drop_factor: Annotated[float, Field(gt=0, le=1)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Rate
    crop_padding: Count
    horizontal_flip: bool
    batch_norm: Literal["batch", "start"] = Field(json_schema_extra={"neutral": "batch"})
    evaluate_every: Every = Field(json_schema_extra={"neutral": 1})
    folds: Folds = Field(json_schema_extra={"neutral": 0})


class Teacher(Section):
    gamma: Fraction
    gamma_start: Fraction
    gamma_start_length: Length
    gamma_start_iterations: Annotated[int, Field(ge=0, le=3)]
    batch_norm: Literal["own", "ema"]


class Compute(Section):
    device: Literal["auto", "cpu", "cuda"]
    threads: Positive | None
    amp: Literal["none", "bfloat16"]
    channels_last: bool
    compile: bool
    cuda_graphs: bool
    deterministic: bool
    eval_batch_size: Positive


class Features(Section):
    dtype: Literal["float32", "float16"]


class Evaluate(Section):
    label_issue_threshold: Fraction | None


class Report(Section):
    gallery: Count
    review: Count = Field(json_schema_extra={"neutral": 10_000})


class Run(Section):
    """Where and how a stage runs: no result depends on it, and no stage of dvc.yaml lists it."""

    checkpoint_every: Every
    processes: Processes = Field(json_schema_extra={"neutral": 1})
    workers: Count | None
    max_features_gib: Rate
    max_unpacked_gib: PositiveRate
    max_download_gib: PositiveRate

    @property
    def num_workers(self) -> int:
        """The number of processes that decode: `workers`, or where that is null one for each core of this process."""
        return cores() if self.workers is None else self.workers


def cores() -> int:
    """The cores that this process may use: of several that train together on a machine, its share."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class Params(Section):
    seed: Seed
    data: Data
    noise: Noise
    model: Model
    train: Train
    teacher: Teacher
    compute: Compute
    features: Features
    mlnt: systems.Mlnt
    filter: systems.Filter
    mentor: systems.Mentor
    forward: systems.Forward
    joint_optimization: systems.JointOptimization
    cnn_crf: systems.CnnCrf
    gce: systems.Gce
    meta_weight_net: systems.MetaWeightNet
    elr: systems.Elr
    sop: systems.Sop
    co_teaching: systems.CoTeaching
    divide_mix: systems.DivideMix
    evaluate: Evaluate
    report: Report
    run: Run

    @model_validator(mode="after")
    def _together(self) -> Params:
        if self.mlnt.M > 0 and self.mlnt.neighbors >= self.train.batch_size:
            raise ValueError(
                f"mlnt.neighbors is {self.mlnt.neighbors}, expected less than train.batch_size, {self.train.batch_size}"
            )
        if self.data.resize and self.data.resize**2 > self.data.max_image_mpixels * 1e6:
            raise ValueError(
                f"data.resize is {self.data.resize}, which makes larger images than data.max_image_mpixels, "
                f"{self.data.max_image_mpixels:g}, allows; expected fewer pixels"
            )
        if self.data.crop and self.data.resize and self.data.crop > self.data.resize:
            raise ValueError(f"data.crop is {self.data.crop}, expected at most data.resize, {self.data.resize}")
        of_all = self.mlnt.fast_weights == "all"
        if self.compute.compile and of_all and (self.mlnt.order == "second" or self.mlnt.update == "joint"):
            raise ValueError(
                "compute.compile is true, which torch supports only for mlnt.order first with mlnt.update sequential, "
                "or for mlnt.fast_weights classifier"
            )
        if self.compute.compile and self.compute.cuda_graphs:
            raise ValueError("compute.compile and compute.cuda_graphs are both true, expected one of them")
        if self.model.pretrained and self.model.weights:
            raise ValueError("model.pretrained and model.weights are both given, expected one of them")
        if not self.model.starts_trained:
            needs_weights = (self.model, "normalize", "pretrained"), (self.model, "train", "head")
            for section, key, value in (*needs_weights, (self.train, "batch_norm", "start")):
                if getattr(section, key) == value:
                    raise ValueError(
                        f"{type(section).__name__.lower()}.{key} is {value}, but the network starts from nothing; "
                        "expected model.pretrained: true, or model.weights: the file of a network that was trained "
                        "before"
                    )
        if self.model.train == "head":
            self._fits_embeddings()
        return self

    def _fits_embeddings(self) -> None:
        """
        Raises:
            ValueError: something is asked for that a head on embeddings does not have.
        """
        for key, found, expected in (
            ("train.crop_padding", self.train.crop_padding, 0),
            ("train.horizontal_flip", self.train.horizontal_flip, False),
            ("compute.compile", self.compute.compile, False),
        ):
            if found != expected:
                raise ValueError(
                    f"{key} is {str(found).lower()}, expected {str(expected).lower()} with model.train head, which "
                    "embeds each image once, as it is"
                )


def neutral_values() -> Mapping[str, Any]:
    """Parameters that were added after results had been published, with the value under which those stay valid: the
    one that does what the code did before. Such a field is declared with `Field(json_schema_extra={"neutral": …})`."""
    return _marked("neutral")


def places() -> Mapping[str, str | None]:
    """Parameters that say where a file or folder is, with the name that a record's inputs have for the digest of what
    is there. Such a field is declared with `Field(json_schema_extra={"place": …})`; None where there is no such input.
    """
    return _marked("place")


SOMEWHERE = "somewhere"


def placeless(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by dotted name, with `SOMEWHERE` for all places: they differ from machine to machine, and what is
    there counts. A URL stays where no `data.sha256` says what it gives."""
    hidden = {key for key in places() if values.get(key) is not None}
    if values.get("data.sha256") is None:
        hidden.discard("data.url")
    return {**values, **dict.fromkeys(hidden, SOMEWHERE)}


def leaf_keys() -> list[str]:
    """Every parameter by its dotted name, in the order of the schema."""
    return [key for key, _ in _leaves(Params)]


@cache
def _marked(mark: str) -> dict[str, Any]:
    extras = {key: field.json_schema_extra for key, field in _leaves(Params)}
    return {key: extra[mark] for key, extra in extras.items() if isinstance(extra, dict) and mark in extra}


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        key, kind = prefix + (field.alias or name), field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not Length:
            yield from _leaves(kind, f"{key}.")
        else:
            yield key, field
