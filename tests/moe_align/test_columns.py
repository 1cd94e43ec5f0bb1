"""Columns of a matrix, and back."""

import pytest
import torch
import triton
import triton.language as tl

from moe_align.kernels.columns import columns, columns_of, matrix_of, store_scattered

N = 32


@triton.jit
def split_and_join_kernel(source_ptr, target_ptr, N: tl.constexpr, COLUMNS: tl.constexpr):
    places = tl.arange(0, N)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    parts = columns_of(tl.load(source_ptr + places))
    swapped = ()
    for column in tl.static_range(COLUMNS):
        swapped = swapped + (parts[COLUMNS - 1 - column],)  # noqa: RUF005  (Triton has no unpacking)
    tl.store(target_ptr + places, matrix_of(swapped))


@triton.jit
def join_kernel(source_ptr, target_ptr, N: tl.constexpr, COLUMNS: tl.constexpr):
    parts = ()
    for column in tl.static_range(COLUMNS):
        parts = parts + (tl.load(source_ptr + tl.arange(0, N) * COLUMNS + column),)  # noqa: RUF005
    places = tl.arange(0, N)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(target_ptr + places, matrix_of(parts))


@triton.jit
def scatter_kernel(places_ptr, target_ptr, size, N: tl.constexpr, COLUMNS: tl.constexpr):
    elements = tl.arange(0, N)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    store_scattered(target_ptr, tl.load(places_ptr + elements), elements, elements < size)


def matrix(number, device):
    return torch.arange(N * number, dtype=torch.int32, device=device).reshape(N, number)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_columns_are_those_of_the_matrix(device, number):
    target = torch.full((N, number), -1, dtype=torch.int32, device=device)
    split_and_join_kernel[(1,)](matrix(number, device), target, N=N, COLUMNS=number)
    assert torch.equal(target, matrix(number, device).flip(1))


@pytest.mark.parametrize("number", [1, 2, 4, 8, 16])
def test_a_matrix_has_its_columns_in_their_order(device, number):
    target = torch.full((N, number), -1, dtype=torch.int32, device=device)
    join_kernel[(1,)](matrix(number, device), target, N=N, COLUMNS=number)
    assert torch.equal(target, matrix(number, device))


@pytest.mark.parametrize("number", [1, 2, 4])
def test_every_element_goes_to_its_place_unless_masked(device, number):
    size = N * number - 3
    places = torch.randperm(N * number, generator=torch.Generator().manual_seed(0)).to(device, torch.int32)
    target = torch.full((N * number,), -1, dtype=torch.int32, device=device)
    scatter_kernel[(1,)](places, target, size, N=N, COLUMNS=number)
    expected = torch.full_like(target, -1)
    expected[places[:size].long()] = torch.arange(size, dtype=torch.int32, device=device)
    assert torch.equal(target, expected)


@pytest.mark.parametrize(
    ("size", "num_warps", "element_bytes", "expected"),
    [(128, 1, 4, 4), (2048, 8, 4, 4), (256, 4, 4, 2), (32, 1, 4, 1), (16, 1, 4, 1), (2048, 8, 8, 2)],
)
def test_a_thread_has_as_many_neighbours_as_16_bytes_hold_and_fall_to_it(size, num_warps, element_bytes, expected):
    assert columns(size, num_warps, element_bytes) == expected
