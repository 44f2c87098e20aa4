"""Figures by matplotlib, which is optional: imported when a figure is asked for."""

from pathlib import Path

from files.errors import InputError, optional_package
from files.writing import atomic_write


def need_matplotlib():
    """InputError saying what to install where matplotlib is missing."""
    optional_package("matplotlib", "a figure")


def matplotlib_figure(size):
    """An empty figure, size in inches, that belongs to no window."""
    need_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def save_figure(figure, path, dpi=150):
    """Write a figure in the format of the file's ending (png, pdf, svg), whole or not at all."""
    kind = Path(path).suffix.lstrip(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise InputError(f"{path}: a figure can be {', '.join(sorted(known))}, not {kind or 'without an ending'}")
    atomic_write(path, lambda file: figure.savefig(file, format=kind, dpi=dpi))
