"""Pictures of the figures as SVG: readable on light and dark pages, equal for equal figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Direction, Figure

_COLOURS: Final = {
    "goal": "#2a9d5c",
    "floor": "#d9a406",
    "below goal": "#d9a406",
    "below floor": "#c8442f",
    "": "#7a8794",
}
_SETTINGS: Final = {
    # Text stays text, ids do not depend on the run, and no date is written: equal figures give
    # equal files.
    "svg.fonttype": "none",
    "svg.hashsalt": "duckmesh",
    "font.family": "sans-serif",
    "font.size": 8,
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
INSTALL: Final = "no pictures: pip install matplotlib, and run again"


def draw(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Draw each figure's ratio to its limit; the files. None without matplotlib: it is an extra."""
    shown = [figure for figure in figures if figure.ratio is not None]
    pyplot = plotting()
    if pyplot is None or not shown:
        return []
    with pyplot.rc_context(_SETTINGS):
        drawn, axes = pyplot.subplots(figsize=(9, 1 + 0.19 * len(shown)))
        _bars(axes, shown)
        return [save(pyplot, drawn, folder / "ratios.svg")]


def plotting() -> Any:
    """matplotlib's pyplot, drawing to files; None, and a line that says so, where it is not."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        print(INSTALL)
        return None
    mpl.use("svg")
    from matplotlib import pyplot as plt

    return plt


def settings() -> dict[str, Any]:
    """matplotlib's settings of every picture."""
    return dict(_SETTINGS)


def save(pyplot: Any, drawn: Any, path: Path) -> Path:
    """Write one picture, and forget it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(drawn)
    return path


def _bars(axes: Any, figures: Sequence[Figure]) -> None:
    places = range(len(figures), 0, -1)
    speeds = [_speed(figure) for figure in figures]
    axes.barh(places, speeds, color=[_COLOURS[figure.stands] for figure in figures], height=0.7)
    axes.axvline(1, color="#333333", linewidth=0.8)
    for place, figure in zip(places, figures, strict=True):
        for wanted, style in ((figure.target.floor, ":"), (figure.target.goal, "-")):
            if wanted is not None and figure.target.of_ratio:
                at = wanted if figure.direction is Direction.HIGHER else 1 / wanted
                axes.vlines(at, place - 0.45, place + 0.45, color="#111111", linestyles=style)
    axes.set_xscale("log")
    axes.set_yticks(list(places), [figure.what for figure in figures])
    axes.set_ylim(0.3, len(figures) + 0.7)
    axes.set_xlabel("speed as a multiple of the limit's (1 is the limit; floor dotted, goal solid)")


def _speed(figure: Figure) -> float:
    """The ratio, turned over where less is better: longer bars are better everywhere."""
    assert figure.ratio is not None
    return figure.ratio if figure.direction is Direction.HIGHER else 1 / figure.ratio
