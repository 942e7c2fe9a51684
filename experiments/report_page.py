"""The page of a run as it is committed under experiments/report_example/, with its screenshot.

The run was made on two cores that were busy with other work, which its seconds and evaluations per second show. The
screenshot needs the extra `test` and Chromium ($CHROMIUM or `chromium`).

    jaxleak run --attack dlg dlg:torch-lbfgs idlg cpl --dataset photos --images 6 12 36 51 --seeds 4
        --snapshots 0 2 5 10 15 20 30 40 60 80 100 150 200 --out leak-photos
    python -m experiments.report_page --run leak-photos
"""

import argparse
import os
import shutil
from pathlib import Path

import jaxleak
from experiments.harness import HERE
from experiments.report_size import ARGUMENTS

FOLDER = HERE / "report_example"
ITERATION = "6"  # place of the slider: iteration 30, where the attacks differ most


def screenshot(file: Path, picture: Path) -> None:
    """What is seen from the slider to the curves."""
    from playwright.sync_api import sync_playwright

    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": 1180, "height": 1140})
        page.goto(file.as_uri())
        page.wait_for_selector("body[data-ready]")
        page.locator("#slider").fill(ITERATION)
        page.evaluate("document.activeElement.blur()")
        page.locator("#viewer").evaluate("element => element.scrollIntoView()")
        page.wait_for_timeout(1000)  # Plotly draws
        page.screenshot(path=picture)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the run directory")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    page = jaxleak.write_page([options.run], FOLDER / "report.html", trials=0)
    screenshot(page, FOLDER / "screenshot.png")
    print(f"page: {page}")


if __name__ == "__main__":
    main()
