"""`jaxleak`: the commands and their flags.

app.py       what each command does
commands.py  the commands
flags.py     flags that several of them have
"""

from jaxleak.cli.app import BAD_INPUT, COMMANDS, INTERRUPTED, build_sweep, main
from jaxleak.cli.commands import PlotCommand, RunCommand

__all__ = ["BAD_INPUT", "COMMANDS", "INTERRUPTED", "PlotCommand", "RunCommand", "build_sweep", "main"]
