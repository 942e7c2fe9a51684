"""Write what the experiments say of their stored results into experiments/README.md, and tables into other READMEs.

Every experiment describes itself (`PAPER`, `results()`); its notes stand in NOTES.md under its name. The other files
have marks between which a table is written.

    python -m experiments.index [--check]
"""

import importlib
import re
import sys
from itertools import groupby

from experiments import headline, options
from experiments.harness import HERE

# In the order of the page: those of one paper stand together.
EXPERIMENTS = (
    *("kan2022_table1", "kan2022_figures", "kan2022_nullspace", "resnet18_eval", "kan2022_resnet18"),
    *("batches", "defences", "idlg_fidelity"),
    *("cpl_starts", "cpl_figures", "cpl_vs_dlg", "batch_and_client_steps", "resolution"),
    *("inverting_gradients", "ig_models", "ig_studies", "deakin_models", "relu", "relu_verdicts", "best", "peers"),
    *("bayesian", "gradinversion"),
    "leak_map",
    *("failures", "solvers", "half_history", "precision", "pytorch_parity"),
    *("spear", "april", "text"),
    *("infer", "generator"),
    *("verdicts", "risk", "stacks"),
    *("reliability",),
    *("throughput", "deep_steps", "gpu_account", "gpu_throughput", "stock_model"),
    *("ray_throughput", "clusters", "report_size"),
    "published_sizes",
)
MODULES = [importlib.import_module(f"experiments.{name}") for name in EXPERIMENTS]
PROJECT = HERE.parent
PARTS = {
    "README.md": {"results": headline.headline},
    "jaxleak/attacks/README.md": {
        "attacks": options.attacks,
        "starts": options.starts,
        "labels": options.labels,
        "terms": options.terms,
    },
    "jaxleak/threat/README.md": {"threat": options.threat, "defences": options.defences},
    "jaxleak/results/README.md": {"columns": options.columns},
}
HEADER = """# Experiments

One file is one table or figure of a paper, or one question. This page is written by `python -m experiments.index` from
the summaries under `results/` and from NOTES.md; nobody types a number of ours into a result's table. `python -m
tests.independent_results` computes every figure of the tables and of the text again from the stored rows; its list
`WITHOUT_ROWS` names the paragraphs whose measurements have none.

The commands read prepared CIFAR-100, MNIST and LFW from `--data-dir` (or `$JAXLEAK_DATA_DIR`), are run from the
project's root, resume where they were stopped, and write run directories under `runs/` and small results here. Behind
each command stands the device that its results are from. For a try of your own give `--results DIR`, and where it is
listed `--images N --seeds N`; `--help` tells what a command does. The [notebook](tutorial.ipynb) is a place to begin.

- Brackets are 95 % Wilson intervals. `n` counts trials.
- Recovered: the image's relative error is below 0.2. Solved: the objective is below its threshold as well.
- Paper: what it says; recalled: as remembered, not looked up; quoted: as others quote it.
- PyTorch: measured with the original procedure (torch 2.13, CPU).
- `lbfgs` is our solver; `torch-lbfgs` follows torch's, as published.
"""


def notes() -> dict[str, str]:
    """NOTES.md by its headings: the names of experiments, and "Notes"."""
    _, *parts = re.split(r"^## (\w+)\n", (HERE / "NOTES.md").read_text(), flags=re.MULTILINE)
    return {name: text.strip("\n") for name, text in zip(parts[::2], parts[1::2], strict=True)}


def page() -> str:
    """experiments/README.md as the stored results have it."""
    told, parts = notes(), [HEADER]
    for paper, modules in groupby(MODULES, key=lambda module: module.PAPER):
        parts.append(f"## {paper}\n")
        for module in modules:
            parts += [one.markdown() for one in module.results()]
            parts += [f"{told[name]}\n"] if (name := module.__name__.rpartition(".")[2]) in told else []
    return "\n".join([*parts, f"## Notes\n\n{told['Notes']}\n"])


def marks(name: str) -> tuple[str, str]:
    """Between which a part of a file is written."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def filled(file: str) -> str:
    """The file with what is between its marks as the code and the stored results have it."""
    content = (PROJECT / file).read_text()
    for name, part in PARTS[file].items():
        begin, end = marks(name)
        before, rest = content.split(begin)
        content = f"{before}{begin}\n\n{part()}\n{end}{rest.split(end)[1]}"
    return content


def main() -> None:
    pages = {HERE / "README.md": page(), **{PROJECT / file: filled(file) for file in PARTS}}
    for path, content in pages.items():
        if "--check" not in sys.argv:
            path.write_text(content)
        elif path.read_text() != content:
            name = path.relative_to(PROJECT)
            sys.exit(f"{name} is not what the code and the stored results say; run `python -m experiments.index`")


if __name__ == "__main__":
    main()
