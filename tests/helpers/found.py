"""What tools/search.py finds."""

import re

from tools import search


def find(path, capsys, *more):
    """The numbers of the images found and their scores."""
    search.main(["--model_path", str(path), "--device", "cpu", *map(str, more)])
    said = capsys.readouterr()
    found = re.findall(r"^ +\d+ +(\S+) +image (\d+)", said.out, re.M)
    return [int(g) for _, g in found], [float(score) for score, _ in found], said
