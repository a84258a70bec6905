"""What share of a training epoch is the step itself? The rest: batches, augmentation, evaluation, bookkeeping.

python bench/speed/profile_epoch.py                         # the data and parameters, after `dvc repro`
python bench/speed/profile_epoch.py --set train.epochs=2
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

from mlnt.method.step import MLNTStep
from mlnt.training.loop import Training
from pipeline.params.load import changed, check, read_yaml
from pipeline.params.schema import Params
from pipeline.stages import train

PARTS = {
    "_inputs": "draws of an epoch",
    "_batch": "batch: gather, normalise, augment, look up",
    "_evaluate": "evaluation of student and teacher",
}


class Watch:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self.seconds[name] += self._now() - start

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return timed

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--stage", default="meta1")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as `dvc exp run -S`")
    args = parser.parse_args()
    values = read_yaml(args.params)
    for item in args.set:
        key, _, value = item.partition("=")
        values = changed(values, {key: YAML(typ="safe").load(value)})
    params = check(values, args.params)

    watch = Watch()
    for name, title in PARTS.items():
        setattr(Training, name, watch.around(title, getattr(Training, name)))
    for name in ("_run_steps", "_evaluate"):
        setattr(Training, name, watch.around("epoch", getattr(Training, name)))
    setattr(MLNTStep, "__call__", watch.around("step", MLNTStep.__call__))  # noqa: B010
    if params.compute.cuda_graphs:
        raise SystemExit("error: compute.cuda_graphs: inside a recorded step no part can be timed; --set it to false")
    with aside(args.stage), watch.part("stage"):
        train.run(params, args.stage)
    show(watch, params, args.stage)


@contextmanager
def aside(stage: str) -> Iterator[None]:
    """A folder with the session's data and other models, so that nothing of the session changes."""
    session = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").symlink_to(session / "data")
        (Path(folder) / "models").mkdir()
        for model in (session / "models").iterdir():
            if model.name != stage:
                (Path(folder) / "models" / model.name).symlink_to(model)
        os.environ["MLNT_CHECKPOINT_DIR"] = f"{folder}/checkpoints"
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(session)


def show(watch: Watch, params: Params, stage: str) -> None:
    epoch = watch.seconds["epoch"]
    table = Table(title=f"{stage}, {params.data.source}, {params.model.name}, M = {params.mlnt.M}")
    for column in ("part", "s", "% of the epochs"):
        table.add_column(column, justify="left" if column == "part" else "right")
    known = ["step", *PARTS.values()]
    rows = {name: watch.seconds[name] for name in known} | {"else": epoch - sum(watch.seconds[name] for name in known)}
    rows |= {"all epochs": epoch, "stage without start-up": watch.seconds["stage"]}
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds:.2f}", f"{seconds / epoch:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
