"""How files are written: whole or not at all, also by a process that dies or a disk that is full."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from projects import ROOT, environment, run

from pipeline.base import files
from pipeline.base.errors import RunError, UserError
from pipeline.sources.places import delimited
from pipeline.store import hdf5


def run_python(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, "-c", textwrap.dedent(code), *arguments, PYTHONPATH=str(ROOT))


def test_no_space_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """Every kind of file, in a process that may write no larger ones: as on a disk that is full after so many bytes."""
    code = """
        import resource
        from pathlib import Path
        import numpy as np, torch
        from pipeline.base import files
        from pipeline.base.errors import RunError
        from pipeline.store import hdf5, models

        SIZE = 1 << 20
        noise = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
        path = Path("file")

        def write_hdf5():
            with hdf5.create(path) as (file, _):
                hdf5.store(file, {"a": noise}, {"about": 1})

        writers = {
            "hdf5": write_hdf5,
            "safetensors": lambda: models.save_tensors(path, {"a": torch.from_numpy(noise)}),
            "text": lambda: files.write_text(path, "a" * SIZE),
            "json": lambda: files.write_json(path, ["a" * SIZE]),
            "csv": lambda: files.write_csv(path, [{"a": "a" * SIZE}]),
        }
        for name, write in writers.items():
            for space in (0, 1_000, 300_000, SIZE - 1_000, SIZE - 1):
                path.write_bytes(b"of another run")
                resource.setrlimit(resource.RLIMIT_FSIZE, (space, resource.RLIM_INFINITY))
                try:
                    write()
                except RunError as error:
                    print(name, error, [(found.name, found.read_bytes()) for found in Path(".").iterdir()])
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        """
    done = run_python(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    left = "[('file', b'of another run')]"
    assert done.stdout.splitlines() == [
        f"{name} file: could not be written: [Errno 27] File too large; it is as it was before {left}"
        for name in ("hdf5", "safetensors", "text", "json", "csv")
        for _ in range(5)
    ]


def test_what_a_killed_process_left_vanishes_with_the_next_file(tmp_path: Path) -> None:
    code = """
        import os, signal
        from pathlib import Path
        from pipeline.base import files
        with files.replacing(Path("a.txt")) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        """
    assert run_python(code, tmp_path).returncode == -9
    (left,) = tmp_path.iterdir()
    files.write_text(tmp_path / "b.txt", "another file")
    assert left.read_text() == "half"
    files.write_text(tmp_path / "a.txt", "whole")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "whole", "b.txt": "another file"}


def test_what_a_living_process_is_writing_stays(tmp_path: Path) -> None:
    code = """
        from pathlib import Path
        from pipeline.base import files
        with files.replacing(Path("a.txt")) as temporary:
            temporary.write_text("of the other process")
            print("ready", flush=True)
            input()
        """
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"ready\n"
    files.write_text(tmp_path / "a.txt", "of this one")
    assert (tmp_path / "a.txt").read_text() == "of this one"
    other.communicate(b"\n")
    assert other.returncode == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "of the other process"}


def test_processes_that_write_the_same_file_at_once_leave_one_of_theirs(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from pipeline.base import files
        for _ in range(200):
            files.write_text(Path("a.txt"), sys.argv[1] * 5000)
        """
    results: list[subprocess.CompletedProcess[str]] = []

    def write(letter: str) -> None:
        results.append(run_python(code, tmp_path, letter))

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.stderr for result in results] == ["", "", ""]
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    text = (tmp_path / "a.txt").read_text()
    assert text in {letter * 5000 for letter in "xyz"}


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    with pytest.raises(RunError, match=r"models/card\.json: could not be written: .*; it is as it was before"):
        files.write_json(tmp_path / "models/card.json", {})


def make_hdf5(path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {"images": rng.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8), "labels": rng.integers(0, 10, 60)}
    with hdf5.create(path) as (file, _):
        hdf5.store(file, arrays, {"class_names": [f"class {i}" for i in range(10)], "digest": "0" * 64})
    return arrays


def test_every_damage_of_an_hdf5_file_is_found(tmp_path: Path) -> None:
    """One bit of each byte turned, in one byte out of seven and in the whole beginning."""
    path = tmp_path / "file.h5"
    arrays = make_hdf5(path)
    intact = path.read_bytes()
    unnoticed: list[int] = []
    for at in [*range(200), *range(200, len(intact), 7)]:
        damaged = bytearray(intact)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            with hdf5.opened(path, "download") as file:
                found = {name: file[name][:] for name in arrays}
                about = hdf5.about(file)
        except UserError:
            continue
        unnoticed.append(at)
        assert about == {"class_names": [f"class {i}" for i in range(10)], "digest": "0" * 64}
        assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    assert len(unnoticed) < len(intact) / 7 / 5  # unused bytes


def test_processes_of_the_same_number_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in two containers that share a folder."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "a.txt"
    with files.replacing(path) as first:
        first.write_text("first")
        files.write_text(path, "second")
        assert path.read_text() == "second"
    assert {found.name: found.read_text() for found in tmp_path.iterdir()} == {"a.txt": "first"}


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def only_files(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    files.write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"


@pytest.mark.parametrize("name", ["a\rb", "a\nb", "a\r\n", 'a "b"', "a,b;c\td", " a ", "é"])
def test_a_table_gives_back_any_name_whatever_reads_it(name: str, tmp_path: Path) -> None:
    rows = [{"path": name, "label": "1"}, {"path": "next", "label": name}]
    files.write_csv(tmp_path / "a.csv", rows)
    assert files.read_csv(tmp_path / "a.csv") == rows
    if name.strip() == name:
        assert [row for _, row in delimited.rows(tmp_path / "a.csv", "a", ["path", "label"])] == rows
    assert (tmp_path / "a.csv").read_bytes().startswith(b"path,label\n")
