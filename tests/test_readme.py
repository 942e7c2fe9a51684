"""The README and those of the folders do what they say: commands parse, Python runs, links point to what is there."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxleak import cli, load_update
from jaxleak.attacks.labels import LABEL_STRATEGIES
from jaxleak.attacks.objectives import OBJECTIVES, SCALES
from jaxleak.attacks.presets import ATTACKS
from jaxleak.attacks.starts import CLOSED, INITS
from jaxleak.solvers import SOLVERS
from jaxleak.solvers.first_order import SCHEDULES, SIGNS
from jaxleak.threat.defences import DEFENCES, defence_form
from jaxleak.threat.loss import LOSSES
from jaxleak.threat.network import NORMALISATIONS
from jaxleak.threat.optimizers import OPTIMIZERS

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()
PAGES = {
    str(path.relative_to(PROJECT)): path.read_text()
    for top in (PROJECT, PROJECT / "jaxleak", PROJECT / "experiments")
    for path in (top.glob("README.md") if top == PROJECT else top.rglob("README.md"))
}
LINES, BYTES, WORDS, FILES = 150, 12_000, 12, 7


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Every `jaxleak ...` command line of a text, with continued lines joined, without the environment before it."""
    joined = "\n".join(blocks("bash", text) + blocks("console", text)).replace("\\\n", " ")
    parts = (part.strip().removeprefix("$ ") for part in re.split(r"&&|\|\||;|\n", joined))
    bare = (re.sub(r"^(?:[A-Z_]+=\S+ )+", "", part) for part in parts)
    return [part for part in bare if part.startswith("jaxleak ")]


def prose(text: str) -> str:
    """A text without its blocks of code and inline code, where brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def links(text: str) -> list[str]:
    """Where the links and pictures of a text point, those to other sites left out."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)) if "://" not in link]


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a text."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_project_page_is_short():
    assert len(README.splitlines()) <= LINES
    assert len(README.encode()) <= BYTES
    rows = [line for line in README.splitlines() if line.startswith("|")]
    cells = [cell for row in rows for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
    assert len(cells) > 30
    assert not [cell for cell in cells if len(cell.split()) > WORDS]


def test_the_pages_of_the_folders_are_here():
    folders = ("attacks", "engine", "kernels", "models", "results", "runs", "threat")
    assert {"README.md", "experiments/README.md", *(f"jaxleak/{name}/README.md" for name in folders)} <= PAGES.keys()


def test_contributing_names_what_is_there():
    """Files, tests and names in code, each where the text looks for it."""
    text = (PROJECT / ".github/CONTRIBUTING.md").read_text()
    for name in re.findall(r"`((?:jaxleak|tests|experiments)/[\w/.]*)`", text):
        assert (PROJECT / name).exists(), name
    recipes = re.findall(r"^\*\*[^*]+\*\* `(jaxleak/[\w/.]+)`:\n\n(.*?)(?=\n\n\*\*|\n\n## )", text, re.M | re.S)
    assert len(recipes) == 6
    for folder, part in recipes:
        where = PROJECT / folder
        code = "".join(file.read_text() for file in (where.glob("*.py") if where.is_dir() else [where]))
        for registry in re.findall(r"`([A-Z_]{4,})`", part):
            assert re.search(rf"^{registry}\b.*=", code, re.M), registry


def test_issues_ask_for_what_doctor_says():
    import yaml

    forms = sorted((PROJECT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    asked = [yaml.safe_load(form.read_text()) for form in forms if form.name != "config.yml"]
    assert len(asked) == 2
    assert all(any("jaxleak doctor" in part["attributes"]["label"] for part in form["body"]) for form in asked)
    (job,) = yaml.safe_load((PROJECT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    assert {"run": ".ci/run"} in job["steps"]


@pytest.mark.parametrize("page", PAGES)
def test_links_point_to_what_is_there(page):
    for link in links(PAGES[page]):
        path, _, anchor = link.partition("#")
        target = (PROJECT / page).parent / path if path else PROJECT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_one_trial_is_told_by_seven_files():
    """They are linked, so that they exist is tested with the links."""
    text = PAGES["jaxleak/attacks/README.md"].split("## How one DLG trial works\n")[1].split("\n## ")[0]
    named = {link for link in links(text) if link.endswith(".py")}
    assert {"presets.py", "trial.py", "distances.py"} <= named
    assert len(named) <= FILES
    assert not {name for name in re.findall(r"[\w./]+\.py", text) if not any(link.endswith(name) for link in named)}


def test_the_first_two_blocks_are_the_two_commands():
    first, second, *_ = blocks("bash")
    assert "pip install" in first
    assert "jaxleak run" in first
    assert "pip install" in second
    assert "pytest" in second
    assert len(first.strip().splitlines()) == len(second.strip().splitlines()) == 1


def test_there_are_commands():
    assert any(command.startswith("jaxleak run ") for command in commands(README))
    assert len([command for page in PAGES.values() for command in commands(page)]) > 8


def parse(command: str):
    """The command that a command line gives, by tyro as in `cli.main`."""
    _, *arguments = shlex.split(command, comments=True)
    return cli.parse({name: kind for name, (kind, _) in cli.COMMANDS.items()}, arguments)


@pytest.mark.parametrize("command", dict.fromkeys(command for page in PAGES.values() for command in commands(page)))
def test_commands_parse(command):
    """With tyro, and the names and numbers of a `run` with the command's own checks; data sets may be absent here."""
    parsed = parse(command)
    assert any(isinstance(parsed, kind) for kind, _ in cli.COMMANDS.values())
    if isinstance(parsed, cli.RunCommand):
        if parsed.dataset not in ("photos", "text"):
            parsed = replace(parsed, dataset="photos", images=None, num_images=None, data_dir=None, split=None)
        defences = tuple(text for text in parsed.defence if ".py" not in text)  # a file of the reader's own
        sweep = cli.build_sweep(replace(parsed, weights=None, defence=defences))
        assert sweep.total > 0


def named_options() -> list[str]:
    """Flags with each name of the README's tables, and the other flags of these tables."""
    needs = {
        "analytic": " --model mlp",
        "april": " --model vit",
        "spear": " --model mlp --model-field activation=relu",
        "rgap": "",
        "dager": " --model transformer --dataset text",
        "tag": " --model transformer --dataset text --length 8 --l1 0.01",
        "gradinversion": " --model resnet18",
        "sme": " --client-steps 2",
        "fedavg": " --client-epochs 2",
    }
    defences = [re.sub(r"\[.*", "", re.sub(r":[A-Z]+", ":1", defence_form(name))) for name in DEFENCES]
    return [
        *(f"--attack {name}{needs.get(name, '')}" for name in ATTACKS),
        *(f"--attack dlg:{name}" for name in SOLVERS if name != "none"),
        *(f"--start {name}" for name in (*INITS, "pattern-5") if name not in CLOSED),
        *(f"--attack {name} --start {name}{needs[name]}" for name in CLOSED),
        *(f"--label {name}" for name in LABEL_STRATEGIES if name != "text"),
        *(f"--objective {name}" for name in OBJECTIVES),
        *(f"--scale {name}" for name in SCALES),
        *(f"--defence {text}" for text in defences),
        *(f"--attack ig --sign {sign} --schedule {schedule}" for sign, schedule in zip(SIGNS, SCHEDULES, strict=True)),
        *(f"--client-steps 2 --client-optimizer {name}" for name in OPTIMIZERS),
        *(f"--normalise {name}" for name in NORMALISATIONS),
        "--batch 2 --clients 2 --dummies 4 --batch-labels distinct",
        "--batch 4 --client-epochs 1 --client-batch 2",
        "--batch 4 --client-epochs 2 --client-batch 3 --client-drop-last --client-shuffle 1 --hide-order",
        "--batch 2 --client-epochs 2 --client-lr 0.1 0.05 --client-momentum 0.9 --client-nesterov --client-order 1 0",
        "--client-steps 2 --client-momentum 0.9 --client-dampening 0.1 --client-weight-decay 0.01 --client-clip 1",
        "--client-steps 2 --attack ig --surrogate-model True",
        *(f"--loss {name}" for name in LOSSES),
        "--loss cross-entropy+0.1*mse --label-smoothing 0.1 --reduction sum",
        "--loss cross-entropy --class-weights 1 2 1 1 1 1 1 1 1 1",
        "--network per-image --trained-steps 2 --trained-on own",
        "--model lenet-cpl --model-field activation=tanh channels=8",
        "--model convnet --model-field width=8 norm=batch train=false --hide-statistics",
        "--attack ig --layers conv1 head:2 --label-term 0.1 --tv 0.1 --norm 0.1 --group 2 --consistency 1 --register 1",
        "--attack ig --group 2 --group-mean True",
        "--attack ig --box False --warmup 2 --weight-decay 0.1 --langevin 0.1 --defence prune:0.5 --knows-defence True",
    ]


@pytest.mark.parametrize("flags", named_options())
def test_every_name_runs_from_the_command_line(flags):
    """It is parsed, fits the embedded photographs, and what its trials begin with can be traced."""
    only = "" if "--attack" in flags else "--attack dlg "
    sweep = cli.build_sweep(parse(f"jaxleak run {only}{flags} --network shared --num-images 2 --seeds 2 --out RUN"))
    for attack in sweep.attacks:
        sweep.trial(attack).check()


def test_the_main_job_takes_what_the_text_says():
    """The README speaks of three photographs and eight starts each."""
    (command,) = [part.strip() for part in blocks("bash")[0].split("&&") if "jaxleak run" in part]
    arguments = shlex.split(command)
    at = arguments.index("--images") + 1
    images = [word for word in arguments[at : at + 3] if word.isdigit()]
    assert len(images) == 3
    assert arguments[arguments.index("--seeds") + 1] == "8"
    assert {"--attack", "dlg", "idlg"} <= set(arguments)


def test_the_python_example_prints_what_stands_below_it(tmp_path):
    """Names and numbers of starts; how far an image comes back may differ from machine to machine."""
    examples = blocks("python")
    assert examples, "README.md has no ```python block"
    example = examples[0]
    assert "photos" in example, "the example must run without prepared data"
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    # As a user runs it: hundreds of evaluations repay what optimising costs.
    printed = run_python(example, tmp_path, JAX_DISABLE_MOST_OPTIMIZATIONS="0").splitlines()
    (shown,) = re.findall(rf"^{re.escape(example)}```\n\n```\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    told = [re.sub(r"\d+(\.\d+)?", "N", line) for line in shown.splitlines()]
    assert [re.sub(r"\d+(\.\d+)?", "N", line) for line in printed] == told


def test_the_example_of_an_own_model_runs(tmp_path):
    (example,) = [block for block in blocks("python") if "class CNN" in block]
    run_python(example + "\nassert victim.updates == 1\n", tmp_path)


def test_the_example_of_a_kernel_gives_what_its_reference_gives(tmp_path):
    (example,) = [block for block in blocks("python", PAGES["jaxleak/kernels/README.md"]) if "lane_primitive" in block]
    ours, wanted = (
        [float(word) for word in line.strip("[]").split()] for line in run_python(example, tmp_path).splitlines()
    )
    assert len(ours) == 3
    assert ours == pytest.approx(wanted, rel=1e-5)  # float32, other orders of sums


@pytest.mark.torch
def test_the_network_of_flowers_quickstart_fits_its_file(tmp_path):
    """The README's file beside a state dict of the same layers in PyTorch: equal outputs."""
    torch = pytest.importorskip("torch")
    (example,) = [block for block in blocks("python", PAGES["jaxleak/threat/README.md"]) if "class Net(nn" in block]
    (tmp_path / "net.py").write_text(example)
    layers = {
        "conv1": torch.nn.Conv2d(3, 6, 5),
        "conv2": torch.nn.Conv2d(6, 16, 5),
        "fc1": torch.nn.Linear(400, 120),
        "fc2": torch.nn.Linear(120, 84),
        "fc3": torch.nn.Linear(84, 10),
    }
    x = torch.rand(2, 3, 32, 32)
    state = torch.nn.ModuleDict(layers).state_dict()
    torch.save(state, tmp_path / "w.pt")
    torch.save({name: torch.ones_like(tensor) for name, tensor in state.items()}, tmp_path / "g.pt")
    y = x
    for name in ("conv1", "conv2"):
        y = torch.nn.functional.max_pool2d(torch.relu(layers[name](y)), 2)
    y = y.flatten(1)
    for name in ("fc1", "fc2"):
        y = torch.relu(layers[name](y))
    wanted = layers["fc3"](y).detach().numpy()
    victim = load_update(tmp_path / "g.pt", tmp_path / "w.pt", str(tmp_path / "net.py"))
    got = victim.model.apply({"params": victim.params}, x.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(got, wanted, atol=1e-5)  # float32


def run_python(example: str, tmp_path: Path, **more: str) -> str:
    """What it prints."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg", **more}
    environment["PYTHONPATH"] = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
