"""What a run leaves behind and shows while it works: its directory, the console, plots, trackers and logs.

Everything here runs in the process that a person started, takes one event at a time and never makes a run fail.
"""
