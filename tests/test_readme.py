"""The README does what it says: its commands parse, its Python runs."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from jaxleak import cli

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every `jaxleak ...` command line of the README, with continued lines joined."""
    joined = "\n".join(blocks("bash") + blocks("console")).replace("\\\n", " ")
    parts = re.split(r"&&|\|\||;|\n", joined)
    return [part.strip().removeprefix("$ ") for part in parts if part.strip().removeprefix("$ ").startswith("jaxleak ")]


def test_the_first_two_blocks_are_the_two_commands():
    first, second, *_ = blocks("bash")
    assert "pip install" in first
    assert "jaxleak run" in first
    assert "pip install" in second
    assert "pytest" in second
    assert len(first.strip().splitlines()) == len(second.strip().splitlines()) == 1


def test_there_are_commands():
    assert any(command.startswith("jaxleak run ") for command in commands())


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command):
    """With tyro, and the names and numbers of a `run` with the command's own checks; data sets may be absent here."""
    _, *arguments = shlex.split(command, comments=True)
    parsed = tyro.extras.subcommand_cli_from_dict(
        {name: kind for name, (kind, _) in cli.COMMANDS.items()},
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    assert any(isinstance(parsed, kind) for kind, _ in cli.COMMANDS.values())
    if isinstance(parsed, cli.RunCommand):
        if parsed.dataset != "photos":
            parsed = replace(parsed, dataset="photos", images=None, data_dir=None, split=None)
        sweep = cli.build_sweep(replace(parsed, weights=None))
        assert sweep.total > 0


def test_the_main_job_takes_what_the_text_says():
    """The README speaks of three photographs and eight starts each."""
    (command,) = [part.strip() for part in blocks("bash")[0].split("&&") if "jaxleak run" in part]
    arguments = shlex.split(command)
    at = arguments.index("--images") + 1
    images = [word for word in arguments[at : at + 3] if word.isdigit()]
    assert len(images) == 3
    assert arguments[arguments.index("--seeds") + 1] == "8"
    assert {"--attack", "dlg", "idlg"} <= set(arguments)


def test_the_python_example_runs(tmp_path):
    examples = blocks("python")
    assert examples, "README.md has no ```python block"
    example = examples[0]
    assert "photos" in example, "the example must run without prepared data"
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg"}
    environment["PYTHONPATH"] = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
