"""Attacks are data: a preset is one frozen dataclass, and iDLG is DLG with another label strategy.

Example:
    >>> import jaxleak
    >>> jaxleak.DLG.label, jaxleak.IDLG.label
    ('joint', 'idlg')
    >>> jaxleak.CPL == replace(jaxleak.IDLG, name="cpl", init="pattern-16")
    True
    >>> jaxleak.IG.objective, jaxleak.IG.iterations
    ('cosine', 4800)
    >>> jaxleak.ATTACKS["dlg"] == jaxleak.DLG
    True
"""

import functools
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from jaxleak.attacks.bounds import VARIABLES
from jaxleak.attacks.labels import LABEL_STRATEGIES
from jaxleak.attacks.layer_weights import parse_layer
from jaxleak.attacks.objectives import OBJECTIVES, SCALES
from jaxleak.attacks.starts import CLOSED, check_init
from jaxleak.errors import InputError, check_choice, check_not_negative, check_positive, check_type
from jaxleak.solvers import LBFGS, SOLVERS, Adam, NoSolver, Solver, solver_name

WEIGHTS = ("label_term", "l1", "tv", "patches", "norm", "statistics", "consistency", "epoch_consistency")
LATER = (  # fields that older runs do not name
    *("surrogate_model", "epoch_consistency", "box_by", "l1", "stop_relative", "patches", "chosen", "logarithm"),
    *("register", "group_mean"),
)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Settings with which the attacker rebuilds images from an update.

    Attributes:
        name: what rows and tables call it.
        label: where the labels come from: "joint" optimises label logits beside the images, "known" has them, every
            other of `labels.LABEL_STRATEGIES` reads them from the update.
        init: the start of the images (`starts.INITS`); label logits start from N(0, 1).
        objective: distance between the candidate's gradient and the shared one: "l2", "l1" or "cosine"; or the
            "likelihood" of what was shared, of an attacker who knows the defences (`negative_log_likelihood`).
        scale: what the distance is measured in: "none" as published, "relative" to the shared gradient, or "per-tensor"
            (`objectives.scale_factors`). What is reported, and what ends a trial, is the published objective whatever
            the scale.
        layers: the layers that are compared, "conv1" or with a weight "conv1:4"; () compares all.
        logarithm: whether the distance's logarithm is minimised. Other terms then weigh as shares of the distance, and
            fall with it.
        label_term: CPL's alpha, the weight of (prediction - label)^2 on softmax outputs (`objectives.label_distance`).
        l1: TAG's alpha, the weight of the L1 distance of the gradients (`objectives.l1_distance`).
        tv: weight of the total variation (`priors.total_variation`).
        patches: weight of minus the mean log density of its patches (`priors.patch_prior`), under a mixture of
            Gaussians that the attacker fitted on images of its own (`threat.patches.fit_patches`).
        norm: weight of the candidate's norm (`priors.norm_prior`).
        statistics: weight of the distance of BatchNorm's statistics (`objectives.statistics_distance`). Threat model:
            the client shares those of its batch.
        group: starts that one trial follows together; it reports the one with the lowest objective. Needs Adam.
        group_mean: whether it reports their mean instead, to which those with low objectives count most
            (`attacker.Attacker.reported`): its squared error is at most the weighted mean of theirs. For one image: of
            several each start may find them in another order.
        consistency: weight of the squared distance of each from their mean (`priors.consistency`).
        register: pixels by which each image may be moved each way to fit the others before that mean is taken. 0: none.
        box: whether candidates are kept within [0, 1].
        box_by: how: "projection" after each step, of solvers that can (Adam), or a change of variables, pixels =
            `bounds.VARIABLES` of what the solver sees: "sigmoid" or "sine". "" is projection where the solver can, else
            sine.
        surrogate_model: whether local steps are stood for by one gradient, at a point between the weights before and
            after that is learned beside the images (SME): then their number, order and sizes do not matter.
        epoch_consistency: weight of the agreement of the epochs, whose order of images is then not needed: each pass
            over a client's images has dummies of its own, of which the mean image is to be the same in all passes
            (`priors.epoch_consistency`). The dummies that are reported are the mean over the passes. 0: one set of
            dummies, used in the client's order.
        dummies: images that are optimised; None: as many as the update holds.
        knows_defence: whether the attacker is told of the defence: that entries were set to zero, which it leaves out,
            or that noise was drawn within the network, which it finds along with the images.
        solver: how it is minimised.
        iterations: budget, in the solver's iterations.
        max_evaluations: budget in evaluations, for solvers whose iterations cost more or less than others'; None: none.
            A step that costs several may end above it. (`TorchLBFGS.max_evaluations` is one iteration's.)
        stop_objective: a trial ends when the objective at the end of an iteration is below this; 0 never.
        stop_relative: a trial ends also when it is below this share of the squared norm of the update, of the layers
            compared; of a cosine distance, which has no units, when it is below this. 0 never.
        chosen: of the attack `best`, `OPEN` until a victim is known, then what was chosen for it and why
            (`best.resolved`). "" of attacks whose parts are named.

    Example:
        >>> import jaxleak
        >>> smooth = jaxleak.Attack(name="smooth", label="idlg", tv=1e-4, iterations=100)
        >>> smooth.solver
        LBFGS(history=100, history_type='auto', max_step=0.05, inner_steps=20)
    """

    name: str
    label: str = "joint"
    init: str = "normal"
    objective: str = "l2"
    scale: str = "none"
    layers: tuple[str, ...] = ()
    logarithm: bool = False
    label_term: float = 0.0
    l1: float = 0.0
    tv: float = 0.0
    patches: float = 0.0
    norm: float = 0.0
    statistics: float = 0.0
    group: int = 1
    group_mean: bool = False
    consistency: float = 0.0
    register: int = 0
    box: bool = False
    box_by: str = ""
    surrogate_model: bool = False
    epoch_consistency: float = 0.0
    dummies: int | None = None
    knows_defence: bool = False
    solver: Solver = field(default_factory=LBFGS)
    iterations: int = 300
    max_evaluations: int | None = None
    stop_objective: float = 1e-6
    stop_relative: float = 0.0
    chosen: str = ""

    def __post_init__(self):
        check_type("name", self.name, str, "a name")
        check_type("solver", self.solver, Solver, f"a solver, as in Adam(); one of {', '.join(SOLVERS)} by its class")
        check_type("layers", self.layers, (tuple, list), "a tuple of layers")
        check_choice("label", self.label, LABEL_STRATEGIES)
        check_init(self.init)
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("scale", self.scale, SCALES)
        check_choice("box_by", self.box_by, ("", "projection", *VARIABLES))
        for layer in self.layers:
            parse_layer(layer)
        for name in WEIGHTS:
            check_not_negative(name, getattr(self, name))
        for name in ("iterations", "group"):
            check_positive(name, getattr(self, name), integer=True)
        for name in ("max_evaluations", "dummies"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name), integer=True)
        for name in ("stop_objective", "stop_relative"):
            check_not_negative(name, getattr(self, name))
        check_not_negative("register", self.register, integer=True)
        self._check_combination()

    def _check_combination(self) -> None:
        for name, given, value in (
            ("box", self.box and self.bounds == "projection", " projection"),
            ("group", self.group > 1, ""),
        ):
            if given and name not in self.solver.supports:
                able = ", ".join(other for other, kind in SOLVERS.items() if name in kind.supports)
                raise InputError(
                    f"`{name}`{value and ' by' + value} needs the solver {able}: it is not a step of "
                    f"{solver_name(self.solver)}. Leave `{name}` out, or use {able}."
                )
        if self.objective == "likelihood" and (self.layers or self.scale != "none" or self.logarithm):
            raise InputError(
                "`objective` likelihood is a logarithm already, in units of what the defences do to entries; leave out "
                "`scale`, `logarithm` and `layers`."
            )
        if self.box_by and not self.box:
            raise InputError("`box_by` says how pixels are kept in [0, 1]; give --box True too.")
        if self.box and self.solver.closed_form:
            raise InputError("`box` is for solvers that search; leave it out with the solver none.")
        if self.group_mean and self.group == 1:
            raise InputError("`group_mean` needs a `group` of at least 2 starts to take the mean of; give --group 4.")
        if self.group_mean and (self.bounds in VARIABLES or self.objective == "likelihood"):
            raise InputError(
                "`group_mean` is a mean of pixels, weighted by distances; leave it out with the objective likelihood, "
                "and with --box-by sine or sigmoid."
            )
        if self.consistency and self.group == 1:
            raise InputError("`consistency` needs a `group` of at least 2 starts that can agree; give --group 4.")
        if self.register and not self.consistency:
            raise InputError(
                "`register` moves images before the consensus of `consistency` is taken; give --consistency too."
            )
        closed = self.init in CLOSED
        if closed != self.solver.closed_form:
            name = self.init if closed else CLOSED[0]
            raise InputError(
                f"`start` {name} is the image itself and goes with the solver none, and the other way round; "
                f"use the attack {name}, or another start and solver."
            )
        if closed and (self.layers or self.scale == "per-tensor"):
            raise InputError(
                f"`start` {self.init} reads the tensors of the update as they were shared; leave out `layers` and "
                "`scale` per-tensor."
            )

    @property
    def bounds(self) -> str:
        """The way in which pixels are kept in [0, 1]: "projection" or a name of `bounds.VARIABLES`; "" without."""
        return self.box_by or ("projection" if "box" in self.solver.supports else "sine") if self.box else ""

    @functools.cached_property
    def minimiser(self) -> Solver:
        """The solver; one with a history keeps no more pairs than the budget's steps can make.

        In changed variables its longest step is longer, so that pixels move as far.
        """
        history, steps = (getattr(self.solver, name, 0) for name in ("history", "inner_steps"))
        budget = self.iterations * steps
        if self.max_evaluations is not None:
            budget = min(budget, self.max_evaluations + steps)
        changes: dict[str, Any] = {"history": budget} if history > budget else {}
        if self.bounds in VARIABLES and (longest := getattr(self.solver, "max_step", 0)):
            changes["max_step"] = longest / VARIABLES[self.bounds].steepest
        return replace(self.solver, **changes)  # pyright: ignore

    @property
    def published_as_it_is(self) -> bool:
        """True if the solver minimises a multiple of the published objective and nothing else."""
        return self.scale in ("none", "relative") and not any(getattr(self, name) for name in ("logarithm", *WEIGHTS))

    @property
    def needs_check(self) -> bool:
        """True if only tracing shows that the attack fits a victim."""
        plain = Attack(name=self.name)
        return any(getattr(self, name) != getattr(plain, name) for name in ("layers", *WEIGHTS)) or self.init not in (
            "normal",
            "uniform",
        )

    def settings(self) -> dict[str, Any]:
        """Every field as plain data, the solver with its name."""
        solver: dict[str, Any] = asdict(self.solver)  # pyright: ignore[reportArgumentType]
        gone = {"features": 0.0}  # a term that gained nothing; runs that were begun when there was one go on
        fields = asdict(self)
        if self.bounds in VARIABLES:  # by name, since the default was another
            fields["box_by"] = self.bounds
        for name in LATER:
            if not fields[name]:
                del fields[name]
        if solver.get("history_type") == "auto":  # runs that were begun without it go on
            del solver["history_type"]
        return {
            **gone,
            **fields,
            "layers": list(self.layers),
            "solver": {"name": solver_name(self.solver), **solver},
        }


# 300 iterations (of 20 evaluations) as in the reference implementations, whose solver is `TorchLBFGS`.
# Source: Zhu, Liu & Han 2019 (DLG); Zhao, Mopuri & Bilen 2020 (iDLG), whose code stops both below 1e-6.
DLG = Attack(name="dlg")
IDLG = replace(DLG, name="idlg", label="idlg")
# Source: Wei et al. 2020 and its code: iDLG's label, a tile of 16 repeated, alpha 0.
CPL = replace(IDLG, name="cpl", init="pattern-16")
# Source: Deng et al. 2021 (TAG). Differs: alpha, solver and budget as in breaching's preset of that name.
TAG = replace(DLG, name="tag", l1=0.1, solver=Adam(lr=0.05), iterations=1000, stop_objective=0)
# Source: Geiping et al. 2020, section 6 and `inversefed`: 4,800 steps, total variation 1e-4 for CIFAR-10.
IG = Attack(
    name="ig",
    label="idlg",
    objective="cosine",
    tv=1e-4,
    box=True,
    solver=Adam(sign="hard", schedule="step"),
    iterations=4800,
    stop_objective=0,
)
# Source: breaching's preset "modern". Differs: no feature term; theirs weighs an isotropic total variation, of colour
# differences too, by the same 0.1.
MODERN = replace(
    IG,
    name="modern",
    label="counts",
    init="pattern-4",
    tv=0.1,
    solver=Adam(sign="soft", schedule="cosine", warmup=50),
    iterations=24_000,
)
# Source: Zhu, Yao & Blaschko 2023 (SME), algorithm 1. Differs: with Inverting Gradients' steps and budget.
SME = replace(IG, name="sme", surrogate_model=True)
# Source: Dimitrov et al. 2022, epochs with images of their own that agree. Differs: with Inverting Gradients' steps,
# budget and total variation; dummies of different epochs are matched by their distances.
FEDAVG = replace(IG, name="fedavg", label="counts", epoch_consistency=0.1)
# Source: Yin et al. 2021 (GradInversion), weights as in breaching's preset, all divided by that of the L2 term, 1e-4.
GRADINVERSION = Attack(
    name="gradinversion",
    label="row-minima",
    tv=1.0,
    norm=1e-2,
    statistics=1e3,
    group=4,
    consistency=1e2,
    box=True,
    solver=Adam(schedule="cosine", langevin=0.01, warmup=50),
    iterations=20_000,
    stop_objective=0,
)
# Source: Balunovic et al. 2022, the Bayes optimal adversary's objective with total variation for log p(x).
# Differs: theirs is minimised by Adam; here by L-BFGS on variables of the pixels (`bounds`).
BAYES = replace(
    IDLG, name="bayes", objective="likelihood", label="bias", tv=1.0, box=True, knows_defence=True, stop_objective=0
)
# Source: Phong et al. 2017; Geiping et al. 2020, proposition 3.1.
ANALYTIC = Attack(name="analytic", label="bias", init="analytic", solver=NoSolver(), iterations=1)
# Source: Lu et al. 2022 (APRIL).
APRIL = replace(ANALYTIC, name="april", init="april")
# Source: Dimitrov et al. 2024 (SPEAR). Differs: theirs leaves labels to others.
SPEAR = replace(ANALYTIC, name="spear", label="counts", init="spear")
# Source: Zhu & Blaschko 2021 (R-GAP). Differs: see `rgap.recover_by_layers`.
RGAP = replace(ANALYTIC, name="rgap", init="rgap")
# Source: Petrov et al. 2024 (DAGER).
DAGER = replace(ANALYTIC, name="dager", label="text", init="dager")
# Ours: one of these by what the network and the update are; `best.resolved` has the rules.
OPEN = "by the network and the update"
BEST = Attack(name="best", chosen=OPEN, stop_objective=0, stop_relative=1e-8)
ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        *(BEST, DLG, IDLG, CPL, TAG, IG, MODERN, SME, FEDAVG, GRADINVERSION, BAYES),
        *(ANALYTIC, APRIL, SPEAR, RGAP, DAGER),
    )
}


def get_attack(attack: str | Attack) -> Attack:
    """A preset by name, or by name and solver: "dlg:torch-lbfgs"; an `Attack` is returned as it is.

    Raises:
        InputError: unknown name or solver.
    """
    if isinstance(attack, Attack):
        return attack
    check_type("attack", attack, str, f"an Attack or a name, one of {', '.join(ATTACKS)}")
    preset, solver = named_attack(attack)
    return preset if solver is None else with_solver(preset, SOLVERS[solver]())


def with_solver(attack: Attack, solver: Solver, iterations: int | None = None) -> Attack:
    """The attack with another solver, without what that solver does not support.

    Without `iterations`, those of the preset where its solver has the same usual budget, else that budget.
    """
    if iterations is None:
        iterations = attack.iterations if solver.iterations == attack.solver.iterations else solver.iterations
    projects = attack.bounds == "projection"
    without: dict[str, Any] = {"box": False, "box_by": ""} if projects and "box" not in solver.supports else {}
    without |= (
        {} if "group" in solver.supports else {"group": 1, "group_mean": False, "consistency": 0.0, "register": 0}
    )
    return replace(attack, solver=solver, iterations=iterations, **without)


def named_attack(name: str) -> tuple[Attack, str | None]:
    """The preset called `name`, with the solver's name if `name` has one after a colon.

    Raises:
        InputError: unknown name or solver.
    """
    first, colon, solver = name.partition(":")
    preset = ATTACKS[check_choice("attack", first, ATTACKS)]
    if colon and preset.chosen:
        raise InputError(f"`solver` is chosen by the attack {first}; got {name!r}. Leave out what follows the colon.")
    return replace(preset, name=name), check_choice("solver", solver, SOLVERS) if colon else None
