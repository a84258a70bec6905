"""The machine: device, threads, precision; and the network on it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from mlnt import networks, seeding
from mlnt.allocator import keep_freed_memory
from mlnt.data import ImageStore, InputStatistics, MemoryImages, statistics_of
from mlnt.pixel_sums import PixelSums
from pipeline import files
from pipeline.artifacts import TRAIN, Dataset, Labels
from pipeline.errors import RunError, UserError
from pipeline.image_files import ImageFiles
from pipeline.params import Model, Params, Train


def prepare(train: Train) -> torch.device:
    """Set threads, allocator and determinism for this process and choose the device: CUDA when there is one.

    Raises:
        UserError: `train.device` is cuda and there is none.
    """
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    keep_freed_memory()
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at cuBLAS's first call
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    has_cuda = torch.cuda.is_available()
    if train.device == "cuda" and not has_cuda:
        raise UserError("train.device: found cuda, but torch sees no GPU; `mlnt doctor` says why; expected auto or cpu")
    return torch.device("cuda" if has_cuda and train.device != "cpu" else "cpu")


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def require_compiler(device: torch.device) -> None:
    """torch.compile writes C++ for the CPU; for a GPU, triton does, with a C compiler to start what it wrote.

    Raises:
        UserError: `train.compile` is true and they are not installed.
    """
    if device.type == "cuda":
        needed = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    else:
        needed = [os.environ.get("CXX", "g++")]
    missing = [] if any(map(shutil.which, needed)) else [" or ".join(needed)]
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        missing.append("triton")
    if missing:
        raise UserError(
            f"train.compile: found true, but not {' and '.join(missing)}, which torch.compile needs; install them "
            "(container: build the image with --build-arg COMPILE=yes) or set train.compile to false"
        )


def amp_dtype(train: Train) -> torch.dtype | None:
    return torch.bfloat16 if train.amp == "bfloat16" else None


def build_network(
    params: Params, dataset: Dataset, device: torch.device, iteration: int, num_outputs: int | None = None
) -> nn.Module:
    """A fresh network, with one output a class unless told otherwise.

    The initialisation depends on the seed, the iteration and the number of outputs alone, so that cross entropy and
    MLNT start alike in iteration 1 and their difference is that of the method.

    Raises:
        UserError: unknown name, weights of another network, weights that cannot be had, or a network that does not take
            images of this size.
    """
    model: Model = params.model
    try:
        module = networks.create_model(
            model.name,
            num_classes=num_outputs or len(dataset.class_names),
            in_chans=dataset.images.shape[1],
            seed=seeding.derive(params.seed, "initialisation", iteration),
            pretrained=model.pretrained,
            weights=Path(model.weights).expanduser() if model.weights else None,
        )
    except FileNotFoundError as error:
        raise UserError(f"model.weights: {model.weights}: no such file") from error
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    except SafetensorError as error:
        raise UserError(f"model.weights: {model.weights}: damaged or no safetensors file ({error})") from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"model: {model.name} could not be built with these weights: {error}") from error
    if model.name not in networks.BUILT_IN:
        _try_blank_image(module, params, dataset.images.shape[1:])
    return place(module, params.train, device)


def _try_blank_image(module: nn.Module, params: Params, shape: tuple[int, ...]) -> None:
    """Many of timm's networks take images of one size alone, which shows in their forward pass.

    Raises:
        UserError: it fails.
    """
    was_training = module.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module.eval()(torch.zeros(1, *shape))
    except Exception as error:  # each network has checks of its own, or none
        own = (getattr(module, "pretrained_cfg", None) or {}).get("input_size")
        expected = f"{own[1]} × {own[2]}, for which it was made" if own else "another size"
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"model.name: {params.model.name} does not take images of {shape[1]} × {shape[2]} ({cause}); expected "
            f"{expected}: set data.resize (found {params.data.resize or 'null'}) and data.crop (found "
            f"{params.data.crop or 'null'}), or choose another network"
        ) from error
    finally:
        module.train(was_training)


def start_digest(model: Model) -> str:
    """Of the file that the network starts from, "" for none: for the checkpoint's identity."""
    return files.file_digest(Path(model.weights).expanduser()) if model.weights else ""


def empty_network(params: Params, dataset: Dataset, device: torch.device) -> nn.Module:
    """The network without its weights being fetched: for weights that a stage has saved."""
    module = networks.create_model(
        params.model.name, num_classes=len(dataset.class_names), in_chans=dataset.images.shape[1], seed=0
    )
    return place(module, params.train, device)


def place(module: nn.Module, train: Train, device: torch.device) -> nn.Module:
    module = module.to(device)
    return module.to(memory_format=torch.channels_last) if train.channels_last else module


def image_store(
    params: Params, dataset: Dataset, labels: Labels, device: torch.device
) -> tuple[ImageStore, InputStatistics]:
    """All images, on the device or read from their files, normalised by the statistics of the training split.

    Those of files were taken when each was decoded for the first time: before a validation split was taken off.
    """
    if isinstance(dataset.images, ImageFiles):
        # Imported here: without files nobody waits for torch.utils.data.
        from mlnt.file_images import FileImages

        statistics = statistics_of(dataset.images.sums, params.data.normalize)
        store = FileImages(
            dataset.images,
            statistics,
            device,
            channels_last=params.train.channels_last,
            workers=params.data.num_workers,
            lost=RunError,
        )
        return store, statistics
    images, train = dataset.images, labels.rows(TRAIN)
    # In pieces: those of all training images would be a second copy of them.
    pieces = (images[train[at : at + 4096]] for at in range(0, len(train), 4096))
    statistics = statistics_of(PixelSums.of(pieces, images.shape[1:]), params.data.normalize)
    return MemoryImages(torch.from_numpy(images), statistics, device, params.train.channels_last), statistics
