from typing import Any, cast

from smolcluster.tracking.files import Files
from smolcluster.tracking.tracker import RunInfo


def test_files_alone_follow_nothing_and_leave_nothing(run: RunInfo, story: list[dict[str, Any]]) -> None:
    assert list(Files().problems(cast(Any, None))) == []
    tracker = Files().tracker(run)
    assert list(tracker.start({})) == []
    for event in story:
        tracker.on_event(event)
    assert list(tracker.finish({})) == []
    assert not run.path.exists()
