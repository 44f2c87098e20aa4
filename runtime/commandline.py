"""What the scripts' flags have in common: complaints in one line, and types that check their values."""

import argparse
import math
import re

from files.errors import InputError


class Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Descriptions as they stand; each flag's default, unless its help says it or there is none to show."""

    def _get_help_string(self, action):
        none = action.default is None or action.default is False or action.default == ""
        return action.help if none or "(default" in action.help else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is an InputError: one line, without the list of all flags."""

    def __init__(self, **how):
        super().__init__(**{"formatter_class": Formatter, **how})

    def error(self, message):
        raise InputError(f"{message.removeprefix('argument ')}; {self.prog} --help lists the flags")


def whole(least=1):
    """The type of a flag that takes whole numbers from `least` on."""

    def read(text):
        if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least} on")
        return int(text)

    return read


def number(most=math.inf):
    """The type of a flag that takes a number from 0 to most, infinity excluded."""

    def read(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= most or math.isinf(value):
            end = "on" if most == math.inf else f"to {most}"
            raise argparse.ArgumentTypeError(f"{text} is not a number from 0 {end}")
        return value

    return read


def positive(text):
    """A flag's number above 0."""
    if not (value := number()(text)):
        raise argparse.ArgumentTypeError("0 is too small, need a number above it")
    return value
