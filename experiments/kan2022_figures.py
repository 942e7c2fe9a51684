"""Kan, Meng & Wang 2022, figures: CIFAR-100 image 20319 on LeNet, recovered by DLG and iDLG from ten starts each.

Draws the recoveries over the iterations, the curves of objective and MSE, and the success rates.

    python -m experiments.kan2022_figures --data-dir DIR
"""

import jaxleak
from experiments.harness import DLG, IDLG, arguments, results_folder, run_all


def main() -> None:
    options = arguments(__doc__, seeds={"type": int, "default": 10})
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    sweep = jaxleak.Sweep(
        victim=jaxleak.make_victim("lenet", data, [20319], network="per-trial"),
        attacks=(DLG, IDLG),
        seeds=options.seeds,
        snapshots=(0, 10, 20, 30, 40, 60, 80, 100, 150),
    )
    for result in run_all("kan2022_figures", {"image-20319": sweep}, options).values():
        result.plot(results_folder("kan2022_figures"))


if __name__ == "__main__":
    main()
