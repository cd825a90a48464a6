"""Hydra launcher plugin: ``hydra/launcher=smolcluster``."""

NO_DESK = "-"
"""Stands for the launcher's desk where a lead is on another machine and makes its own connections."""
