"""`update_if`: the same as computing and selecting always, over any number of lanes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.attacks.lane_cond import FEW, update_if


def keep_larger(old, new):
    wanted, value = new
    return {"sum": jnp.where(wanted, old["sum"] + value, old["sum"]), "count": old["count"] + wanted}


@pytest.mark.parametrize("lanes", [None, 1, 3, FEW, FEW + 1])
@pytest.mark.parametrize("some", [False, True])
def test_update_if(lanes, some):
    shape = () if lanes is None else (lanes,)
    old = {"sum": jnp.arange(2.0) + jnp.zeros((*shape, 2)), "count": jnp.zeros(shape, int)}
    wanted = jnp.zeros(shape, bool) if not some else jnp.ones(shape, bool) if lanes is None else jnp.arange(lanes) == 0

    def step(wanted, old, value):
        return update_if(wanted, keep_larger, old, (wanted, value))

    apply = step if lanes is None else jax.vmap(step, (0, 0, None))
    got = jax.jit(apply)(wanted, old, 3.0)
    np.testing.assert_array_equal(got["count"], wanted)
    np.testing.assert_array_equal(got["sum"], old["sum"] + 3.0 * wanted[..., None])
    assert ("cond" in str(jax.make_jaxpr(apply)(wanted, old, 3.0))) == (lanes is None or lanes <= FEW)
