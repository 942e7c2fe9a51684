"""The command line, called in this process as a user would call it."""

import contextlib
import io
import re
import warnings
from typing import NamedTuple

import jax
import pytest

from jaxleak import cli


@contextlib.contextmanager
def restored_globals():
    """The command line sets the precision and how warnings are shown."""
    jax.devices()  # running, jax keeps the tests' two devices whatever the command asks for
    precision, show = jax.config.read("jax_enable_x64"), warnings.showwarning
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", precision)
        warnings.showwarning = show


@pytest.fixture(autouse=True)
def restore_globals():
    with restored_globals():
        yield


class Said(NamedTuple):
    code: int
    out: str
    err: str


def call(*arguments: object) -> Said:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return Said(ended.value.code, out.getvalue(), err.getvalue())


def refusal(*arguments: object) -> str:
    """The one line with which the command refuses."""
    said = call(*arguments)
    assert said.code == cli.BAD_INPUT == 2
    assert said.out == ""
    assert said.err.endswith("\n")
    (line,) = said.err.splitlines()
    assert line.startswith("jaxleak: ")
    return line


def case_id(value: object) -> str:
    """A test's name for a value; addresses in memory are left out, which differ between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
