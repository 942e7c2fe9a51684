"""Kan, Meng & Wang 2022, figures: CIFAR-100 image 20319 on LeNet, recovered by DLG and iDLG from ten starts each.

Draws the recoveries over the iterations, the curves of objective and MSE, and the success rates.

    python -m experiments.kan2022_figures --data-dir DIR
"""

import jaxleak
from experiments import tables
from experiments.harness import DLG, IDLG, arguments, results_folder, run_all

PAPER = "Kan et al. 2022"


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


def results() -> list[tables.Results]:
    """Success rates."""
    told = tables.stored("kan2022_figures/image-20319.json")
    names = ("dlg", "idlg")
    rows = [[name, *(tables.rate(tables.overall(told, name)) if told else [tables.NOT_RUN])] for name in names]
    return [
        tables.Results(
            "Figures: image 20319 on LeNet",
            "kan2022_figures",
            ("attack", "rate", "95 %", "n"),
            rows,
            tables.device(told),
            ("The paper has pictures and curves of it.",),
            {"all": "kan2022_figures"},
        )
    ]


if __name__ == "__main__":
    main()
