"""From words to a command, by tyro; flags are shown in groups, each with its text on one line."""

import ast
import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, field, fields, make_dataclass
from typing import Annotated, Any, Literal

import tyro

from jaxleak.cli import commands, groups
from jaxleak.cli.commands import ATTACK_GROUPS, RUN_GROUPS, AttackCommand, RunCommand

GROUPS: dict[type, dict[str, type]] = {RunCommand: RUN_GROUPS, AttackCommand: ATTACK_GROUPS}

METAVARS: dict[Any, str] = {
    str: "NAME",
    int: "N",
    float: "NUMBER",
    int | Literal["auto"]: "N|auto",
    tuple[str, ...]: "NAME [NAME ...]",
    tuple[int, ...]: "N [N ...]",
    tuple[float, ...]: "NUMBER [NUMBER ...]",
    tuple[int, int, int]: "N N N",
    tuple[int | Literal["auto"], ...]: "N|auto [N|auto ...]",
}


def parse(kinds: Mapping[str, type], arguments: Sequence[str] | None = None) -> Any:
    """The command that these words describe.

    Ends the program with a text where they describe none, or ask for help.

    Args:
        kinds: the commands, by name.
        arguments: the words; None takes the process's.
    """
    shown = {name: _shown(kind) for name, kind in kinds.items()}
    parsed = tyro.extras.subcommand_cli_from_dict(
        dict(shown),
        prog="jaxleak",
        description="Gradient-leakage attacks in JAX, hundreds of restarts at once.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    name = next(name for name, one in shown.items() if isinstance(parsed, one))
    values = vars(parsed)
    if kinds[name] in GROUPS:
        values = {flag: value for group in values.values() for flag, value in vars(group).items()}
    return kinds[name](**values)


def _shown(kind: type) -> type:
    """What tyro is given in place of a command: its groups, each a dataclass with the flags' texts."""
    if kind not in GROUPS:
        return _with_texts(kind)
    parts = [(name, tyro.conf.OmitArgPrefixes[_with_texts(group)]) for name, group in GROUPS[kind].items()]
    return make_dataclass(kind.__name__, parts, namespace={"__doc__": kind.__doc__}, kw_only=True)


def _with_texts(kind: type) -> type:
    """The dataclass with its flags' texts as arguments: tyro alone keeps the line breaks of the source."""
    texts, parts = flag_texts(kind), []
    for one in fields(kind):
        shown: dict[str, Any] = {"help": texts[one.name]}
        if one.type in METAVARS:
            shown["metavar"] = METAVARS[one.type]
        if one.default == () or isinstance(one.default, bool):  # nothing, or what the flag's absence says
            shown["help_behavior_hint"] = ""
        default = field() if one.default is MISSING else field(default=one.default)
        parts.append((one.name, Annotated[one.type, tyro.conf.arg(**shown)], default))
    return make_dataclass(kind.__name__, parts, namespace={"__doc__": kind.__doc__}, kw_only=True)


def flag_texts(kind: type) -> dict[str, str]:
    """What `--help` says of each flag of a command or group, on one line: the string below its field."""
    texts = {}
    for base in reversed(kind.__mro__):
        texts |= _texts().get(base.__name__, {})
    return texts


@functools.cache
def _texts() -> dict[str, dict[str, str]]:
    """The string below each field, by class and field, as the sources have them."""
    found = {}
    for module in (groups, commands):
        for kind in ast.parse(inspect.getsource(module)).body:
            if isinstance(kind, ast.ClassDef):
                pairs = zip(kind.body, kind.body[1:], strict=False)
                found[kind.name] = {
                    ast.unparse(one.target): " ".join(ast.literal_eval(below.value).split())
                    for one, below in pairs
                    if isinstance(one, ast.AnnAssign) and isinstance(below, ast.Expr)
                }
    return found
