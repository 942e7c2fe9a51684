"""The convolutions, by kernels and by patches: equal to lax's, in value and in their first two derivatives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax

from jaxleak.kernels.conv import NHWC, fast_conv, patch_conv
from jaxleak.kernels.llvm.bilinear import Geometry
from jaxleak.kernels.patches import extract_patches
from tests.fixtures import quick_jit

VMAPS = {"no": None, "inputs": (0, None), "kernels": (None, 0), "both": (0, 0)}


def lax_conv(inputs, kernel, strides, padding, *dilations, groups=1):
    return lax.conv_general_dilated(
        inputs, kernel, strides, padding, *dilations, dimension_numbers=NHWC, feature_group_count=groups
    )


@st.composite
def convolutions(draw):
    """Input shape, kernel shape, strides, padding, and which arguments carry a trial axis."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)))
    pairs = st.tuples(st.integers(0, 2), st.integers(0, 3))
    padding = draw(st.one_of(st.sampled_from(["SAME", "VALID"]), st.tuples(pairs, pairs)))
    height, width = (size + draw(st.integers(0, 5)) for size in kernel[:2])
    inputs = (draw(st.integers(1, 2)), height, width, kernel[2])
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return inputs, kernel, strides, padding, draw(st.sampled_from(sorted(VMAPS)))


def value_and_derivatives(conv, axes, inputs, kernel, along):
    """The convolution, a nonlinear scalar's gradient, and that gradient's derivative in the direction `along`."""
    conv = conv if axes is None else jax.vmap(conv, axes)

    def scalar(inputs, kernel):
        return jnp.sum(jnp.sin(conv(inputs, kernel)))

    def slope(inputs, kernel):
        gradient = jax.grad(scalar, (0, 1))(inputs, kernel)
        return sum(jnp.vdot(a, b) for a, b in zip(gradient, along, strict=True))

    first, second = (jax.grad(function, (0, 1))(inputs, kernel) for function in (scalar, slope))
    return conv(inputs, kernel), first, second


@given(convolutions())
@example(((1, 8, 8, 3), (5, 5, 3, 4), (2, 2), ((2, 2), (2, 2)), "both"))  # LeNet's
@example(((2, 5, 4, 1), (5, 4, 1, 2), (3, 2), "VALID", "kernels"))  # one window
@example(((1, 7, 6, 2), (2, 3, 2, 1), (2, 3), "SAME", "inputs"))
@example(((2, 9, 7, 24), (3, 2, 24, 5), (2, 1), ((1, 2), (0, 1)), "both"))  # many channels
@example(((1, 5, 5, 2), (5, 5, 2, 30), (3, 3), ((0, 1), (2, 0)), "inputs"))  # many outputs
@example(((2, 8, 8, 25), (1, 2, 25, 3), (3, 3), "VALID", "kernels"))  # pixels that no window reaches
@settings(max_examples=12, deadline=None, derandomize=True, database=None)
def test_both_equal_lax(convolution):
    input_shape, kernel_shape, strides, padding, vmapped = convolution
    functions = [lambda x, k, conv=conv: conv(x, k, strides, padding) for conv in (fast_conv, patch_conv, lax_conv)]
    assert_all_equal(functions, input_shape, kernel_shape, vmapped)


def assert_all_equal(functions, input_shape, kernel_shape, vmapped):
    """Values and derivatives of all are the last one's, with a trial axis where `vmapped` says."""
    axes = VMAPS[vmapped]
    shapes = [
        shape if axes is None or axis is None else (2, *shape)
        for shape, axis in zip((input_shape, kernel_shape), axes or (None, None), strict=True)
    ]
    rng = np.random.default_rng(0)
    inputs, kernel, *along = (rng.standard_normal(shape) for shape in shapes * 2)

    def all_of_them(inputs, kernel, along):
        return [value_and_derivatives(function, axes, inputs, kernel, along) for function in functions]

    *ours, wanted = quick_jit(all_of_them)(inputs, kernel, along)
    for got in ours:
        assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, wanted)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@st.composite
def general_convolutions(draw):
    """Input shape, kernel shape, strides, padding, both dilations, groups, and which arguments carry a trial axis."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    spread, dilation = draw(pair), draw(pair)
    kernel = (*draw(pair), draw(st.integers(1, 2)), groups * draw(st.integers(1, 2)))
    window = [(size - 1) * d + 1 for size, d in zip(kernel[:2], dilation, strict=True)]
    size = [-(-w // d) + draw(st.integers(1, 3)) for w, d in zip(window, spread, strict=True)]
    margins = st.tuples(st.integers(-1, 2), st.integers(0, 2))
    padding = draw(st.tuples(margins, margins))
    if spread == (1, 1):  # lax takes no names for the padding of a transposed convolution
        padding = draw(st.sampled_from(["SAME", "SAME_LOWER", "VALID", padding]))
    inputs = (draw(st.integers(1, 2)), *size, kernel[2] * groups)
    return inputs, kernel, draw(pair), padding, spread, dilation, groups, draw(st.sampled_from(sorted(VMAPS)))


@given(general_convolutions())
@example(((2, 6, 5, 3), (3, 3, 1, 6), (1, 1), "SAME", (1, 1), (1, 1), 3, "both"))  # depthwise, two outputs a channel
@example(((1, 7, 8, 4), (3, 2, 2, 2), (2, 1), "SAME_LOWER", (1, 1), (2, 3), 2, "both"))
@example(((1, 4, 3, 2), (3, 3, 2, 3), (1, 1), ((2, 1), (1, 2)), (2, 3), (1, 1), 1, "both"))  # transposed, by kernels
@example(((1, 5, 5, 2), (2, 2, 2, 1), (1, 1), ((-1, 0), (1, -2)), (2, 1), (1, 1), 1, "kernels"))
@settings(max_examples=12, deadline=None, derandomize=True, database=None)
def test_dilated_grouped_and_transposed_equal_lax(convolution):
    input_shape, kernel_shape, strides, padding, *dilations, groups, vmapped = convolution

    def ours(conv):
        return lambda x, k: conv(x, k, strides, padding, *dilations, feature_group_count=groups)

    def wanted(x, k):
        return lax_conv(x, k, strides, padding, *dilations, groups=groups)

    assert_all_equal([ours(fast_conv), ours(patch_conv), wanted], input_shape, kernel_shape, vmapped)


@pytest.mark.parametrize("conv", [fast_conv, patch_conv])
@pytest.mark.parametrize(
    ("inputs", "kernel", "options"),
    [
        (jnp.ones((1, 5, 3)), jnp.ones((3, 3, 2)), {"dimension_numbers": ("NHC", "HIO", "NHC")}),
        (jnp.ones((1, 3, 5, 6)), jnp.ones((2, 3, 3, 3)), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
        (jnp.ones((1, 4, 4, 4, 1)), jnp.ones((2, 2, 2, 1, 3)), {"dimension_numbers": ("NHWDC", "HWDIO", "NHWDC")}),
        (1j * jnp.ones((1, 5, 5, 2)), 1j * jnp.ones((3, 3, 2, 2)), {"dimension_numbers": NHWC}),
        (jnp.ones((1, 2, 2, 1)), jnp.ones((5, 5, 1, 1)), {"dimension_numbers": NHWC}),  # no pixel is left
        (jnp.ones((1, 5, 5, 1), jnp.int32), jnp.ones((2, 2, 1, 1), jnp.int32), {"dimension_numbers": NHWC}),
    ],
    ids=["one-dimensional", "channels-first", "three-dimensional", "complex", "nothing-left", "integers"],
)
def test_others_are_handed_to_lax(conv, inputs, kernel, options):
    strides = (1,) * (inputs.ndim - 2)
    wanted = lax.conv_general_dilated(inputs, kernel, strides, "VALID", **options)
    np.testing.assert_allclose(conv(inputs, kernel, strides, "VALID", **options), wanted, rtol=1e-12)


def test_derivatives_of_grouped_convolutions_stay_products():
    x, kernel = jnp.ones((4, 1, 6, 6, 4)), jnp.ones((4, 3, 3, 1, 8))

    def slope(kernel, x):
        return jnp.sum(fast_conv(x, kernel, (2, 2), "SAME", (1, 1), (2, 2), feature_group_count=4) ** 2)

    def second(kernel, x):
        return jnp.sum(jax.grad(slope)(kernel, x) ** 2)

    assert "conv_general_dilated" not in str(jax.make_jaxpr(jax.vmap(jax.grad(second, 1)))(kernel, x))


@pytest.mark.usefixtures("kernels_as_users_run_them")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("size", "channels", "window", "outputs", "stride"),
    [
        (32, 3, 5, 12, 2),
        (16, 12, 5, 12, 2),
        (8, 12, 5, 12, 1),
        (11, 1, 3, 1, 1),
        (6, 40, 3, 70, 1),
        (5, 17, 1, 33, 2),
        (12, 70, 3, 25, 2),  # more positions, and more products in a sum, than a block holds
        (2, 130, 3, 200, 1),
        (9, 37, 3, 41, 1),  # an input gradient by the kernel turned round, with rests of every block
        (8, 70, 1, 150, 1),
        (40, 60, 3, 3, 1),  # an image of more bytes than a thread's stack
    ],
)
def test_kernels_of_several_images_and_networks(dtype, size, channels, window, outputs, stride):
    """The three products and what they are made of: more vectors than registers, blocks and their rests."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2, size, size, channels)).astype(dtype)
    kernels = rng.standard_normal((3, window, window, channels, outputs)).astype(dtype)
    pads = ((window // 2, window // 2), (window // 2, window // 2))

    def everything(conv, x, kernel):
        return jax.vjp(lambda x, k: conv(x, k, (stride, stride), pads), x, kernel)[1]

    def both(x, kernels):
        out = []
        for conv in (fast_conv, lax_conv):
            y = jax.vmap(lambda x, k, conv=conv: conv(x, k, (stride, stride), pads))(x, kernels)
            d = jnp.cos(jnp.arange(y.size, dtype=dtype)).reshape(y.shape)
            own = jax.vmap(lambda x, k, d, conv=conv: everything(conv, x, k)(d))(x, kernels, d)
            one = jax.vmap(lambda x, d, conv=conv: everything(conv, x, kernels[0])(d))(x, d)
            out.append((y, own, one))
        return out

    got, wanted = quick_jit(both)(x, kernels)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == dtype
        # Rounding grows with the terms of a sum, at most a few thousand here.
        np.testing.assert_allclose(a, b, rtol=0, atol=100 * np.finfo(dtype).eps * float(jnp.max(jnp.abs(b))))


def test_what_the_kernels_do_not_take_goes_to_patches(monkeypatch):
    x, kernel = jnp.ones((1, 6, 6, 2)), jnp.ones((3, 3, 2, 3))

    def program(x, kernel):
        return str(jax.make_jaxpr(lambda x, k: fast_conv(x, k, (1, 1), "SAME"))(x, kernel))

    assert "conv_forward" in program(x, kernel)
    assert "conv_forward" not in program(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert not Geometry(9, 9, 2, (3, 3), 2, (1, 1), ((-1, 0), (0, 0))).fits("float32")
    assert not Geometry(20, 20, 400, (20, 20), 2, (1, 1), ((0, 0), (0, 0))).fits("float32")
    monkeypatch.setenv("JAXLEAK_NATIVE", "0")
    assert "conv_forward" not in program(x, kernel)


def test_other_platforms_get_the_same_products_from_xla():
    """What a GPU runs, lowered for it: no kernel is called; run here through the primitive's reference."""
    x, kernel = jnp.ones((1, 6, 6, 2)), jnp.ones((3, 3, 2, 3))
    slope = jax.jit(jax.grad(lambda k: jnp.sum(jnp.sin(fast_conv(x, k, (2, 2), "SAME")))))
    assert "jaxleak_weight" in slope.trace(kernel).lower(lowering_platforms=("cpu",)).as_text()
    elsewhere = slope.trace(kernel).lower(lowering_platforms=("cuda",)).as_text()
    assert "custom_call" not in elsewhere
    assert "dot_general" in elsewhere


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_dilation": 2},
        {"input_dilation": (2, 1), "padding": 1},
        {"feature_group_count": 2},
        {"kernel_dilation": (1, 2), "feature_group_count": 2, "strides": 2},
        {"padding": "CIRCULAR"},
        {"use_bias": True, "strides": (1, 2)},
    ],
    ids=str,
)
def test_every_flax_convolution_keeps_its_value(options):
    x = jax.random.normal(jax.random.key(0), (1, 7, 8, 4))
    plain = nn.Conv(6, (3, 2), param_dtype=float, **options)
    ours = nn.Conv(6, (3, 2), param_dtype=float, conv_general_dilated=fast_conv, **options)

    def both(key, x):
        params = plain.init(key, x)
        return plain.apply(params, x), ours.apply(params, x)

    wanted, got = quick_jit(both)(jax.random.key(1), x)
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_one_dense_layer_per_window():
    """A patch lists its window in (row, column, channel) order, as a flattened HWIO kernel does."""
    x = np.arange(2 * 4 * 5 * 3.0).reshape(2, 4, 5, 3)
    patches = extract_patches(jnp.asarray(x), (2, 3), (2, 1))
    assert patches.shape == (2, 2, 3, 18)
    np.testing.assert_array_equal(patches[1, 1, 2], x[1, 2:4, 2:5].ravel())


def test_weight_gradients_per_trial_stay_products():
    """What it is for: `vmap(grad)` of `lax.conv_general_dilated` is a slow grouped convolution; here is none."""
    x, kernel = jnp.ones((4, 1, 6, 6, 2)), jnp.ones((3, 3, 2, 3))

    def program(conv):
        weight_gradient = jax.grad(lambda k, x: jnp.sum(conv(x, k, (2, 2), "SAME") ** 2))
        return str(jax.make_jaxpr(jax.vmap(weight_gradient, (None, 0)))(kernel, x))

    assert "conv_general_dilated" in program(lax_conv)
    assert "conv_general_dilated" not in program(patch_conv)
    assert "dot_general" in program(patch_conv)
    assert "conv_weight" in program(fast_conv)
