"""Mutation tests of the numerics: Cosmic Ray changes one place of a module, and that module's fast tests must fail.

    JAXLEAK_MUTANTS=6 JAXLEAK_MUTANTS_OF="attacks/trial.py" python -m pytest -m slow -n 0 -s tests/test_mutants.py

A mutant that survives is listed in `mutants.toml` with the reason, or a test is missing. Left out are annotations,
texts of errors, `strict` of `zip`, looks of figures, and replacements that cannot run. Of each place one mutant is
drawn, of each module so many places; `JAXLEAK_MUTANTS_NTH=2` takes the second mutant of each place.

Measured on two cores, one module after the other; in round 6 each mutant of attacker and trial by those tests alone
that run its statement. Rounds drew mutants that had not been drawn before (`JAXLEAK_MUTANTS_JUDGED`). Then tests were
written for those that survived. They kill these, tried one by one, which says nothing of other mutants. Shares without
those that do the same as the code, with 95 % intervals:

1. Intel Xeon with AVX-512, 12 modules, 8 to 15 places each: 73 of 86, 84.9 % (75.8 to 90.9 %).
2. Eleven modules, of which lbfgs, first_order and agreement were new: 62 of 71, 87.3 % (77.6 to 93.2 %).
3. Summary, run and agreement: 16 of 17, 94.1 % (73.0 to 99.0 %).
4. AMD EPYC, 15 modules, 6 places each: 78 of 85, 91.8 % (84.0 to 96.0 %).
5. All places that were left of 11 modules (distances, objectives, labels, lbfgs, compact, torch_lbfgs, first_order,
   agreement, intervals, summary, run): 511 of 561, 91.1 % (88.4 to 93.2 %). By module: lbfgs 67 of 79, run 80 of 94,
   labels 51 of 61, intervals 23 of 25, objectives 31 of 33, summary 68 of 72, first_order 42 of 44, distances 25 of 26,
   torch_lbfgs 50 of 52, agreement 36 of 37, compact 38 of 38.
6. Intel Xeon, all places that were left of the last three: 278 of 339, 82.0 % (77.6 to 85.7 %): attacker 123 of 153,
   trial 83 of 103, parts 72 of 83.
7. The second mutant of a place (`JAXLEAK_MUTANTS_NTH=2`), 12 of each of the 16 modules: 161 of 167, 96.4 % (92.4 to
   98.3 %).

So every place of every module has been judged by one mutant, which is killed now or listed, and a fresh round came to
95 %. What survived it is killed or listed, too.
"""

import ast
import hashlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path

import pytest

import jaxleak

ROOT = Path(__file__).parent.parent
SAMPLE = int(os.environ.get("JAXLEAK_MUTANTS", "6"))  # mutants of each module; 0: all there are
JUDGED = int(os.environ.get("JAXLEAK_MUTANTS_JUDGED", "0"))  # of these the first so many are left out: judged before
NTH = int(os.environ.get("JAXLEAK_MUTANTS_NTH", "1"))  # which mutant of each place
ONLY = os.environ.get("JAXLEAK_MUTANTS_OF", "").split()  # modules; none: all
LEAST = 0.95  # share that must be killed

TABLE = tomllib.loads((ROOT / "tests/mutants.toml").read_text())
WITHOUT = "not jaxopt and not optax"  # solvers of others
# Operators that change a value into another. Left out are those that cannot run: logic of numbers, identity of arrays,
# and a sign that becomes a negation.
NUMBERS, BITS = "Add|Sub|Mul|Div|FloorDiv|Mod|Pow", "BitOr|BitAnd|BitXor"
ORDERS = "Eq|NotEq|Lt|LtE|Gt|GtE"
OPERATORS = re.compile(
    rf"core/(ReplaceBinaryOperator_(({NUMBERS})_({NUMBERS})|({BITS})_({BITS}))"
    rf"|ReplaceComparisonOperator_(({ORDERS})_({ORDERS})|Is_IsNot|IsNot_Is)"
    r"|ReplaceUnaryOperator_Delete_\w+|NumberReplacer|AddNot|Replace(True|False|And|Or|Break|Continue)With\w+"
    r"|ExceptionReplacer|RemoveDecorator|ZeroIterationForLoop)"
)


def silent(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Spans that say something and do nothing: annotations, texts of errors, what is for type checkers, that what goes
    together is equally long, and looks of figures.
    """
    nodes: list[ast.AST | None] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.AnnAssign() | ast.arg():
                nodes.append(node.annotation)
            case ast.FunctionDef():
                nodes.append(node.returns)
            case ast.keyword(arg="strict" | "figsize" | "dpi" | "fontsize"):
                nodes.append(node.value)
            case ast.Raise(exc=ast.Call()):
                nodes += node.exc.args
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                nodes += [node, *node.body]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes if n is not None]


def mutants(module: Path, session: Path):
    """Cosmic Ray's mutants of a module: one for each place, ranked by a hash, which edits elsewhere do not change."""
    from cosmic_ray.commands import init
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator
    from cosmic_ray.work_db import WorkDB, use_db

    source = module.read_text()
    lines, quiet = source.splitlines(), silent(source)
    with use_db(session, WorkDB.Mode.create) as database:
        init([module], database, {})
        found = [mutation for item in database.pending_work_items for mutation in item.mutations]

    def rank(mutation) -> str:
        (row, column), name = mutation.start_pos, mutation.operator_name
        return hashlib.sha256(f"{lines[row - 1]} {column} {name} {mutation.occurrence % 2}".encode()).hexdigest()

    seen: Counter[tuple] = Counter()
    for mutation in sorted(found, key=rank):
        start, name = tuple(mutation.start_pos), mutation.operator_name
        if not OPERATORS.fullmatch(name) or any(first <= start < last for first, last in quiet):
            continue
        place, line = (start, name.split("_")[0]), lines[start[0] - 1]
        if (SAMPLE and seen[place] >= NTH) or line[start[1] :].startswith("*,"):  # keyword-only arguments follow
            continue
        try:
            mutated = mutate_code(source, get_operator(name)(), mutation.occurrence)
            compile(mutated, "mutant", "exec")
        except (SyntaxError, AttributeError):  # the latter: Cosmic Ray stumbles over `except (module.Error, …)`
            continue
        seen[place] += 1
        if SAMPLE and seen[place] != NTH:
            continue
        after = mutated.splitlines()
        yield mutation, line.strip(), after[start[0] - 1].strip() if len(after) == len(lines) else ""


def arguments_of(module: str) -> list[str]:
    """Arguments of pytest."""
    arguments = []
    for entry in TABLE["tests"][module]:
        file, _, beginnings = entry.partition(":")
        path = f"tests/test_{file}.py"
        names = re.findall(r"^def (test_\w+)", (ROOT / path).read_text(), re.MULTILINE)
        starts = tuple(f"test_{beginning}" for beginning in beginnings.split(",") if beginning)
        arguments += [f"{path}::{name}" for name in names if name.startswith(starts)] if starts else [path]
    return arguments


def copied(folder: Path, monkeypatch) -> Path:
    """A copy of the project whose tests the processes to come run, with the plugins they need and no more."""
    for name in ("jaxleak", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # Hypothesis alone takes as long to import as jax
    monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin,pytest_timeout")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_mutants_are_killed(tmp_path, monkeypatch):
    mutating = pytest.importorskip("cosmic_ray.mutating", reason="Cosmic Ray is not installed (extra `mutants`)")
    project = copied(tmp_path / "project", monkeypatch)
    listed = {(entry["module"], entry["line"], entry["becomes"]): entry["reason"] for entry in TABLE["survivor"]}
    killed: list[bool] = []
    missing, equivalent = [], 0
    for name in ONLY or TABLE["tests"]:
        call = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-n0",
            "--keep-duplicates",
            "-k",
            WITHOUT,
            *arguments_of(name),
        ]
        began = time.monotonic()
        plain = subprocess.run(call, capture_output=True, text=True)  # leaves bytecode and programs behind
        assert plain.returncode == 0, f"{name}: its tests fail without a mutant\n{plain.stdout}"
        seconds, of_module = time.monotonic() - began, len(killed)
        for mutation, line, becomes in itertools.islice(
            mutants(project / "jaxleak" / name, tmp_path / "session"), JUDGED, SAMPLE or None
        ):
            result = mutating.mutate_and_test([mutation], shlex.join(call), 60 + 5 * seconds)
            assert result.worker_outcome == "normal", result.output
            killed.append(result.is_killed)
            word = "too slow" if result.output == "timeout" else "killed" if result.is_killed else "survived"
            if not result.is_killed:
                reason = listed.get((name, line, becomes), "not listed")
                equivalent += reason.startswith("equivalent")
                missing += [(name, line, becomes)] if reason == "not listed" else []
                word = f"survived, {reason}"
            print(f"{word}: {name}\n    {line}\n    {becomes}", flush=True)
        print(f"{name}: {sum(killed[of_module:])} of {len(killed[of_module:])} killed; its tests take {seconds:.0f} s")
    n = len(killed) - equivalent
    assert n, "no mutant was drawn that changes what the code does"
    low, high = jaxleak.wilson(sum(killed), n)
    print(f"{sum(killed)} of {n} killed, {sum(killed) / n:.1%} (95 % interval {low:.1%} to {high:.1%})")
    print(f"{equivalent} more do the same as the code, as listed")
    assert not missing
    assert sum(killed) >= LEAST * n
