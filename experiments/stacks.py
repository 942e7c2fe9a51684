"""Updates of real training stacks, end to end: what a Flower client, an Opacus step and a Hugging Face model hand over.

Each update is made by the stack's own code from one embedded photograph, written as its users write it, read by
`jaxleak.load_update` and audited. Needs the extra `stacks`.

- flower: `FitIns` to `FitRes` of a `NumPyClient`, three local steps of SGD on LeNet; the parameters before and after.
- opacus: `DPOptimizer.pre_step` on LeNet, clipped to norm 1, with noise multiplier 0 and 0.001; the gradients.
- huggingface: `ViTForImageClassification`, one step of SGD; the state dicts before and after.

    python -m experiments.stacks
"""

import json
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder, write_json
from experiments.stack_clients import STACKS

PAPER = "Updates of real stacks"
PHOTO, LABEL = 6, 3
BIAS = replace(jaxleak.IDLG, label="bias")


def main() -> None:
    import torch

    options = arguments(__doc__, seeds={"type": int, "default": 4})
    pixels, _ = jaxleak.load_dataset("photos").images([PHOTO])
    pixels = np.asarray(pixels, np.float32)
    x, y = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), torch.tensor([LABEL])
    for name in chosen_runs(STACKS, options):
        what, make = STACKS[name]
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the stacks
            given, release = make(Path(folder), x, y)
            truth = Path(folder) / "truth.npz"
            np.savez(truth, images=(255 * pixels).round().astype(np.uint8), labels=[LABEL])
            victim = jaxleak.load_update(**given, truth=truth)
        fits = fits_at_the_truth(victim)
        began = time.perf_counter()
        sweep = jaxleak.Sweep(victim=victim, attacks=(BIAS,), seeds=options.seeds, snapshots=())
        report, result = jaxleak.audit(sweep, lanes=options.lanes)
        row = {
            "stack": name,
            "what": what,
            "version": release,
            "fits": fits,
            "verdict": report["verdict"],
            "attack": report["attack"],
            "reasons": report["reasons"],
            "hints": [hint["code"] for hint in report["hints"]],
            "psnr": report["truth"]["psnr"],
            "seconds": time.perf_counter() - began,
            "device": result.rows[0]["device"],
            "git_revision": result.rows[0]["git_revision"],
            "git_dirty": result.rows[0]["git_dirty"],
        }
        write_json(results_folder("stacks") / f"{name}.json", row)
        print(json.dumps(row))


def fits_at_the_truth(victim: jaxleak.Victim) -> float:
    """Norm of what the true image leaves of the update, over the update's; of its direction, where it was clipped."""
    plain = replace(victim, defences=())
    x, target = victim.to_input(jnp.asarray(victim.images)), victim.target(victim.labels)
    there = jax.jit(plain.share)(victim.params, x, target, jax.random.key(0))
    ours, theirs = (
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (there, victim.update)
    )
    factor = ours @ theirs / (ours @ ours) if victim.defences else 1.0
    return float(np.linalg.norm(theirs - factor * ours) / np.linalg.norm(theirs))


def results() -> list[tables.Results]:
    """How well the true image explains each stack's update, the verdict, and how near the image found is."""
    lines, stored = [], {name: tables.stored(f"stacks/{name}.json") for name in STACKS}
    for name, (what, _) in STACKS.items():
        row = stored[name]
        cells = [tables.NOT_RUN]
        if row:
            psnr, seconds = f"{row['psnr']:.0f}", f"{row['seconds']:.0f}"
            cells = [row["version"], f"{row['fits']:.1g}", row["verdict"], f"`{row['attack']}`", psnr, seconds]
        lines.append([f"`{name}`", what, *cells])
    return [
        tables.Results(
            "Updates of real stacks: one photograph each",
            "stacks",
            ("stack", "what", "version", "fits at the truth to", "verdict", "by", "PSNR [dB]", "seconds"),
            lines,
            tables.device(*stored.values()),
            (
                "Fits: norm of what the true image leaves, over the update's; of opacus, of its direction.",
                "The audit does not know the image; PSNR is of the image found that explains the update best.",
                "Asked for is `idlg`; audits try a closed form that applies beside it.",
            ),
        )
    ]


if __name__ == "__main__":
    main()
