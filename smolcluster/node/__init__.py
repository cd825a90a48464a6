"""What runs on a machine: ``python -m smolcluster.node`` reads a spec from its standard input and does its part."""
