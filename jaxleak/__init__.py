"""Gradient-leakage attacks in JAX, with hundreds of restarts running at once."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxleak.attacks import ATTACKS, DLG, IDLG, Attack
    from jaxleak.data import Dataset, load_dataset
    from jaxleak.environment import use_all_cores
    from jaxleak.errors import InputError
    from jaxleak.models import build_model, load_weights, save_weights
    from jaxleak.solvers import LBFGS, Adam, JaxoptLBFGS, OptaxLBFGS, TorchLBFGS
    from jaxleak.stats import Criteria, fisher, wilson
    from jaxleak.store import Run
    from jaxleak.sweep import Result, Sweep, attack, run_sweep
    from jaxleak.victim import Victim, make_victim

# Where each public name lives; a module is imported when its first name is asked for.
_HOMES = {
    "attacks": ("ATTACKS", "DLG", "IDLG", "Attack"),
    "data": ("Dataset", "load_dataset"),
    "environment": ("use_all_cores",),
    "errors": ("InputError",),
    "models": ("build_model", "load_weights", "save_weights"),
    "solvers": ("LBFGS", "Adam", "JaxoptLBFGS", "OptaxLBFGS", "TorchLBFGS"),
    "stats": ("Criteria", "fisher", "wilson"),
    "store": ("Run",),
    "sweep": ("Result", "Sweep", "attack", "run_sweep"),
    "victim": ("Victim", "make_victim"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ATTACKS",
    "DLG",
    "IDLG",
    "LBFGS",
    "Adam",
    "Attack",
    "Criteria",
    "Dataset",
    "InputError",
    "JaxoptLBFGS",
    "OptaxLBFGS",
    "Result",
    "Run",
    "Sweep",
    "TorchLBFGS",
    "Victim",
    "attack",
    "build_model",
    "fisher",
    "load_dataset",
    "load_weights",
    "make_victim",
    "run_sweep",
    "save_weights",
    "use_all_cores",
    "wilson",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'jaxleak' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxleak.{_HOME_OF[name]}"), name)
