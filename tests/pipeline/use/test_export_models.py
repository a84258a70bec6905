"""`mlnt export model`: what timm and onnxruntime make of a model that was handed to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import projects
import pytest
import timm
import torch
from PIL import Image
from projects import save_model, write_picture
from timm.data import create_transform, resolve_model_data_config

from pipeline.base.errors import RunError, UserError
from pipeline.use.export import model_formats as exporter
from pipeline.use.export import onnx_model
from pipeline.use.prediction.classifier import Classifier

OPTIONS = {"channels": 3, "resize": 40, "crop": 32, "max_mpixels": 100.0, "background": "white"}


def pixels(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5))


def names(folder: str = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def config(folder: str = "exports/timm") -> Any:
    return json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))


def onnx_logits(images: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession("exports/onnx/model.onnx", providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_timm_loads_a_network_of_its_own_with_equal_logits(channels: int, project: Path) -> None:
    network = save_model("resnet10t", [channels, 32, 32], "channel", options={**OPTIONS, "channels": channels}).eval()
    exporter.run("timm", Path("models/meta3"), None)
    found = timm.create_model("local-dir:exports/timm", pretrained=True).eval()
    images = pixels(5, channels, 32, 32)
    with torch.no_grad():
        assert torch.equal(found(images), network(images))
    assert config()["label_names"] == ["cat", "dog", "owl"]
    assert found.pretrained_cfg["label_names"] == ["cat", "dog", "owl"]
    assert (config()["architecture"], config()["num_classes"]) == ("resnet10t", 3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_timms_transform_prepares_a_photograph_as_the_model_wants_it(interpolation: str, project: Path) -> None:
    save_model("resnet10t", [3, 32, 32], "channel", options={**OPTIONS, "interpolation": interpolation})
    exporter.run("timm", Path("models/meta3"), None)
    write_picture(Path("a.png"), 0, size=(61, 47))
    network = timm.create_model("local-dir:exports/timm", pretrained=True)
    prepare = create_transform(**resolve_model_data_config(network))
    classifier = Classifier.load("models/meta3")
    decoded = torch.from_numpy(np.array(classifier.decode(Path("a.png").read_bytes()).pixels)).float() / 255
    assert torch.allclose(prepare(Image.open("a.png")), (decoded - 0.25) / 0.5, atol=1e-6)


@pytest.mark.parametrize(("resize", "crop"), [(14, 9), (25, 7), (256, 224), (28, 9)])
def test_timm_resizes_to_the_pixels_before_the_crop(resize: int, crop: int, project: Path) -> None:
    """crop_pct is a quotient that timm divides by again; it may round down to one pixel less."""
    save_model("resnet10t", [3, crop, crop], "channel", options={**OPTIONS, "resize": resize, "crop": crop})
    exporter.run("timm", Path("models/meta3"), None)
    network = timm.create_model("local-dir:exports/timm", pretrained=True)
    assert create_transform(**resolve_model_data_config(network)).transforms[0].size == (resize, resize)


def test_a_mean_for_each_pixel_goes_into_a_network_of_this_package(project: Path) -> None:
    """As in the default model."""
    save_model("preact_resnet_tiny", [1, 8, 8], "mean_image")
    exporter.run("timm", Path("models/meta3"), None)
    found = timm.create_model("local-dir:exports/timm", pretrained=True).eval()
    images, classifier = pixels(5, 1, 8, 8), Classifier.load("models/meta3")
    with torch.no_grad():
        assert torch.allclose(found(images), classifier.logits(images), atol=1e-6)
    assert (config()["pretrained_cfg"]["mean"], config()["pretrained_cfg"]["std"]) == ([0.0], [1.0])
    assert timm.create_model("preact_resnet_tiny", num_classes=4)(images).shape == (5, 4)  # as before
    with pytest.raises(ValueError, match="no pretrained weights of preact_resnet_tiny"):
        timm.create_model("preact_resnet_tiny", pretrained=True)


@pytest.mark.parametrize(
    ("name", "shape", "normalize"),
    [
        ("preact_resnet_tiny", [1, 8, 8], "mean_image"),
        ("resnet10t", [3, 32, 32], "mean_image"),
    ],
)
def test_onnxruntime_gives_the_logits_for_batches_of_any_size(
    name: str, shape: list[int], normalize: str, project: Path
) -> None:
    save_model(name, shape, normalize)
    exporter.run("onnx", Path("models/meta3"), None)
    classifier = Classifier.load("models/meta3")
    for size in (1, 2, 7):
        images = pixels(size, *shape)
        assert torch.allclose(onnx_logits(images), classifier.logits(images), rtol=1e-3, atol=1e-4)
    assert [path.name for path in Path("exports/onnx").iterdir()] == ["model.onnx"]


def test_the_onnx_file_says_what_its_outputs_and_inputs_are(project: Path) -> None:
    import onnx

    save_model("preact_resnet_tiny", [3, 8, 8], "channel", options={**OPTIONS, "resize": 9, "crop": 8})
    exporter.run("onnx", Path("models/meta3"), None)
    graph = onnx.load("exports/onnx/model.onnx")
    onnx.checker.check_model(graph)
    about = {each.key: json.loads(each.value) for each in graph.metadata_props if each.key in ("class_names", "crop")}
    assert about == {"class_names": ["cat", "dog", "owl"], "crop": 8}
    (images,) = graph.graph.input
    assert (images.name, images.type.tensor_type.shape.dim[0].dim_param) == ("images", "batch")


def test_a_baseline_that_is_more_than_a_network_goes_to_onnx_alone(project: Path) -> None:
    from mlnt.baselines.cnn_crf import CRFNetwork
    from mlnt.networks import create_model

    crf = CRFNetwork(create_model("preact_resnet_tiny", num_classes=6, in_chans=3, seed=0), 3)
    save_model("preact_resnet_tiny", [3, 8, 8], "channel", system="cnn_crf", network=crf)
    with pytest.raises(UserError, match=r"cnn_crf is more than a network of timm; expected onnx"):
        exporter.run("timm", Path("models/cnn_crf"), None)
    exporter.run("onnx", Path("models/cnn_crf"), None)
    images = pixels(3, 3, 8, 8)
    assert torch.allclose(onnx_logits(images), Classifier.load("models/cnn_crf").logits(images), atol=1e-4)


def test_a_pair_of_networks_goes_to_onnx_alone(project: Path) -> None:
    from mlnt.baselines.pair import PairNetwork
    from mlnt.networks import create_model

    pair = PairNetwork(*(create_model("preact_resnet_tiny", num_classes=3, in_chans=3, seed=seed) for seed in (0, 1)))
    save_model("preact_resnet_tiny", [3, 8, 8], "channel", system="divide_mix", network=pair)
    with pytest.raises(UserError, match=r"divide_mix is more than a network of timm; expected onnx"):
        exporter.run("timm", Path("models/divide_mix"), None)
    exporter.run("onnx", Path("models/divide_mix"), None)
    images = pixels(3, 3, 8, 8)
    logits = Classifier.load("models/divide_mix").logits(images)
    assert torch.allclose(onnx_logits(images), logits, atol=1e-4)
    assert torch.allclose(logits.exp().sum(dim=1), torch.ones(3))


# Mistakes


def test_what_timm_cannot_express_is_refused(project: Path) -> None:
    save_model("resnet10t", [3, 32, 32], "mean_image")
    with pytest.raises(UserError, match=r"model.normalize mean_image, .* expected onnx"):
        exporter.run("timm", Path("models/meta3"), None)
    assert not Path("exports/timm").exists()
    assert names("exports") == []


def test_a_missing_package_is_named_with_the_extra(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model("preact_resnet_tiny", [1, 8, 8], "channel")
    monkeypatch.setattr(onnx_model, "NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(UserError, match=r"no_such_package cannot be imported; install the extra: .*mlnt\[export\]"):
        exporter.run("onnx", Path("models/meta3"), None)


def test_a_format_that_gives_other_logits_leaves_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model("preact_resnet_tiny", [1, 8, 8], "channel")
    read = onnx_model.read
    monkeypatch.setattr(onnx_model, "read", lambda *given: read(*given) + 0.01)
    with pytest.raises(RunError, match="gives other logits"):
        exporter.run("onnx", Path("models/meta3"), Path("here"))
    assert names() == ["models"]


def test_what_is_there_stays_there(project: Path) -> None:
    save_model("preact_resnet_tiny", [1, 8, 8], "channel")
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("kept", encoding="utf-8")
    with pytest.raises(UserError, match=r"--out: mine is there already"):
        exporter.run("timm", Path("models/meta3"), Path("mine"))
    assert names("mine") == ["notes.txt"]


def test_an_empty_folder_is_there_until_the_export_takes_its_place(project: Path) -> None:
    save_model("resnet10t", [3, 32, 32], "mean_image")
    Path("mine").mkdir()
    with pytest.raises(UserError, match="expected onnx"):
        exporter.run("timm", Path("models/meta3"), Path("mine"))
    assert names("mine") == []
    exporter.run("onnx", Path("models/meta3"), Path("mine"))
    assert names("mine") == ["model.onnx"]


@pytest.mark.parametrize("link", [False, True])
def test_an_empty_folder_that_cannot_be_replaced_is_refused(
    link: bool, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to one, and one that another disk is mounted at."""
    Path("mine").mkdir()
    if link:
        Path("mine").rename("elsewhere")
        Path("mine").symlink_to("elsewhere")
    else:
        monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "mine")
    with pytest.raises(UserError, match=r"--out: mine is there already"):
        exporter.run("timm", Path("models/meta3"), Path("mine"))
    assert names("mine") == []


def test_commands_and_their_mistakes(project: Path) -> None:
    save_model("preact_resnet_tiny", [1, 8, 8], "channel")

    def invoke(*arguments: str) -> Any:
        return projects.invoke("export", "model", *arguments)

    assert invoke("--format", "timm", "--out", "deep/er").exit_code == 0
    assert names("deep/er") == ["config.json", "model.safetensors"]
    assert np.isclose(config("deep/er")["pretrained_cfg"]["std"], 0.5)
    unknown = invoke("--format", "tflite")
    assert unknown.exit_code == 2
    assert "'timm'" in unknown.output
    assert invoke("--format", "timm", "--model", "nosuch").exit_code == 2
    assert invoke().exit_code == 2
