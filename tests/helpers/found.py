"""What tools/search.py finds."""

import re

from tools import search


def find(path, capsys, *more):
    """The numbers of the images found, their scores, and what was printed; path: a checkpoint, or None."""
    flags = [*([] if path is None else ["--model_path", path]), "--device", "cpu", *more]
    search.main([str(flag) for flag in flags])
    if capsys is None:
        return None
    said = capsys.readouterr()
    found = re.findall(r"^ +\d+ +(\S+) +image (\d+)", said.out, re.M)
    return [int(g) for _, g in found], [float(score) for score, _ in found], said
