"""``python -m smolcluster`` and the ``smolcluster`` command."""

from __future__ import annotations

import sys


def main() -> None:
    from smolcluster.cli import streams

    streams.fill()
    from smolcluster.cli.main import main as run

    code = run()
    streams.settle()
    sys.exit(code)


if __name__ == "__main__":
    main()
