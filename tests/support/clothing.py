"""A data set in the layout of Clothing1M's owners, small: a colour and a shape for each class, some labels wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = 14
WRONG = 0.3


def make_clothing(root: Path, train: int, others: int, size: tuple[int, int] = (48, 56)) -> None:
    """`train` noisy images a class, `others` for each of the clean parts; a tenth of them grey, as JPEG."""
    rng = np.random.default_rng(0)
    lists: dict[str, list[str]] = {name: [] for name in ("noisy_train", "clean_train", "clean_val", "clean_test")}
    labels: dict[str, list[str]] = {"noisy": [], "clean": []}
    number = 0
    for name, keys in lists.items():
        for i in range(CLASSES * (train if name == "noisy_train" else others)):
            label = i % CLASSES
            key = f"images/{number % 10}/{number}.jpg"
            path = root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            _picture(label, size, rng).convert("L" if number % 10 == 9 else "RGB").save(path, quality=90)
            given = int(rng.integers(CLASSES)) if rng.random() < WRONG else label
            keys.append(key)
            labels["noisy"].append(f"{key} {given}")
            if name != "noisy_train":
                labels["clean"].append(f"{key} {label}")
            number += 1
    for name, keys in lists.items():
        (root / f"{name}_key_list.txt").write_text("\n".join(keys) + "\n", encoding="utf-8")
    for name, lines in labels.items():
        (root / f"{name}_label_kv.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _picture(label: int, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    width, height = size
    image = Image.fromarray(rng.integers(0, 60, (height, width, 3)).astype(np.uint8))
    colour = tuple(int(v) for v in np.random.default_rng(label).integers(60, 256, 3) + rng.integers(-15, 16, 3))
    x, y = rng.integers(2, width // 4), rng.integers(2, height // 4)
    box = (x, y, x + width * (label % 3 + 2) // 6, y + height * (label % 4 + 2) // 7)
    draw = ImageDraw.Draw(image)
    (draw.ellipse if label % 2 else draw.rectangle)(box, fill=tuple(min(255, max(0, v)) for v in colour))
    return image
