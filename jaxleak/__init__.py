"""Gradient-leakage attacks in JAX, with hundreds of restarts running at once."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxleak.attacks.presets import ATTACKS, CPL, DLG, IDLG, IG, Attack
    from jaxleak.data import Dataset, load_dataset
    from jaxleak.engine.devices import use_all_cores
    from jaxleak.errors import InputError, StorageError
    from jaxleak.kernels.conv import fast_conv
    from jaxleak.kernels.dense import blocked_dot_general
    from jaxleak.models import build_model, load_weights, parameter_count, save_weights
    from jaxleak.models.own import adapt_model
    from jaxleak.results.figures import hold_last
    from jaxleak.results.intervals import fisher, wilson
    from jaxleak.results.matching import unmosaic
    from jaxleak.results.page import write_page
    from jaxleak.results.result import Result
    from jaxleak.results.store.run import Run
    from jaxleak.results.verdict import Criteria
    from jaxleak.runs.audit.audit import audit
    from jaxleak.runs.audit.risk import risk
    from jaxleak.runs.infer.infer import infer
    from jaxleak.runs.ray.driver import Ray
    from jaxleak.runs.run import attack, run_sweep
    from jaxleak.runs.sweep import Sweep
    from jaxleak.solvers import LBFGS, Adam, JaxoptLBFGS, NoSolver, OptaxLBFGS, TorchLBFGS
    from jaxleak.threat.client import Client
    from jaxleak.threat.defences import parse_defence
    from jaxleak.threat.from_dataset import make_victim
    from jaxleak.threat.network import draw_params
    from jaxleak.threat.own_update import load_update
    from jaxleak.threat.patches import fit_patches
    from jaxleak.threat.training import train_network
    from jaxleak.threat.victim import Victim

# Where each public name lives; a module is imported when its first name is asked for.
_HOMES = {
    "attacks.presets": ("ATTACKS", "CPL", "DLG", "IDLG", "IG", "Attack"),
    "threat.client": ("Client",),
    "runs.ray.driver": ("Ray",),
    "kernels.conv": ("fast_conv",),
    "data": ("Dataset", "load_dataset"),
    "threat.defences": ("parse_defence",),
    "kernels.dense": ("blocked_dot_general",),
    "engine.devices": ("use_all_cores",),
    "errors": ("InputError", "StorageError"),
    "results.matching": ("unmosaic",),
    "models": ("build_model", "load_weights", "parameter_count", "save_weights"),
    "models.own": ("adapt_model",),
    "results.figures": ("hold_last",),
    "results.page": ("write_page",),
    "solvers": ("LBFGS", "Adam", "JaxoptLBFGS", "NoSolver", "OptaxLBFGS", "TorchLBFGS"),
    "results.intervals": ("fisher", "wilson"),
    "results.verdict": ("Criteria",),
    "results.store.run": ("Run",),
    "runs.sweep": ("Sweep",),
    "results.result": ("Result",),
    "runs.audit.audit": ("audit",),
    "runs.audit.risk": ("risk",),
    "runs.infer.infer": ("infer",),
    "runs.run": ("attack", "run_sweep"),
    "threat.training": ("train_network",),
    "threat.own_update": ("load_update",),
    "threat.patches": ("fit_patches",),
    "threat.from_dataset": ("make_victim",),
    "threat.network": ("draw_params",),
    "threat.victim": ("Victim",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_RENAMED: dict[str, str] = {}  # old names, each with its new one: they work for one version, with a warning

__all__ = [
    "ATTACKS",
    "CPL",
    "DLG",
    "IDLG",
    "IG",
    "LBFGS",
    "Adam",
    "Attack",
    "Client",
    "Criteria",
    "Dataset",
    "InputError",
    "JaxoptLBFGS",
    "NoSolver",
    "OptaxLBFGS",
    "Ray",
    "Result",
    "Run",
    "StorageError",
    "Sweep",
    "TorchLBFGS",
    "Victim",
    "adapt_model",
    "attack",
    "audit",
    "blocked_dot_general",
    "build_model",
    "draw_params",
    "fast_conv",
    "fisher",
    "fit_patches",
    "hold_last",
    "infer",
    "load_dataset",
    "load_update",
    "load_weights",
    "make_victim",
    "parameter_count",
    "parse_defence",
    "risk",
    "run_sweep",
    "save_weights",
    "train_network",
    "unmosaic",
    "use_all_cores",
    "wilson",
    "write_page",
]


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        from jaxleak.errors import current_name

        name = current_name(name, _RENAMED)
    if name not in _HOME_OF:
        raise AttributeError(f"module 'jaxleak' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxleak.{_HOME_OF[name]}"), name)
