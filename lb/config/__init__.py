"""The configuration: read, checked, compared and compiled for the workers."""

from lb.config.compile import Compiled, compile, recompile, verify
from lb.config.diff import Change, diff, refuse_live
from lb.config.load import check, load, parse
from lb.config.problems import ConfigErrors, Problem
from lb.config.schema import Config
from lb.config.state import State

__all__ = [
    "Change",
    "Compiled",
    "Config",
    "ConfigErrors",
    "Problem",
    "State",
    "check",
    "compile",
    "diff",
    "load",
    "parse",
    "recompile",
    "refuse_live",
    "verify",
]
