"""Versions that rows are made with: of jaxleak, of jax, and of the code of the solvers."""

import ast
import functools
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxleak.errors import InputError
from jaxleak.results.store.columns import Row

PACKAGE = Path(__file__).parents[2]
FOLDERS = ("solvers", "kernels")  # whose code decides the steps of a solver


def solver_versions(modules: Mapping[str, str]) -> dict[str, str]:
    """A version of each solver: a digest of its module's code and of the solver code that it imports.

    Comments, docstrings, layout and the words of errors change nothing.

    Args:
        modules: by the solvers' names, such as "jaxleak.solvers.lbfgs".
    """
    return {name: _digest(module) for name, module in sorted(modules.items())}


@functools.cache
def _digest(module: str) -> str:
    code = {name: _code(path) for name in sorted(_reached(module)) if (path := _file(name))}
    return hashlib.sha256("\n".join(f"{name}\n{text}" for name, text in code.items()).encode()).hexdigest()[:12]


def _reached(module: str) -> set[str]:
    """The module, and the solver modules that it imports, and those that they import."""
    reached, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if path is None or name in reached:
            continue
        reached.add(name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                waiting += [one for one in names if one.startswith(tuple(f"jaxleak.{folder}" for folder in FOLDERS))]
    return reached


def _file(module: str) -> Path | None:
    base = PACKAGE.joinpath(*module.split(".")[1:])
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


class _Bare(ast.NodeTransformer):
    """Leaves out what does not decide a result: docstrings, and the words of errors."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return ast.Pass() if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        del node
        return ast.Raise()

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        del node
        return ast.Constant("")  # Pythons write it back differently


def _code(path: Path) -> str:
    """The code of a file, as it is parsed; `ast.dump` is another one in each Python."""
    return ast.unparse(_Bare().visit(ast.parse(path.read_text(encoding="utf-8"))))


def check_solvers(path: Path, stored: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise if a run was begun with other solvers than those of this process; of older runs that is not known.

    Args:
        path: the run directory.
        stored, here: `environment` of the run, and of this process.

    Raises:
        InputError: the code of a solver differs.
    """
    before, now = stored.get("solvers") or {}, here.get("solvers") or {}
    changed = sorted(name for name in before.keys() & now.keys() if before[name] != now[name])
    if changed:
        versions = f"it is of {_label(stored)}, this is {_label(here)}"
        raise InputError(
            f"`out` {path} was begun with another version of the solver {', '.join(changed)}: {versions}. Continue it "
            "with that one, give another directory, or mix the rows with --mix-versions (mix_versions=True)."
        )


def _label(made: dict[str, Any]) -> str:
    revision = str(made.get("git_revision") or "unknown")
    where = "" if revision == "unknown" else f" ({revision[:7]}{', changed' if made.get('git_dirty') else ''})"
    return f"jaxleak {made.get('jaxleak_version')}{where}"


def versions_of(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows are of which version of jaxleak, and of jax where that differs; the most frequent first."""
    several = len({row.get("jax_version") for row in rows}) > 1
    labels = (_label(row) + (f" with jax {row['jax_version']}" if several else "") for row in rows)
    return dict(Counter(labels).most_common())


def mixture(rows: Sequence[Row]) -> str | None:
    """A sentence that says which rows are of which version; None where there is one only."""
    counts = versions_of(rows)
    if len(counts) < 2:
        return None
    return f"the rows are of several versions: {', '.join(f'{name}: {count}' for name, count in counts.items())}."
