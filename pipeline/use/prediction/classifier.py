"""The better model of a folder in models/: a function of images, for which the folder holds all that is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from mlnt.images.statistics import InputStatistics
from mlnt.networks import create_model
from pipeline.base import files
from pipeline.base.errors import UserError, first_reason
from pipeline.decoding.decode import Decoded, ImageOptions, decode_image
from pipeline.store import cards, models
from pipeline.systems.registry import BY_STAGE

WITHOUT_FILES = {"resize": None, "crop": None, "max_mpixels": 100.0, "background": "white"}
"""How image files are decoded for a model whose data set had none: digits, CIFAR."""

OTHER_SIZE = "are of another size than the {}×{} pixels that the model was trained on, and are resized"


@dataclass(frozen=True)
class Classifier:
    """A network in eval mode without gradient, on `device`, and how it wants its images.

    Attributes:
        card: what the folder says of the model.
        options: how image files are decoded, as in stage download.
        statistics: what images are normalised by.
        module: normalised images [B, C, H, W] ↦ logits [B, K].
        digest: of the weights.
    """

    folder: Path
    card: cards.ModelCard
    options: ImageOptions
    statistics: InputStatistics
    module: nn.Module
    digest: str
    device: torch.device

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | None = None) -> Classifier:
        """The model that was best on validation, student or teacher, as the card in its folder says.

        Args:
            folder: as a training stage leaves it, such as models/meta3, or a copy of it at any place.
            device: None takes a GPU where there is one.

        Raises:
            UserError: no such folder, no model in it, or a damaged one.
        """
        folder = Path(folder)
        if not (folder / "model.json").is_file():
            raise UserError(
                f"{folder}: {'no model.json in it' if folder.is_dir() else 'no such folder'}; expected the folder of a "
                "trained model: name one (--model), or train one with `dvc repro`"
            )
        card = cards.card_at(folder / "model.json")
        weights = folder / models.weights_name(card.mentor, "best")
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        module = models.load_into(_empty_network(folder, card), weights).eval().requires_grad_(False)
        options = _options(folder, card)
        statistics = models.load_statistics(folder)
        return cls(folder, card, options, statistics, module.to(device), files.file_digest(weights), device)

    @property
    def name(self) -> str:
        """The stage that trained it, and the digest of its weights."""
        return f"{self.card.system} {self.digest[:12]}"

    def decode(self, content: bytes) -> Decoded:
        """Decode an image file as stage download does it; where that gives another size than the model's, resize it.

        Raises:
            UndecodableError: the file is no image, is cut off, or is too large.
            UserError: the image is smaller than the crop.
        """
        decoded = decode_image(content, self.options)
        _, height, width = self.card.shape
        if decoded.pixels.shape[1:] == (height, width):
            return decoded
        planes = [
            np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
            for plane in decoded.pixels
        ]
        return Decoded(np.stack(planes), (*decoded.remarks, OTHER_SIZE.format(width, height)))

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """Logits [B, K] on the CPU, for images in [0, 1]."""
        images = (images_BCHW - self.statistics.mean) / self.statistics.std
        with torch.no_grad():
            logits: Tensor = self.module(images.to(self.device))
        return logits.float().cpu()

    def probabilities(self, images_BCHW: NDArray[np.uint8]) -> Tensor:
        """The softmax of the logits, float32 [B, K] on the CPU, for images as `decode` gives them."""
        return self.logits(torch.from_numpy(images_BCHW).float() / 255).softmax(dim=1)


def _options(folder: Path, card: cards.ModelCard) -> ImageOptions:
    """
    Raises:
        UserError: the card's options are none that this version knows.
    """
    values = {"channels": card.shape[0], **(card.options or WITHOUT_FILES)}
    try:
        return TypeAdapter(ImageOptions).validate_python(values)
    except ValidationError as error:
        reason = f"options.{first_reason(error)}"
        raise UserError(f"{folder / 'model.json'}: damaged, or of another version of mlnt ({reason})") from error


def _empty_network(folder: Path, card: cards.ModelCard) -> nn.Module:
    """The network that the card describes, to load its weights into.

    Raises:
        UserError: a system or a network that this version does not know.
    """
    system = BY_STAGE.get(card.system)
    if system is None:
        raise UserError(f"{folder / 'model.json'}: found system {card.system!r}, expected one of {', '.join(BY_STAGE)}")

    def backbone(_: int, outputs: int) -> nn.Module:
        return create_model(card.network, num_classes=outputs, in_chans=card.shape[0], seed=0)

    try:
        return system.network(backbone, len(card.class_names))
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{folder / 'model.json'}: the network {card.network} could not be built: {error}") from error
