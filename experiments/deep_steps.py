"""Where the time of a deep network's step goes: an account of ours, beside PyTorch's own profile of the same step.

One trial of DLG with Adam on one core, float32. Ours is read from XLA's trace of the compiled step: each product of a
convolution by its layer and kind (forward, weight gradient, input gradient; second derivatives are made of the same
three), and what lies between them. PyTorch's is read from its profiler. The ceiling is the rate of a large matrix
product on the same core, measured before and after. Every case has a process of its own.

    python -m experiments.deep_steps
"""

import argparse
import json
import subprocess
import sys
from typing import Any

from experiments import tables
from experiments.harness import results_folder, write_json

PAPER = "Speed"
CASES = {
    "resnet18-16": ("--model", "resnet18", "--width", "16"),
    "resnet18-64": ("--model", "resnet18", "--width", "64"),
    "resnet18-64-224": ("--model", "resnet18", "--width", "64", "--image-size", "224"),
    "convnet-64": ("--model", "convnet"),
    "densenet121": ("--model", "densenet121"),
    "inception3": ("--model", "inception3"),
    "vit": ("--model", "vit"),
}
PRODUCTS = ("forward", "weight", "input")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None, choices=CASES, help="just these")
    folder = results_folder("deep_steps")
    for name in parser.parse_args().only or CASES:
        file = folder / f"{name}.json"
        subprocess.run([sys.executable, "-m", "jaxleak.bench.steps", *CASES[name], "--out", str(file)], check=True)
        found = {"case": name, **json.loads(file.read_text())}
        write_json(file, found)
        print(json.dumps(summary_of(found)), flush=True)


def summary_of(found: dict[str, Any]) -> dict[str, Any]:
    """One line: a step's operations, ours by product, PyTorch's."""
    own, other = found["ours"], found["pytorch"]
    by_product = {
        kind: [sum(line[key] for line in own["products"] if line["product"] == kind) for key in ("flops", "seconds")]
        for kind in PRODUCTS
    }
    return {
        "case": found["case"],
        "flops": sum(flops for flops, _ in by_product.values()),
        "seconds": own["seconds"],
        "products": {kind: {"seconds": s, "rate": f / s if s else None} for kind, (f, s) in by_product.items()},
        "rest": sum(own["rest"].values()),
        "ceiling": own["ceiling_flops"],
        "pytorch": other["seconds"],
        "pytorch_convolutions": other["convolutions"],
        "times": other["seconds"] / own["seconds"],
    }


def results() -> list[tables.Results]:
    """A line a case: milliseconds of a step, ours by product and rest, and PyTorch's; rates beside the ceiling."""
    lines, device = [], ""
    for name in CASES:
        found = tables.stored(f"deep_steps/{name}.json")
        told = summary_of(found) if found else {}
        if "seconds" not in told:
            lines.append([f"`{name}`", tables.NOT_RUN])
            continue
        device = found["ours"]["device"]
        cells = [f"{told['flops'] / 1e9:.2f}", f"{1e3 * told['seconds']:,.0f}"]
        for part in told["products"].values():
            rate = f" ({part['rate'] / 1e9:.0f})" if part["rate"] else ""
            cells.append(f"{1e3 * part['seconds']:,.0f}{rate}")
        cells += [f"{1e3 * told['rest']:,.0f}", f"{told['ceiling'] / 1e9:.0f}"]
        cells += [f"{1e3 * told[key]:,.0f}" for key in ("pytorch", "pytorch_convolutions")]
        lines.append([f"`{name}`", *cells, f"{told['times']:.1f}"])
    columns = ("case", "GFLOP of convolutions", "ours [ms]", "forward [ms] (GFLOP/s)", "weight [ms] (GFLOP/s)")
    columns += (
        "input [ms] (GFLOP/s)",
        "rest [ms]",
        "matrix product [GFLOP/s]",
        "PyTorch [ms]",
        "its convolutions [ms]",
    )
    notes = [
        "One evaluation and Adam step of one trial on one core; medians of five. Parts: from the profile of others."
    ]
    return [tables.Results("A deep step, by its parts", "deep_steps", (*columns, "times"), lines, device, notes)]


if __name__ == "__main__":
    main()
