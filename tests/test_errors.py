"""The checks of numbers: what each lets through, and one clear line for the rest."""

import math

import numpy as np
import pytest

from jaxleak.errors import InputError, check_not_negative, check_positive

CHECKS = (check_positive, check_not_negative)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("value", [1, 0.5, np.float32(2), np.int64(3)])
def test_numbers_pass(check, value):
    check("x", value)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("value", ["1", None, [1], 1j])
def test_what_is_no_number(check, value):
    with pytest.raises(InputError, match=r"`x` must be a number; got"):
        check("x", value)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("value", [1.5, True, math.inf, math.nan])
def test_whole_numbers(check, value):
    with pytest.raises(InputError, match=r"`x` must be a whole number; got"):
        check("x", value, integer=True)


@pytest.mark.parametrize(("check", "bound"), [(check_positive, "above 0"), (check_not_negative, "0 or above")])
@pytest.mark.parametrize("value", [-1, -math.inf, math.nan])
def test_too_small(check, bound, value):
    with pytest.raises(InputError, match=rf"`x` must be {bound}; got"):
        check("x", value)


@pytest.mark.parametrize("check", CHECKS)
def test_infinite(check):
    with pytest.raises(InputError, match=r"`x` must be finite"):
        check("x", math.inf)


def test_zero():
    check_not_negative("x", 0)
    with pytest.raises(InputError, match=r"`x` must be above 0; got 0"):
        check_positive("x", 0)
