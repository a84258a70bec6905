"""Stage look: which of a person's own files a run comes from → data/seen/.

It always runs, and takes a moment: what depends on these lists runs again when a file has changed, and only then.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.params.schema import Params
from pipeline.sources.places.folder import printable
from pipeline.sources.seen import Seen, look
from pipeline.systems.registry import BY_STAGE, code_now

SEEN = Path("data/seen")
CODE = SEEN / "code"
WITH_CODE = ("download", "noise", "embed", *BY_STAGE, "features", "evaluate", "report")


def run(params: Params, code: bool = False) -> str:
    """Write what is at `data.root`, the files of the noise, and the start weights; returns a line with their numbers.

    Args:
        code: also write the digest of the code that each stage would run, for a workspace that does not hold it.

    Raises:
        UserError: one of them is not there, or cannot be read; or the weights of `model.pretrained` cannot be had; or,
            which is tried while there are no data yet, the network cannot be built or start from its weights.
    """
    own: dict[str, str | None] = {"model.weights": params.model.weights}
    if params.model.pretrained:
        from pipeline.training.start_weights.pretrained import weights_file  # imports timm

        if (found := weights_file(params.model)) is not None:
            own["model.pretrained"] = str(found)
    wanted: dict[str, dict[str, str | None]] = {
        # CIFAR is the same wherever it lies: stage download compares it with sums of its own.
        "data": {"data.root": params.data.root if params.data.has_image_files else None},
        "noise": {**params.noise.files()},
        "weights": own,
    }
    counts = []
    for name, keys in wanted.items():
        seen = [each for key, place in keys.items() if place is not None for each in _look(key, place)]
        rows = ({"name": printable(each.name), "size": each.size, "sha256": each.sha256} for each in seen)
        files.write_csv(SEEN / f"{name}.csv", rows)
        counts.append(f"{len(seen)} of {name}")
    if not files.DATASET.exists():
        require_start(params)
    if code:
        for stage in WITH_CODE:
            files.write_csv(CODE / f"{stage}.csv", [{"code": code_now(stage)}], synced=False)
    return f"look: {', '.join(counts)}"


def require_start(params: Params) -> None:
    """Find out before there are data whether the network can start from its weights; it takes some seconds.

    Raises:
        UserError: no such network, or the weights cannot be had or are of another one.
    """
    from pipeline.training.start_weights.start import started  # imports torch and timm

    started(params.model, 2, 1 if params.data.channels == 1 else 3, params.seed)


def _look(key: str, place: str) -> list[Seen]:
    try:
        return look(files.resolve(place), lists=key == "data.root")
    except UserError as error:
        raise UserError(f"{error}".replace("data.root", key, 1)) from None
