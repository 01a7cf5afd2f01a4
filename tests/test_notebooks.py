"""Every notebook is listed here, committed with its outputs, thin, and runs to its end."""

import json
import re
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = (
    "01_first_posterior.ipynb",
    "02_figure2.ipynb",
    "03_diagnostics.ipynb",
    "04_prior_ablation.ipynb",
    "05_inverse_planning.ipynb",
    "06_meta_reflection.ipynb",
    "07_llm_in_the_loop.ipynb",
)
#: Shows fits that are refused; elsewhere R-hat must be in order.
UNCONVERGED_ON_PURPOSE = {"03_diagnostics.ipynb"}


def refused(outputs) -> list[float]:
    """Each R-hat that a status says is too large."""
    found = re.findall(r"R-hat (\S+) > ", "".join(map(json.dumps, outputs)))
    return [float(value) for value in found]


def test_every_notebook_is_listed():
    assert sorted(path.name for path in FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_committed_with_its_outputs_and_is_thin(name):
    notebook = json.loads((FOLDER / name).read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(notebook["cells"]) <= 25
    assert all(cell["execution_count"] for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert len(outputs) >= len(code) // 2
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert name in UNCONVERGED_ON_PURPOSE or not refused(outputs)
    source = "".join("".join(cell["source"]) for cell in code)
    assert "def " not in source, "logic belongs in the package"
    assert "/site-packages" not in "".join(map(json.dumps, outputs)), "a path of one machine"


@pytest.mark.llm
@pytest.mark.parametrize("name", NOTEBOOKS)
# A kernel's sockets are closed by its own exit.
@pytest.mark.filterwarnings("default")
def test_it_runs_to_its_end(name):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(FOLDER / name, as_version=4)
    start = time.monotonic()
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(FOLDER))
    print(f"{name}: {time.monotonic() - start:.0f} s")
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    # Chains part on other processors: what was 1.007 may be 1.011, but a stuck chain gives 1.5.
    assert name in UNCONVERGED_ON_PURPOSE or max(refused(outputs), default=1.0) < 1.05
