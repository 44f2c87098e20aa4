"""Parsers of all scripts: errors in one line, and types that check values."""

import argparse
import difflib
import math

from files.errors import InputError


class Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the layout of descriptions; shows each flag's default, unless its help names it or there is none."""

    def _get_help_string(self, action):
        none = action.default is None or action.default is False or action.default in ("", [])
        if none or isinstance(action, argparse._StoreFalseAction) or "(default" in action.help:
            return action.help
        return f"{action.help} (default: on)" if action.default is True else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose error is an InputError: one line, without the list of all flags.

    others: flags of another parser, {flag: message}.
    """

    def __init__(self, **how):
        super().__init__(**{"formatter_class": Formatter, **how})
        self.others = {}

    def error(self, message):
        raise InputError(f"{message.removeprefix('argument ')}; {self.prog} --help lists the flags")

    def parse_args(self, args=None, namespace=None):
        opt, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self.advice(unknown)}")
        return opt

    def advice(self, unknown):
        """For the first unknown flag: where it is known, or the flag whose name is nearest."""
        flag = next((text.split("=")[0] for text in unknown if text.startswith("--")), "")
        if flag in self.others:
            return f"; {self.others[flag]}"
        near = difflib.get_close_matches(flag, self._option_string_actions, 1)
        return f"; did you mean {near[0]}?" if near else ""


class Switch(argparse.Action):
    """A flag --name that --no_name turns off."""

    def __init__(self, option_strings, **how):
        off = [f"--no_{text[2:]}" for text in option_strings]
        super().__init__([*option_strings, *off], nargs=0, **how)

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, not option_string.startswith("--no_"))


def number(most=math.inf, least=0, convert=float, kind="number"):
    """The type of a flag that takes numbers from `least` to `most`, below 10^18."""

    def read(text):
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or value >= 1e18:
            end = "on" if most == math.inf else f"to {most}"
            raise argparse.ArgumentTypeError(f"{text} is not a {kind} from {least} {end}")
        return value

    return read


def whole(least=1, most=math.inf):
    """The type of a flag that takes whole numbers from `least` to `most`, below 10^18."""
    return number(most, least, int, "whole number")


def folder_name(text):
    """The type of a flag that takes the name of a folder: without the '/' that a shell's completion puts at its end."""
    if not (name := text.rstrip("/")) or name in (".", ".."):
        raise argparse.ArgumentTypeError(f"{text!r} is no folder's name")
    return name


def positive(text):
    """A flag's number above 0."""
    if not (value := number()(text)):
        raise argparse.ArgumentTypeError("0 is too small, need a number above it")
    return value
