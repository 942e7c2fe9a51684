"""The columns of a result row: the one place where a column is declared, typed and explained."""

import numbers
from typing import Any, NamedTuple

import numpy as np

Row = dict[str, Any]  # by the names of `COLUMNS`
TYPES = {"string": str, "int64": numbers.Integral, "double": numbers.Real, "bool": (bool, np.bool_)}


class Column(NamedTuple):
    """A column of the rows.

    Attributes:
        name: its name.
        kind: its type, as Parquet has it.
        meaning: what it holds, and in what unit.
        may_lack: True where a row may hold null. A column that is added later must say so: rows that were written
            before have null there.
    """

    name: str
    kind: str
    meaning: str
    may_lack: bool = False

    def fits(self, value: Any) -> bool:
        """True if a value belongs here; pyarrow would cut 0.5 down to the integer 0."""
        if value is None:
            return self.may_lack
        return isinstance(value, TYPES[self.kind]) and isinstance(value, (bool, np.bool_)) == (self.kind == "bool")


COLUMNS = (
    Column("attack", "string", "the attack's name, such as dlg or dlg:torch-lbfgs"),
    Column("model", "string", "the network's name"),
    Column("dataset", "string", "the data set's name"),
    Column("split", "string", "its split"),
    Column("image", "int64", "index of the update's first image in the data set"),
    Column("label", "int64", "that image's label; -1 where it is not known"),
    Column("trial", "int64", "number of the trial in the run"),
    Column("seed", "int64", "trial seed, from 0: the restart"),
    Column("network", "string", "shared, per-image or per-trial"),
    Column("status", "string", "the verdict: converged, or why not"),
    Column("success", "bool", "true if converged: objective and images within the criteria"),
    Column("objective", "double", "the published objective of the final candidate"),
    Column("relative_objective", "double", "the same, squared L2 divided by update_norm2"),
    Column("evaluations", "int64", "objectives computed, all members of a group counted"),
    Column("iterations", "int64", "iterations of the solver"),
    Column("threshold_iterations", "int64", "iterations until the objective met the criteria; null: never", True),
    Column("threshold_evaluations", "int64", "evaluations until then; null: never", True),
    Column("label_found", "int64", "the label the attack gave to the first image"),
    Column("label_correct", "bool", "true if all labels were right"),
    Column("mse", "double", "mean squared error over pixels in 0 to 1; of text: wrong tokens"),
    Column("mse_clipped", "double", "the same of the candidate clipped to 0 to 1; null: no image", True),
    Column("psnr", "double", "peak signal-to-noise ratio in dB, of the clipped candidate; null: no image", True),
    Column("ssim", "double", "structural similarity of the clipped candidate; null: no image", True),
    Column("relative_error", "double", "length of the error over the image's, of text the wrong tokens; the worst"),
    Column(
        "affine_error", "double", "error left by the best contrast and brightness, worst image; null: no image", True
    ),
    Column("max_abs", "double", "largest absolute pixel; the worst image; null: text", True),
    Column("tokens_right", "double", "share of tokens right in their places; null: no text", True),
    Column("rouge1", "double", "ROUGE-1 of tokens: the share right in any order; null: no text", True),
    Column("rouge2", "double", "ROUGE-2 of tokens, of pairs; null: no text", True),
    Column("rougel", "double", "ROUGE-L of tokens: in this order, with gaps; null: no text", True),
    Column("seconds", "double", "from when the trial entered its lane"),
    Column("solver", "string", "the solver's name"),
    Column("settings_hash", "string", "hash of all settings of the run"),
    Column("device", "string", "on what it was computed"),
    Column("dtype", "string", "float32 or float64"),
    Column("start", "string", "where candidates start"),
    Column("label_strategy", "string", "where labels come from"),
    Column("objective_kind", "string", "l2, l1, cosine or likelihood"),
    Column("chosen", "string", "what the attack best was here, and why; null: its parts were named", True),
    Column("batch", "int64", "images of an update"),
    Column("dummies", "int64", "images that were optimised"),
    Column("labels_right", "int64", "how many labels were right"),
    Column("images_recovered", "int64", "images of the batch within the criteria"),
    Column("defence", "string", "the defences, as on the command line"),
    Column("client_steps", "int64", "local steps before the client shared; 0: a gradient"),
    Column("trained_steps", "int64", "steps that the network was trained before"),
    Column("reason", "string", "why a trial was lost; null: it was not", True),
    Column("victim_loss", "double", "the client's loss before it shared"),
    Column("update_norm2", "double", "squared norm of the update, of the layers compared"),
    Column("jax_version", "string", "of jax"),
    Column("jaxleak_version", "string", "of jaxleak"),
    Column("git_revision", "string", "of jaxleak's checkout, if it ran from one"),
    Column("git_dirty", "bool", "true if that checkout had changes"),
)
NULLS = {column.name: None for column in COLUMNS if column.may_lack}
