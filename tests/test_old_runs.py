"""A run directory of an earlier jaxleak (`tests/old_run`, b5221c6) opens, and the same command continues it."""

import shutil
from pathlib import Path

import flax.linen as nn
import pytest

from jaxleak import Run, blocked_dot_general, fast_conv
from jaxleak.models.describe import description
from tests.commands import call

COMMAND = (
    "run --attack idlg:torch-lbfgs --dataset small.npz --images 3 1 --seeds 3 --iterations 10 --history 20 --lanes 2 "
    "--no-figures --network per-trial --snapshots 0 5 --success-objective 0.01 --success-error 0.5 --out run"
)
DONE, TRIALS = 4, 6


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    shutil.copytree(Path(__file__).parent / "old_run", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def rows_of(path: Path) -> dict[int, dict]:
    return {row["trial"]: row for row in Run.open(path).rows()}


def test_it_opens_and_is_shown(old):
    rows = rows_of(old)
    assert len(rows) == DONE
    assert Run.open(old).arrays(["trial", "candidate"])["candidate"].shape == (DONE, 8, 8, 1)
    said = call("table", old)
    assert said.code == 0
    assert f"partial: {DONE} of {TRIALS} trials" in " ".join(said.out.split())
    assert call("plot", old).code == 0
    assert len(list((old / "figures").glob("*.png"))) == 4
    assert call("report", old).code == 0
    assert (old / "report.html").stat().st_size > 10_000


def test_the_same_command_continues_it(old):
    before = rows_of(old)
    said = call(*COMMAND.split())
    assert said.code == 0, said.err
    after = rows_of(old)
    assert sorted(after) == list(range(TRIALS))
    assert {trial: after[trial] for trial in before} == before
    new = [after[trial] for trial in after if trial not in before]
    assert {row["git_revision"] for row in new} != {row["git_revision"] for row in before.values()}
    assert all(0 < row["evaluations"] <= 200 for row in new)


def test_another_command_is_refused(old):
    said = call(*COMMAND.replace("--seeds 3", "--seeds 4").split())
    assert said.code == 2
    assert len(rows_of(old)) == DONE


def test_models_are_described_as_before_the_kernels_moved():
    """What a run stores of its model, and compares when it continues."""
    conv, dense = nn.Conv(2, (3, 3), conv_general_dilated=fast_conv), nn.Dense(2, dot_general=blocked_dot_general)
    assert "conv_general_dilated=jaxleak.conv.fast_conv" in description(conv)
    assert "dot_general=jaxleak.dense.blocked_dot_general" in description(dense)
