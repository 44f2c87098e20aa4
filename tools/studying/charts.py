"""Figures of a study: recalls of the rows with error bars, gains of the ensembles."""

from statistics import mean, stdev

from reporting.figures import matplotlib_figure, save_figure
from tools.studying.results import column

PANELS = {"r1": "image to text, R@1", "r1i": "text to image, R@1", "rsum": "rsum", "twins": "twins told apart, %"}
DOT, BAR = "#4477aa", "#222222"


def save_charts(results, folder, kind="svg"):
    """Write recalls.svg and ensembles.svg into a folder -> their paths; nothing to draw, no file."""
    import matplotlib

    written = []
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "study", "font.size": 9}):
        for name, draw in (("recalls", draw_recalls), ("ensembles", draw_ensembles)):
            figure = draw(results)
            if figure:
                written.append(folder / f"{name}.{kind}")
                save_figure(figure, written[-1])
    return written


def draw_recalls(results):
    """One panel for each metric, one line for each row: every seed a dot, mean and standard deviation a bar."""
    rows = [row for row in results["rows"].values() if row["runs"]]
    keys = [key for key in PANELS if any(column(row, key) for row in rows)]
    if not rows:
        return None
    figure = matplotlib_figure((2.3 * len(keys) + 2, 0.32 * len(rows) + 0.9))
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for panel, key in zip(panels, keys):
        for y, row in enumerate(rows):
            draw_values(panel, column(row, key), y)
        finish_panel(panel, PANELS[key], [row["title"] for row in rows])
    return figure


def draw_ensembles(results):
    """rsum that an ensemble gains over the mean of its members: every choice of seeds a dot, mean and deviation."""
    found = list(results["ensembles"].values())
    if not found:
        return None
    figure = matplotlib_figure((7, 0.32 * len(found) + 0.9))
    panel = figure.subplots()
    for y, item in enumerate(found):
        draw_values(panel, column(item, "gain"), y)
    panel.axvline(0, color="#999999", linewidth=0.8)
    finish_panel(panel, "rsum gained over the mean of the members", [item["title"] for item in found])
    return figure


def draw_values(panel, values, y):
    panel.plot(values, [y] * len(values), "o", color=DOT, markersize=4, alpha=0.6)
    if values:
        error = stdev(values) if len(values) > 1 else 0
        panel.errorbar(mean(values), y, xerr=error, fmt="|", color=BAR, capsize=3, markersize=9)


def finish_panel(panel, title, labels):
    panel.set_title(title, fontsize=9)
    panel.set_yticks(range(len(labels)), labels)
    panel.set_ylim(len(labels) - 0.5, -0.5)
    panel.grid(axis="x", linewidth=0.4)
