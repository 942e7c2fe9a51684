"""Every public name is documented with an example, and the examples are true."""

import ast
import contextlib
import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import jaxleak

# What is data has its example in the text of the module that holds it.
DATA = dict.fromkeys(("ATTACKS", "CPL", "DLG", "IDLG", "IG"), "jaxleak.attacks.presets")
# Names of folders that need more than an example holds, and the test that uses them.
USED_BY = {
    "jaxleak.cli.PlotCommand": "test_cli.test_warnings_are_one_line",
    "jaxleak.cli.RunCommand": "test_readme.test_commands_parse",
    "jaxleak.cli.build_sweep": "test_readme.test_commands_parse",
    "jaxleak.cli.main": "test_experiments.test_check_compares_and_writes_nothing",
    "jaxleak.cli.parse": "test_readme.test_every_name_runs_from_the_command_line",
    "jaxleak.engine.Engine": "test_engine.test_progress_is_told_after_every_chunk",
    "jaxleak.engine.Finished": "test_engine.test_every_job_is_done_once",
    "jaxleak.engine.Program": "test_engine.test_every_job_is_done_once",
    "jaxleak.models.load_variables": "test_models.test_save_and_load_give_the_same_statistics",
    "jaxleak.models.files.Stored": "test_files.test_names_of_other_libraries_may_have_a_prefix",
    "jaxleak.models.files.read_tensors": "test_files.test_what_torch_saves_is_read_as_torch_reads_it",
    "jaxleak.models.own.AdaptedModel": "test_models_own.test_an_adapted_model_computes_what_the_stock_one_does",
    "jaxleak.models.own.slow_layers": "test_models_own.test_layers_that_stay_slow_are_named",
    "jaxleak.results.figures.choose_trials": "test_figures.test_an_image_that_is_not_there_is_named",
    "jaxleak.results.figures.convergence": "test_figures.test_convergence_limits_the_failed_lines_and_shows_the_last",
    "jaxleak.results.figures.draw_all": "test_figures.test_draw_all_draws_every_figure",
    "jaxleak.results.figures.mse_shares": "test_figures.test_mse_shares_are_those_of_the_summary_with_intervals",
    "jaxleak.results.figures.recovery_grid": "test_figures.test_grid_leaves_places_after_a_trials_end_empty",
    "jaxleak.results.figures.success_by_image": "test_figures.test_success_by_image_from_one_to_thirty_images",
    "jaxleak.solvers.Info": "test_solvers.test_state_and_info_keep_shape_and_type",
    "jaxleak.solvers.Solver": "test_solvers.test_state_and_info_keep_shape_and_type",
}


def documented(module: str, name: str):
    """What carries the text of a public name."""
    value = getattr(importlib.import_module(module), name)
    return value if inspect.isclass(value) or inspect.isfunction(value) else None


def everything() -> dict[str, object]:
    """Every function and class that a public name of the package or of a folder in it names, by module and name."""
    folders = ["jaxleak", *(found.name for found in pkgutil.walk_packages(jaxleak.__path__, "jaxleak.") if found.ispkg)]
    names = {
        f"{folder}.{name}": documented(folder, name)
        for folder in folders
        for name in getattr(importlib.import_module(folder), "__all__", ())
    }
    return {name: value for name, value in names.items() if value is not None}


EVERYTHING = everything()


def examples(value: object) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.getdoc(value) or "")


WITH_EXAMPLES = {
    **{module: importlib.import_module(module) for module in DATA.values()},
    **{f"{value.__module__}.{value.__qualname__}": value for value in EVERYTHING.values() if examples(value)},
}


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_are_true(name, tmp_path):
    value = WITH_EXAMPLES[name]
    text = inspect.getdoc(value)
    assert text is not None
    names = dict(vars(value)) if inspect.ismodule(value) else {}
    test = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    said: list[str] = []
    with contextlib.chdir(tmp_path):
        doctest.DocTestRunner().run(test, out=said.append)
    assert not said, "".join(said)


NAMES = dict.fromkeys([*(f"jaxleak.{name}" for name in jaxleak.__all__), *EVERYTHING])


def test_tests_are_named_for_what_is_public_still():
    assert USED_BY.keys() <= EVERYTHING.keys()


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_an_example(name):
    """In its text, or in that of its module; the test of a folder's name uses it or what it names."""
    folder, _, last = name.rpartition(".")
    if folder == "jaxleak" and last in DATA:
        assert any(f"jaxleak.{last}" in example.source for example in examples(importlib.import_module(DATA[last])))
    elif name in USED_BY:
        module, _, test = USED_BY[name].rpartition(".")
        path = Path(__file__).parent / f"{module}.py"
        assert any(isinstance(node, ast.FunctionDef) and node.name == test for node in ast.parse(path.read_text()).body)
    else:
        assert examples(EVERYTHING[name])
