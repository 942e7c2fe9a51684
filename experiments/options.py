"""The names that `jaxleak run` takes, and the columns of its rows, as tables: read from the code itself.

`python -m experiments.index` writes them into the READMEs of the packages.
"""

import inspect
import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from experiments.tables import NONE, table
from jaxleak.attacks.closed_forms import CLOSED_FORMS
from jaxleak.attacks.labels import LABEL_STRATEGIES
from jaxleak.attacks.presets import ATTACKS, WEIGHTS, Attack
from jaxleak.attacks.starts import INITS
from jaxleak.cli import RunCommand
from jaxleak.cli.flags import ADAM_FLAGS, ATTACK_FIELDS
from jaxleak.cli.groups import YesNo
from jaxleak.cli.parse import flag_texts
from jaxleak.results.store.columns import COLUMNS
from jaxleak.solvers import solver_name
from jaxleak.threat.defences import DEFENCES, ZERO, defence_form

# What the code says nowhere but in comments; a name without an entry ends the program.
PUBLISHED = {
    "best": "ours: one of those below, [chosen](#best) by what the network and the update are",
    "dlg": "Zhu, Liu & Han 2019: labels are optimised beside the images",
    "idlg": "Zhao, Mopuri & Bilen 2020: DLG, the label read from the update",
    "cpl": "Wei et al. 2020: iDLG, begun from a repeated tile",
    "tag": "Deng et al. 2021 (TAG): DLG with an L1 distance too, for text (`--dataset text --model transformer`)",
    "ig": "Geiping et al. 2020 (Inverting Gradients)",
    "modern": "the preset of that name in breaching",
    "sme": "Zhu, Yao & Blaschko 2023 (SME): `ig`, local steps stood for by one gradient between",
    "fedavg": "Dimitrov et al. 2022: `ig`, each of the client's epochs with images of its own that agree",
    "gradinversion": "Yin et al. 2021, with BatchNorm's statistics of the client's batch",
    "bayes": "Balunovic et al. 2022: the defences' own likelihood, of an attacker who knows them",
    "analytic": "Phong et al. 2017: closed form, where the first layer is dense (`--model mlp`)",
    "april": "Lu et al. 2022 (APRIL): closed form, where positions are learnt (`--model vit`)",
    "rgap": "Zhu & Blaschko 2021 (R-GAP): layer by layer, of chains of convolutions and dense layers, ReLUs too",
    "spear": "Dimitrov et al. 2024 (SPEAR): batches, where a ReLU follows a first dense layer (`--model mlp`)",
    "dager": "Petrov et al. 2024 (DAGER): batches of text, where tokens are fewer than their numbers",
}
NOT_READ = {
    "joint": "Label logits are optimised beside the images.",
    "known": "The attacker has the true labels.",
    "text": "Of text: the tokens that the attack itself finds.",
}
THREAT = (
    "model_field", "length", "batch", "batch_labels", "network", "weights", "hide_statistics", "normalise", "mean",
    "std",
    "loss", "label_smoothing", "class_weights", "reduction",
    "client_steps", "client_epochs", "client_optimizer", "client_lr", "client_batch", "client_drop_last",
    "client_order", "client_shuffle", "hide_order", "client_momentum", "client_nesterov", "client_dampening",
    "client_weight_decay", "client_clip", "client_precision", "clients", "trained_steps", "trained_on",
    "train_optimizer", "train_lr", "dummies", "knows_defence",
)  # fmt: skip
TABLED = ("attack", "start", "label", "defence")  # flags whose values have a table of their own
TERMS = tuple(flag for flag in (*ATTACK_FIELDS.values(), *ADAM_FLAGS) if flag not in (*TABLED, *THREAT))


def summary(documented: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


def paragraph(documented: Any, begin: str) -> str:
    """The first sentence of the paragraph of a docstring that begins so, without that; "–" if there is none."""
    text = inspect.getdoc(documented) or ""
    found = re.search(rf"^{begin}(.*?)(?=(?<! al)\.(?:\s|$)|^Differs:|\n\n)", text, re.M | re.S)
    return " ".join(found[1].strip(" ,").split()) if found else NONE


def flags(names: Iterable[str]) -> str:
    """A table of flags of `jaxleak run`, with their defaults where they have any of their own."""
    rows, told = [], flag_texts(RunCommand)
    switches = {field.name for field in fields(RunCommand) if field.type == YesNo}
    for name in names:
        flag, default = f"--{name.replace('_', '-')}{' True' if name in switches else ''}", getattr(RunCommand, name)
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        rows.append([f"`{flag}`", told[name], NONE if shown in (None, "") else f"{shown}"])
    width = 3 if any(row[2] != NONE for row in rows) else 2
    return table(["flag", "what it does", "default"][:width], [row[:width] for row in rows])


def terms() -> str:
    return flags(TERMS)


def threat() -> str:
    return flags(THREAT)


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
    return ", ".join([solver_name(solver), *words, *([f"pixels in [0, 1] by {attack.bounds}"] if attack.box else [])])


def attacks() -> str:
    rows = []
    for name, one in ATTACKS.items():
        parts = [one.label, one.init, minimised(one), solved(one)]
        if one.chosen:
            parts = [NONE] * len(parts)
        rows.append([f"`{name}`", *parts, f"{one.iterations:,}", PUBLISHED[name]])
    return table(["`--attack`", "label", "start", "minimises", "solver", "iterations", "source"], rows)


def starts() -> str:
    rows = [[f"`{name}`", summary(draw or CLOSED_FORMS[name].read)] for name, draw in INITS.items()]
    return table(["`--start`", "what it is"], rows)


def labels() -> str:
    rows = []
    for name, rule in LABEL_STRATEGIES.items():
        read = rule.read
        what = NOT_READ[name] if read is None else summary(read)
        right, _, exactly = paragraph(read, "Right").partition(": ")
        rows.append([f"`{name}`", what, right, exactly or NONE, paragraph(read, "Source:")])
    return table(["`--label`", "what it is", "right", "more exactly", "source"], rows)


def defences() -> str:
    rows = [
        [f"`--defence {defence_form(name)}`", summary(kind), f"`{ZERO[name]}`", paragraph(kind, "Source:")]
        for name, kind in DEFENCES.items()
    ]
    larger = ["`--batch N`", f"Larger batch. {flag_texts(RunCommand)['batch']}", "`1`", NONE]
    return table(["defence", "what happens to the update", "off", "source"], [*rows, larger])


def columns() -> str:
    rows = [[f"`{one.name}`", one.kind, one.meaning] for one in COLUMNS]
    return table(["column", "type", "meaning"], rows)
