"""The notebook runs from top to bottom, and is kept without what it put out."""

import time

import nbformat
import pytest

from tests.runs import ROOT

TOUR = ROOT / "notebooks" / "tour.ipynb"
MINUTES = 5


def test_no_output_is_stored():
    for cell in nbformat.read(TOUR, as_version=4).cells:
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)


@pytest.mark.notebook
def test_the_tour_runs_in_minutes():
    from nbclient import NotebookClient

    notebook, start = nbformat.read(TOUR, as_version=4), time.monotonic()
    NotebookClient(notebook, timeout=60 * MINUTES, resources={"metadata": {"path": TOUR.parent}}).execute()
    assert time.monotonic() - start < 60 * MINUTES
    said = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    shown = [kind for cell in notebook.cells for output in cell.get("outputs", ()) for kind in output.get("data", ())]
    assert shown.count("image/png") == 4
    assert "read back to the letter: True" in said and "test accuracy" in said
