"""``hydra.launcher.tmux=true``: nodes in tmux sessions of their machines, and a window that shows all of them here."""
