"""Write tests/golden/*.npz from torch, in float64: `python -m tests.oracles.make_goldens`.

A LeNet case (`lenet_{name}.npz`), images NHWC, weights' tensors in torch's names and layout:

    logits [1, k] · loss [] · update/{tensor}           at the private image and label
    {a}/label []                                        dlg: argmax of the last label logits; idlg: inferred
    {a}/objective [] · {a}/gradient_image [1, h, w, c]  at the candidate (idlg: with the inferred label)
    dlg/gradient_logits [1, k]
    {a}/trace_objective [t+1] · {a}/trace_image [t+1, 1, h, w, c] · dlg/trace_logits [t+1, 1, k]
    {a}/trace_evaluations [t+1] · {a}/trace_inner_iterations [t+1] · {a}/trace_stop [t]

for a in dlg, idlg. A trace has an entry for the start and one after each of `case.iterations` outer steps of
torch.optim.LBFGS; its objective is the one at the image of that entry; its counters leave that look out.

A solver case (`solver_{name}.npz`): the same, with `x` [t+1, n], and the history after each outer step:

    objective · x · evaluations · inner_iterations · pairs · gamma [t+1] · stop [t]

`stop` names the test that ended each outer step (`numpy_lbfgs.STOP_REASONS`); torch does not say, so it comes
from `NumpyLBFGS`, whose counters are checked against torch's.
"""

import numpy as np
import torch

from tests.oracles.cases import (
    GOLDEN_DIRECTORY,
    Array,
    LenetCase,
    SolverCase,
    lenet_cases,
    solver_cases,
    to_nchw,
    to_nhwc,
)
from tests.oracles.numpy_lbfgs import NumpyLBFGS
from tests.oracles.torch_dlg import run_attack
from tests.oracles.torch_lenet import dlg_gradient, infer_label, lenet_from, loss, objective_and_gradient

ATTACKS = ("dlg", "idlg")
PERTURBATION = 1e-12  # of the start
TOLERATED = 1e-8  # difference of an iterate that it may make, relative above 1


class LenetProblem:
    """A LeNet case in torch: its network, the shared gradient, and the objective of each attack."""

    def __init__(self, case: LenetCase) -> None:
        self.case = case
        self.net = lenet_from(case.state_dict, *case.image.shape[1:3])
        self.image = torch.from_numpy(case.image_nchw)
        self.label = torch.tensor([case.label])
        self.update = dlg_gradient(self.net, self.image, self.label)

    def target(self, attack: str) -> torch.Tensor:
        """DLG's label logits at the start, or iDLG's inferred label."""
        if attack == "dlg":
            return torch.from_numpy(self.case.candidate_logits)
        return torch.tensor([infer_label(self.update)])

    def start(self, attack: str) -> Array:
        """The candidate as one vector: image in NCHW, then (DLG) the label logits."""
        image = self.case.candidate_image_nchw.ravel()
        return np.concatenate([image, self.case.candidate_logits[0]]) if attack == "dlg" else image

    def value_and_gradient(self, attack: str, candidate: Array) -> tuple[float, Array]:
        """Objective and its gradient for a candidate as `start` lays it out."""
        pixels = self.image.numel()
        image = torch.from_numpy(candidate[:pixels]).reshape(self.image.shape)
        target = torch.from_numpy(candidate[None, pixels:]) if attack == "dlg" else self.target(attack)
        value, image_gradient, logits_gradient = objective_and_gradient(self.net, self.update, image, target)
        parts = [image_gradient] if logits_gradient is None else [image_gradient, logits_gradient]
        return float(value), torch.cat([part.ravel() for part in parts]).numpy()

    def numpy_lbfgs(self, attack: str) -> NumpyLBFGS:
        """Our restatement of the solver, at the start of this attack."""
        return NumpyLBFGS(lambda x: self.value_and_gradient(attack, x), self.start(attack))

    def trace(self, attack: str, shift: Array | float = 0.0) -> dict[str, Array]:
        """The attack's golden trajectory by torch, its start image (NHWC) moved by `shift`."""
        result = run_attack(
            self.net,
            self.update,
            torch.from_numpy(to_nchw(self.case.candidate_image + shift)),
            self.target(attack) if attack == "dlg" else None,
            iterations=self.case.iterations,
        )
        arrays = {
            "label": np.array(result.label),
            "trace_objective": result.objective,
            "trace_image": to_nhwc(result.image),
            "trace_evaluations": result.evaluations,
            "trace_inner_iterations": result.inner_iterations,
        }
        if result.label_logits is not None:
            arrays["trace_logits"] = result.label_logits
        return arrays


def lenet_arrays(case: LenetCase) -> dict[str, Array]:
    """The golden arrays of a LeNet case, `trace_stop` left out."""
    problem = LenetProblem(case)
    logits = problem.net(problem.image).detach()
    arrays = {"logits": logits.numpy(), "loss": loss(logits, problem.label).numpy()}
    for name, tensor in zip(case.state_dict, problem.update, strict=True):
        arrays[f"update/{name}"] = tensor.numpy()
    candidate = torch.from_numpy(case.candidate_image_nchw)
    for attack in ATTACKS:
        value, image_gradient, logits_gradient = objective_and_gradient(
            problem.net, problem.update, candidate, problem.target(attack)
        )
        arrays[f"{attack}/objective"] = value.numpy()
        arrays[f"{attack}/gradient_image"] = to_nhwc(image_gradient.numpy())
        if logits_gradient is not None:
            arrays[f"{attack}/gradient_logits"] = logits_gradient.numpy()
        arrays |= {f"{attack}/{key}": value for key, value in problem.trace(attack).items()}
    return arrays


def solver_arrays(case: SolverCase, shift: Array | float = 0.0) -> dict[str, Array]:
    """The golden trajectory of a solver case by torch, its start moved by `shift`; `stop` is left out."""
    x = torch.from_numpy(case.start + shift).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x],
        lr=case.lr,
        max_iter=case.max_iter,
        max_eval=case.max_eval,
        tolerance_grad=case.tolerance_grad,
        tolerance_change=case.tolerance_change,
        history_size=case.history,
    )

    def closure() -> torch.Tensor:
        value, gradient = case.value_and_gradient(x.detach().numpy())
        x.grad = torch.from_numpy(gradient)
        return torch.tensor(value, dtype=torch.float64)  # float32, the default, stops the solver too soon

    def snapshot() -> dict[str, Array | float]:
        state = optimizer.state[x]
        return {
            "objective": case.value_and_gradient(x.detach().numpy())[0],
            "x": x.detach().numpy().copy(),
            "evaluations": state.get("func_evals", 0),
            "inner_iterations": state.get("n_iter", 0),
            "pairs": len(state.get("old_dirs") or []),
            "gamma": float(state.get("H_diag", 1.0)),
        }

    rows = [snapshot()]
    for _ in range(case.iterations):
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]  (torch's stub wants a float)
        rows.append(snapshot())
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def stops(solver: NumpyLBFGS, iterations: int, evaluations: Array) -> Array:
    """Run `solver`, check its evaluation count after each outer step, and return why each step ended."""
    for iteration in range(1, iterations + 1):
        with np.errstate(all="ignore"):
            solver.step()
        assert solver.func_evals == evaluations[iteration], (iteration, solver.func_evals, evaluations)
    return np.array(solver.stops)


def check_calm(name: str, golden: Array, moved: Array, counts: Array, moved_counts: Array) -> None:
    """Refuse a trajectory that no other code could reproduce: a start moved by `PERTURBATION` changes it."""
    np.testing.assert_allclose(moved, golden, rtol=TOLERATED, atol=TOLERATED, err_msg=name)
    assert (counts == moved_counts).all(), f"{name}: counters differ, {counts} and {moved_counts}"


def make_lenet(case: LenetCase) -> dict[str, Array]:
    arrays = lenet_arrays(case)
    problem = LenetProblem(case)
    shift = PERTURBATION * np.random.default_rng(0).standard_normal(case.image.shape)
    for attack in ATTACKS:
        counts = arrays[f"{attack}/trace_evaluations"]
        moved = problem.trace(attack, shift)
        golden = arrays[f"{attack}/trace_image"]
        check_calm(f"{case} {attack}", golden, moved["trace_image"], counts, moved["trace_evaluations"])
        arrays[f"{attack}/trace_stop"] = stops(problem.numpy_lbfgs(attack), case.iterations, counts)
    return arrays


def make_solver(case: SolverCase) -> dict[str, Array]:
    arrays = solver_arrays(case)
    shift = PERTURBATION * np.random.default_rng(0).standard_normal(case.start.shape) * np.abs(case.start)
    moved = solver_arrays(case, shift)
    check_calm(str(case), arrays["x"], moved["x"], arrays["evaluations"], moved["evaluations"])
    solver = NumpyLBFGS(case.value_and_gradient, case.start, **case.settings)
    arrays["stop"] = stops(solver, case.iterations, arrays["evaluations"])
    return arrays


def main() -> None:
    torch.set_num_threads(1)
    GOLDEN_DIRECTORY.mkdir(exist_ok=True)
    made = {f"lenet_{case}": make_lenet(case) for case in lenet_cases()}
    made |= {f"solver_{case}": make_solver(case) for case in solver_cases()}
    for name, arrays in made.items():
        path = GOLDEN_DIRECTORY / f"{name}.npz"
        np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
