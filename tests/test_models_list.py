"""`jaxleak models`: what each model costs."""

import pytest

from jaxleak import InputError, build_model, parameter_count
from jaxleak.bench.models import measure_models
from jaxleak.models import MODELS
from tests.commands import call, refusal


def test_parameters_are_counted():
    assert parameter_count(build_model("lenet", 100), (32, 32, 3)) == 912 + 3612 + 3612 + 76900


def test_a_model_is_measured():
    (line,) = measure_models(("mlp",), seconds=1.0)
    assert line.rate is not None
    assert line.rate > 0
    assert line.megabytes is not None
    assert line.megabytes > 100 * 32 * 32 * 3 * 8 / 1e6  # at least half of L-BFGS's history
    assert line.compile_seconds is not None
    assert line.compile_seconds > 0


def test_every_model_is_listed():
    said = call("models", "--no-measure", "--only", *MODELS)
    assert said.code == 0
    for name in MODELS:
        assert f" {name} " in said.out
    assert "11,220,132" in said.out


def test_unknown_models_are_refused_before_any_is_measured():
    assert "`only` must be one of" in refusal("models", "--only", "lenet", "lenett")
    with pytest.raises(InputError, match="`seconds` must be above 0"):
        list(measure_models(("mlp",), seconds=-1))
