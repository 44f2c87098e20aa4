"""A study's table: an ini file of rows (flags of train.py), of ensembles of two rows and of differences of rows."""

import configparser
import shlex
from itertools import combinations
from typing import NamedTuple

from files.errors import InputError
from files.text import read_lines
from systems.options import train_options

SECTIONS = ("study", "flags", "rows", "ensembles", "differences")
OF_THE_TOOL = ("--seed", "--logger_name", "--model_name", "--resume")  # the study chooses these for each run
LETTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_+")


class Study(NamedTuple):
    rows: dict  # {name: flags of train.py}
    ensembles: dict  # {title: two names}
    differences: dict  # {title: (names, names)}: the mean of the first less that of the second
    test: list  # flags of test.py
    twins: str | None  # the scenes.json of the tested split, for the demo's scenes


def read_table(path):
    """The ini file -> Study; InputError names the file, the section and what is wrong with it."""
    parser = configparser.ConfigParser(interpolation=configparser.ExtendedInterpolation(), delimiters=("=",))
    parser.optionxform = str  # names keep their capitals
    try:
        parser.read_string("\n".join(read_lines(path)), str(path))
        sections = {name: dict(parser[name]) for name in parser.sections()}
    except configparser.Error as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}; docs/study.md shows a table") from None
    check_keys(path, "sections", sections, SECTIONS)
    head = sections.get("study", {})
    check_keys(path, "[study]", head, ("test", "twins"))
    rows = {name: row_flags(path, name, text) for name, text in sections.get("rows", {}).items()}
    if not rows:
        raise InputError(f"{path}: no row; a section [rows] has lines of the form NAME = flags of train.py")
    ensembles = {title: row_names(path, title, text, rows) for title, text in sections.get("ensembles", {}).items()}
    for title, names in ensembles.items():
        if len(names) != 2:
            raise InputError(f"{path}: [ensembles] {title}: has {len(names)} rows; name two")
    differences = {title: two_sides(path, title, text, rows) for title, text in sections.get("differences", {}).items()}
    if "ensembles" not in sections:
        ensembles = {f"{a} + {b}": (a, b) for a, b in combinations(rows, 2)}
    if "differences" not in sections:
        differences = {f"{b} − {a}": ((b,), (a,)) for a, b in combinations(rows, 2)}
    return Study(rows, ensembles, differences, shlex.split(head.get("test", "")), head.get("twins"))


def check_keys(path, where, found, known):
    unknown = [name for name in found if name not in known]
    if unknown:
        raise InputError(f"{path}: {where}: {unknown[0]} is unknown; known are {', '.join(known)}")


def row_flags(path, name, text):
    """The flags of one row, checked as train.py checks them."""
    if set(name) - LETTERS:
        raise InputError(f"{path}: [rows] {name}: a name has letters, digits, - _ + only, since it names a folder")
    try:
        flags = shlex.split(text)
        train_options(flags)
    except (InputError, ValueError) as error:
        raise InputError(f"{path}: [rows] {name}: {error}") from None
    for flag in OF_THE_TOOL:
        if any(given.split("=")[0] == flag for given in flags):
            raise InputError(f"{path}: [rows] {name}: has {flag}, which the study sets itself; remove it")
    return flags


def row_names(path, title, text, rows):
    names = tuple(text.split())
    for name in names:
        if name not in rows:
            raise InputError(f"{path}: {title}: there is no row {name}, but {', '.join(rows)}")
    return names


def two_sides(path, title, text, rows):
    """'a b - c' -> (('a', 'b'), ('c',))."""
    sides = [row_names(path, title, side, rows) for side in text.split(" - ")]
    if len(sides) != 2 or not all(sides):
        raise InputError(f"{path}: [differences] {title}: {text!r}; write rows, a minus with spaces round it, rows")
    return tuple(sides)
