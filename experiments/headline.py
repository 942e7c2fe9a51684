"""Six lines for the project's README, picked out of the experiments' tables."""

from experiments import inverting_gradients, kan2022_table1, pytorch_parity, relu, tables, throughput


def headline() -> str:
    """What, the paper's or PyTorch's figure, ours, and of how many."""
    torch, lbfgs = (kan2022_table1.results()[0].row(f"`{run}`") for run in ("per-trial", "lbfgs"))
    paper = kan2022_table1.results()[0].row("paper")
    kinks = relu.results()[0]
    layers, steps = kinks.row("`rgap`"), kinks.row("`ig-0.03`")
    trained = inverting_gradients.results()[0].row("`trained`", "ig, TV 0.01")
    parity = pytorch_parity.results()[0].row("`lenet-fresh`", "dlg")
    speed = throughput.results()[0]
    ours, vmapped = speed.row("`jaxleak`"), speed.row("`pytorch-vmap`")
    loop = faster(speed, "pytorch-processes", "pytorch-no-onednn")
    how = " (oneDNN off)" if "no-onednn" in loop["variant"] else ""
    over_loop = ours[f"times {loop['variant']}"]
    rows = [
        ("Kan et al. 2022, table 1, `torch-lbfgs`: success rate", paper["rate"], *rate(torch)),
        ("the same trials, `lbfgs`", paper["rate"], *rate(lbfgs)),
        (
            "LeNet with ReLUs, `rgap`: PSNR in dB, median (quartiles)",
            f"{steps['PSNR in dB']} by `ig`",
            layers["PSNR in dB"],
            f"{layers['above 20 dB']} above 20 dB",
        ),
        (
            "Inverting Gradients, trained LeNet, TV 0.01: PSNR in dB, mean ± sd",
            trained["paper"],
            trained["PSNR in dB"],
            f"{trained['n']} images",
        ),
        (
            "DLG on PyTorch's networks and starts: solved",
            parity["PyTorch: solved"],
            f"{parity['jaxleak: solved']}, McNemar p = {parity['McNemar p']}",
            f"{parity['solved by both']} solved by both",
        ),
        (
            "LeNet, one network: evaluations/s",
            f"{loop['evaluations/s']} in a loop{how}, {vmapped['evaluations/s']} by `torch.func.vmap`",
            f"{ours['evaluations/s']}: {over_loop} and {ours['times `pytorch-vmap`']} times",
            f"{ours['rounds']} rounds, {speed.device}",
        ),
    ]
    return tables.table(["what", "paper or PyTorch", "jaxleak", "how many"], rows)


def faster(speed: tables.Results, *names: str) -> dict[str, str]:
    """The row of the variant with the most evaluations/s, of those that were run."""
    rows = [speed.row(f"`{name}`") for name in names]
    return max(rows, key=lambda row: float(row["evaluations/s"].replace(",", "").replace(tables.NOT_RUN, "0")))


def rate(row: dict[str, str]) -> tuple[str, str]:
    """The rate with its interval, and n."""
    return f"{row['rate']} {row['95 %']}", f"{row['n']} trials"
