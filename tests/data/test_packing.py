import numpy as np

from smolcluster.data.packing import pack


def test_documents_in_order_with_an_end_before_between_and_after() -> None:
    documents = [np.array([1, 2]), np.array([], dtype=np.int64), np.array([3])]
    assert pack(documents, 9, 10).tolist() == [9, 1, 2, 9, 3, 9]


def test_no_documents_leave_an_end_alone() -> None:
    assert pack([], 9, 10).tolist() == [9]


def test_the_smallest_type_that_holds_every_id() -> None:
    assert pack([np.array([65535])], 0, 2**16).dtype == np.uint16
    large = pack([np.array([65536])], 0, 2**16 + 1)
    assert large.dtype == np.int32
    assert large.tolist() == [0, 65536, 0]
