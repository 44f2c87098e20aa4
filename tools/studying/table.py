"""A study's table: an ini file of rows (flags of train.py), of ensembles of two rows and of differences of rows."""

import configparser
import shlex
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from files.errors import InputError
from files.text import read_lines
from systems.options import train_options

SECTIONS = {"study", "flags", "rows", "ensembles", "differences"}
OF_THE_TOOL = ("--seed", "--logger_name", "--model_name", "--resume")  # the study chooses these for each run


class Study(NamedTuple):
    rows: dict  # {name: flags of train.py}
    ensembles: dict  # {title: two names}
    differences: dict  # {title: (names, names)}: the mean of the first less that of the second
    test: list  # flags of test.py
    twins: str | None  # the scenes.json of the tested split, for the demo's scenes


def read_table(path):
    """The ini file -> Study; InputError names the file and what is wrong with it."""
    parser = configparser.ConfigParser(interpolation=configparser.ExtendedInterpolation(), delimiters=("=",))
    parser.optionxform = str  # names keep their capitals
    lines = read_lines(path)
    try:
        parser.read_string("\n".join(lines))
        return study_of({name: dict(parser[name]) for name in parser.sections()})
    except (configparser.Error, ValueError, InputError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}; docs/study.md shows a table") from None


def study_of(sections):
    head = sections.get("study", {})
    unknown = sorted((sections.keys() - SECTIONS) | (head.keys() - {"test", "twins"}))
    if unknown or not sections.get("rows"):
        raise InputError(f"{unknown[0]} is unknown" if unknown else "no row")
    rows = {name: row_flags(name, text) for name, text in sections["rows"].items()}
    pairs = list(combinations(rows, 2))
    ensembles = sections.get("ensembles", {f"{a} + {b}": f"{a} {b}" for a, b in pairs})
    differences = sections.get("differences", {f"{b} − {a}": f"{b} - {a}" for a, b in pairs})
    return Study(
        rows,
        {title: rows_of(title, text, rows, 2) for title, text in ensembles.items()},
        {title: two_sides(title, text, rows) for title, text in differences.items()},
        shlex.split(head.get("test", "")),
        head.get("twins"),
    )


def row_flags(name, text):
    """The flags of one row, checked as train.py checks them."""
    flags = shlex.split(text)
    train_options(flags)
    if Path(name).name != name:
        raise InputError(f"{name}: a row's name is a folder's name, too")
    for flag in OF_THE_TOOL:
        if any(given.split("=")[0] == flag for given in flags):
            raise InputError(f"{name}: the study sets {flag} itself")
    return flags


def rows_of(title, text, rows, count=None):
    """'a b' -> ('a', 'b'), `count` rows or at least one."""
    names = tuple(text.split())
    if not names or len(names) != (count or len(names)) or set(names) - rows.keys():
        raise InputError(f"{title}: {text!r} is not {count or 'some'} of the rows {', '.join(rows)}")
    return names


def two_sides(title, text, rows):
    """'a b - c' -> (('a', 'b'), ('c',))."""
    sides = text.split(" - ")
    if len(sides) != 2:
        raise InputError(f"{title}: {text!r}: write rows, a minus with spaces round it, rows")
    return tuple(rows_of(title, side, rows) for side in sides)
