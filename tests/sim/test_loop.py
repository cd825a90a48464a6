from __future__ import annotations

import asyncio
import time

import pytest

from smolcluster.errors import RunFailed
from smolcluster.sim.loop import run_virtually


def test_time_jumps_to_the_next_timer() -> None:
    async def work() -> list[tuple[str, float]]:
        loop, seen = asyncio.get_running_loop(), []

        async def note(name: str, after: float) -> None:
            await asyncio.sleep(after)
            seen.append((name, loop.time()))

        await asyncio.gather(note("late", 7200.0), note("early", 0.5), note("at once", 0.0))
        return seen

    began = time.monotonic()
    assert run_virtually(work()) == [("at once", 0.0), ("early", 0.5), ("late", 7200.0)]
    assert time.monotonic() - began < 5


def test_a_timeout_is_in_virtual_time() -> None:
    async def work() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run_virtually(work()) == 30.0


def test_where_everybody_waits_for_ever_there_is_an_error() -> None:
    with pytest.raises(RunFailed, match="everybody waits"):
        run_virtually(asyncio.Event().wait())
