"""The example notebook runs from top to bottom, here with an oracle that was never trained."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from diff_oracle.subject.loading import SubjectConfig
from tests.explain.conftest import untrained_oracle

ROOT = Path(__file__).parents[1]


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = untrained_oracle(SubjectConfig(source="random"))  # a small one
    oracle.save(tmp_path / "oracle")
    monkeypatch.setenv("ORACLE", str(tmp_path / "oracle"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MPLBACKEND")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "notebooks" / "explain.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # results would stand there as if they were fixed
    NotebookClient(notebook, timeout=250, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    (table,) = (output.data["text/html"] for output in outputs["explain"] if output.output_type == "execute_result")
    number = oracle.identity.n_layers * oracle.identity.n_heads
    assert f"{number} explanations, the {min(number, 30)} largest shown" in table
    printed = "".join(output.text for output in outputs["rank"] if output.output_type == "stream")
    assert printed.count("KL without it") == 3 and "Raises?" in printed
    assert any("image/png" in output.get("data", {}) for output in outputs["map"])
