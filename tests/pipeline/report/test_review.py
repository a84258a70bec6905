"""reports/review.html: what it holds, and what it does in a real browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser as browsers
import h5py
import numpy as np
import pytest
from PIL import Image
from projects import STAGES, copy_outputs, make_params, run_stage, write_picture
from runs import Run, run_all
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from pipeline.base import files
from pipeline.store import features, hdf5
from pipeline.store import rows as rows_of_tables
from pipeline.store.dataset import TRAIN, read_dataset, read_labels

CLASSES = ("<b>x</b>", 'say "a, b"', "a & b\n猫")
CHANGES: dict[str, Any] = {
    "data__source": "imagefolder",
    "data__root": "own/labels.csv",
    "data__limit": None,
    "data__limit_test": None,
    "noise__kind": "none",
    "train__epochs": 1,
    "evaluate__label_issue_threshold": 1.0,
}
"""All labels are issues."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on own images, whose names are made to break a page and a table."""
    folder = tmp_path_factory.mktemp("own")
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["path", "label"])
    for i in range(90):
        name = f'img/{"<i>&" if i == 0 else ""}{i}, "é" #?%.png'
        write_picture(folder / "own" / name, i, size=(40, 36))
        writer.writerow([name, CLASSES[i % 3]])
    (folder / "own" / "labels.csv").write_text(table.getvalue(), encoding="utf-8")
    return run_all(folder, make_params(**CHANGES, data__resize=40))


def held(text: str) -> tuple[dict[str, Any], str]:
    """The data and the pictures in a page."""
    data, pictures = re.findall(r'<script type="[^"]+" id="\w+">(.*?)</script>', text, re.DOTALL)
    return json.loads(data), pictures


# What it holds


def test_every_doubtful_label_is_there_with_its_scores(own: Run) -> None:
    data, pictures = held(own.text("reports/review.html"))
    issues = own.table("reports/label_issues.csv")
    assert [item["path"] for item in data["items"]] == [row["name"] for row in issues]
    classes = data["classes"]
    for item, row in zip(data["items"], issues, strict=True):
        assert (classes[item["given"]], classes[item["suggested"]]) == (row["given_label"], row["predicted_label"])
        assert (item["score"], item["sure"]) == (float(row["label_score"]), float(row["predicted_score"]))
        assert item["split"] == row["split"]
    assert {item["split"] for item in data["items"]} == {"train", "validation"}
    starts = [0, *data["ends"]]
    picture = base64.b64decode(
        pictures[starts[data["items"][0]["picture"]] : data["ends"][data["items"][0]["picture"]]]
    )
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.format, image.size) == ("WEBP", (40, 40))
    assert data["ends"][-1] == len(pictures)


def test_the_neighbours_are_the_nearest_of_the_features_with_another_label(own: Run, monkeypatch: Any) -> None:
    monkeypatch.chdir(own.folder)
    data, _ = held(own.text("reports/review.html"))
    labels = read_labels(read_dataset("own/labels.csv"))
    with h5py.File("data/features.h5") as file:
        table = file["features"][:].astype(np.float64)
    names = list(read_dataset("own/labels.csv").names)
    train = labels.rows(TRAIN)
    for item in data["items"]:
        row = names.index(item["path"])
        others = train[train != row]
        nearest = others[np.argsort(np.linalg.norm(table[others] - table[row], axis=1), kind="stable")][:10]
        other = [names[near] for near in nearest if labels.labels[near] != labels.labels[row]]
        assert (item["asked"], item["agree"]) == (10, 10 - len(other))
        assert [data["neighbors"][str(picture)][0] for picture in item["against"]] == other[:4]


def test_neighbours_are_found_wherever_the_table_is_cut(own: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.folder)
    labels = read_labels(read_dataset("own/labels.csv"))
    train = labels.rows(TRAIN)
    rows = np.array([7, 80, 3, 0])  # in no order, and not all of the training set
    whole = features.nearest(labels, rows, train, 10)
    assert (whole >= 0).all()
    assert not (whole == rows[:, None]).any()
    monkeypatch.setattr(rows_of_tables, "ROWS_AT_A_TIME", 7)
    assert np.array_equal(features.nearest(labels, rows, train, 10), whole)
    few = features.nearest(labels, train[:2], train[:3], 10)
    assert (few >= 0).sum(axis=1).tolist() == [2, 2]
    assert features.nearest(labels, rows[:0], train, 10).shape == (0, 10)


def test_where_a_head_was_trained_neighbours_are_found_by_its_embeddings(own: Run, project: Path) -> None:
    copy_outputs(own.folder, project)
    labels = read_labels(read_dataset("own/labels.csv"))
    rows, train = np.array([5, 2]), labels.rows(TRAIN)
    before = features.nearest(labels, rows, train, 4)
    with h5py.File(files.FEATURES) as file:
        table = file["features"][:]
    with hdf5.create(files.EMBEDDINGS) as (file, _):
        hdf5.store(file, {"embeddings": table}, {"dataset_digest": labels.dataset_digest})
    with hdf5.create(files.FEATURES) as (file, _):
        hdf5.store(file, {}, {"labels_digest": labels.digest})
    assert np.array_equal(features.nearest(labels, rows, train, 4), before)


def test_nothing_comes_from_elsewhere_and_names_are_text(own: Run) -> None:
    text = own.text("reports/review.html")
    assert "default-src 'none'; img-src data:" in text
    assert not re.findall(r"https?://", text)
    assert not re.findall(r"<(?:link|iframe|object|base|script src)", text)
    assert text.count("<script") == text.count("</script>") == 3
    assert "<b>x" not in text
    assert str(own.folder) not in text


def test_the_size_is_bounded_and_what_is_left_out_is_said(
    own: Run, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_outputs(own.folder, project)
    run_stage("report", make_params(**CHANGES, data__resize=40, report__review=5))
    said = capsys.readouterr().err
    data, _ = held(files.REVIEW.read_text(encoding="utf-8"))
    total = len(own.table("reports/label_issues.csv"))
    assert len(data["items"]) == 5
    assert len(data["ends"]) <= 5 * 5  # with at most four neighbours each
    assert f"{total - 5} more" in said
    assert f"{total - 5} more doubtful labels are not here" in files.REVIEW.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def decided(own: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same after the three most doubtful labels were kept, relabelled to the next class, and dropped."""
    folder = tmp_path_factory.mktemp("decided")
    copy_outputs(own.folder, folder)
    data, _ = held(own.text("reports/review.html"))
    classes = data["classes"]
    with (folder / "decisions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "given_label", "decision", "label"])
        for item, decision in zip(data["items"], ("keep", "relabel", "drop"), strict=False):
            label = classes[(item["given"] + 1) % 3] if decision == "relabel" else ""
            writer.writerow([item["path"], classes[item["given"]], decision, label])
    params = make_params(**CHANGES, data__resize=40, noise__corrections="decisions.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in STAGES:
            if stage not in ("look", "download"):
                run_stage(stage, params)
    return Run(folder, params, {})


def test_decisions_of_before_are_listed_last_and_a_dropped_image_too(own: Run, decided: Run) -> None:
    before, _ = held(own.text("reports/review.html"))
    after, _ = held(decided.text("reports/review.html"))
    assert after["key"] == before["key"]  # so that the browser's progress is found
    found = {item["path"]: item for item in after["items"][-3:]}
    assert {item["path"] for item in after["items"][:-3]}.isdisjoint(found)
    keep, relabel, drop = (found[item["path"]] for item in before["items"][:3])
    assert [keep["decision"], relabel["decision"], drop["decision"]] == ["keep", "relabel", "drop"]
    assert relabel["given"] == before["items"][1]["given"]
    assert relabel["label"] == (relabel["given"] + 1) % 3
    assert "suggested" not in drop
    assert (relabel["score"], "score" in drop) == (None, False)  # the label that was replaced has none
    (kept,) = [row for row in decided.table("reports/label_issues.csv") if row["name"] == keep["path"]]
    assert keep["score"] == float(kept["label_score"])


# In a browser


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(downloads: Path) -> Iterator[webdriver.Chrome]:
    if browsers.paths() is None:
        pytest.skip(browsers.LACKING)
    with browsers.browser(downloads) as found:
        yield found


class Page:
    """The page as somebody sees it who has not been here before."""

    def __init__(self, driver: webdriver.Chrome, run: Run) -> None:
        self.driver = driver
        self.data, _ = held(run.text("reports/review.html"))
        self.classes: list[str] = self.data["classes"]
        self.address = (run.folder / "reports/review.html").as_uri()
        driver.get(self.address)
        driver.execute_script("localStorage.clear()")
        self.reload()

    def reload(self) -> None:
        self.driver.get(self.address)

    def find(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def click(self, name: str) -> None:
        self.find(name).click()

    def choose(self, name: str, value: object) -> None:
        Select(self.find(name)).select_by_value(str(value))

    @property
    def title(self) -> str:
        return self.find("title").get_property("textContent")

    @property
    def counts(self) -> list[int]:
        """Decided, all, kept, relabelled, dropped."""
        return [int(number) for number in re.findall(r"\d+", self.find("counts").text)]

    @property
    def options(self) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, "[role=option]")

    def path(self, at: int) -> str:
        return self.data["items"][at]["path"]

    def save(self, downloads: Path) -> str:
        for left in downloads.iterdir():
            left.unlink()
        self.click("save")
        until = time.monotonic() + 300
        while not (downloads / "decisions.csv").exists() and time.monotonic() < until:
            time.sleep(0.05)
        return (downloads / "decisions.csv").read_text(encoding="utf-8")


@pytest.fixture
def page(driver: webdriver.Chrome, own: Run) -> Iterator[Page]:
    browsers.resize(driver, 1200, 900)
    yield Page(driver, own)
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_keys_decide_and_the_noise_stage_takes_what_is_saved(
    page: Page, downloads: Path, own: Run, project: Path
) -> None:
    total = len(page.data["items"])
    assert page.counts == [0, total, 0, 0, 0]
    assert not page.find("save").is_enabled()
    relabelled = next(i for i, item in enumerate(page.data["items"]) if item["suggested"] != item["given"])
    page.press(*[Keys.ARROW_DOWN] * relabelled, "s")
    assert page.title == page.path(relabelled + 1)
    page.press(Keys.END, "d", "k")
    assert page.counts == [3, total, 1, 1, 1]
    saved = page.save(downloads)
    (project / "decisions.csv").write_text(saved, encoding="utf-8")
    (project / "data").mkdir()
    (project / "data/dataset.h5").write_bytes((own.folder / "data/dataset.h5").read_bytes())
    run_stage("noise", make_params(**CHANGES, noise__corrections="decisions.csv"))
    taken = files.read_json(files.METRICS / "noise.json")["corrections"]
    assert list(taken.values()) == page.counts[2:]
    table = {row["path"]: row for row in csv.DictReader(io.StringIO(saved))}
    assert table[page.path(relabelled)] == {
        "path": page.path(relabelled),
        "given_label": page.classes[page.data["items"][relabelled]["given"]],
        "decision": "relabel",
        "label": page.classes[page.data["items"][relabelled]["suggested"]],
    }
    assert list(table) == sorted(table)


def test_an_image_outside_of_training_is_shown_with_its_split_and_neighbours(page: Page) -> None:
    items = page.data["items"]
    at = next(i for i, item in enumerate(items) if item["split"] == "validation" and item["against"])
    assert not page.find("fact-split").is_displayed() or items[0]["split"] == "validation"
    page.press(*[Keys.ARROW_DOWN] * at)
    assert page.find("fact-split").text == "validation"
    assert len(page.find("neighbors").find_elements(By.TAG_NAME, "img")) == len(items[at]["against"])


def test_clicks_decide_too(page: Page) -> None:
    page.click("keep")
    assert page.title == page.path(1)
    page.click("drop")
    assert page.counts[2:] == [1, 0, 1]
    other = next(i for i in range(3) if i != page.data["items"][2]["given"])
    assert not page.find("relabel").is_enabled()
    page.choose("class", other)
    page.click("relabel")
    assert page.counts[2:] == [1, 1, 1]
    page.options[2].click()
    assert page.title == page.path(2)
    assert page.classes[other].split("\n")[0] in page.find("fact-decision").text
    page.click("clear")
    assert page.counts[2:] == [1, 0, 1]
    assert page.title == page.path(2)


def test_digits_relabel_and_the_given_class_is_no_relabelling(page: Page) -> None:
    given = page.data["items"][0]["given"]
    page.press(str(given + 1))
    assert page.counts[0] == 0
    page.press(str((given + 1) % 3 + 1))
    assert page.counts[2:] == [0, 1, 0]
    page.driver.execute_script("classes.splice(0, 3, '2', '1', '0')")  # a name counts for more than a place
    for name, at in (("0", 2), ("1", 1), ("2", 0)):
        page.press("u", Keys.HOME, name)
        assert page.driver.execute_script("return items[0].decision?.label ?? items[0].given") == at
    page.press("u", Keys.HOME, "9", "3")
    assert page.counts[0] == 0
    page.press(str(2 - (given + 1) % 3))
    page.driver.find_element(By.TAG_NAME, "summary").click()
    page.click("keys")
    page.driver.execute_script("list.focus()")
    page.press("k", "1", "d")
    assert page.counts[2:] == [0, 1, 0]  # turned off


def test_undo_goes_back_step_by_step(page: Page) -> None:
    page.press("k", "d")
    page.press("u")
    assert page.counts[2:] == [1, 0, 0]
    assert page.title == page.path(1)
    page.press(Keys.CONTROL + "z")
    assert page.counts[0] == 0
    assert page.title == page.path(0)
    assert not page.find("undo").is_enabled()
    page.press("u")
    assert page.counts[0] == 0
    # What a filter hides comes back into sight.
    page.choose("state", "open")
    page.press(Keys.TAB, "k")
    assert page.title == page.path(1)
    page.choose("state", "decided")
    assert page.title == page.path(0)
    page.press(Keys.TAB)  # out of the select, which takes letters
    page.press("u")
    assert page.counts[0] == 0
    assert page.title == page.path(0)


def test_filters_show_a_class_a_suggestion_and_what_is_left(page: Page) -> None:
    items = page.data["items"]
    page.choose("given", 1)
    mine = [item for item in items if item["given"] == 1]
    assert page.find("position").text == f"1 of {len(mine)}"
    assert page.title == mine[0]["path"]
    suggested = mine[0]["suggested"]
    page.choose("suggested", suggested)
    both = [item for item in mine if item["suggested"] == suggested]
    assert page.find("position").text == f"1 of {len(both)}"
    page.click("keep")
    page.choose("state", "open")
    assert page.find("position").text == (f"1 of {len(both) - 1}" if len(both) > 1 else "")
    page.choose("state", "decided")
    assert page.find("position").text == "1 of 1"
    page.choose("suggested", "")
    page.choose("given", 0)
    assert not page.find("card").is_displayed()
    assert page.find("nothing").text
    page.choose("given", "")
    page.choose("state", "all")
    assert page.find("position").text.endswith(f"of {len(items)}")


def test_a_reload_keeps_the_progress(page: Page, downloads: Path) -> None:
    page.press("k", "d", "k", "u")
    assert page.counts[2:] == [1, 0, 1]
    before = page.save(downloads)
    page.reload()
    assert page.counts[2:] == [1, 0, 1]
    assert page.title == page.path(2)  # the first that is open
    assert page.save(downloads) == before
    # What is kept for these data and is on the page no more is saved too; of other data nothing is.
    key = f"mlnt review {page.data['key']} "
    dropped = '[["drop",null],null]'
    kept = {f'{key}["gone.png","x"]': dropped, 'mlnt review 0 ["other.png","x"]': dropped}
    page.driver.execute_script("for (const [k, v] of Object.entries(arguments[0])) localStorage.setItem(k, v)", kept)
    page.reload()
    assert page.counts == [2, len(page.data["items"]), 1, 0, 1, 1]
    saved = page.save(downloads)
    assert "gone.png,x,drop," in saved
    assert "other.png" not in saved


def test_what_was_applied_is_saved_again_unless_it_is_changed(page: Page, decided: Run, downloads: Path) -> None:
    page.press("d")  # kept in the browser, before "keep" was applied from elsewhere
    page.address = (decided.folder / "reports/review.html").as_uri()
    page.reload()
    kept = page.driver.execute_script("return Object.entries(localStorage)")
    assert (page.counts[2:], kept) == ([1, 1, 1], [])
    applied = (decided.folder / "decisions.csv").read_text(encoding="utf-8")
    assert sorted(csv.reader(io.StringIO(page.save(downloads)))) == sorted(csv.reader(io.StringIO(applied)))
    to_the_dropped = "select(items.findIndex((item) => item.applied?.what === 'drop'))"
    page.driver.execute_script(to_the_dropped)
    page.press("k")
    page.reload()
    assert page.counts[2:] == [2, 1, 0]
    page.driver.execute_script(to_the_dropped)
    page.press("c")
    page.reload()
    assert page.counts[2:] == [1, 1, 0]
    assert ",drop," not in page.save(downloads)


def test_a_browser_that_keeps_nothing_is_said(driver: webdriver.Chrome, own: Run) -> None:
    page = Page(driver, own)
    refuse = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }})"
    script = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": refuse})
    try:
        page.reload()
        assert "does not keep your decisions" in page.find("trouble").text
        page.press("k")
        assert page.counts[0] == 1
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
        driver.execute_script("window.onbeforeunload = null; kept = true")


def test_only_what_is_in_sight_is_in_the_document(page: Page) -> None:
    total = len(page.data["items"])
    assert total > 60
    assert len(page.options) < 30
    page.press(Keys.END)
    assert page.title == page.path(total - 1)
    assert len(page.options) < 30
    last = page.options[-1]
    assert last.get_attribute("aria-posinset") == last.get_attribute("aria-setsize") == str(total)
    page.driver.execute_script("list.scrollTop = 0")
    wanted = 'return ["1", arguments[0]].every(n => document.querySelector(`[role=option][aria-posinset="${n}"]`))'
    WebDriverWait(page.driver, 60).until(lambda driver: driver.execute_script(wanted, str(total)))


def test_a_screen_reader_is_told_everything(page: Page) -> None:
    listing = page.find("list")
    assert (listing.aria_role, listing.accessible_name) == ("listbox", "Doubtful images")
    first = page.find(listing.get_attribute("aria-activedescendant"))
    item = page.data["items"][0]
    assert first.get_attribute("aria-selected") == "true"
    for words in (item["path"], "given " + page.classes[item["given"]].split("\n")[0], "model suggests"):
        assert words in first.accessible_name
    for element in page.driver.find_elements(By.CSS_SELECTOR, "button, select, input, a[href], progress"):
        if element.is_displayed():
            assert element.accessible_name.strip(), element.get_attribute("outerHTML")
    assert "Keep" in page.find("keep").accessible_name
    assert page.find("picture").accessible_name == f"image {item['path']}"
    page.press("k")
    said = page.find("said")
    assert (said.aria_role, said.get_attribute("aria-live")) == ("status", "polite")
    assert item["path"] in said.text
    assert page.path(1) in said.text
    assert "kept" in first.accessible_name
    assert page.find(listing.get_attribute("aria-activedescendant")).get_attribute("aria-selected") == "true"


def test_the_focus_goes_from_top_to_bottom(page: Page) -> None:
    page.press("k")  # so that all buttons can be used
    found = []
    for _ in range(13):
        page.press(Keys.TAB)
        found.append(page.driver.switch_to.active_element.get_attribute("id"))
    buttons = ["keep", "suggest", "drop", "class"]
    suggestion = page.find("suggest").is_displayed()
    expected = ["", "undo", "save", "given", "suggested", "state", "list", "original", *buttons]
    assert [name for name in expected if name != "suggest" or suggestion] == found[: len(expected) - (not suggestion)]


@pytest.mark.parametrize("width", [1200, 400, 320])
def test_it_fits_a_narrow_window(width: int, page: Page) -> None:
    browsers.resize(page.driver, width, 800)
    wide, room = page.driver.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= room
    for name in ("keep", "drop", "save"):
        box = page.find(name).rect
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width


def test_the_original_is_found_from_the_report(page: Page, own: Run) -> None:
    address = page.find("original").get_attribute("href")
    page.driver.get(address)
    assert page.driver.execute_script("return document.images[0].naturalWidth") == 40
