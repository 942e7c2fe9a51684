"""Six lines for the project's README, picked out of the experiments' tables."""

from experiments import idlg_fidelity, inverting_gradients, kan2022_table1, pytorch_parity, tables, throughput


def headline() -> str:
    """What, the paper's or PyTorch's figure, ours, and of how many."""
    torch, lbfgs = (kan2022_table1.results()[0].row(f"`{run}`") for run in ("per-trial", "lbfgs"))
    paper = kan2022_table1.results()[0].row("paper")
    idlg = idlg_fidelity.results()[0].row("`cifar100`", "idlg")
    trained = inverting_gradients.results()[0].row("`trained`", "ig, TV 0.01")
    parity = pytorch_parity.results()[0].row("dlg")
    speed = throughput.results()[0]
    ours, theirs = speed.row("`jaxleak`"), speed.row("`pytorch-processes`")
    rows = [
        ("Kan et al. 2022, table 1, `torch-lbfgs`: success rate", paper["rate"], *rate(torch)),
        ("the same trials, `lbfgs`", paper["rate"], *rate(lbfgs)),
        (
            "iDLG, CIFAR-100: right labels; MSE < .001, in %",
            f"{idlg['paper: label']}; {idlg['paper: MSE < .001']}",
            f"{idlg['label']}; {idlg['MSE < .001']}",
            f"{idlg['n']} trials",
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
            f"{parity['jaxleak: solved']}, Fisher p = {parity['Fisher p']}",
            f"{parity['solved by both']} solved by both",
        ),
        (
            "LeNet: evaluations/s",
            theirs["evaluations/s"],
            f"{ours['evaluations/s']}, {ours['times `pytorch-processes`']} times PyTorch's",
            f"{ours['rounds']} rounds, {speed.device}",
        ),
    ]
    return tables.table(["what", "paper or PyTorch", "jaxleak", "how many"], rows)


def rate(row: dict[str, str]) -> tuple[str, str]:
    """The rate with its interval, and n."""
    return f"{row['rate']} {row['95 %']}", f"{row['n']} trials"
