import pickle

import pytest
from asv_bench_gpu.verification import Unavailable, VerificationError, Verified, verify


def test_counts_what_agrees():
    assert verify([("a", None), ("b", None), ("c", None)]) == Verified(3)


def test_takes_a_generator_once():
    made = []

    def comparisons():
        for what in "ab":
            made.append(what)
            yield what, None

    assert verify(comparisons()).comparisons == 2
    assert made == ["a", "b"]


def test_first_difference_stops_with_what_and_how():
    made = []

    def comparisons():
        for what, difference in (("good", None), ("scan, 8 experts", "counts[3] is 1, expected 2"), ("later", None)):
            made.append(what)
            yield what, difference

    with pytest.raises(VerificationError, match=r"^scan, 8 experts: counts\[3\] is 1, expected 2$"):
        verify(comparisons())
    assert made == ["good", "scan, 8 experts"]


def test_an_empty_difference_is_a_difference():
    with pytest.raises(VerificationError, match=r"^what: $"):
        verify([("what", "")])


def test_nothing_compared_is_not_verified():
    with pytest.raises(VerificationError, match="nothing was compared"):
        verify(iter(()))


def test_an_exception_while_comparing_is_passed_on():
    def comparisons():
        yield "good", None
        raise ZeroDivisionError("in the kernel")

    with pytest.raises(ZeroDivisionError, match="in the kernel"):
        verify(comparisons())


@pytest.mark.parametrize("proof", [Verified(57), Unavailable("no GPU")], ids=["verified", "unavailable"])
def test_survives_asvs_pickle(proof):
    assert pickle.loads(pickle.dumps(proof)) == proof  # noqa: S301


def test_unavailable_skips_as_asv_has_it():
    with pytest.raises(NotImplementedError, match=r"^needs a CUDA GPU$"):
        Unavailable("needs a CUDA GPU").skip()
