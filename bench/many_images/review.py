"""reports/review.html with ten thousand doubtful labels: how long it takes to make, to open, and to press a key.

The photographs are generated, a file of them again and again; scores and features are drawn at random. It needs a
browser: apt-get install chromium chromium-driver.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import browser
import numpy as np
from photos import make_photos, with_labels

from pipeline.base import files
from pipeline.report import review
from pipeline.report.votes import votes
from pipeline.stages.report import environment
from pipeline.store import features
from pipeline.store.dataset import TRAIN, read_dataset

KEYS = ["s", "k", "d", "ArrowDown", "u"]
MEASURE = """
const [keys, done] = arguments, handled = [], painted = [];
(async () => {
  for (const key of keys) {
    const start = performance.now();
    document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    handled.push(performance.now() - start);
    await new Promise((next) => requestAnimationFrame(() => setTimeout(next)));
    painted.push(performance.now() - start);
  }
  const paint = performance.getEntriesByName("first-contentful-paint")[0].startTime;
  const loaded = performance.getEntriesByType("navigation")[0].domComplete;
  done({ handled, painted, paint, loaded, elements: document.querySelectorAll("*").length });
})();
"""


def make_page(args: argparse.Namespace) -> float:
    """Write the page; the seconds that it took."""
    make_photos(Path("photos"), args.images, (256, 256))
    _, labels = with_labels(args.candidates + args.candidates // 5, args)
    dataset = read_dataset("photos")
    rng = np.random.default_rng(0)
    count = len(dataset.labels)
    table = (rng.standard_normal((512, args.width), np.float32) for _ in range(-(-count // 512)))
    chunks = (chunk[: count - i * 512] for i, chunk in enumerate(table))
    features.write_features(chunks, count, args.width, "float32", labels, "")
    classes = dataset.class_names
    issues = (
        {
            "index": str(row),
            "is_label_issue": "True",
            "label_score": f"{i / count:.6f}",
            "predicted_label": classes[(labels.labels[row] + 1) % len(classes)],
            "predicted_score": f"{1 - i / count:.6f}",
        }
        for i, row in enumerate(labels.rows(TRAIN))
    )
    start = time.perf_counter()
    doubtful = review.choose(issues, labels, args.candidates)
    threads = len(os.sched_getaffinity(0))
    judged = votes(labels, doubtful.rows, 10)
    page = review.page(
        environment(), dataset, labels, doubtful, judged, most=args.candidates, threads=threads, originals=None
    )
    files.write_text(files.REVIEW, page)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=2000, help="how many files")
    parser.add_argument("--resize", type=int, default=128)
    parser.add_argument("--width", type=int, default=512, help="of a row of features")
    parser.add_argument("--keys", type=int, default=200, help="how many are pressed")
    parser.add_argument("--keep", type=Path, help="a folder for the page")
    args = parser.parse_args()
    args.crop, args.workers, args.network, args.batch_size, args.threads, args.m = None, 0, "resnet18", 32, 1, 2
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(args.keep or folder)
        seconds = make_page(args)
        size = files.REVIEW.stat().st_size
        print(f"made in {seconds:.1f} s, {size / 1e6:.1f} MB, {size / args.candidates / 1e3:.2f} KB a candidate")
        with browser.browser(Path.cwd()) as driver:
            driver.set_script_timeout(300)
            driver.get(files.REVIEW.absolute().as_uri())
            found = driver.execute_async_script(MEASURE, (KEYS * args.keys)[: args.keys])
        print(f"first paint after {found['paint']:.0f} ms, complete after {found['loaded']:.0f} ms")
        for name, title in (("handled", "a key press"), ("painted", "until the next frame")):
            times = sorted(found[name])
            middle, late = statistics.median(times), times[int(0.95 * len(times))]
            print(f"{title}: median {middle:.1f} ms, 95 % within {late:.1f} ms, at most {times[-1]:.1f} ms")
        print(f"{found['elements']} elements in the document")


if __name__ == "__main__":
    main()
