"""The notebook runs from start to end, and what is stored in it is what it prints."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PROJECT = Path(__file__).parent.parent
TUTORIAL = PROJECT / "experiments/tutorial.ipynb"
BYTES = 1_000_000
RUN_AGAIN = "jupyter execute --inplace experiments/tutorial.ipynb"


def stored():
    return nbformat.read(TUTORIAL, 4)


def execute(notebook, folder, monkeypatch):
    """As a user runs it: hundreds of evaluations repay what optimising costs."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def outputs(notebook, kind: str) -> list:
    """Outputs of one type, cell by cell."""
    found = [[out for out in cell.outputs if out.output_type == kind] for cell in notebook.cells if "outputs" in cell]
    return [outs for outs in found if outs]


def words(notebook) -> list[str]:
    """What the cells print and show, numbers aside."""
    texts = [
        out.text if out.output_type == "stream" else out.data["text/plain"]
        for cell in notebook.cells
        for out in cell.get("outputs", ())
    ]
    return [word for text in texts for word in re.findall(r"[A-Za-z][\w-]+", text)]


def test_what_is_stored_is_whole_and_small():
    notebook = stored()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), RUN_AGAIN
    assert not outputs(notebook, "error")
    assert not [out for outs in outputs(notebook, "stream") for out in outs if out.name == "stderr"]
    pictures = [out for outs in outputs(notebook, "execute_result") for out in outs if "image/png" in out.data]
    assert len(pictures) >= 3
    assert TUTORIAL.stat().st_size < BYTES


def test_it_names_no_machine_and_its_links_lead_somewhere():
    text = TUTORIAL.read_text()
    plain = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r"/(tmp|home|root|work|Users|usr)/", plain)
    prose = "\n".join(cell.source for cell in stored().cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)", prose)
    assert len(links) > 4
    assert all((TUTORIAL.parent / link).exists() for link in links)
    assert "](experiments/tutorial.ipynb)" in (PROJECT / "README.md").read_text()


@pytest.mark.timeout(600)
def test_it_runs_from_start_to_end(tmp_path, monkeypatch):
    """Every cell; a number may differ from machine to machine, and PyTorch may be absent."""
    notebook = execute(stored(), tmp_path, monkeypatch)
    said = " ".join(words(notebook))
    assert "recovered" in said
    assert "written by" in said
    # Of two attacks on the same cell there is one line, the last.
    first, *_ = outputs(notebook, "display_data")
    assert [out.data["text/plain"].split(";")[0] for out in first] == ["idlg: 16/16 trials done, 0 running, 0 waiting"]
    (rates,) = [
        out.text for outs in outputs(notebook, "stream") for out in outs if out.text.startswith("dlg:torch-lbfgs")
    ]
    rate = {line.rpartition(": ")[0]: float(line.rpartition(": ")[2].split()[0]) for line in rates.splitlines()}
    assert rate["idlg"] >= rate["dlg:torch-lbfgs"] > 0
    shapes = [[out.output_type for out in cell.outputs] for cell in notebook.cells if "outputs" in cell]
    assert shapes == [[out.output_type for out in cell.outputs] for cell in stored().cells if "outputs" in cell]
    assert (tmp_path / "runs/tutorial/report.html").exists()


def test_without_pytorch_the_update_is_written_by_jax(tmp_path, monkeypatch):
    """The cells up to that one without attacks, with an import of torch that fails."""
    notebook = stored()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (writes,) = [n for n, cell in enumerate(code) if "def with_torch" in cell.source]
    (model,) = [cell for cell in code if "class CNN" in cell.source]
    model.source = model.source.partition("\n\n\nidlg =")[0]
    hide = nbformat.v4.new_code_cell("import sys\nsys.modules['torch'] = None\nOUT.mkdir(parents=True)")
    load = nbformat.v4.new_code_cell(
        "jaxleak.load_update(OUT / 'grads.safetensors', OUT / 'weights.safetensors', CNN(), image_shape=(16, 16, 3))\n"
        "print('it fits')"
    )
    notebook.cells = [code[0], hide, model, code[writes], load]
    execute(notebook, tmp_path, monkeypatch)
    printed = "".join(out.text for outs in outputs(notebook, "stream") for out in outs if out.name == "stdout")
    assert printed == "written by jax, since PyTorch is not installed\nit fits\n"
