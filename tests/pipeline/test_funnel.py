import pytest

from seqmill.pipeline.funnel import Funnel, check_funnel, funnel_entry, merge_entries


def filled() -> Funnel:
    funnel = Funnel("sift")
    funnel.enter(10, 100)
    funnel.lose("short", 3, 20)
    funnel.lose("rewritten", 0, -5)
    funnel.leave(7, 85)
    return funnel


def test_an_entry_holds_what_entered_what_left_and_why():
    assert filled().entry() == {
        "stage": "sift",
        "documents_in": 10,
        "bytes_in": 100,
        "documents_out": 7,
        "bytes_out": 85,
        "reasons": {"rewritten": {"documents": 0, "bytes": -5}, "short": {"documents": 3, "bytes": 20}},
    }


def test_a_lost_byte_without_a_reason_is_noticed():
    funnel = filled()
    funnel.enter(0, 1)
    with pytest.raises(AssertionError):
        funnel.entry()


def test_losing_nothing_leaves_no_reason():
    funnel = Funnel("sift")
    funnel.lose("short", 0, 0)
    assert funnel.entry()["reasons"] == {}


def test_entries_of_units_add_up_to_the_entry_of_the_stage():
    other = Funnel("sift")
    other.enter(1, 4)
    other.lose("empty", 1, 4)
    merged = merge_entries("sift", [filled().entry(), other.entry()])
    assert (merged["documents_in"], merged["bytes_in"], merged["documents_out"]) == (11, 104, 7)
    assert list(merged["reasons"]) == ["empty", "rewritten", "short"]


def test_a_stage_must_receive_what_the_one_before_let_out():
    first = funnel_entry("a", {"documents": 5, "bytes": 50}, {"x": {"documents": 1, "bytes": 9}})
    second = funnel_entry("b", {"documents": 4, "bytes": 41}, {})
    check_funnel([first, second])
    with pytest.raises(AssertionError):
        check_funnel([second, first])
