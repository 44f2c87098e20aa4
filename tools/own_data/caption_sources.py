"""Sources of captions for tools/prepare_captions.py: tables and lists with titled columns, Karpathy's JSON, COCO's."""

import ast
import contextlib
import csv
import json
import re
from collections import Counter
from typing import NamedTuple

from files.annotations import Caption, Picture, read_coco, read_karpathy, split_of, text_of
from files.errors import InputError
from files.names import PICTURE_ENDINGS
from files.text import read_json, read_lines

# titles of columns, the best first
IMAGE = (
    *("filename", "file_name", "filepath", "file_path", "image_path", "img_path", "path", "url", "image_url"),
    *("image", "img", "image_name", "img_name", "image_file", "photo", "picture", "file", "name"),
    *("image_id", "img_id", "id"),
)
CAPTION = ("caption", "captions", "raw", "text", "texts", "sentence", "sentences", "comment", "description", "title")
TITLES = {*IMAGE, *CAPTION}
SAMPLE = 1000  # lines that show how a table is divided
PICTURE = re.compile(rf"[^,;|\t]+({'|'.join(map(re.escape, sorted(PICTURE_ENDINGS)))})([?#].*)?", re.IGNORECASE)
NUMBERED = re.compile(r"(.+?)((?:#[a-zA-Z]+)?)#(\d+)")  # 1000268201.jpg#0, or with a language 1000268201.jpg#zhc#0


def read_source(path, form="auto", restval="train", columns=None, notes=None):
    """Pictures with their captions, in the source's order. columns: the titles or numbers of image and caption.

    InputError for a source that cannot be read; notes: what was changed or left out.
    """
    is_json = path.suffix.lower() in (".json", ".jsonl", ".ndjson")
    if form == "auto":
        content = read_json_or_lines(path) if is_json else None
        keys = content if isinstance(content, dict) else ()
        form = "coco" if "annotations" in keys else "karpathy" if isinstance(content, dict) else "table"
    if form != "table":
        return read_coco(path) if form == "coco" else read_karpathy(path, restval, notes)
    titles, rows = listed_rows(read_json_or_lines(path), path) if is_json else table_rows(path, notes)
    image, caption, split = choose_columns(titles, rows, columns, path)
    if split is not None and restval == "drop":
        rows = [row for row in rows if row.cells[split] != "restval"]
    return pictures_of(rows, image, caption, split)


# ---- from rows to pictures


class Row(NamedTuple):
    where: str  # the row's place in the source, for messages
    cells: list


def pictures_of(rows, image, caption, split):
    """Rows with the same image are one picture. image, caption, split: their columns' places; split may be None."""
    names = [name_of(row.cells[image], row.where) for row in rows]
    captions, first = {}, {}
    for row, name in zip(rows, without_numbers(names)):
        if not name:
            raise InputError(f"{row.where}: no image name")
        first.setdefault(name, row)
        texts = texts_of(row.cells[caption], row.where)
        captions.setdefault(name, []).extend(Caption(text, row.where) for text in texts)
    return [
        Picture(name, texts, row.where, None if split is None else split_of(row.cells[split], row.where))
        for (name, texts), row in zip(captions.items(), first.values())
    ]


def name_of(cell, where):
    return str(cell) if type(cell) is int else text_of(cell, "image name", where).strip()


def texts_of(cell, where):
    """The captions of one cell: one, or a list as JSON or Python write it."""
    if isinstance(cell, str) and cell.strip()[:1] == "[" and cell.strip()[-1:] == "]":
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            found = json.loads(cell) if cell.strip()[1:2] == '"' else ast.literal_eval(cell.strip())
            cell = found if isinstance(found, list) and all(isinstance(one, str) for one in found) else cell
    return [text_of(text, "caption", where) for text in (cell if isinstance(cell, list) else [cell])]


def without_numbers(names):
    """The names without the captions' numbers (#0, #zhc#0), where each stands once and they begin at 0."""
    found = [NUMBERED.fullmatch(name) for name in names]
    if not names or not all(found) or len(set(names)) < len(names):
        return names
    bases = {(match[1], match[2]) for match in found}
    starts = sum(int(match[3]) == 0 for match in found)
    if 2 * starts < len(bases) and not all(PICTURE.fullmatch(base) for base, _ in bases):
        return names
    return [match[1] for match in found]


# ---- which column holds what


def choose_columns(titles, rows, asked, path):
    """The places of image, caption and split (or None), by --columns, by titles, else by what the cells look like."""
    if asked:
        image, caption = (column_asked(one, titles, rows, path) for one in asked)
    elif titles:
        image, caption = (place_of(known, titles) for known in (IMAGE, CAPTION))
        if len(titles) == 2:  # the title of one column is enough
            image = 1 - caption if image is None else image
            caption = 1 - image if caption is None else caption
    else:
        image, caption = guessed_columns([row.cells for row in rows])
    if rows and (image is None or caption is None):
        raise InputError(
            f"{path}: {what_columns(titles, rows)}; say which hold image and caption, as --columns image,caption or "
            "--columns 1,2, and quote cells that have commas"
        )
    return image, caption, place_of(("split",), titles)


def place_of(known, titles):
    plain = [plain_title(title) for title in titles]
    return next((plain.index(title) for title in known if title in plain), None)


def plain_title(cell):
    return re.sub(r"[^a-z]+", "_", str(cell).lower()).strip("_")


def what_columns(titles, rows):
    return f"columns {', '.join(map(repr, titles))}" if titles else f"{len(rows[0].cells)} columns without titles"


def column_asked(one, titles, rows, path):
    if one in titles:
        return titles.index(one)
    if one.isdigit() and rows and 1 <= int(one) <= len(rows[0].cells):
        return int(one) - 1
    raise InputError(f"{path}: has no column {one!r} (--columns), but {what_columns(titles, rows) if rows else 'none'}")


def guessed_columns(rows):
    """(image, caption): the image's cells end like pictures, or have no blanks where the caption's have some."""
    columns = list(enumerate(zip(*rows)))
    if len(columns) > 2:  # numbers of captions
        columns = [(c, cells) for c, cells in columns if not all(cell.isdigit() for cell in cells)]
    if len(columns) != 2:
        return None, None
    (a, first), (b, second) = columns
    pictures = [sum(bool(PICTURE.fullmatch(cell)) for cell in cells) for cells in (first, second)]
    blanks = [any(len(cell.split()) > 1 for cell in cells) for cells in (first, second)]
    if pictures[0] != pictures[1]:
        return (a, b) if pictures[0] > pictures[1] else (b, a)
    if blanks[0] != blanks[1]:
        return (a, b) if blanks[1] else (b, a)
    return None, None


# ---- tables as text


def table_rows(path, notes=None):
    """(titles, rows) of a text with a row for each caption; no titles: an empty list.

    Columns are divided by tabs, bars, semicolons or commas, whichever gives most lines the same number of columns;
    or by the first blank where lines begin with image#number. Tabs and bars know no quotes.
    """
    lines = read_lines(path)
    lines = lines[0].split("\r") if len(lines) == 1 else lines
    divide = max(DIVISIONS, key=lambda division: fitness(division, lines))
    rows = [Row(f"{path}, line {number}", row) for number, row in divide(lines, path) if any(row)]
    titles = rows.pop(0).cells if rows and is_title(rows[0].cells) else []
    if titles:
        again = [row for row in rows if [cell.lstrip("\ufeff") for cell in row.cells] == titles]
        rows = [row for row in rows if row not in again]
        for row in again if notes else ():
            notes.add("rows of titles further down left out", row.where)
    return titles, of_equal_length(rows, titles, {tabs: " ", bars: " | "}.get(divide))


def fitness(divide, lines):
    """How well a division fits: whether it shows titles or pictures, and how many lines have as many columns."""
    rows = [row for _, row in divide(lines[:SAMPLE]) if row]
    counts = Counter(map(len, rows))
    count = max(counts, key=lambda n: (counts[n], n), default=0)
    if count < 2:
        return 0, 0
    pictures = max(sum(bool(PICTURE.fullmatch(cell.strip())) for cell in cells) for cells in zip(*rows))
    return is_title(rows[0]) or 2 * pictures > len(rows), counts[count] / len(rows)


def is_title(row):
    return any(plain_title(cell) in TITLES for cell in row) and not any(PICTURE.fullmatch(cell.strip()) for cell in row)


def of_equal_length(rows, titles, joint):
    """The same rows; InputError where one has more or fewer columns.

    joint: what stands between columns without quotes, where a caption may have it too.
    """
    counts = Counter(len(row.cells) for row in rows)
    width = len(titles) or max(counts, key=lambda n: (counts[n], n), default=0)
    found = []
    for where, cells in rows:
        surplus = len(cells) - width
        glued = re.match(r"(\d+)\s+(.*)", cells[-1]) if joint and surplus == -1 else None
        if glued:  # Kaggle's Flickr30K has one line without the bar behind the caption's number
            cells = [*cells[:-1], *glued.groups()]
        if joint and surplus > 0 and PICTURE.fullmatch(cells[-1]):
            cells = [joint.join(cells[: surplus + 1]), *cells[surplus + 1 :]]
        elif joint and surplus > 0:
            cells = [*cells[: width - 1], joint.join(cells[width - 1 :])]
        if len(cells) != width:
            raise InputError(f"{where}: {len(cells)} columns, {width} elsewhere; quote cells that have commas")
        found.append(Row(where, cells))
    return found


def csv_rows(delimiter, lines, path, **how):
    """(line, row); where a row has several lines, its last. path: None to pass over mistakes."""
    rows = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=path is not None, **how)
    try:
        yield from ((rows.line_num, [cell.strip() for cell in row]) for row in rows)
    except csv.Error as error:
        if path:
            raise InputError(f"{path}, line {rows.line_num}: {error}; is a quote left open?") from None


def tabs(lines, path=None):
    return csv_rows("\t", lines, path, quoting=csv.QUOTE_NONE)


def bars(lines, path=None):
    return csv_rows("|", lines, path, quoting=csv.QUOTE_NONE)


def semicolons(lines, path=None):
    return csv_rows(";", lines, path, skipinitialspace=True)


def commas(lines, path=None):
    return csv_rows(",", lines, path, skipinitialspace=True)


def blanks(lines, path=None):
    """Lines of image#number, a blank and the caption."""
    numbered = (re.fullmatch(r"(\S+#\d+)\s+(\S.*)", line) for line in lines)
    return ((i, list(match.groups()) if match else [line]) for i, (match, line) in enumerate(zip(numbered, lines), 1))


DIVISIONS = (tabs, bars, semicolons, commas, blanks)


# ---- lists as JSON


def read_json_or_lines(path):
    """The content of a JSON file; a list of the lines' objects where each line is one."""
    lines = read_lines(path)
    if len(lines) < 2 or not all(
        line.strip()[:1] == "{" and line.strip()[-1:] == "}" for line in lines if line.strip()
    ):
        return read_json(path)
    return [json_line(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]


def json_line(line, where):
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}); write or copy it again") from None


def listed_rows(content, path):
    """(titles, rows) of a list of objects with an image and a caption, or captions, each."""
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise InputError(f"{path}: neither Karpathy's JSON, nor COCO's, nor a list of objects with image and caption")
    titles = list(dict.fromkeys(key for entry in content[:SAMPLE] for key in entry))
    rows = [Row(f"{path}, entry {i}", [entry.get(title) for title in titles]) for i, entry in enumerate(content)]
    return titles, rows
