"""Standard input, output and error as a command may find them: closed, cut off, full, or short of characters."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def fill() -> None:
    """Put the null device where a stream is closed; the next file that is opened would be taken for it."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def tell(words: str, stream: TextIO) -> None:
    """Write a line. Whoever reads it may have gone, and the disk that it goes to may be full: then it is not told."""
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(words.encode(encoding, "replace").decode(encoding) + "\n")
        stream.flush()
    except OSError:
        return


def settle() -> None:
    """Write what is still buffered; what nobody can take is given up, so that Python does not complain at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
