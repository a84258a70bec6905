"""The machine: device, threads, precision, memory."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import sys

import torch
from torch import nn

from pipeline.base.errors import UserError
from pipeline.params.schema import Compute, Params, cores

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>


def prepare(compute: Compute) -> torch.device:
    """Set threads, allocator and determinism for this process and choose the device: CUDA when there is one.

    Raises:
        UserError: `compute.device` is cuda and there is none.
    """
    if compute.threads is not None or "LOCAL_WORLD_SIZE" in os.environ:
        torch.set_num_threads(compute.threads or cores())
    keep_freed_memory()
    if compute.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at cuBLAS's first call
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    has_cuda = torch.cuda.is_available()
    if compute.device == "cuda" and not has_cuda:
        raise UserError(
            "compute.device: found cuda, but torch sees no GPU; `mlnt doctor` says why; expected auto or cpu"
        )
    if not has_cuda or compute.device == "cpu":
        return torch.device("cpu")
    if "LOCAL_RANK" in os.environ:  # a launcher may show each process all GPUs of the machine, or its own alone
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return torch.device("cuda")


def processes(params: Params) -> int:
    """`run.processes`; `all` is one for each GPU, or on a CPU for each `compute.threads` of its cores. Where a launcher
    has started this process, as many as it has started.

    Raises:
        UserError: there are fewer GPUs.
    """
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    asked, compute = params.run.processes, params.compute
    gpus = 0 if compute.device == "cpu" else torch.cuda.device_count()
    if asked == "all":
        return max(1, gpus or cores() // (compute.threads or cores()))
    if gpus and asked > gpus:
        raise UserError(f"run.processes: found {asked}, expected at most {gpus}, one for each GPU here, or all")
    return asked


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory instead of returning it to the system; return whether this could be set.

    A training step frees and allocates the same gigabytes again and again. By default glibc returns each large block
    at once, and the system clears its pages before it hands them out again: some percents of a step on a CPU
    (docs/performance.md). The numbers are the same. Only with glibc; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return False
    # No block is mapped by itself, and no free end of the heap, however long, is cut off.
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def require_compiler(device: torch.device) -> None:
    """Check for what torch.compile needs: a C++ compiler for the CPU; triton and a C compiler for a GPU.

    Raises:
        UserError: `compute.compile` is true and they are not installed.
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
            f"compute.compile: found true, but not {' and '.join(missing)}, which torch.compile needs; install them "
            "(container: build the image with --build-arg COMPILE=yes) or set compute.compile to false"
        )


def amp_dtype(compute: Compute) -> torch.dtype | None:
    return torch.bfloat16 if compute.amp == "bfloat16" else None


def place(module: nn.Module, compute: Compute, device: torch.device) -> nn.Module:
    """Move the network to its device and memory format, and return it."""
    module = module.to(device)
    return module.to(memory_format=torch.channels_last) if compute.channels_last else module
