"""The names that `jaxleak run` takes, as tables for the project's README, read from the registries and docstrings.

python -m experiments.options        prints them; `python -m experiments.index` writes them into the README
"""

import inspect
import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from jaxleak.attacks.analytic import recover_image
from jaxleak.attacks.labels import LABEL_STRATEGIES
from jaxleak.attacks.presets import ATTACKS, WEIGHTS, Attack
from jaxleak.attacks.starts import INITS
from jaxleak.cli import RunCommand
from jaxleak.cli.flags import ADAM_FLAGS, ATTACK_FIELDS
from jaxleak.cli.groups import YesNo
from jaxleak.cli.parse import flag_texts
from jaxleak.solvers import solver_name
from jaxleak.threat.defences import DEFENCES, ZERO, defence_form

# What the code says nowhere but in comments; a name without an entry ends the program.
PUBLISHED = {
    "dlg": "Zhu, Liu & Han 2019: labels are optimised beside the images",
    "idlg": "Zhao, Mopuri & Bilen 2020: DLG, the label read from the update",
    "cpl": "Wei et al. 2020: iDLG, begun from a repeated tile",
    "ig": "Geiping et al. 2020 (Inverting Gradients)",
    "modern": "the preset of that name in breaching",
    "gradinversion": "Yin et al. 2021, with BatchNorm's statistics of the client's batch",
    "analytic": "Phong et al. 2017: closed form, where the first layer is dense (`--model mlp`)",
}
NOT_READ = {
    "joint": "Label logits are optimised beside the images.",
    "known": "The attacker has the true labels.",
}
THREAT = (
    "model_field", "batch", "batch_labels", "network", "weights", "hide_statistics", "normalise",
    "client_steps", "client_epochs", "client_optimizer",
    "client_lr", "client_batch", "clients", "trained_steps", "trained_on", "train_optimizer", "train_lr",
    "dummies", "knows_defence",
)  # fmt: skip
TABLED = ("attack", "start", "label", "defence")  # flags whose values have a table of their own
TERMS = tuple(flag for flag in (*ATTACK_FIELDS.values(), *ADAM_FLAGS) if flag not in (*TABLED, *THREAT))


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table; bars within cells are escaped."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    first, *others = [f"| {' | '.join(line)} |\n" for line in lines]
    return "".join([first, "|" + "---|" * len(header) + "\n", *others])


def folded(title: str, body: str) -> str:
    """A part that opens when its title is clicked."""
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n</details>\n"


def summary(documented: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


def paragraph(documented: Any, begin: str) -> str:
    """The first sentence of the paragraph of a docstring that begins so, without that; "–" if there is none."""
    text = inspect.getdoc(documented) or ""
    found = re.search(rf"^{begin}(.*?)(?=(?<! al)\.(?:\s|$)|^Differs:|\n\n)", text, re.M | re.S)
    return " ".join(found[1].strip(" ,").split()) if found else "–"


def flags(names: Iterable[str]) -> str:
    """A table of flags of `jaxleak run`, with their defaults where they have any of their own."""
    rows, told = [], flag_texts(RunCommand)
    switches = {field.name for field in fields(RunCommand) if field.type == YesNo}
    for name in names:
        flag, default = f"--{name.replace('_', '-')}{' True' if name in switches else ''}", getattr(RunCommand, name)
        rows.append([f"`{flag}`", told[name] if default is None else f"{told[name]} Default: {default}."])
    return table(["flag", "what it does"], rows)


def minimised(attack: Attack) -> str:
    """The objective, its scale and layers, and the terms beside it with their weights."""
    first = attack.objective if attack.scale == "none" else f"{attack.scale} {attack.objective}"
    if attack.layers:
        first += f" on {' '.join(attack.layers)}"
    terms = [f"{getattr(attack, name):g} {name.replace('_', '-')}" for name in WEIGHTS if getattr(attack, name)]
    return " + ".join([first, *terms]) + (f", group of {attack.group}" if attack.group > 1 else "")


def solved(attack: Attack) -> str:
    """The solver with the settings that are not its defaults."""
    solver: Any = attack.solver
    own = [field for field in fields(solver) if getattr(solver, field.name) != field.default]
    words = [f"{field.name.replace('_', '-')} {getattr(solver, field.name)}" for field in own]
    return ", ".join([solver_name(solver), *words, *(["pixels in [0, 1]"] if attack.box else [])])


def attacks() -> str:
    rows = [
        [f"`{name}`", one.label, one.init, minimised(one), solved(one), f"{one.iterations:,}", PUBLISHED[name]]
        for name, one in ATTACKS.items()
    ]
    return table(["`--attack`", "label", "start", "minimises", "solver", "iterations", "source"], rows)


def starts() -> str:
    rows = [[f"`{name}`", summary(draw or recover_image)] for name, draw in INITS.items()]
    return table(["`--start`", "what it is"], rows)


def labels() -> str:
    rows = []
    for name, rule in LABEL_STRATEGIES.items():
        read = rule.read
        what = NOT_READ[name] if read is None else summary(read)
        rows.append([f"`{name}`", what, paragraph(read, "Right"), paragraph(read, "Source:")])
    return table(["`--label`", "what it is", "right", "source"], rows)


def defences() -> str:
    rows = [
        [f"`--defence {defence_form(name)}`", summary(kind), f"`{ZERO[name]}`", paragraph(kind, "Source:")]
        for name, kind in DEFENCES.items()
    ]
    larger = ["`--batch N`", f"Larger batch. {flag_texts(RunCommand)['batch']}", "`1`", "–"]
    return table(["defence", "what happens to the update", "off", "source"], [*rows, larger])


def section() -> str:
    """All of it, as Markdown."""
    parts = [
        attacks(),
        folded("Starts: <code>--start NAME</code>, for all attacks of the run", starts()),
        folded("Labels: <code>--label NAME</code>, for all attacks of the run", labels()),
        folded("Objective and Adam: flags that replace the attacks' own settings", flags(TERMS)),
        folded("Threat model: what the client does and what the attacker is told", flags(THREAT)),
        defences(),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    print(section())
