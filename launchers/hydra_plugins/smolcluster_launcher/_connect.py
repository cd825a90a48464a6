"""How a machine is reached by SSH: through which others, with which keys, and why it cannot be."""

from __future__ import annotations

import errno
import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabric2 import Connection
    from hydra_plugins.smolcluster_launcher._reached import Target
    from paramiko import PKey


NOBODY_THERE = (errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH)


def connection_to(target: Target, timeout_s: float) -> Connection:
    """A connection that trusts known hosts only, and so do those that it goes through."""
    from fabric2 import Connection

    known = target.name if _has_entry(target.name) else target.host
    keys: dict[str, Any] = {"banner_timeout": timeout_s, "auth_timeout": timeout_s, "channel_timeout": timeout_s}
    if target.identity:
        keys["key_filename"] = str(Path(target.identity).expanduser())
    gateway = Connection(target.jump, connect_timeout=timeout_s, connect_kwargs=dict(keys)) if target.jump else None
    connection = Connection(
        known, user=target.user, port=target.port, gateway=gateway, connect_timeout=timeout_s, connect_kwargs=keys
    )
    for hop in hops(connection):
        _be_strict(hop)
    return connection


def hops(connection: Connection) -> list[Connection]:
    """A connection, and those that it goes through, the nearest to the target first."""
    found, hop = [connection], connection.gateway
    while hop is not None and not isinstance(hop, str):
        found.append(hop)
        hop = hop.gateway
    return found


def _has_entry(name: str) -> bool:
    """Whether ~/.ssh/config has an entry of exactly that name."""
    from fabric2 import Config

    return name in Config().base_ssh_config.get_hostnames()


def _be_strict(connection: Connection) -> None:
    """Fabric would take any new host key. Here a key must be known, from the files that ``ssh`` looks at."""
    from paramiko import MissingHostKeyPolicy

    class Refuse(MissingHostKeyPolicy):  # type: ignore[misc]
        def missing_host_key(self, client: object, hostname: str, key: PKey) -> None:
            raise UnknownHost(hostname, key)

    options = connection.ssh_config
    named = " ".join(str(options.get(key, "")) for key in ("userknownhostsfile", "globalknownhostsfile")).split()
    files = named or ["~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts"]
    for file in files:
        path = Path(file).expanduser()
        if path.is_file():
            connection.client.load_system_host_keys(str(path))
    connection.client.set_missing_host_key_policy(Refuse())


class UnknownHost(Exception):
    """The host has shown a key that no file of known hosts has."""

    def __init__(self, hostname: str, key: PKey) -> None:
        self.hostname, self.key = hostname, key
        super().__init__(hostname)


def why(error: Exception, connection: Connection, where: str, timeout_s: float) -> str:
    """Why a connection could not be made, and what to do, in one line."""
    from paramiko import AuthenticationException, BadHostKeyException, SSHException
    from paramiko.ssh_exception import NoValidConnectionsError

    host, port = connection.host, connection.port
    match error:
        case UnknownHost(key=key):
            scan = shlex.join(["ssh-keyscan", *(["-p", str(port)] if port != 22 else []), host])
            shown = f"{key.get_name()} {key.fingerprint}"
            accept = f"{scan} >> ~/.ssh/known_hosts"
            return f"the host key of {host}:{port} is not known ({shown}); if it is that machine's: {accept}"
        case BadHostKeyException(key=key):
            name = host if port == 22 else f"[{host}]:{port}"
            return (
                f"{host}:{port} shows another host key than the known one ({key.get_name()} {key.fingerprint}): "
                f"somebody may be in between; if the machine was set up anew: {shlex.join(['ssh-keygen', '-R', name])}"
            )
        case AuthenticationException():
            return f"{where} accepts none of your keys (try: ssh -p {port} {connection.user}@{host}): {error}"
        case NoValidConnectionsError(errors=errors) if all(each.errno in NOBODY_THERE for each in errors.values()):
            return f"{host}:{port} cannot be reached: is it on, and on this network?"
        case NoValidConnectionsError() | ConnectionRefusedError():
            return f"{host}:{port} refuses connections: is its SSH server on (macOS: Sharing, Remote Login)?"
        case TimeoutError():
            return f"{host}:{port} does not answer within {timeout_s:g} s: is it on, and on this network?"
        case socket.gaierror():
            return f"{host} is no known host name; set cluster.nodes.<name>.ssh.host to its address"
        case FileNotFoundError():
            return f"{error.filename}: no such key file"
        case SSHException() | OSError() | EOFError():
            return f"no SSH connection to {where}: {error or type(error).__name__}"
    return f"no SSH connection to {where}: {type(error).__name__}: {error}"
