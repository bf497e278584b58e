"""One style for every figure: fonts, frame, colors that people with color blindness tell apart (Okabe and Ito, 2008).

Import `plt` from here, so that the style is set and no screen is needed.
"""

import os
from pathlib import Path

import matplotlib

if "MPLBACKEND" not in os.environ:  # a notebook has its own
    matplotlib.use("Agg")

from matplotlib import cycler
from matplotlib import pyplot as plt

from kit.whole import whole

BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PURPLE, SKY, BROWN, GRAY = "#cc79a7", "#56b4e9", "#7a5c00", "#8a8a8a"
COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BROWN, GRAY)
INK, LINE = "#222222", "#bbbbbb"

plt.rcParams.update({
    "figure.dpi": 150, "figure.constrained_layout.use": True, "font.family": "DejaVu Sans", "font.size": 10,
    "axes.titlesize": 10, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
    "legend.frameon": False, "lines.linewidth": 1.4, "lines.markersize": 4, "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GRAY, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "text.color": INK, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": LINE, "grid.alpha": 0.45, "grid.linewidth": 0.7,
})  # fmt: skip


def blank(axis, frame: bool = False) -> None:
    """An axis for a picture: no ticks, no grid, and no frame unless asked for."""
    axis.grid(False)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(frame)
    axis.spines[:].set_color(LINE)


def save(figure, path: str | Path) -> None:
    """Write a figure and let go of it."""
    with whole(path) as partial:
        figure.savefig(partial)
    plt.close(figure)
