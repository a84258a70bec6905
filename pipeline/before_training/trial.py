"""A network that is not built in is tried before it is trained: once through everything that the run will ask of it.

What fails here would else fail after hours: in a later stage, or when the trained weights are written.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from mlnt.method.fast_weights import Order
from mlnt.method.step import MLNTStep
from mlnt.networks import BUILT_IN, pre_logit_features
from mlnt.training.draws import layer_randomness
from mlnt.training.passes import Network
from mlnt.training.state import Batch, Rates, TrainState
from pipeline.base.errors import UserError
from pipeline.params.schema import Params
from pipeline.store import models
from pipeline.training.build import fresh_backbone
from pipeline.training.device import amp_dtype, place
from pipeline.training.plan import System
from pipeline.training.session import Session

FEW = 2
"""Images of a trial: enough for BatchNorm, and for one neighbour each."""
RATES = Rates(lr=1e-3, meta_lr=1e-3, ema_decay=0.9, teacher_weight=0.0)
ANOTHER = "choose another network"


@dataclass(frozen=True)
class Asked:
    """What a run asks of its network.

    Attributes:
        shape: of an image, [C, H, W].
        classes: how many logits it gives.
        meta: whether a stage of this run does MLNT's meta update with such a network.
        compiled: whether `torch.compile` is tried too, which takes minutes.
    """

    shape: tuple[int, ...]
    classes: int
    meta: bool
    compiled: bool


def try_start(session: Session, system: System) -> None:
    """Try the network that a system will start from; not one that is built in, nor a head on embeddings.

    Raises:
        UserError: it cannot be built, or something that the run asks of it fails; names the parameter.
    """
    params, dataset, device = session.params, session.dataset, session.device
    if session.heads is not None or params.model.name in BUILT_IN:
        return
    fresh, made = fresh_backbone(system, params, dataset), list[nn.Module]()

    def backbone(number: int, outputs: int) -> nn.Module:
        made.append(fresh(number, outputs))
        return made[-1]

    classes = len(dataset.class_names)
    network = place(system.network(backbone, classes), params.compute, device)
    # Later stages compile what an earlier one has tried.
    compiled = not (system.mentor or system.needs)
    asked = Asked(dataset.images.shape[1:], classes, meta=system.default, compiled=compiled)
    try_network(network, made[0], params, asked, device)


def try_network(network: nn.Module, backbone: nn.Module, params: Params, asked: Asked, device: torch.device) -> None:
    """Forward in both modes, pre-logit features, a training step with its fast weights, saving and loading.

    All of it happens to copies, on random images of the real shape; no generator but its own is moved.

    Args:
        network: as it will be trained, on its device.
        backbone: the network of `model.name` in it.

    Raises:
        UserError: something fails; names the parameter.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _Trial(network, params, asked, device).run(backbone)


class _Trial:
    def __init__(self, network: nn.Module, params: Params, asked: Asked, device: torch.device) -> None:
        self._network = network
        self._params = params
        self._asked = asked
        self._device = device
        self._amp = amp_dtype(params.compute)
        self._meta = asked.meta and params.mlnt.M > 0

    def run(self, backbone: nn.Module) -> None:
        order, compute, name = self._params.mlnt.order, self._params.compute, self._params.model.name
        with self._refused("model.name", f"{name} cannot be copied, as a teacher is", ANOTHER):
            copied, copied_backbone = copy.deepcopy((self._network, backbone))
        self._look_at(copied.eval(), copied_backbone.eval())
        if self._meta and self._params.mlnt.fast_weights == "classifier":
            what = f"found classifier, but {name} has no classifier for that"
            with self._refused("mlnt.fast_weights", what, f"set mlnt.fast_weights to all, or {ANOTHER}"):
                self._look_at_classifier(Network(copied))
        self._train_one_step()
        if self._meta and order == "second":
            what = f"found second, but {name} has no second derivative"
            with self._refused("mlnt.order", what, f"set mlnt.order to first, or {ANOTHER}"):
                self._step(order="second")
        if compute.compile and self._asked.compiled:
            what = f"found true, but torch.compile fails with {name}"
            with self._refused("compute.compile", what, f"set compute.compile to false, or {ANOTHER}"):
                self._step(compiled=True)
        with self._refused("model.name", f"{name} cannot be saved and read again", ANOTHER):
            self._save_and_load(copied)

    def _look_at(self, network: nn.Module, backbone: nn.Module) -> None:
        """Many of timm's networks take images of one size alone, which shows in their forward pass."""
        data, name, images = self._params.data, self._params.model.name, self._images(FEW)
        own = (getattr(backbone, "pretrained_cfg", None) or {}).get("input_size")
        size = f"{self._asked.shape[1]} × {self._asked.shape[2]}"
        expected = f"{own[1]} × {own[2]}, for which it was made" if own else "another size"
        remedy = (
            f"expected {expected}: set data.resize (found {data.resize or 'null'}) and data.crop (found "
            f"{data.crop or 'null'}), or {ANOTHER}"
        )
        with torch.no_grad():
            with self._refused("model.name", f"{name} does not take images of {size}", remedy):
                output = network(images)
            with self._refused("model.name", f"{name} gives no logits", ANOTHER):
                _expect_rows(output, self._asked.classes)
            what = f"{name} gives no features before its classifier, by which neighbours are found"
            with self._refused("model.name", what, ANOTHER):
                _expect_rows(pre_logit_features(backbone, images))

    @torch.no_grad()
    def _look_at_classifier(self, network: Network) -> None:
        """The forward pass in two parts must be the whole.

        Raises:
            ValueError: there is no linear classifier, or the logits are others.
        """
        images = self._images(FEW)
        if not torch.allclose(network.with_classifier_inputs(images)[0], network(images), rtol=1e-3, atol=1e-4):
            raise ValueError("what its classifier gives are not its logits")

    def _train_one_step(self) -> None:
        name = self._params.model.name
        doing = "in a step of MLNT (with mlnt.M: 0 it is not asked for)" if self._meta else "in a step"
        with self._refused("model.name", f"{name} fails {doing}", ANOTHER):
            try:
                self._step()
            except Exception as error:
                if self._amp is None or not self._goes_without_amp():
                    raise
                found = f"compute.amp: found {self._params.compute.amp}, in which {name} fails"
                raise UserError(f"{found} ({_cause(error)}); set compute.amp to none, or {ANOTHER}") from error

    def _goes_without_amp(self) -> bool:
        amp, self._amp = self._amp, None
        try:
            self._step()
        except Exception:
            return False
        finally:
            self._amp = amp
        return True

    def _step(self, order: Order = "first", compiled: bool = False) -> None:
        """One step of the run's method, on a copy: forward, backward, fast weights, average."""
        params = self._params
        step = MLNTStep(
            num_synthetic=int(self._meta),
            replace_fraction=0.5,
            num_neighbors=1,
            inner_lr=RATES.lr,  # type: ignore[arg-type]
            momentum=params.train.momentum,
            weight_decay=params.train.weight_decay,
            fast_weights=params.mlnt.fast_weights,
            order=order,
            update=params.mlnt.update,
            kl_reduction=params.mlnt.kl_reduction,
            teacher_bn=params.teacher.batch_norm,
        )
        # Compiled code belongs to one batch size, and torch keeps it: the run itself finds it there.
        size = params.train.batch_size if compiled else FEW
        state = TrainState(copy.deepcopy(self._network), self._amp)
        generator = torch.Generator().manual_seed(0)
        batch = Batch(
            images=self._images(size),
            labels=(torch.arange(size) % self._asked.classes).to(self._device),
            features=torch.randn(size, 2, generator=generator).to(self._device),
            draws={name: value.to(self._device) for name, value in step.draw(size, generator).items()},
        )
        if not compiled:
            step(state, batch, RATES)
            if self._meta and params.mlnt.fast_weights == "all":
                self._look_at_fast_weights(state.student, batch)
            return
        state.compile()
        try:
            step(state, batch, RATES)
        finally:
            torch._dynamo.reset()  # what is compiled for copies would count among the run's own

    def _look_at_fast_weights(self, network: Network, batch: Batch) -> None:
        """A network with other parameters in the place of its own must use them, and afterwards its own again.

        Raises:
            ValueError: the gradients differ, or its own parameters are not put back.
        """
        fast = [parameter.detach().clone().requires_grad_() for parameter in network.parameters]
        gradients: list[tuple[Tensor, ...]] = []
        for parameters in (network.parameters, fast):
            with network.frozen_statistics(), layer_randomness(self._device, 0):
                own = parameters is not fast
                logits = network(batch.images) if own else network.at(parameters, batch.images)
            loss = F.cross_entropy(logits, batch.labels)
            gradients.append(torch.autograd.grad(loss, parameters, materialize_grads=True))
        left = dict(network.module.named_parameters())
        largest = max(gradient.norm().item() for gradient in gradients[0])
        for name, parameter, expected, found in zip(network.names, network.parameters, *gradients, strict=True):
            if left.get(name) is not parameter:
                raise ValueError(f"{name} is not put back after a pass with fast weights")
            # Gradients that are rounding errors alone, of a bias before BatchNorm, may differ.
            if (found - expected).norm().item() > max(0.1 * expected.norm().item(), 1e-3 * largest):
                raise ValueError(f"fast weights do not reach {name}")

    def _save_and_load(self, network: nn.Module) -> None:
        """Into a copy with other values.

        Raises:
            ValueError: a tensor comes back as another one.
        """
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(1)
        network.load_state_dict(load(models.encoded(self._network.state_dict())))
        loaded = network.state_dict()
        for name, tensor in self._network.state_dict().items():
            if not torch.equal(loaded[name], tensor):
                raise ValueError(f"{name} comes back with other values")

    def _images(self, size: int) -> Tensor:
        images = torch.randn(size, *self._asked.shape, generator=torch.Generator().manual_seed(1)).to(self._device)
        return images.to(memory_format=torch.channels_last) if self._params.compute.channels_last else images

    @contextmanager
    def _refused(self, key: str, what: str, remedy: str) -> Iterator[None]:
        """Whatever a network raises: each has checks of its own, or none."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{key}: {what} ({_cause(error)}); {remedy}") from error


def _expect_rows(output: object, columns: int | None = None) -> None:
    """
    Raises:
        ValueError: it is no tensor of a row an image.
    """
    expected = f"a tensor of {FEW} × {columns or 'any number'}"
    if not isinstance(output, Tensor):
        raise ValueError(f"found a {type(output).__name__}, expected {expected}")
    if output.ndim != 2 or output.shape[0] != FEW or columns not in (None, output.shape[1]):
        raise ValueError(f"found {' × '.join(map(str, output.shape))}, expected {expected}")


def _cause(error: Exception) -> str:
    """The first line of what it says, and the next where that one only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
