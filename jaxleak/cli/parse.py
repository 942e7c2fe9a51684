"""Parses the command line with tyro; `--help` shows flags in groups, each with its text on one line."""

import ast
import contextlib
import difflib
import functools
import inspect
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, field, fields, make_dataclass
from typing import Annotated, Any, Literal

import tyro

from jaxleak.cli import commands, groups
from jaxleak.cli.commands import (
    ATTACK_GROUPS,
    INFER_GROUPS,
    RISK_GROUPS,
    RUN_GROUPS,
    AttackCommand,
    InferCommand,
    RiskCommand,
    RunCommand,
)
from jaxleak.errors import InputError, check_choice, current_name

GROUPS: dict[type, dict[str, type]] = {
    RunCommand: RUN_GROUPS,
    AttackCommand: ATTACK_GROUPS,
    RiskCommand: RISK_GROUPS,
    InferCommand: INFER_GROUPS,
}

RENAMED: dict[str, str] = {}  # old flags, each with its new one: they work for one version, with a warning
MOST_LETTERS = 600  # of what is told

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

    Ends the program with a text where they ask for help.

    Args:
        kinds: the commands, by name.
        arguments: the words; None takes the process's.

    Raises:
        InputError: an unknown command or flag, or one that lacks something or cannot have its value.
    """
    words = [_current(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    config: Any = (tyro.conf.FlagCreatePairsOff,)
    _check_names(kinds, words)
    if not words or words[0] not in kinds:  # help, or nothing: tyro says so and ends the program
        shown = {name: _shown(kind) for name, kind in kinds.items()}
        about = "Gradient-leakage attacks in JAX, hundreds of restarts at once."
        with _in_a_line("jaxleak"):
            tyro.extras.subcommand_cli_from_dict(shown, prog="jaxleak", description=about, args=words, config=config)
    # tyro is given the one command: all of them take it more than a second before its version 1.
    kind = kinds[words[0]]
    with _in_a_line(f"jaxleak {words[0]}"):
        values = vars(tyro.cli(_shown(kind), prog=f"jaxleak {words[0]}", args=words[1:], config=config))
    if kind in GROUPS:
        values = {flag: value for group in values.values() for flag, value in vars(group).items()}
    return kind(**values)


def _current(word: str) -> str:
    """A flag, perhaps with its value behind "=", by the name that it has now."""
    flag, equals, value = word.partition("=")
    return current_name(flag, RENAMED) + equals + value


@contextlib.contextmanager
def _in_a_line(program: str) -> Iterator[None]:
    """What tyro says of words that it cannot take, which is a box of several lines, in one.

    Raises:
        InputError: it could not.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as ended:
        if not ended.code:
            raise
        lines = [line.strip(" │|") for line in said.getvalue().partition("For full helptext")[0].splitlines()]
        told = [line for line in lines if line.strip("─-╭╮╰╯+ ")]
        text = " ".join(" ".join(told[1:] or told).split())
        raise InputError(f"{text[:MOST_LETTERS]}{'...' * (len(text) > MOST_LETTERS)} See {program} --help.") from None


def _check_names(kinds: Mapping[str, type], words: Sequence[str]) -> None:
    """Raise at a command or a flag that there is not, naming the closest one, or the commands that have the flag.

    Raises:
        InputError: an unknown name.
    """
    if not words or {"-h", "--help"} & set(words):
        return
    if not words[0].startswith("-"):
        check_choice("command", words[0], kinds)
    command = words[0] if words[0] in kinds else ""
    flags = {name: _flags(kind) for name, kind in kinds.items()}
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if not flag.startswith("--") or flag.startswith("--tyro") or flag in flags.get(command, ()):
            continue
        others = [f"jaxleak {name}" for name in kinds if flag in flags[name]]
        close = difflib.get_close_matches(flag, flags.get(command, ()), n=1)
        hint = f"it is one of {', '.join(others)}." if others else f"did you mean {close[0]}?" if close else ""
        where = f"jaxleak {command}" if command else "jaxleak itself"
        raise InputError(f"{flag} is no flag of {where}; {hint or f'see jaxleak {command} --help.'}")


def _flags(kind: type) -> list[str]:
    names = [(flag.name.rstrip("_").replace("_", "-"), flag.default is True) for flag in fields(kind)]
    return [f"--no-{name}" if on else f"--{name}" for name, on in names]


def _shown(kind: type) -> type:
    """The dataclass that tyro parses in place of a command: one field for each group, itself a dataclass."""
    if kind not in GROUPS:
        return _with_texts(kind)
    parts = [(name, tyro.conf.OmitArgPrefixes[_with_texts(group)]) for name, group in GROUPS[kind].items()]
    return make_dataclass(kind.__name__, parts, namespace={"__doc__": kind.__doc__}, kw_only=True)


def _with_texts(kind: type) -> type:
    """The dataclass with its flags' texts as arguments: tyro alone keeps the line breaks of the source."""
    texts, parts = flag_texts(kind), []
    for flag in fields(kind):
        shown: dict[str, Any] = {"help": texts[flag.name]}
        if flag.name.endswith("_"):  # a word of Python's
            shown["name"] = flag.name.rstrip("_")
        if flag.type in METAVARS:
            shown["metavar"] = METAVARS[flag.type]
        if flag.default == () or isinstance(flag.default, bool):  # nothing, or what the flag's absence says
            shown["help_behavior_hint"] = ""
        default = field() if flag.default is MISSING else field(default=flag.default)
        parts.append((flag.name, Annotated[flag.type, tyro.conf.arg(**shown)], default))
    return make_dataclass(kind.__name__, parts, namespace={"__doc__": kind.__doc__}, kw_only=True)


def flag_texts(kind: type) -> dict[str, str]:
    """The help text of each flag of a command or group, on one line: the string below its field."""
    texts = {}
    for base in reversed(kind.__mro__):
        texts |= _texts().get(base.__name__, {})
    return texts


@functools.cache
def _texts() -> dict[str, dict[str, str]]:
    """The string below each field, by class and field, as the sources have them."""
    texts = {}
    for module in (groups, commands):
        for kind in ast.parse(inspect.getsource(module)).body:
            if isinstance(kind, ast.ClassDef):
                pairs = zip(kind.body, kind.body[1:], strict=False)
                texts[kind.name] = {
                    ast.unparse(flag.target): " ".join(ast.literal_eval(below.value).split())
                    for flag, below in pairs
                    if isinstance(flag, ast.AnnAssign) and isinstance(below, ast.Expr)
                }
    return texts
