"""recipes.figures draws each figure it names from results/ again, the committed ones."""

import subprocess
import sys

from matplotlib.image import imread

from recipes.figures import RESULTS, figures
from tests.runs import ROOT


def test_all_are_drawn_from_what_results_hold(tmp_path):
    command = [sys.executable, "-m", "recipes.figures", "--output_dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for picture in figures():
        drawn, kept = (imread(folder / picture) for folder in (tmp_path, RESULTS))
        assert drawn.shape == kept.shape, picture
        assert abs(drawn - kept).mean() < 1e-3, (
            picture
        )  # gray levels of 1; some for a library that draws letters otherwise
