"""What commands say while they are busy."""

import io

from fresh import run_python

from fastac import _progress
from fastac._progress import Counter


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_counter_is_live_on_a_terminal_and_a_line_every_ten_seconds_elsewhere(monkeypatch):
    now = 0.0
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now)
    terminal, file = Terminal(), io.StringIO()
    with Counter(terminal) as live, Counter(file) as plain:
        for done in range(1, 1201):
            now = done / 50
            for counter in (live, plain):
                counter(done, 1200, "episodes")
    assert file.getvalue() == "500 of 1,200  episodes\n1,000 of 1,200  episodes\n"
    assert terminal.getvalue().startswith("\r\x1b[K1 of 1,200  episodes\r\x1b[K14 of 1,200  episodes")
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_quick_work_says_nothing():
    with Counter(io.StringIO()) as counter:
        counter(1, 2, "episodes")
        assert counter._file.getvalue() == ""


COMPILES = """
import contextlib, io, sys
import numpy as np
import numba
from fastac._progress import compiling_is_said
from fastac_kernels import _jit

@_jit.kernel
def twice(x):
    return x + x
twice.py_func.__module__ = "fastac_kernels.made_up"
theirs = numba.njit(lambda x: x + 1)
for expected, function, argument in ((0, theirs, 1), (1, twice, 1), (0, twice, 1), (1, twice, 1.5)):
    with contextlib.redirect_stderr(io.StringIO()) as said, compiling_is_said():
        function(argument)
    text = said.getvalue()
    assert text.count("Compiling kernels") == text.count("\\n") == expected, (function, text)
twice(2j)  # outside of it
"""


def test_compiling_kernels_of_ours_is_said_once_and_only_where_it_happens():
    run_python(COMPILES)
