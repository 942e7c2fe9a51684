"""Flags that several commands have: which attacks, from how many starts, against what kind of client."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxleak.errors import InputError, check_choice, check_positive


def optional(metavar: str) -> Any:
    """For a flag that may be left out, with the meaning that its text gives; tyro alone shows `{None}|STR`."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


Name = Annotated[str | None, optional("NAME")]
Names = Annotated[tuple[str, ...] | None, optional("NAME [NAME ...]")]
Number = Annotated[float | None, optional("NUMBER")]
Count = Annotated[int | None, optional("N")]
Counts = Annotated[tuple[int, ...] | None, optional("N [N ...]")]
YesNo = Annotated[bool | None, optional("True|False")]
File = Annotated[Path | None, optional("PATH")]


@dataclass(frozen=True, kw_only=True)
class AttackFlags:
    """With what is attacked, and how that is computed."""

    attack: tuple[str, ...] = ("dlg", "idlg")
    """Attacks: dlg (label optimised jointly), idlg (label read from the head's gradient), cpl (from a pattern), ig
    (cosine, total variation, sign of the gradient), modern, gradinversion, analytic (closed form, for mlp); with a
    solver of its own after a colon, as in dlg:torch-lbfgs."""
    seeds: int = 16
    """Random starts per image and attack."""
    start_seed: int = 0
    """From which the starts are drawn."""
    solver: Name = None
    """lbfgs (steps are tested), torch-lbfgs (the papers'), jaxopt-lbfgs, optax-lbfgs, adam; of the attacks that name
    none (default: the attack's own)."""
    start: Name = None
    """Where the images start: normal, uniform, black, white, red, green, blue, pattern-16, pattern-8, pattern-4 (or a
    tile of any other side), surrogate. This and the flags down to --knows-defence default to the attack's own; what is
    given is added to the attacks' names."""
    label: Name = None
    """Where labels come from: joint (optimised), known, idlg, bias, unique, row-minima, counts, counts-published."""
    objective: Name = None
    """l2 or cosine."""
    scale: Name = None
    """What the objective is measured in: none (as published), relative (to the shared gradient), per-tensor."""
    layers: Names = None
    """Layers to compare, each with a weight if you like: conv1 head:0.5; '*' is all others."""
    features: Number = None
    """Weight of matching the head's input, which one image's gradient gives away."""
    label_term: Number = None
    """CPL's alpha: weight of (prediction - label)^2."""
    tv: Number = None
    """Weight of the total variation."""
    norm: Number = None
    """Weight of the images' norm."""
    statistics: Number = None
    """Weight of matching BatchNorm's statistics of the client's batch."""
    group: Count = None
    """Starts that a trial follows together; the one with the lowest objective is reported. Needs adam."""
    consistency: Number = None
    """Weight of their agreement."""
    box: YesNo = None
    """Keep pixels in [0, 1]. Needs adam."""
    dummies: Count = None
    """Images that are optimised (default: as many as the update holds)."""
    knows_defence: YesNo = None
    """The attacker leaves out the entries that pruning set to zero."""
    lr: Number = None
    """The learning rate of torch-lbfgs and jaxopt-lbfgs (default: 1) and adam (0.1); the others have none."""
    sign: Name = None
    """What adam is given: the gradient (none), its sign (hard), its soft sign (soft)."""
    schedule: Name = None
    """Of adam's learning rate: constant, step, cosine."""
    warmup: Count = None
    """Steps until adam's learning rate is reached."""
    weight_decay: Number = None
    """Of adam, decoupled (AdamW)."""
    langevin: Number = None
    """Noise added to adam's gradient."""
    history: int = 100
    """Pairs that L-BFGS keeps."""
    line_search: str = "zoom"
    """Of jaxopt-lbfgs: fixed, zoom, hager-zhang."""
    iterations: Count = None
    """Budget of a trial: outer steps of at most 20 evaluations for L-BFGS (default 300), steps for adam (4800)."""
    max_evaluations: Count = None
    """A trial also ends once it has spent this many evaluations (default: no such limit)."""
    stop_objective: Number = None
    """A trial ends when its objective is below this at the end of an iteration (default: 1e-6; ig never)."""
    success_objective: float = 1e-4
    """Success needs an objective below this ..."""
    success_cosine: float = 1e-2
    """(this where the objective is 1 - cosine) ..."""
    success_error: float = 0.2
    """... and a relative image error |x - x*| / |x*| below this, of every image of a batch."""
    mse_thresholds: tuple[float, ...] = (0.01, 0.005, 0.001, 0.0005, 0.0001)
    """iDLG's family: the share of trials whose MSE is below each is reported."""
    snapshots: tuple[int, ...] = (0, 10, 20, 40, 60, 80, 120, 200)
    """Iterations at which candidates are kept for the pictures."""
    snapshot_seeds: Count = None
    """... of so many seeds per image and attack (default: of all)."""
    lanes: int | Literal["auto"] = "auto"
    """Trials at once, over all devices."""
    x64: bool = False
    """Compute in float64."""


@dataclass(frozen=True, kw_only=True)
class ClientFlags:
    """How the client turned its images into an update."""

    batch: int = 1
    """Images that an update is computed from (of `run`: the first of --images make the first update, and so on)."""
    normalise: str = "none"
    """Whose mean and deviation the network's input is brought to: none, cifar100, cifar10, mnist, imagenet."""
    client_steps: int = 0
    """Local steps of the client, which then shares by how much its weights fell (FedAvg); 0 shares the gradient."""
    client_epochs: int = 0
    """Instead of --client-steps: passes over the client's images."""
    client_optimizer: str = "sgd"
    """Of the local steps: sgd, adam."""
    client_lr: float = 0.01
    """Its learning rate."""
    client_batch: Count = None
    """Images per local step, taken in turn (default: all)."""
    clients: int = 1
    """Among how many clients the images of an update are divided; the mean of their updates is attacked."""


ADAM_FLAGS = ("sign", "schedule", "warmup", "weight_decay", "langevin")
# Flags that replace a field of every attack (the flag's name if it is another), where they are given.
ATTACK_FIELDS = {
    "init": "start",
    **{
        name: name
        for name in (
            "label", "objective", "scale", "layers", "features", "label_term", "tv", "norm", "statistics", "group",
            "consistency", "box", "dummies", "knows_defence",
        )
    },
}  # fmt: skip


def build_solver(command: AttackFlags, name: str, own: Any = None):
    """The solver of that name that the flags describe; what they leave open is `own`'s, if that is of its kind."""
    from jaxleak.solvers import LBFGS, SOLVERS, Adam, JaxoptLBFGS, NoSolver, OptaxLBFGS, TorchLBFGS

    kind: Any = SOLVERS[check_choice("solver", name, SOLVERS)]
    given = {flag: getattr(command, flag) for flag in ADAM_FLAGS if getattr(command, flag) is not None}
    if given and kind is not Adam:
        raise InputError(
            f"`{next(iter(given))}` is a setting of the solver adam, not of {name}; leave it out, or use --solver adam."
        )
    if kind in (LBFGS, OptaxLBFGS, NoSolver) and command.lr is not None:
        raise InputError(f"`lr` must not be given with the solver {name}, which finds its step sizes; leave it out.")
    if kind is NoSolver:
        return NoSolver()
    if kind in (LBFGS, OptaxLBFGS):
        return kind(history=command.history)
    rate: dict[str, Any] = {} if command.lr is None else {"lr": command.lr}
    if kind is Adam:
        return replace(own if isinstance(own, Adam) else Adam(), **rate, **given)
    if kind is JaxoptLBFGS:
        return JaxoptLBFGS(history=command.history, line_search=command.line_search, **rate)
    return TorchLBFGS(history=command.history, **rate)


def build_attacks(command: AttackFlags):
    """The attacks that the flags describe."""
    from jaxleak.attacks.presets import named_attack, with_solver
    from jaxleak.solvers import solver_name
    from jaxleak.solvers.jaxopt_lbfgs import LINE_SEARCHES

    for name in ("seeds", "iterations", "max_evaluations", "history"):
        if getattr(command, name) is not None:
            check_positive(name, getattr(command, name), integer=True)
    check_choice("line_search", command.line_search, LINE_SEARCHES)
    if command.lanes != "auto":
        check_positive("lanes", command.lanes, integer=True)
    changes = {
        field: getattr(command, flag) for field, flag in ATTACK_FIELDS.items() if getattr(command, flag) is not None
    }
    if command.max_evaluations is not None:
        changes["max_evaluations"] = command.max_evaluations
    if command.stop_objective is not None:
        changes["stop_objective"] = command.stop_objective
    attacks = []
    for preset, own in [named_attack(name) for name in command.attack]:
        solver = own or command.solver or solver_name(preset.solver)
        built = with_solver(preset, build_solver(command, solver, preset.solver), command.iterations)
        attacks.append(replace(built, **changes, name="+".join([preset.name, *_variations(command)])))
    return tuple(attacks)


def _variations(command: AttackFlags) -> list[str]:
    """What tells the run's attacks from the presets, for their names."""
    words = []
    for flag in (*ATTACK_FIELDS.values(), *ADAM_FLAGS):
        value = getattr(command, flag)
        if value is None:
            continue
        name = flag.replace("_", "-")
        if isinstance(value, bool):
            words.append(name if value else f"no-{name}")
        elif isinstance(value, tuple):
            words.append(",".join(value))
        elif isinstance(value, str):
            words.append(value)
        else:
            words.append(f"{name}={value:g}")
    return words


def model_fields(texts: tuple[str, ...]) -> dict[str, Any]:
    """`width=16 train=false activation=relu` as fields of a model.

    Raises:
        InputError: not NAME=VALUE, or a name twice.
    """
    fields = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError(f"`model_field` must be NAME=VALUE, as in width=16; got {text!r}.")
        if name in fields:
            raise InputError(f"`model_field` has {name} twice; give it once.")
        parts = [_plain(part) for part in value.split(",") if part]
        fields[name] = tuple(parts) if "," in value else parts[0]
    return fields


def _plain(text: str) -> Any:
    """A truth value, a number, or the text itself."""
    words = {"true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def build_criteria(command: AttackFlags):
    """What counts as success."""
    from jaxleak.results.verdict import Criteria

    return Criteria(
        objective=command.success_objective,
        cosine=command.success_cosine,
        relative_error=command.success_error,
        mse_thresholds=command.mse_thresholds,
    )


def sweep_of(victim: Any, attacks: tuple, command: AttackFlags):
    """These attacks on a victim, with the flags' seeds, criteria and snapshots."""
    from jaxleak.runs.sweep import Sweep

    return Sweep(
        victim=victim,
        attacks=attacks,
        seeds=command.seeds,
        start_seed=command.start_seed,
        criteria=build_criteria(command),
        snapshots=command.snapshots,
        snapshot_seeds=command.snapshot_seeds,
    )


def build_client(command: ClientFlags):
    """The client that the flags describe."""
    from jaxleak.threat.client import Client

    check_positive("batch", command.batch, integer=True)
    client = Client(
        steps=command.client_steps,
        epochs=command.client_epochs,
        optimizer=command.client_optimizer,
        lr=command.client_lr,
        batch=command.client_batch,
        clients=command.clients,
    )
    client.check(command.batch)
    return client


def lanes(command: AttackFlags) -> int | None:
    """Trials at once; None lets the engine choose."""
    return None if command.lanes == "auto" else command.lanes
