"""Sources of captions for tools/prepare_captions.py: Karpathy's JSON, COCO's annotations, two columns."""

import csv
import re
from typing import NamedTuple

from files.annotations import Caption, Picture, read_coco, read_karpathy
from files.errors import InputError
from files.text import read_json, read_lines

TITLE_ROW = re.compile(r"(image|img|file|photo|picture)[ _]?(name|id|file|path)?|name|path", re.IGNORECASE)
COUNTER = re.compile(r"((comment|caption|sentence|sent)[ _]?)?(number|num|no|id|index|idx)", re.IGNORECASE)
NUMBER = re.compile(r"(#[a-zA-Z]+)?#\d+$")  # lists of captions number them: 1000268201.jpg#0, or with a language #zhc#0


def guess_format(path):
    """karpathy, coco or table."""
    if path.suffix.lower() != ".json":
        return "table"
    content = read_json(path)
    if isinstance(content, dict) and "annotations" in content:
        return "coco"
    return "karpathy"


def read_caption_table(path, restval=None):
    """Pictures of a file with a row for each caption, image and caption, in the order they first come.

    Forms, by the first line: tabs without quoting; image#0 caption with a blank between; bars, as Kaggle's
    Flickr30K (image_name| comment_number| comment); else commas with quotes as spreadsheets write it. A first row
    of titles is left out. So is the caption's number, in a column of its own or behind the image's name (#0, #zhc#0).
    """
    lines = read_lines(path)
    start = lines[0] if lines else ""
    form = next(form for form in FORMS if form.fits(start))
    captions, first, has_number = {}, {}, form.has_number
    for number, row in form.rows(lines, path):
        where = f"{path}, line {number}"
        if number == 1 and len(row) in (2, 3) and TITLE_ROW.fullmatch(row[0].strip()):
            has_number = len(row) == 3 and bool(COUNTER.fullmatch(row[1].strip()))
            continue
        if has_number and len(row) == 3 and row[1].strip().isdigit():
            row = [row[0], row[2]]
        if not row:
            continue
        if len(row) != 2:
            raise InputError(f"{where}: {len(row)} columns; {form.hint}")
        name = NUMBER.sub("", row[0].strip())
        if not name:
            raise InputError(f"{where}: no image name")
        first.setdefault(name, where)
        captions.setdefault(name, []).append(Caption(row[1], where))
    return [Picture(name, some, first[name]) for name, some in captions.items()]


def csv_rows(lines, path, **how):
    """(line, row) of a csv reader; where a row has several lines, its last."""
    rows = csv.reader((line + "\n" for line in lines), **how)
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: {error}; is a quote left open?") from None


def tab_rows(lines, path):
    return csv_rows(lines, path, delimiter="\t", quoting=csv.QUOTE_NONE)


def comma_rows(lines, path):
    return csv_rows(lines, path, strict=True, skipinitialspace=True)


def blank_rows(lines, path):
    """(line, [image#number, caption]) of lines with a blank between."""
    return ((i, line.split(maxsplit=1)) for i, line in enumerate(lines, 1))


def bar_rows(lines, path):
    """(line, columns) of lines with bars; Kaggle's file has one line without the bar behind the number."""
    for i, line in enumerate(lines, 1):
        row = [part.strip() for part in line.split("|", 2)] if line.strip() else []
        glued = re.match(r"(\d+)\s+(.*)", row[1]) if len(row) == 2 else None
        yield i, [row[0], *glued.groups()] if glued else row


class Form(NamedTuple):
    """How a table separates its columns."""

    fits: object  # first line -> bool
    rows: object  # (lines, path) -> (line number, columns) ...
    hint: str  # what a line should look like
    has_number: bool = False  # without a row of titles, three columns are image, number, caption


FORMS = (
    Form(lambda line: "\t" in line, tab_rows, "need image and caption with one tab between"),
    Form(re.compile(r"\S+#\d+\s+\S").match, blank_rows, "need image#number and caption with a blank between"),
    Form(lambda line: "|" in line, bar_rows, "need image| number| caption", has_number=True),
    Form(lambda line: True, comma_rows, "need image,caption; quote commas"),
)
READERS = {"karpathy": read_karpathy, "coco": read_coco, "table": read_caption_table}
