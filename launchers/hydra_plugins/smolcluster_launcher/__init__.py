"""Hydra launcher plugin: ``hydra/launcher=smolcluster``."""
