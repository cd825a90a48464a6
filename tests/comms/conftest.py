from tests.conformance.conftest import nothing_left

__all__ = ["nothing_left"]
