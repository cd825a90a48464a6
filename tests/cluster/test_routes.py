"""Which way data take between nodes on several networks."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from smolcluster.cluster.inventory import Cluster, Node
from smolcluster.cluster.routes import common_address, listens_on, relays, route
from smolcluster.errors import ConfigError
from smolcluster.spec.compose import validate_jobs

MINI1 = {"bridge": "10.10.0.1/24", "cable": "192.168.50.1/24"}


def cluster(**nodes: Mapping[str, str]) -> Cluster:
    made = {name: Node(host=f"{name}.local", addresses=dict(links)) for name, links in nodes.items()}
    return Cluster(nodes=made, server=next(iter(nodes)))


SEEDS = cluster(mini1=MINI1, mini2={"bridge": "10.10.0.2/24"}, pi5={"cable": "192.168.50.2/24"})


@pytest.mark.parametrize(
    ("source", "target", "address", "via"),
    [
        ("mini2", "mini1", "10.10.0.1", ""),
        ("pi5", "mini1", "192.168.50.1", ""),
        ("mini1", "pi5", "192.168.50.2", ""),
        ("pi5", "mini2", "192.168.50.1", "mini1"),
        ("mini2", "pi5", "10.10.0.1", "mini1"),
    ],
)
def test_the_seeds_networks(source: str, target: str, address: str, via: str) -> None:
    assert route(SEEDS, source, target)[:2] == (address, via)


def test_who_passes_bytes_on() -> None:
    pairs = [(one, other) for one in SEEDS.nodes or () for other in SEEDS.nodes or () if one != other]
    assert relays(SEEDS, "mini1", pairs) == {"mini2": "10.10.0.2", "pi5": "192.168.50.2"}
    assert relays(SEEDS, "pi5", pairs) == {}


def test_without_addresses_everybody_reaches_every_host() -> None:
    plain = cluster(a={}, b={})
    assert route(plain, "a", "b") == ("b.local", "", "on a common network")


def test_a_prefix_may_be_left_out_and_may_be_small() -> None:
    assert route(cluster(a={"x": "10.0.0.1"}, b={"y": "10.0.0.2"}), "a", "b").address == "10.0.0.2"
    assert route(cluster(a={"x": "10.0.0.1/30"}, b={"y": "10.0.0.9/30"}), "a", "b").address is None
    assert route(cluster(a={"x": "fd00::1/64"}, b={"y": "10.0.0.9", "z": "fd00::2/64"}), "a", "b").address == "fd00::2"


def test_where_nodes_listen() -> None:
    nodes = SEEDS.nodes or {}
    assert [listens_on(nodes[name]) for name in ("mini1", "mini2")] == ["0.0.0.0", "mini2.local"]
    assert listens_on(Node(host="a", addresses={"x": "fd00::1/64", "y": "10.0.0.1"})) == "::"


def test_a_missing_route_is_told_before_anything_starts() -> None:
    words = ["cluster=hybrid", "~cluster.nodes.mini1.addresses.cable"]
    with pytest.raises(ConfigError) as error:
        validate_jobs(words, None)
    (problem,) = error.value.problems
    assert problem.key == "cluster.nodes.pi5.addresses"
    assert "mini1 and pi5 are on no common network" in problem.rule


def test_what_is_no_address_is_told() -> None:
    with pytest.raises(ConfigError, match=r"cluster.nodes.mini1.addresses.x=10.0.0: must be an address"):
        validate_jobs(["cluster=minis", "+cluster.nodes.mini1.addresses={x: 10.0.0}"], None)


def test_torch_needs_one_address_that_all_reach() -> None:
    """Through mini1, which is on both networks, there is a way for our frames, and none for torch's sockets."""
    nodes = {
        "mini1": Node(host="10.10.0.1", addresses={"bridge": "10.10.0.1/24", "cable": "192.168.50.1/24"}),
        "mini2": Node(host="10.10.0.2", addresses={"bridge": "10.10.0.2/24"}),
        "pi5": Node(host="192.168.50.2", addresses={"cable": "192.168.50.2/24"}),
    }
    cluster = Cluster(nodes=nodes, server="mini1", workers=("mini2", "pi5"))
    assert common_address(cluster, "mini2", ["mini1", "mini2"]) == "10.10.0.2"
    assert common_address(cluster, "mini1", ["mini1", "mini2"]) == "10.10.0.1"
    assert common_address(cluster, "mini1", ["mini2", "pi5"]) is None
    assert common_address(cluster, "mini1", ["mini1"]) == "10.10.0.1"
    assert cluster.scattered == ["mini2", "pi5"]
    words = ["cluster=hybrid", "algo=ddp", "cluster.workers=[pi5,win]"]
    with pytest.raises(ConfigError, match="algo=ddp needs one network that all workers are on"):
        validate_jobs(words, None)
