"Specks go, pieces stay, and a map of any height is treated alike."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonehisto.specks import drop_specks, least_pieces


def cleaned(m, least, **k):
    m, sure = m.copy(), np.full(m.shape, 200, np.uint8)
    return m, sure, drop_specks(m, sure, least, **k)


def test_a_speck_takes_the_class_around_it_and_says_how_sure_it_is():
    m = np.zeros((60, 60), np.uint8); m[:, :30] = 1; m[10:12, 10:12] = 2; m[40, 45] = 2; m[20:40, 5:25] = 2
    out, sure, n = cleaned(m, [0, 0, 10])
    assert n == 2 and (out[10:12, 10:12] == 1).all() and out[40, 45] == 0 and (out[20:40, 5:25] == 2).all()
    assert sure[10, 10] == sure[40, 45] == 55 and (sure == 55).sum() == 5


def test_holes_are_closed_and_pieces_at_the_frame_are_judged_by_what_is_seen():
    m = np.ones((50, 50), np.uint8); m[20, 20] = 0; m[0, 10:13] = 2; m[45:, 45:] = 0
    out, _, n = cleaned(m, [5, 5, 2])
    assert n == 1 and out[20, 20] == 1 and (out[0, 10:13] == 2).all() and (out[45:, 45:] == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 90), st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_strips_change_nothing(seed, rows, least):
    rng = np.random.default_rng(seed); m = rng.choice(3, (150, 60), p=[.8, .12, .08]).astype(np.uint8)
    whole, strips = cleaned(m, least), cleaned(m, least, rows=rows)
    assert np.array_equal(whole[0], strips[0]) and np.array_equal(whole[1], strips[1]) and whole[2] == strips[2]


def test_without_a_rule_nothing_changes():
    m = np.random.default_rng(0).integers(0, 3, (40, 40), dtype=np.uint8)
    for least in ([], [0, 0, 0], [1, 1, 1]):
        out, sure, n = cleaned(m, least); assert n == 0 and np.array_equal(out, m)


def test_the_rule_comes_from_whole_pieces_and_forgives_slips():
    m = np.zeros((100, 100), np.uint8); m[10:50, 10:50] = 1; m[60:66, 60:70] = 2; m[80:, 80:82] = 2
    assert least_pieces([m], 3).tolist() == [100, 100, 30]  # the piece at the frame tells nothing
    slip = m.copy(); slip[5, 5] = 1
    assert least_pieces([slip], 3)[1] == 100 and least_pieces([slip], 3, slips=0)[1] == .5
    assert least_pieces([m], 3, most=20).tolist() == [20, 20, 20]
    tiny = np.zeros((40, 40), np.uint8); tiny[5:8, 5:8] = tiny[20:23, 20:23] = 1
    assert least_pieces([tiny], 2)[1] == pytest.approx(4.5)
