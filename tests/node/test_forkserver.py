"""Requests to the fork server: however the stream cuts them, each is taken once, with its own descriptors."""

from __future__ import annotations

import os
import socket

from smolcluster.node.forkserver import Requests


def test_requests_that_arrive_together_are_taken_apart() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        requests = Requests(theirs)
        ours.sendall(b'{"kill": 1}\n{"kill": 2}\n{"ki')
        assert requests.read() == [({"kill": 1}, []), ({"kill": 2}, [])]
        ours.sendall(b'll": 3}\n')
        assert requests.read() == [({"kill": 3}, [])]
        pipes = [os.pipe() for _ in range(3)]
        for number in range(3):
            socket.send_fds(ours, [b'{"start": "n%d"}\n' % number], [pipes[number][0]] * 3)
        ours.sendall(b'{"kill": 4}\n')
        found = []
        while len(found) < 4:
            found += requests.read()
        assert [request for request, _ in found] == [{"start": "n0"}, {"start": "n1"}, {"start": "n2"}, {"kill": 4}]
        for (_, descriptors), (read, _) in zip(found, pipes, strict=False):
            assert len(descriptors) == 3
            assert {os.fstat(descriptor).st_ino for descriptor in descriptors} == {os.fstat(read).st_ino}
            for descriptor in descriptors:
                os.close(descriptor)
        for ends in pipes:
            for end in ends:
                os.close(end)
        assert not requests.over
        ours.shutdown(socket.SHUT_WR)
        assert requests.read() == []
        assert requests.over
