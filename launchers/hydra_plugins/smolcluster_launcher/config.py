"""Options of the launcher: ``hydra.launcher.<key>``. Hydra scans this module in every application: keep it light.

No ``from __future__ import annotations`` here: Hydra 1.3 executes the module without listing it in ``sys.modules``,
where a dataclass would look its annotations up.
"""

from dataclasses import dataclass
from typing import Optional

from hydra.core.config_store import ConfigStore


@dataclass
class SmolclusterLauncherConf:
    """Where and how jobs run. Flat, since Hydra 1.3 instantiates what is nested, and 1.4 does not."""

    _target_: str = "hydra_plugins.smolcluster_launcher.launcher.SmolclusterLauncher"
    max_concurrent: int = 1
    """Jobs of a sweep that run at the same time; 1 .. 64."""
    share_nodes: bool = False
    """Jobs that run at the same time may have nodes on the same machines; otherwise each has machines of its own."""
    host: Optional[str] = None  # noqa: UP045  (OmegaConf of Hydra 1.3 knows no "str | None")
    """[user@]host[:port] of the machine that jobs run on, reached by SSH; null: this one."""
    python: Optional[str] = None  # noqa: UP045
    """Python interpreter on ``host``; null: the path of this one."""
    detach: bool = False
    """Leave the run going on the machine of its server, and return when all nodes take part; attach= comes back."""
    connect_timeout_s: float = 10.0
    """Seconds to reach a machine by SSH; > 0, <= 600."""
    session: str = "ssh"
    """How machines are reached: ssh; manual: a person types a join command on each, which is printed."""
    gate_host: Optional[str] = None  # noqa: UP045
    """Address of this machine that joining machines dial; null: the one on the way to them."""
    gate_port: int = 0
    """Port that joining machines dial, 0 .. 65535; 0: the system chooses."""
    join_timeout_s: float = 600.0
    """Seconds to wait for machines to join; > 0, <= 86400."""
    guests: int = 0
    """Machines that may join while the run is under way (a join command is printed for each); 0 .. 64."""
    tmux: bool = False
    """Run each node in a tmux session of its machine, and open a window here with a pane for each."""
    sync: bool = True
    """Send this machine's smolcluster to the others, unless they have the very same already."""
    env: Optional[str] = None  # noqa: UP045
    """Make an environment with all packages on each machine: venv, uv; null: its Python has them."""
    wheelhouse: Optional[str] = None  # noqa: UP045
    """Folder of wheels to install from, for machines without internet; null: from the package index."""
    keep_days: float = 30.0
    """Days that code, files and environments stay on other machines when no run uses them; > 0, <= 3650."""


ConfigStore.instance().store(
    group="hydra/launcher", name="smolcluster", node=SmolclusterLauncherConf, provider="smolcluster"
)
