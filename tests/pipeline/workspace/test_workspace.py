"""`mlnt init`: what it lays out, what it says of a person's images, what it refuses, and that it replaces no file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from projects import ROOT, STAGES, digests, environment, git, invoke, run_stage, write_picture, written_by
from ruamel.yaml import YAML

from pipeline.params.load import leaves, load, read_yaml
from pipeline.stages.look import WITH_CODE
from pipeline.systems.registry import code_now
from pipeline.workspace import layout, place

LAID_OUT = {
    *(
        ".dvc/.gitignore",
        ".dvc/config",
        ".dvcignore",
        ".gitignore",
        "baselines/dvc.yaml",
        "dvc.yaml",
        "params.yaml",
        "references/dvc.yaml",
    ),
    *(f"presets/{path.name}" for path in (ROOT / "presets").glob("*.yaml")),
}


@pytest.fixture(autouse=True)
def _no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Nothing of the user's git settings, no weights from anywhere, and no seconds spent on an estimate but for one."""
    for name, value in environment(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub")).items():
        monkeypatch.setenv(name, value)
    if request.function is not test_it_says_what_is_there_and_what_will_happen:
        monkeypatch.setattr("pipeline.workspace.outlook.time", lambda *_: "a moment")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def photos(folder: Path, counts: dict[str, int], size: tuple[int, int] = (9, 7)) -> Path:
    """CLASS or SPLIT/CLASS → number of pictures."""
    number = 0
    for name, count in counts.items():
        for i in range(count):
            write_picture(folder / name / f"{i}.png", number, size)
            number += 1
    return folder


def mlnt(*arguments: str) -> tuple[int, str]:
    """Exit status, and all that was said."""
    result = invoke(*arguments)
    return result.exit_code, result.output


def laid_out(folder: Path) -> set[str]:
    return {name for name in digests(folder) if not name.startswith(".git/")}


# What is laid out


def test_a_workspace_has_the_files_of_the_sources_and_one_commit(here: Path) -> None:
    status, said = mlnt("init", "work")
    assert status == 0, said
    folder = here / "work"
    assert laid_out(folder) == LAID_OUT
    same = LAID_OUT - set(layout.STAGES)
    assert digests(folder, *same) == digests(ROOT, *same)
    assert len(git(folder, "log", "--oneline").splitlines()) == 1
    assert git(folder, "status", "--porcelain") == ""
    before = digests(folder)
    assert mlnt("init", "work")[0] == 0
    assert digests(folder) == before


@pytest.mark.parametrize("name", layout.STAGES)
def test_its_stages_are_those_of_the_sources_but_for_the_code(name: str) -> None:
    text = layout.without_code((ROOT / name).read_text(encoding="utf-8"))
    ours, theirs = read_yaml(ROOT / name), YAML(typ="safe", pure=True).load(text)
    written = {f"data/seen/code/{stage}.csv" for stage in WITH_CODE}
    for stage, entry in theirs["stages"].items():
        source = ours["stages"][stage]
        if stage == "look":
            assert entry == {**source, "cmd": f"{source['cmd']} --code", "outs": [*source["outs"], "data/seen/code"]}
            continue
        for key in entry.get("foreach", [stage]):
            code = f"data/seen/code/{'${key}' if 'foreach' in entry else stage}.csv"
            assert code.replace("${key}", key) in written
            found, expected = entry.get("do", entry), source.get("do", source)
            kept = [dep for dep in expected["deps"] if not dep.startswith(("mlnt/", "pipeline/"))]
            assert found == {**expected, "deps": [*kept, code]}
    assert {**theirs, "stages": None} == {**ours, "stages": None}
    comments = [line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if "#" in line]
    assert all(line in text for line in comments)


def test_look_writes_the_digest_of_each_stages_code(here: Path) -> None:
    assert mlnt("init")[0] == 0
    assert mlnt("look", "--code")[0] == 0
    for stage in WITH_CODE:
        assert (here / f"data/seen/code/{stage}.csv").read_text(encoding="utf-8") == f"code\n{code_now(stage)}\n"


def test_without_git_dvc_goes_without(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.workspace.repository.has_git", lambda: False)
    status, said = mlnt("init")
    assert status == 0
    assert "git is not installed" in said
    assert not (here / ".git").exists()
    assert "no_scm = true" in (here / ".dvc/config").read_text(encoding="utf-8")


def test_in_a_larger_repository_nothing_is_committed(here: Path) -> None:
    git(here, "init", "--quiet")
    assert "lies in a git repository" in mlnt("init", "work")[1]
    assert not (here / "work/.git").exists()
    assert git(here, "status", "--porcelain") == "?? work/\n"


def test_git_without_a_name_is_said_and_the_rest_is_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_AUTHOR_NAME", "")
    status, said = mlnt("init")
    assert status == 0
    assert "`git commit` failed" in said
    assert laid_out(here) == LAID_OUT


# What is there already


@pytest.mark.parametrize("name", ["params.yaml", ".gitignore", "presets/digits.yaml", "dvc.yaml"])
def test_no_file_that_a_person_has_changed_is_replaced(name: str, here: Path) -> None:
    assert mlnt("init")[0] == 0
    (here / name).write_text("mine\n", encoding="utf-8")
    (here / "presets/cifar10.yaml").unlink()
    before = digests(here)
    for arguments in ([], ["--images", str(photos(here.parent / "photos", {"cat": 12, "dog": 12}))]):
        status, said = mlnt("init", *arguments)
        assert status == 2
        assert f"found {name} with other content" in said
        assert digests(here) == before


def test_a_dvc_repository_that_is_there_stays_as_it_is(here: Path) -> None:
    (here / ".dvc").mkdir()
    (here / ".dvc/config").write_text("[core]\n    remote = mine\n", encoding="utf-8")
    assert mlnt("init")[0] == 0
    assert (here / ".dvc/config").read_text(encoding="utf-8") == "[core]\n    remote = mine\n"
    assert laid_out(here) == LAID_OUT - {".dvcignore", ".dvc/.gitignore"}


def test_only_an_empty_folder_is_taken(here: Path) -> None:
    (here / ".venv").mkdir()
    (here / "environment").mkdir()
    (here / "environment/pyvenv.cfg").touch()
    (here / "notes.txt").write_text("mine", encoding="utf-8")
    status, said = mlnt("init")
    assert status == 2
    assert f"{here}: found notes.txt, expected an empty folder" in said
    assert laid_out(here) == {"notes.txt", "environment/pyvenv.cfg"}
    assert "found a file, expected a folder" in mlnt("init", "notes.txt")[1]
    (here / "notes.txt").unlink()
    assert mlnt("init")[0] == 0


def test_a_clone_is_a_workspace_and_takes_images(here: Path) -> None:
    """As the container's is."""
    for name in LAID_OUT:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, here / name)
    (here / "pipeline").mkdir()
    before = digests(here)
    status, said = mlnt("init", "--images", str(photos(here.parent / "photos", {"cat": 12, "dog": 12})))
    assert status == 0, said
    after = digests(here)
    assert {name for name in LAID_OUT if before[name] != after[name]} == {"params.yaml"}


# A person's images


def test_it_says_what_is_there_and_what_will_happen(here: Path) -> None:
    folder = photos(here.parent / "photos", {"train/cat": 90, "train/dog": 80, "test/cat": 5, "test/dog": 4})
    write_picture(folder / "train/dog/large.png", 500, (40, 30))
    shutil.copy(folder / "train/cat/0.png", folder / "train/cat/copy.png")
    shutil.copy(folder / "train/cat/1.png", folder / "train/dog/wrong.png")
    (folder / "train/cat/broken.jpg").write_bytes(b"no image")
    status, said = mlnt("init", "--images", str(folder))
    assert status == 0, said
    lines = [" ".join(line.split()) for line in said.splitlines()]
    for expected in (
        f"{folder}: 183 images of 2 classes",
        "class train test",
        "cat 92 5",
        "dog 82 4",
        "sizes: from 9×7 to 40×30 pixels, most often 9×7 (181)",
        "copies: 2 files are the same, byte for byte, as another one",
    ):
        assert expected in lines
    assert "1 files are no images, whatever they are called: train/cat/broken.jpg (of no known image format)" in said
    assert "train/cat/1.png (cat) = train/dog/wrong.png (dog)" in said
    assert "embed all images of 128×128 pixels once by tf_efficientnet_lite0" in said
    assert "here, for 157 training images of 128×128" in said
    assert "mlnt preset imagefolder" in said
    assert "`dvc repro` cannot begin yet: model.pretrained" in said
    assert "model.weights" in said
    wanted = leaves(read_yaml(ROOT / "presets/imagefolder-quick.yaml"))
    defaults = leaves(read_yaml(ROOT / "params.yaml"))
    own = {"data.root": str(folder), "train.batch_size": 62}  # of 157 images in five parts, four have 125
    assert leaves(read_yaml(here / "params.yaml")) == {**defaults, **wanted, **own}
    before = digests(here)
    assert "is laid out already" in mlnt("init", "--images", str(folder))[1]
    assert digests(here) == before


def test_a_class_name_is_shown_as_it_is(here: Path) -> None:
    """Brackets are no mark-up. An end of what did not begin would be an error."""
    photos(here / "photos", {"a": 40, "b [bold]c": 40})
    rows = [f"photos/a/{i}.png,{'[/b]' if i % 2 else '[red]x'}" for i in range(40)]
    (here / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    for images, names in (("photos", ["b [bold]c"]), ("list.csv", ["[/b]", "[red]x"])):
        status, said = mlnt("init", "--images", images, f"work-{images}")
        assert status == 0, said
        assert all(name in said for name in names)


def test_images_are_found_from_the_workspace_however_they_were_named(here: Path) -> None:
    photos(here / "mine/photos [old]", {"cat": 12, "dog": 12})
    for named, folder, root in (
        ("mine/photos [old]", "work", "../mine/photos [old]"),
        (str(here / "mine/photos [old]"), "other", str(here / "mine/photos [old]")),
        ("mine/photos [old]", "mine", "photos [old]"),
        (str(here / "mine/photos [old]"), "mine", "photos [old]"),
    ):
        assert mlnt("init", "--images", named, folder)[0] == 0
        assert load(here / folder / "params.yaml").data.root == root
    assert git(here / "mine", "status", "--porcelain") == ""  # the images are no part of the repository
    assert (here / "mine/.gitignore").read_text(encoding="utf-8").endswith("\n/photos [[]old]\n")


def test_few_images_make_smaller_mini_batches(here: Path) -> None:
    photos(here / "few", {"cat": 20, "dog": 20})
    photos(here / "very few", {"cat": 8, "dog": 8})
    photos(here / "too few", {"cat": 5, "dog": 5})
    for folder, size in (("few", 14), ("very few", 11)):  # four of five parts, of 36 and 14
        status, said = mlnt("init", "--images", folder, f"for {folder}")
        assert status == 0, said
        assert "train.batch_size" in said
        assert load(here / f"for {folder}/params.yaml").train.batch_size == size
    status, said = mlnt("init", "--images", "too few", "none")
    assert status == 2
    assert "--images: found 10 training images" in said
    assert not (here / "none").exists()


def test_a_list_and_an_archive_are_taken_too(here: Path) -> None:
    photos(here / "photos", {"cat": 12, "dog": 12})
    rows = [f"photos/{name}/{i}.png,{name}" for name in ("cat", "dog") for i in range(12)]
    (here / "list.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    status, said = mlnt("init", "--images", "list.csv", "listed")
    assert status == 0, said
    assert "24 images of 2 classes" in said
    shutil.make_archive("packed", "zip", here / "photos")
    status, said = mlnt("init", "--images", "packed.zip", "packed")
    assert status == 0, said
    assert "an archive" in said
    for folder, root in (("listed", "../list.csv"), ("packed", "../packed.zip")):
        assert load(here / folder / "params.yaml").data.root == root


def test_what_is_no_set_of_images_is_refused_and_nothing_is_written(here: Path) -> None:
    photos(here / "one", {"cat": 12})
    photos(here / "flat", {".": 3})
    photos(here / "inside", {"train/cat": 12, "train/dog": 12})
    photos(here / "data", {"cat": 12, "dog": 12})
    (here / "empty").mkdir()
    before = digests(here)
    for images, folder, expected in (
        ("nosuch", "work", "--images: nosuch: no such folder or file"),
        ("empty", "work", "no images in it; expected train/CLASS/FILE"),
        ("one", "work", "expected training images of two or more classes, found ['cat']"),
        ("flat", "work", "lies in no class folder"),
        ("flat/0.png", "work", "found a file that is neither a .csv file nor a tar or zip archive"),
        ("flat", "data", "expected an empty folder"),
        ("inside", "inside", "the workspace would lie in it"),
        ("inside", "inside/work", "the workspace would lie in it"),
        ("data", ".", "data/ is a folder that a workspace writes into"),
    ):
        status, said = mlnt("init", "--images", images, folder)
        assert (status, said.count("\n")) == (2, 1), said
        assert expected in said.replace(f"{here}/", "")
        assert digests(here) == before


def test_every_folder_of_outputs_is_kept_apart_from_images(here: Path) -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    written = {path.partition("/")[0] for stage in STAGES for path in written_by(stage)}
    assert written <= set(place.WRITTEN)
    assert {"checkpoints", "timings", "exports"} <= {line.strip("/") for line in ignored} & set(place.WRITTEN)


def test_a_workspace_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(here.parent / "photos", {"cat": 20, "dog": 20})
    assert mlnt("init", "--images", "../photos", "work")[0] == 0
    monkeypatch.chdir(here / "work")
    params = load(Path("params.yaml"))
    params = params.model_copy(update={"model": params.model.model_copy(update={"pretrained": False})})
    for stage in ("look", "download", "noise"):
        run_stage(stage, params)
