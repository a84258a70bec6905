from __future__ import annotations

from pathlib import Path

import pytest
from projects import copy_outputs, make_params, write_picture
from runs import Run, run_all


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run stages in: the current one."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of all stages, to be read: `copied` may be changed."""
    return run_all(tmp_path_factory.mktemp("finished"), make_params())


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of all stages on a person's own pictures: of several sizes, some transparent, some grey, in odd places."""
    folder = tmp_path_factory.mktemp("own")
    for i in range(60):
        kind, size = ("RGB", "RGBA", "L")[i % 7 % 3], (20 + i % 5, 16 + i % 3)
        split = "test" if i % 5 == 0 else "train"
        suffix = "bmp" if i % 11 == 1 and kind != "RGBA" else "png"
        write_picture(folder / f"own/{split}/{('cat', 'dog', 'owl')[i % 3]}/{i}.{suffix}", i, size, kind)
    params = make_params(
        data__source="imagefolder",
        data__root="own",
        data__resize=12,
        data__crop=8,
        data__background="#30a060",
        data__limit=None,
        data__limit_test=None,
        noise__kind="none",
        noise__rate=0.0,
        train__batch_size=12,
        mlnt__neighbors=5,
        filter__tau=0.01,
        evaluate__label_issue_threshold=0.3,
    )
    return run_all(folder, params)


@pytest.fixture
def copied(finished: Run, project: Path) -> Run:
    """The finished run's files in the current folder, to be spoiled."""
    copy_outputs(finished.folder, project)
    return Run(project, finished.params, finished.written)
