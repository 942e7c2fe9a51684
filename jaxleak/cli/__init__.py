"""`jaxleak`: the commands and their flags.

app.py       what each command does
commands.py  the commands, as dataclasses
groups.py    the flags of `run` and `attack`, in groups
parse.py     from words to a command
flags.py     from a command to attacks, criteria, client and sweep
infer.py     ... of `infer` to its victim
"""

from jaxleak.cli.app import BAD_INPUT, COMMANDS, INTERRUPTED, build_sweep, main
from jaxleak.cli.commands import PlotCommand, RunCommand
from jaxleak.cli.parse import parse

__all__ = ["BAD_INPUT", "COMMANDS", "INTERRUPTED", "PlotCommand", "RunCommand", "build_sweep", "main", "parse"]
