"""Sources of captions for tools/prepare_captions.py: Karpathy's JSON, COCO's annotations, two columns."""

import csv
import re

from files.annotations import Caption, Picture, read_coco, read_karpathy
from files.errors import InputError
from files.text import read_json, read_lines

HEADER = re.compile(r"(image|img|file|photo|picture)[ _]?(name|id|file|path)?|name|path", re.IGNORECASE)
NUMBER = re.compile(r"#\d+$")  # Flickr's own lists number an image's captions: 1000268201.jpg#0


def guess_format(path):
    """karpathy, coco or table."""
    if path.suffix.lower() != ".json":
        return "table"
    content = read_json(path)
    if isinstance(content, dict) and "annotations" in content:
        return "coco"
    return "karpathy"


def read_table(path, restval=None):
    """Pictures of a file with a row for each caption, image and caption, in the order they first come.

    Comma-separated with quotes as spreadsheets write it, or, when the first line has a tab, tab-separated
    without quoting.  A first row of titles is left out, so is the caption's number behind an image's name (#0).
    """
    lines = read_lines(path)
    tabs = bool(lines) and "\t" in lines[0]
    how = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True, "skipinitialspace": True}
    rows = csv.reader((line + "\n" for line in lines), **how)
    captions, first = {}, {}
    for number, row in numbered(rows, path):
        where = f"{path}, line {number}"
        if not row or (number == 1 and len(row) == 2 and HEADER.fullmatch(row[0].strip())):
            continue
        if len(row) != 2:
            hint = "need image and caption with one tab between" if tabs else "need image,caption; quote commas"
            raise InputError(f"{where}: {len(row)} columns; {hint}")
        name = NUMBER.sub("", row[0].strip())
        if not name:
            raise InputError(f"{where}: no image name")
        first.setdefault(name, where)
        captions.setdefault(name, []).append(Caption(row[1], where))
    return [Picture(name, some, first[name]) for name, some in captions.items()]


def numbered(rows, path):
    """(line, row) of a csv reader; where a row has several lines, its last."""
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: {error}; is a quote left open?") from None


READERS = {"karpathy": read_karpathy, "coco": read_coco, "table": read_table}
