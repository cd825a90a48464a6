"""``python -m smolcluster`` and the ``smolcluster`` command."""

from __future__ import annotations

import sys


def main() -> None:
    from smolcluster.cli.main import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
