"""Which way data take from node to node where machines have several links. Pure functions of the cluster's file.

A machine may be on several networks: a Thunderbolt bridge, an Ethernet cable to a Raspberry Pi. Each of its
``addresses`` says so with its network (``10.10.0.1/24``). Two nodes talk over a network that both are on; where there
is none, a third that is on a network with each of them passes the bytes on.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from smolcluster.cluster.inventory import Cluster, Node

Interface: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface
PREFIX = {4: 24, 6: 64}
"""Length of a network's prefix where an address does not say it."""


class Route(NamedTuple):
    """How one node reaches another: at ``address``, or through ``via`` (empty: directly). No address: not at all."""

    address: str | None
    via: str
    reason: str


def interface(text: str) -> Interface:
    """``10.10.0.1/24``, or ``10.10.0.1`` on a network of the usual size. ValueError where it is neither.

    >>> str(interface("10.10.0.1").network)
    '10.10.0.0/24'
    """
    if "/" in text:
        return ipaddress.ip_interface(text)
    address = ipaddress.ip_address(text)
    return ipaddress.ip_interface(f"{text}/{PREFIX[address.version]}")


def interfaces(node: Node) -> list[Interface]:
    """Where a node is; of one that has no ``addresses`` only ``host`` is known, if that is an address."""
    if node.addresses:
        return [interface(text) for text in node.addresses.values()]
    try:
        return [interface(node.host)]
    except ValueError:
        return []


def listens_on(node: Node) -> str:
    """What a node binds to: its host, or everything where it has addresses on several networks.

    Whoever comes must have a certificate of this run, on whatever network.
    """
    found = interfaces(node) if len(node.addresses) > 1 else []
    if not found:
        return node.host
    return "0.0.0.0" if all(each.version == 4 for each in found) else "::"


def shared(one: Node, other: Node) -> str | None:
    """The address at which ``one`` reaches ``other`` directly; None where they are on no common network."""
    if not one.addresses and not other.addresses:
        return other.host  # nothing is said of networks: every node reaches every host
    for ours in interfaces(one):
        for theirs in interfaces(other):
            if ours.version == theirs.version and theirs.ip in ours.network:
                return str(theirs.ip)
    return None


def route(cluster: Cluster, source: str, target: str) -> Route:
    """How ``source`` reaches ``target``."""
    one, other = cluster.node(source), cluster.node(target)
    if direct := shared(one, other):
        return Route(direct, "", "on a common network")
    for name in cluster.nodes or ():
        between = cluster.node(name)
        if name in (source, target) or between.dials_only:
            continue
        first, second = shared(one, between), shared(between, other)
        if first and second:
            return Route(first, name, f"{name} is on a network with each of them")
    return Route(None, "", f"{source} and {target} are on no common network, and no node is on one with each of them")


def common_address(cluster: Cluster, name: str, others: Iterable[str]) -> str | None:
    """The one address at which all ``others`` reach ``name`` directly; None where there is none.

    For programs that know of one address for each node, as torch does.
    """
    found = {shared(cluster.node(other), cluster.node(name)) for other in others if other != name}
    return found.pop() if len(found) == 1 else (cluster.node(name).host if not found else None)


def relays(cluster: Cluster, name: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For which nodes ``name`` has to pass bytes on, and where it reaches each of them."""
    found = {}
    for source, target in pairs:
        if route(cluster, source, target).via == name:
            address = shared(cluster.node(name), cluster.node(target))
            assert address is not None
            found[target] = address
    return found
