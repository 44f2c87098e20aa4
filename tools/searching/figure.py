"""A figure of the images found, by matplotlib."""

import numpy as np

from reporting.figures import matplotlib_figure
from reporting.image_view import warn_of_notes

PER_ROW = 5


def draw_found(text, viewer, best, scores):
    """The images found, as pictures or, without them, as boxes of their regions; viewer: an ImageViewer."""
    views = [viewer(g) for g in best.tolist()]
    warn_of_notes(views)
    columns = min(PER_ROW, len(best))
    rows = -(-len(best) // columns)
    figure = matplotlib_figure((2.6 * columns, 2.3 * rows + 0.5))
    for place, (view, score) in enumerate(zip(views, scores), start=1):
        axes = figure.add_subplot(rows, columns, place, xticks=[], yticks=[])
        outline_view(axes, view)
        axes.set_title(f"{place}. image {view.number}: {score:.3f}", fontsize=8)
    figure.suptitle(text, fontsize=11)
    return figure


def outline_view(axes, view):
    from matplotlib.patches import Rectangle

    axes.spines[:].set_color("0.8")
    if view.picture is not None:
        axes.imshow(np.asarray(view.picture))
        return
    width, height = view.size
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    for x, y, x2, y2 in view.boxes * [width, height, width, height]:
        axes.add_patch(Rectangle((x, y), x2 - x, y2 - y, fill=False, edgecolor="#1f6fc4", alpha=0.5))
