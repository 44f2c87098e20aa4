"""A study's table: a text file that names rows (flags of train.py), ensembles of rows and differences between rows."""

import configparser
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from files.errors import InputError
from files.text import read_lines
from systems.options import train_options

OF_THE_TOOL = ("--seed", "--logger_name", "--model_name", "--resume")  # the study chooses these for each run
KEYS = {
    "study": {"title", "test", "twins"},
    "row": {"title", "train"},
    "ensemble": {"title", "members"},
    "difference": {"title", "of", "minus"},
}


@dataclass(frozen=True)
class Row:
    """One configuration: the flags of train.py that all its seeds share."""

    title: str
    train: list
    num_epochs: int


@dataclass(frozen=True)
class RowEnsemble:
    """The mean of the similarity matrices of these rows; every member gets another seed."""

    title: str
    members: tuple


@dataclass(frozen=True)
class Difference:
    """The mean metrics of the rows `of` minus those of the rows `minus`, seed by seed."""

    title: str
    of: tuple
    minus: tuple


@dataclass
class Study:
    """A table as read; `twins` is the scenes.json of tools/make_demo.py for the tested split, or None."""

    title: str
    test: list
    twins: str | None
    rows: dict = field(default_factory=dict)
    ensembles: dict = field(default_factory=dict)
    differences: dict = field(default_factory=dict)


def read_table(path):
    """The text file -> Study; InputError names the file, the section and what is wrong with it."""
    parser = configparser.ConfigParser(interpolation=configparser.ExtendedInterpolation(), delimiters=("=",))
    try:
        parser.read_string("\n".join(read_lines(path)), str(path))
        sections = {name: dict(parser[name]) for name in parser.sections()}
    except configparser.Error as error:
        raise InputError(f"{path}: {error}; see docs/study.md for the form of a table") from None
    head = sections.pop("study", {})
    check_keys(path, "study", "study", head)
    study = Study(head.get("title", Path(path).stem), shlex.split(head.get("test", "")), head.get("twins"))
    for name, values in sections.items():
        if name != "flags":  # holds texts that other sections refer to
            add_section(study, path, name, values)
    if not study.rows:
        raise InputError(f"{path}: no row; add a section [row NAME] with train = flags of train.py")
    check_names(study, path)
    return study


def add_section(study, path, section, values):
    kind, _, name = section.partition(" ")
    if kind not in ("row", "ensemble", "difference") or not name:
        raise InputError(f"{path}: section [{section}]; known are [study], [flags], [row NAME], [ensemble NAME] and "
                         "[difference NAME]")  # fmt: skip
    if set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_+"):
        raise InputError(f"{path}: section [{section}]: a name has letters, digits, - _ + only; it names a folder")
    check_keys(path, section, kind, values)
    title = values.get("title", name)
    if kind == "row":
        study.rows[name] = read_row(path, section, title, values.get("train", ""))
    elif kind == "ensemble":
        study.ensembles[name] = RowEnsemble(title, names(path, section, values, "members"))
    else:
        of, minus = (names(path, section, values, key) for key in ("of", "minus"))
        study.differences[name] = Difference(title, of, minus)


def check_keys(path, section, kind, values):
    unknown = set(values) - KEYS[kind]
    if unknown:
        raise InputError(f"{path}: section [{section}] has {min(unknown)}; known are {', '.join(sorted(KEYS[kind]))}")


def read_row(path, section, title, text):
    """Flags of one row, checked as train.py checks them."""
    try:
        flags = shlex.split(text)
        opt = train_options(flags)[0]
    except (InputError, ValueError) as error:
        raise InputError(f"{path}: section [{section}]: train: {error}") from None
    for flag in OF_THE_TOOL:
        if any(given.split("=")[0] == flag for given in flags):
            raise InputError(f"{path}: section [{section}]: train has {flag}, which the study sets itself; remove it")
    return Row(title, flags, opt.num_epochs)


def names(path, section, values, key):
    """A list of row names with spaces between."""
    found = tuple(values.get(key, "").split())
    if not found:
        raise InputError(f"{path}: section [{section}]: {key} is missing; name rows, with spaces between")
    return found


def check_names(study, path):
    """Every row that an ensemble or a difference names has to exist."""
    for name, ensemble in study.ensembles.items():
        if len(ensemble.members) < 2:
            raise InputError(f"{path}: section [ensemble {name}] has one member; name two or more")
        known(study, path, f"ensemble {name}", ensemble.members)
    for name, difference in study.differences.items():
        known(study, path, f"difference {name}", difference.of + difference.minus)


def known(study, path, section, rows):
    for row in rows:
        if row not in study.rows:
            raise InputError(f"{path}: section [{section}] names the row {row}; there are {', '.join(study.rows)}")
