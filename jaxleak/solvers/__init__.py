"""Solvers: frozen dataclasses with `init(fun, x) -> state` and `step(fun, state, context) -> (state, info)`."""

from jaxleak.solvers.first_order import Adam
from jaxleak.solvers.jaxopt_lbfgs import JaxoptLBFGS
from jaxleak.solvers.lbfgs import LBFGS
from jaxleak.solvers.none import NoSolver
from jaxleak.solvers.optax_lbfgs import OptaxLBFGS
from jaxleak.solvers.protocol import Context, Info, Solver
from jaxleak.solvers.torch_lbfgs import TorchLBFGS

SOLVERS: dict[str, type[Solver]] = {
    "lbfgs": LBFGS,
    "torch-lbfgs": TorchLBFGS,
    "jaxopt-lbfgs": JaxoptLBFGS,
    "optax-lbfgs": OptaxLBFGS,
    "adam": Adam,
    "none": NoSolver,
}

__all__ = [
    "LBFGS",
    "SOLVERS",
    "Adam",
    "Context",
    "Info",
    "JaxoptLBFGS",
    "NoSolver",
    "OptaxLBFGS",
    "Solver",
    "TorchLBFGS",
    "solver_name",
]


def solver_name(solver: Solver) -> str:
    """The name under which the command line knows a solver.

    Example:
        >>> from jaxleak.solvers import LBFGS, solver_name
        >>> solver_name(LBFGS())
        'lbfgs'
    """
    return next(name for name, kind in SOLVERS.items() if isinstance(solver, kind))
