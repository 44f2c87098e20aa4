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
# what divides columns: what joins a caption that it has cut; None where cells with it stand in quotes
DELIMITERS = {"\t": " ", "|": " | ", ";": None, ",": None}
SAMPLE = 1000  # lines that show how a table is divided
PICTURE = re.compile(rf"[^,;|\t]+({'|'.join(map(re.escape, sorted(PICTURE_ENDINGS)))})([?#].*)?", re.IGNORECASE)
NUMBERED = re.compile(r"(.+?)((?:#[a-zA-Z]+)?)#(\d+)")  # 1000268201.jpg#0, or with a language 1000268201.jpg#zhc#0


class Row(NamedTuple):
    where: str  # the row's place in the source, for messages
    cells: list


def read_source(path, restval, columns, notes):
    """Pictures with their captions, in the source's order. columns: the titles or numbers of image and caption.

    InputError for a source that cannot be read; notes: {kind: places}, gets what was changed or left out.
    """
    content = read_json_or_lines(path) if path.suffix.lower() in (".json", ".jsonl", ".ndjson") else None
    if isinstance(content, dict):
        return read_coco(path) if "annotations" in content else read_karpathy(path, restval, notes)
    if content is None:
        titles, rows = table_rows(path, notes)
    elif isinstance(content, list) and all(isinstance(entry, dict) for entry in content):
        titles = list(dict.fromkeys(key for entry in content[:SAMPLE] for key in entry))
        rows = [Row(f"{path}, entry {i}", [entry.get(title) for title in titles]) for i, entry in enumerate(content)]
    else:
        raise InputError(f"{path}: neither Karpathy's JSON, nor COCO's, nor a list of objects with image and caption")
    image, caption, split = choose_columns(titles, rows, columns, path)
    if split is not None and restval == "drop":
        rows = [row for row in rows if row.cells[split] != "restval"]
    return pictures_of(rows, image, caption, split)


# ---- from rows to pictures


def pictures_of(rows, image, caption, split):
    """Rows with the same image are one picture. image, caption, split: their columns' places; split may be None."""
    pictures = {}
    cells = [(row.cells[image], row.where) for row in rows]
    names = [str(cell) if type(cell) is int else text_of(cell, "image name", where).strip() for cell, where in cells]
    for row, name in zip(rows, without_numbers(names)):
        if not name:
            raise InputError(f"{row.where}: no image name")
        if name not in pictures:
            own = None if split is None else split_of(row.cells[split], row.where)
            pictures[name] = Picture(name, [], row.where, own)
        texts = texts_of(row.cells[caption], row.where)
        pictures[name].captions.extend(Caption(text, row.where) for text in texts)
    return list(pictures.values())


def texts_of(cell, where):
    """The captions of one cell: one, or a list as JSON or Python write it."""
    if isinstance(cell, str) and re.fullmatch(r"\s*\[.*\]\s*", cell, re.DOTALL):
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
    plain, count = [plain_title(title) for title in titles], len(rows[0].cells) if rows else 0

    def of_title(known):
        return next((plain.index(title) for title in known if title in plain), None)

    def of_flag(text):
        if text in titles:
            return titles.index(text)
        return int(text) - 1 if text.isdigit() and 1 <= int(text) <= count else None

    if asked:
        image, caption = map(of_flag, asked)
    elif titles:
        image, caption = of_title(IMAGE), of_title(CAPTION)
        if len(titles) == 2:  # the title of one column is enough
            image = 1 - caption if image is None else image
            caption = 1 - image if caption is None else caption
    else:
        image, caption = guessed_columns([row.cells for row in rows])
    if rows and None in (image, caption):
        here = f"columns {', '.join(map(repr, titles))}" if titles else f"{count} columns"
        how = "as --columns image,caption or --columns 1,2, and quote cells that have commas"
        other = f", not {' and '.join(map(repr, asked))}" if asked else ""
        raise InputError(f"{path}: {here}{other}; say which hold image and caption, {how}")
    return image, caption, of_title(("split",))


def plain_title(cell):
    return re.sub(r"[^a-z]+", "_", str(cell).lower()).strip("_")


def guessed_columns(rows):
    """(image, caption): the image's cells end like pictures, or have no blanks where the caption's have some."""
    looks = {}
    for place, cells in enumerate(zip(*rows)):
        pictures = sum(bool(PICTURE.fullmatch(cell)) for cell in cells)
        if len(rows[0]) == 2 or not all(cell.isdigit() for cell in cells):  # not the numbers of captions
            looks[place] = pictures, all(len(cell.split()) < 2 for cell in cells)
    clear = len(looks) == len({*looks.values()}) == 2
    return sorted(looks, key=looks.get, reverse=True) if clear else (None, None)


# ---- tables as text


def table_rows(path, notes):
    """(titles or [], rows) of a text. Its delimiter is the one that gives most lines the same number of columns."""
    lines = read_lines(path)
    lines = lines[0].split("\r") if len(lines) == 1 else lines
    lines = [re.sub(r"^(\S+#\d+) +([^\t]+)$", r"\1\t\2", line) for line in lines]  # image#number caption
    delimiter = max(DELIMITERS, key=lambda mark: fitness(divided(lines[:SAMPLE], mark)))
    rows = [Row(f"{path}, line {number}", row) for number, row in divided(lines, delimiter, path) if any(row)]
    titles = rows.pop(0).cells if rows and is_title(rows[0].cells) else []
    again = [row for row in rows if titles and [cell.lstrip("\ufeff") for cell in row.cells] == titles]
    for row in again:
        notes["rows of titles further down left out"].append(row.where)
        rows.remove(row)
    return titles, of_equal_length(rows, titles, DELIMITERS[delimiter])


def divided(lines, delimiter, path=None):
    """(number of its last line, row) of each row. path: None to pass over mistakes."""
    how = {"quoting": csv.QUOTE_NONE} if DELIMITERS[delimiter] else {"skipinitialspace": True}
    rows = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=path is not None, **how)
    try:
        yield from ((rows.line_num, [cell.strip() for cell in row]) for row in rows)
    except csv.Error as error:
        if path:
            raise InputError(f"{path}, line {rows.line_num}: {error}; is a quote left open?") from None


def fitness(numbered_rows):
    """How well a delimiter fits: whether it shows titles or pictures, and how many lines have as many columns."""
    rows = [row for _, row in numbered_rows if row]
    counts = Counter(map(len, rows))
    count = max(counts, key=lambda n: (counts[n], n), default=0)
    if count < 2:
        return 0, 0
    pictures = max(sum(bool(PICTURE.fullmatch(cell)) for cell in cells) for cells in zip(*rows))
    return is_title(rows[0]) or 2 * pictures > len(rows), counts[count] / len(rows)


def is_title(row):
    titles = {plain_title(cell) for cell in row}
    return bool(titles & {*IMAGE, *CAPTION}) and not any(PICTURE.fullmatch(cell) for cell in row)


def of_equal_length(rows, titles, joint):
    """The rows with equally many columns, or InputError. joint: what a caption may have that divides columns too."""
    counts = Counter(len(row.cells) for row in rows)
    width = len(titles) or max(counts, key=lambda n: (counts[n], n), default=0)
    found = []
    for where, cells in rows:
        if joint and len(cells) == width - 1 and (glued := re.match(r"(\d+)\s+(.*)", cells[-1])):
            cells = [*cells[:-1], *glued.groups()]  # Kaggle's Flickr30K has one line without the bar behind the number
        if joint and len(cells) > width:
            start = 0 if PICTURE.fullmatch(cells[-1]) else width - 1
            end = start + len(cells) - width + 1
            cells = [*cells[:start], joint.join(cells[start:end]), *cells[end:]]
        if len(cells) != width:
            raise InputError(f"{where}: {len(cells)} columns, {width} elsewhere; quote cells that have commas")
        found.append(Row(where, cells))
    return found


def read_json_or_lines(path):
    """The content of a JSON file; a list of the lines' objects where each line is one."""
    lines = [(f"{path}, line {i}", line.strip()) for i, line in enumerate(read_lines(path), 1) if line.strip()]
    if len(lines) < 2 or not all(line[0] + line[-1] == "{}" for _, line in lines):
        return read_json(path)
    found = []
    for where, line in lines:
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not valid JSON ({error}); write or copy it again") from None
    return found
