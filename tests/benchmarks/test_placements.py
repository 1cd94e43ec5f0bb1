import pytest
import torch

from benchmarks import placements


@pytest.mark.parametrize(
    ("num_bytes", "number"),
    [(0, 8), (1, 8), (2**27, 8), (2**27 + 1, 7), (2**29, 2), (2**29 + 1, 1), (2**30 + 1, 1), (2**40, 1)],
)
def test_large_buffers_are_copied_fewer_times(num_bytes, number):
    def make():
        return torch.empty(num_bytes, dtype=torch.uint8, device="meta"), None

    assert len(placements.copies(make)) == number


def test_copies_lie_in_different_places():
    copied = placements.copies(lambda: (torch.zeros(3), None, torch.ones(5)))
    assert len({tensor.data_ptr() for buffers in copied for tensor in buffers if tensor is not None}) == 2 * len(copied)
