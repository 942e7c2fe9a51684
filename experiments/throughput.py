"""Evaluations per second of jaxleak beside the alternatives: `jaxleak bench`, on LeNet and on ResNet-18.

LeNet with L-BFGS, ResNet-18 (CIFAR form) with Adam; on a CPU the ResNet has a reduced width, which is in its settings.
The PyTorch variants need the extra `torch`. Further flags are handed to `jaxleak bench`.

    python -m experiments.throughput
"""

import argparse
import subprocess
import sys
from pathlib import Path

from experiments.harness import results_folder

MODELS = ("lenet", "resnet18")
JAXLEAK = (sys.executable, "-c", "from jaxleak.cli import main; main()")


def bench(folder: Path, models=MODELS, *flags: str) -> None:
    """Write FOLDER/MODEL.json for each model."""
    for model in models:
        out = str(folder / f"{model}.json")
        subprocess.run([*JAXLEAK, "bench", "--model", model, "--out", out, *flags], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS, help="just these models")
    options, flags = parser.parse_known_args()
    bench(results_folder("throughput"), options.models, *flags)


if __name__ == "__main__":
    main()
