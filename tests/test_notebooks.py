"""The notebooks of the documentation run; their own cells assert what they show."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs/notebooks").glob("*.ipynb"))
nbformat = pytest.importorskip("nbformat", reason="notebooks need nbclient")
client = pytest.importorskip("nbclient", reason="notebooks need nbclient")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    assert any("assert" in cell.source for cell in notebook.cells if cell.cell_type == "code")
    stored = [cell.outputs for cell in notebook.cells if cell.cell_type == "code" and cell.outputs]
    assert stored, "outputs are stored with it"
    assert not any(output.get("name") == "stderr" for outputs in stored for output in outputs)  # paths of a machine
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert not any(output.output_type == "error" for outputs in stored for output in outputs)
