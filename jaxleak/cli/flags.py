"""Builds attacks, criteria, client and sweep from the flags of `jaxleak run` and `jaxleak attack`."""

import contextlib
from dataclasses import replace
from typing import Any

from jaxleak.cli.commands import AttackCommand, InferCommand, RiskCommand, RunCommand
from jaxleak.errors import InputError, check_choice, check_positive, naming

Command = RunCommand | AttackCommand
OTHER_SPLIT = {"train": "test", "test": "train"}
ADAM_FLAGS = ("sign", "schedule", "warmup", "weight_decay", "langevin")
# Flags that replace a field of every attack (the flag's name if it is another), where they are given.
ATTACK_FIELDS = {
    "init": "start",
    **{
        name: name
        for name in (
            "label", "objective", "scale", "logarithm", "layers", "label_term", "l1", "tv", "patches", "norm",
            "statistics", "group", "group_mean", "consistency", "register", "box", "box_by", "surrogate_model",
            "epoch_consistency", "dummies", "knows_defence",
        )
    },
}  # fmt: skip


def build_solver(command: Command, name: str, preset: Any = None):
    """The named solver with the flags' settings; Adam takes settings not given from `preset`, if that is Adam too."""
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
        return replace(preset if isinstance(preset, Adam) else Adam(), **rate, **given)
    if kind is JaxoptLBFGS:
        return JaxoptLBFGS(history=command.history, line_search=command.line_search, **rate)
    return TorchLBFGS(history=command.history, **rate)


def build_attacks(command: Command):
    """The attacks that the flags describe."""
    from jaxleak.attacks.presets import named_attack, with_solver
    from jaxleak.solvers import solver_name
    from jaxleak.solvers.jaxopt_lbfgs import LINE_SEARCHES

    for name in ("seeds", "iterations", "max_evaluations", "history", "minutes"):
        if getattr(command, name) is not None:
            check_positive(name, getattr(command, name), integer=name != "minutes")
    check_choice("line_search", command.line_search, LINE_SEARCHES)
    if command.lanes != "auto":
        check_positive("lanes", command.lanes, integer=True)
    changes = {
        field: getattr(command, flag) for field, flag in ATTACK_FIELDS.items() if getattr(command, flag) is not None
    }
    for name in ("max_evaluations", "stop_objective", "stop_relative"):
        if getattr(command, name) is not None:
            changes[name] = getattr(command, name)
    attacks = []
    for preset, named_solver in [named_attack(name) for name in command.attack]:
        if preset.chosen:
            attacks.append(_best(command, preset, changes))
            continue
        solver = named_solver or command.solver or solver_name(preset.solver)
        built = with_solver(preset, build_solver(command, solver, preset.solver), command.iterations)
        attacks.append(replace(built, **changes, name="+".join([preset.name, *_variations(command)])))
    return tuple(attacks)


def _best(command: Command, preset: Any, changes: dict[str, Any]):
    """The attack `best` with what of it may be given: its budget, and what the attacker knows."""
    from jaxleak.attacks.best import KEPT, refuse

    given = [*changes, *(flag for flag in ("solver", "lr", *ADAM_FLAGS) if getattr(command, flag) is not None)]
    given += [flag for flag in ("history", "line_search") if getattr(command, flag) != getattr(type(command), flag)]
    free = (*KEPT, "label") if command.label == "known" else KEPT
    refuse([ATTACK_FIELDS.get(name, name) for name in given if name not in free])
    budget = {} if command.iterations is None else {"iterations": command.iterations}
    return replace(preset, **changes, **budget, name="+".join([preset.name, *_variations(command)]))


def _variations(command: Command) -> list[str]:
    """The changed settings as words, which are appended to the names of the attacks."""
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


def build_criteria(command: Command):
    """The success criteria that the flags describe."""
    from jaxleak.results.verdict import Criteria

    with naming(objective="success_objective", cosine="success_cosine", relative_error="success_error"):
        return Criteria(
            objective=command.success_objective,
            cosine=command.success_cosine,
            relative_error=command.success_error,
            mse_thresholds=command.mse_thresholds,
        )


def sweep_of(victim: Any, attacks: tuple, command: Command):
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


def own_victim(command: AttackCommand | RiskCommand):
    """The victim whose update the flags name."""
    from jaxleak.threat.defences import parse_defence
    from jaxleak.threat.own_update import load_update

    return load_update(
        command.update,
        command.weights,
        command.model,
        before=command.before,
        after=command.after,
        image_shape=command.image_shape,
        batch=command.batch,
        client=build_client(command),
        normalise=normalise(command),
        truth=command.truth,
        pixel_max=command.pixel_max,
        labels=command.labels if isinstance(command, AttackCommand) else None,
        fields=model_fields(command.model_field),
        defences=tuple(parse_defence(text) for text in command.defence),
    )


def risk_victim(command: RiskCommand):
    """The victim whose update `jaxleak risk` looks at, and names of tensors that its update does not share.

    Images stand in for those of an update that nobody knows.
    """
    from jaxleak.runs.audit.audit import silent_tensors
    from jaxleak.runs.audit.risk import with_images
    from jaxleak.threat.defences import parse_defence
    from jaxleak.threat.from_dataset import make_victim

    given = any(file is not None for file in (command.update, command.before, command.after))
    if given:
        victim = own_victim(command)
        silent = silent_tensors(victim)
        if victim.knows_truth:
            return with_images(victim, victim.images, victim.labels), silent
    data = pictures(command)
    indices = (
        list(command.images)
        if command.images
        else data.random_batches(1, command.batch, command.image_seed, command.batch_labels)
    )
    indices = [int(index) for index in indices]
    if not given:
        victim = make_victim(
            command.model,
            data,
            indices,
            fields=model_fields(command.model_field),
            knows_statistics=not command.hide_statistics,
            network="shared" if command.weights is not None else command.network,
            network_seed=command.network_seed,
            weights=command.weights,
            normalise=normalise(command),
            batch=command.batch,
            client=build_client(command),
            defences=tuple(parse_defence(text) for text in command.defence),
            trained_steps=command.trained_steps,
            trained_on=command.trained_on,
            train_optimizer=command.train_optimizer,
            train_lr=command.train_lr,
        )
        return victim, []
    pixels, labels = data.images(indices)
    if pixels.shape[1:] != command.image_shape:
        shown = "x".join(map(str, pixels.shape[1:]))
        wanted = "x".join(map(str, command.image_shape))
        raise InputError(
            f"`dataset` {command.dataset} has images of {shown}, and the update's are {wanted}; give --truth, or a "
            "--dataset or --image-size that fits."
        )
    return with_images(victim, pixels, labels % victim.client.loss.classes(victim.num_classes)), silent


def pictures(command: RunCommand | RiskCommand | InferCommand):
    """The data set that the flags name."""
    from jaxleak.data import load_dataset

    return load_dataset(
        command.dataset,
        split=command.split,
        data_dir=command.data_dir,
        image_size=_sides(command.image_size),
        pixel_max=command.pixel_max,
        length=command.length,
    )


def private_images(command: RunCommand, data: Any):
    """Indices of the private images, those given or drawn ones, and the attacker's mixture of patches of others."""
    images = [int(index) for index in command.images or ()]
    if command.images is None:
        count = command.num_images or 4
        images = data.random_batches(count, command.batch, command.image_seed, command.batch_labels)
    return images, _own_patches(command, data, images)


def _own_patches(command: RunCommand, data: Any, images: list[int]):
    """The attacker's mixture of patches, where an attack has --patches: kept in the run directory, or fitted now.

    It is fitted on the data set's other split; where there is none, on images that are not attacked.
    """
    if not command.patches:
        return None
    from jaxleak.threat.patches import fit_patches, read_patches

    kept = read_patches(command.out)
    if kept is not None:
        return kept
    if data.split in OTHER_SPLIT:
        with contextlib.suppress(InputError):  # not prepared
            return fit_patches(pictures(replace(command, split=OTHER_SPLIT[data.split])))
    return fit_patches(data, exclude=images)


def _sides(text: str | None) -> int | tuple[int, int] | None:
    """`32` or `24x32` as a size.

    Raises:
        InputError: it is neither.
    """
    if text is None:
        return None
    try:
        height, *width = (int(side) for side in text.split("x"))
    except ValueError:
        height, width = 0, [0, 0]
    if len(width) > 1:
        raise InputError(f"`image_size` must be a number of pixels, or height and width as in 24x32; got {text!r}.")
    return (height, width[0]) if width else height


def normalise(command: Command | RiskCommand | InferCommand) -> Any:
    """A name, or means and deviations.

    Raises:
        InputError: both, or one without the other.
    """
    if command.mean is None and command.std is None:
        return command.normalise
    if command.mean is None or command.std is None:
        raise InputError("`mean` and `std` go together; give both, as in --mean 0.5 --std 0.25.")
    if command.normalise != "none":
        raise InputError("`normalise` and `mean` exclude each other; give one of them.")
    return command.mean, command.std


def build_client(command: Command | RiskCommand | InferCommand):
    """The client that the flags describe."""
    from jaxleak.models.own.from_file import own_loss
    from jaxleak.threat.client import Client
    from jaxleak.threat.loss import as_loss, parse_loss

    check_positive("batch", command.batch, integer=True)
    client = Client(
        loss=parse_loss(
            command.loss,
            command.label_smoothing,
            command.class_weights,
            command.reduction,
            own=lambda name: as_loss(own_loss(name, command.model)),
        ),
        **{
            name: getattr(command, f"client_{name}")
            for name in ("momentum", "nesterov", "dampening", "weight_decay", "clip", "order", "shuffle", "drop_last")
        },
        precision=command.client_precision,
        steps=command.client_steps,
        epochs=command.client_epochs,
        optimizer=command.client_optimizer,
        lr=command.client_lr,
        batch=command.client_batch,
        clients=command.clients,
    )
    client.check(command.batch)
    return client


def how_to_run(command: Command) -> dict[str, Any]:
    """Arguments of `run_sweep` and `audit` on which no result of a trial depends."""
    lanes = None if command.lanes == "auto" else command.lanes  # None lets the engine choose
    return {"lanes": lanes, "mix_versions": command.mix_versions, "minutes": command.minutes}
