"""Pages of 1, 10 and 100 runs: their size, how long they take to write, and to open in Chromium.

One real run is copied; the copies differ by name only. Needs the extra `test` and Chromium ($CHROMIUM or `chromium`).

    python -m experiments.report_size --run leak-photos
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jaxleak
from experiments import tables
from experiments.harness import results_folder, write_json

PAPER = "Speed"
COUNTS = (1, 10, 100)
# Without these, Chromium itself asks for updates and the like.
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def copies(run: Path, folder: Path, count: int) -> list[Path]:
    """The run under so many names; files are linked."""
    names = [folder / f"run-{number:03}" for number in range(count)]
    for name in names:
        if not name.exists():
            shutil.copytree(run, name, copy_function=os.link, ignore=shutil.ignore_patterns("figures", "report.html"))
    return names


def opened(browser: Any, file: Path) -> tuple[float, float, float]:
    """Seconds to the first paint with content, until the curves are drawn too, and of computing until then."""
    page = browser.new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    began = time.monotonic()
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-ready]")
    ready = time.monotonic() - began
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    painted = page.evaluate(PAINTED) / 1000
    page.close()
    return painted, ready, metrics["ThreadTime"]


def measured(browser: Any, file: Path, loads: int) -> dict[str, Any]:
    """Size, and medians and largest of several loads."""
    times = zip(*(opened(browser, file) for _ in range(loads)), strict=True)
    names = ("first_paint_seconds", "ready_seconds", "main_thread_seconds")
    told = {
        name: {"median": round(statistics.median(own), 2), "largest": round(max(own), 2)}
        for name, own in zip(names, times, strict=True)
    }
    return {"megabytes": round(file.stat().st_size / 1e6, 2), **told, "loads": loads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run directory, as the README's first command leaves")
    parser.add_argument("--loads", type=int, default=5, help="how often each page is opened")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    results: dict[str, Any] = {"cores": os.cpu_count(), "trials_per_run": len(jaxleak.Run.open(options.run).rows())}
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    # Hard links want the copies on the run's own file system.
    with sync_playwright() as driver, tempfile.TemporaryDirectory(dir=options.run.resolve().parent) as folder:
        browser = driver.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        results["chromium"] = browser.version
        for count in COUNTS:
            runs, file = copies(options.run, Path(folder), count), Path(folder) / f"page-{count}.html"
            began = time.monotonic()
            jaxleak.write_page(runs, file)
            wrote = round(time.monotonic() - began, 1)
            results[f"{count} runs"] = {"write_seconds": wrote, **measured(browser, file, options.loads)}
            print(count, results[f"{count} runs"], flush=True)
        browser.close()
    results["load_average"] = round(os.getloadavg()[0], 1)
    write_json(results_folder("report_size") / "sizes.json", results)


def results() -> list[tables.Results]:
    """Size of each page, and medians until it opens."""
    told = tables.stored("report_size/sizes.json") or {}
    rows, where, notes = [], "", []
    for count in COUNTS:
        one, cells = told.get(f"{count} runs"), [tables.NOT_RUN]
        if one:
            seconds = [one[key]["median"] for key in ("first_paint_seconds", "ready_seconds")]
            cells = [f"{one['megabytes']:.1f} MB", *(f"{number:.1f} s" for number in seconds)]
            cells.append(f"{one['write_seconds']:.0f} s")
        rows.append([count, *cells])
    if told:
        where = f"{told['cores']} CPU cores, Chromium {told['chromium'].split('.')[0]}"
        notes = [f"Medians; {told['trials_per_run']} trials a run, load {told['load_average']:.1f}."]
    columns = ("runs", "size", "first paint", "curves drawn", "written in")
    return [tables.Results("The page of many runs", "report_size --run RUN", columns, rows, where, notes)]


if __name__ == "__main__":
    main()
