"""The original DLG and iDLG procedure in PyTorch, one process per core with one thread each (extra `torch`).

Writes a folder that `pytorch_parity` reads: `trials.jsonl`, the networks and the starts. Trials already in the folder
are kept; those stored under `results/pytorch_parity` go on if they are copied there as `trials.jsonl`. On LeNet about
200 to 350 evaluations/s a core, so that the default 100 trials take ten minutes on two cores.
`--random N` takes N random images instead of the five; each has a network of its own. `--model resnet18` is ResNet-18
of width 16 with sigmoids and BatchNorm in train mode, all weights from U(-0.5, 0.5) like LeNet's.
`--no-onednn` has PyTorch's own kernels convolve: on LeNet 1.25 times as fast on an Intel Xeon with AVX-512.

    python -m experiments.torch_reference --data-dir DIR --out FOLDER
"""

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

import jaxleak
from experiments.harness import arguments

IMAGES = (20319, 137, 9001, 15123, 27182)
WIDTH = 16  # of ResNet-18


def build(model: str):
    """The network in PyTorch, for CIFAR-100."""
    from tests.oracles.torch_lenet import LeNet, resnet18

    return LeNet(32, 32, 3, 100) if model == "lenet" else resnet18(WIDTH, 100)


def prepare(folder: Path, model: str, images: list[int], seeds: int) -> None:
    """Networks (one per image) and starts, in torch's names and layout."""
    import torch
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        net = build(model)
        torch.manual_seed(1000 + image)
        for parameter in net.parameters():
            parameter.data.uniform_(-0.5, 0.5)
        state = {name: parameter.detach().numpy() for name, parameter in net.named_parameters()}
        save_file(state, folder / f"{model}_{image}.safetensors")
    pixels, logits = [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        pixels.append(torch.randn(1, 3, 32, 32).numpy()[0])
        logits.append(torch.randn(1, 100).numpy()[0])
    np.savez(folder / "starts.npz", image=np.stack(pixels), label_logits=np.stack(logits))


def one_trial(job: tuple[Path, str, int, int, str, np.ndarray, int, bool]) -> dict[str, Any]:
    """One restart, as the row of `trials.jsonl`."""
    import torch
    from safetensors.torch import load_file

    from tests.oracles.torch_dlg import run_attack
    from tests.oracles.torch_lenet import dlg_gradient

    folder, model, image, seed, method, pixels, label, onednn = job
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = onednn
    net = build(model)
    net.load_state_dict(load_file(folder / f"{model}_{image}.safetensors"), strict=False)  # buffers are not stored
    truth = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
    update = dlg_gradient(net, truth, torch.tensor([label]))
    with np.load(folder / "starts.npz") as stored:
        start = torch.from_numpy(stored["image"][seed][None])
        logits = torch.from_numpy(stored["label_logits"][seed][None]) if method == "dlg" else None
    began = time.perf_counter()
    trace = run_attack(net, update, start, logits, iterations=300, stop_below=1e-6)
    errors = ((trace.image - truth.numpy()).astype(np.float64) ** 2).mean(axis=(1, 2, 3, 4))
    return {
        "image": image,
        "seed": seed,
        "method": method,
        "label_ok": trace.label == label,
        "iter_1e4": trace.threshold_iterations,
        "outer": len(trace.objective) - 1,
        "evals": int(trace.evaluations[-1]),
        "sec": time.perf_counter() - began,
        "loss": float(trace.objective[-1]),
        "mse": errors.tolist()[-1],
        "g2": float(sum((tensor**2).sum() for tensor in update)),
    }


def main() -> None:
    options = arguments(
        __doc__,
        out={"type": Path, "required": True},
        model={"choices": ("lenet", "resnet18"), "default": "lenet"},
        images={"type": int, "nargs": "*", "default": list(IMAGES)},
        random={"type": int},
        seeds={"type": int, "default": 10},
        processes={"type": int, "default": os.cpu_count()},
        onednn={"action": argparse.BooleanOptionalAction, "default": True},
    )
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    images = data.random_indices(options.random, seed=2023) if options.random else options.images
    pixels, labels = data.images(images)
    prepare(options.out, options.model, images, options.seeds)
    path = options.out / "trials.jsonl"
    kept = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["image"], row["seed"], row["method"]) for row in kept}
    jobs = [
        (options.out, options.model, image, seed, method, pixels[slot], int(labels[slot]), options.onednn)
        for seed in range(options.seeds)
        for slot, image in enumerate(images)
        for method in ("dlg", "idlg")
        if (image, seed, method) not in done
    ]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool, path.open("a") as lines:
        for number, row in enumerate(pool.imap_unordered(one_trial, jobs), start=1):
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            print(f"{number}/{len(jobs)} {row}", flush=True)


if __name__ == "__main__":
    main()
