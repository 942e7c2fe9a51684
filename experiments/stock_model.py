"""A stock Flax network, attacked as it is, beside the same network built from jaxleak's own parts: speed and success.

`lenet`: DLG's LeNet, jaxleak's own, written with stock `nn.Conv` and `nn.Dense`, and as an NNX module. `cnn`: the
network of Flax's image-classification tutorial on 32x32x3 images (two convolutions with ReLU and average pooling, two
dense layers), stock and with jaxleak's drop-in convolution and dense product written into it. iDLG, one network for all
trials, noise for an image; the variants are run in turns, evaluations per second without compiling.

    python -m experiments.stock_model --rounds 3 --seeds 32 --evaluations 200
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import numpy as np
from flax import nnx

import jaxleak
from experiments import tables
from experiments.harness import arguments, results_folder, write_json

PAPER = "Speed"
FAST_CONV = partial(nn.Conv, conv_general_dilated=jaxleak.fast_conv)
FAST_DENSE = partial(nn.Dense, dot_general=jaxleak.blocked_dot_general)


class StockLeNet(nn.Module):
    """DLG's LeNet as a user of Flax writes it."""

    @nn.compact
    def __call__(self, x):
        for stride in (2, 2, 1):
            x = nn.sigmoid(nn.Conv(12, (5, 5), strides=stride, padding=2)(x))
        return nn.Dense(100)(x.reshape(x.shape[0], -1))


class NNXLeNet(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 12, (5, 5), strides=2, padding=2, rngs=rngs)
        self.conv2 = nnx.Conv(12, 12, (5, 5), strides=2, padding=2, rngs=rngs)
        self.conv3 = nnx.Conv(12, 12, (5, 5), strides=1, padding=2, rngs=rngs)
        self.dense = nnx.Linear(768, 100, rngs=rngs)

    def __call__(self, x):
        for conv in (self.conv1, self.conv2, self.conv3):
            x = nnx.sigmoid(conv(x))
        return self.dense(x.reshape(x.shape[0], -1))


class CNN(nn.Module):
    """The tutorial's network."""

    conv: Callable = nn.Conv
    dense: Callable = nn.Dense

    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.relu(self.conv(32, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = nn.avg_pool(nn.relu(self.conv(64, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = nn.relu(self.dense(256)(x.reshape(x.shape[0], -1)))
        return self.dense(100)(x)


VARIANTS: dict[str, tuple[str, Any]] = {
    "lenet": ("lenet", "lenet"),
    "lenet, stock Linen": ("lenet", StockLeNet()),
    "lenet, stock NNX": ("lenet", NNXLeNet),
    "cnn, jaxleak's parts": ("cnn", CNN(FAST_CONV, FAST_DENSE)),
    "cnn, stock Linen": ("cnn", CNN()),
}


def main() -> None:
    numbers = {"rounds": 3, "seeds": 32, "evaluations": 200}
    options = arguments(__doc__, **{name: {"type": int, "default": value} for name, value in numbers.items()})
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    device = ""
    with tempfile.TemporaryDirectory() as folder:
        pixels = np.random.default_rng(0).uniform(size=(1, 32, 32, 3)).astype(np.float32)
        file = f"{folder}/noise.npz"
        np.savez(file, images=pixels, labels=np.array([0]))
        data = jaxleak.load_dataset(file)
        data = replace(data, class_names=tuple(map(str, range(100))))
        attack = replace(jaxleak.IDLG, stop_objective=0.0, max_evaluations=options.evaluations)
        for _ in range(options.rounds):
            for name, (_, model) in VARIANTS.items():
                victim = jaxleak.make_victim(model, data, [0], network="shared")
                result = jaxleak.attack(victim, attack, seeds=options.seeds, lanes=options.lanes, snapshots=())
                rates[name].append(result.summary["engine"]["evaluations_per_second"])
                device = result.run.environment["device"]
    own = {"lenet": "lenet", "cnn": "cnn, jaxleak's parts"}
    lines = [
        {
            "variant": name,
            "rates": rates[name],
            "median": float(np.median(rates[name])),
            "ratios": (ratios := [a / b for a, b in zip(rates[name], rates[own[kind]], strict=True)]),
            "ratio_median": float(np.median(ratios)),
        }
        for name, (kind, _) in VARIANTS.items()
    ]
    settings = {name: getattr(options, name) for name in numbers}
    write_json(results_folder("stock_model") / "summary.json", {"device": device, "settings": settings, "lines": lines})
    for line in lines:
        print(f"{line['variant']}: {line['median']:,.0f} evaluations/s, {line['ratio_median']:.2f} of jaxleak's own")


TIMES = "`times`: the median of the rounds' ratios (smallest to largest)."


def results() -> list[tables.Results]:
    """Evaluations per second of each variant."""
    told = tables.stored("stock_model/summary.json")
    rows = [[name, tables.NOT_RUN] for name in VARIANTS]
    if told:
        rows = [[one["variant"], f"{one['median']:,.0f}"] for one in told["lines"]]
        for row, one in zip(rows, told["lines"], strict=True):
            low, high = min(one["ratios"]), max(one["ratios"])
            row += [] if low == high == 1 else [f"{one['ratio_median']:.2f} ({low:.2f} to {high:.2f})"]
    columns = ("network", "evaluations/s", "times jaxleak's own")
    title = "Stock Flax models, attacked as they are"
    return [tables.Results(title, "stock_model", columns, rows, tables.device(told), (TIMES,))]


if __name__ == "__main__":
    main()
