"""Attacks are data: a preset is one frozen dataclass, and iDLG is DLG with another label strategy."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from jaxleak.errors import check_choice, check_not_negative, check_positive
from jaxleak.inits import INITS
from jaxleak.labels import LABEL_STRATEGIES
from jaxleak.objectives import OBJECTIVES, SCALES
from jaxleak.solvers import LBFGS, SOLVERS, Adam, Solver, solver_name


@dataclass(frozen=True, kw_only=True)
class Attack:
    """How the attacker rebuilds an image from an update.

    Attributes:
        name: what rows and tables call it.
        label: "joint" optimises label logits beside the image; "idlg" reads the label from the head's weight gradient,
            "bias" from that of its bias.
        init: distribution of the start.
        objective: distance between the candidate's gradient and the shared one.
        scale: what the distance is measured in: "none" as published, "relative" to the shared gradient, or "per-tensor"
            (`objectives.scale_factors`). What is reported, and what ends a trial, is the published objective whatever
            the scale.
        features: weight of a term that pulls the head's input to the one that the update gives away, the two's
            relative squared distance times the squared norm of the update (times 1 under another scale). Threat model:
            the update is one image's plain gradient of cross-entropy, and the head is dense with a bias. 0: no term.
        solver: how it is minimised.
        iterations: budget, in the solver's iterations.
        max_evaluations: budget in evaluations, for solvers whose iterations cost more or less than others'; None: none.
            A step that costs several may end above it. (`TorchLBFGS.max_evaluations` is one iteration's.)
        stop_objective: a trial ends when the objective at the end of an iteration is below this; 0 never.
    """

    name: str
    label: str = "joint"
    init: str = "normal"
    objective: str = "l2"
    scale: str = "none"
    features: float = 0.0
    solver: Solver = field(default_factory=LBFGS)
    iterations: int = 300
    max_evaluations: int | None = None
    stop_objective: float = 1e-6

    def __post_init__(self):
        check_choice("label", self.label, LABEL_STRATEGIES)
        check_choice("init", self.init, INITS)
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("scale", self.scale, SCALES)
        check_not_negative("features", self.features)
        check_positive("iterations", self.iterations, integer=True)
        if self.max_evaluations is not None:
            check_positive("max_evaluations", self.max_evaluations, integer=True)
        check_not_negative("stop_objective", self.stop_objective)

    def settings(self) -> dict[str, Any]:
        """Every field as plain data, the solver with its name."""
        return {**asdict(self), "solver": {"name": solver_name(self.solver), **asdict(self.solver)}}  # pyright: ignore[reportArgumentType]


# 300 iterations (of 20 evaluations) as in both reference implementations, whose solver is `TorchLBFGS`.
# Source: Zhu, Liu & Han 2019 (DLG); Zhao, Mopuri & Bilen 2020 (iDLG), whose code stops both below 1e-6.
DLG = Attack(name="dlg")
IDLG = replace(DLG, name="idlg", label="idlg")
ATTACKS: dict[str, Attack] = {attack.name: attack for attack in (DLG, IDLG)}


def get_attack(attack: str | Attack) -> Attack:
    """A preset by name, or by name and solver: "dlg:torch-lbfgs"; an `Attack` is returned as it is.

    Raises:
        InputError: unknown name or solver.
    """
    if isinstance(attack, Attack):
        return attack
    preset, solver = named_attack(attack)
    return preset if solver is None else with_solver(preset, SOLVERS[solver]())


def with_solver(attack: Attack, solver: Solver, iterations: int | None = None) -> Attack:
    """The attack with another solver; without `iterations`, 4,800 steps of Adam or 300 iterations of any other."""
    return replace(attack, solver=solver, iterations=iterations or (4800 if isinstance(solver, Adam) else 300))


def named_attack(name: str) -> tuple[Attack, str | None]:
    """The preset called `name`, with the solver's name if `name` has one after a colon.

    Raises:
        InputError: unknown name or solver.
    """
    first, colon, solver = name.partition(":")
    preset = ATTACKS[check_choice("attack", first, ATTACKS)]
    return replace(preset, name=name), check_choice("solver", solver, SOLVERS) if colon else None
