"""Subjects are dealt to splits whole, evenly, and the same way for the same seed."""
from collections import Counter
from types import SimpleNamespace as Thing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonehisto.files import UserError
from bonehisto.splits import split_subjects

MODALITIES = (("brightfield",), ("fluorescence",), ("brightfield", "fluorescence"), (None,))
studies = st.lists(st.tuples(st.sampled_from(["low", "normal", "high"]), st.sampled_from(MODALITIES), st.sampled_from([None, None, None, "train", "val", "test"])),
                   min_size=3, max_size=30)


def study(subjects):
    return Thing(path="data_manifest.yaml", subjects=[Thing(id=f"S{i}", group=g) for i, (g, _, _) in enumerate(subjects)],
                 rois=[Thing(subject=f"S{i}", modality=m, split=s) for i, (_, ms, s) in enumerate(subjects) for m in ms])


@settings(deadline=None, max_examples=100)
@given(subjects=studies, seed=st.integers(0, 5))
def test_every_subject_has_one_split_and_given_ones_stand(subjects, seed):
    try:
        table, _ = split_subjects(study(subjects), seed)
    except UserError as e:
        assert all(s is not None for _, _, s in subjects) or any(n == 0 for n in Counter(s for _, _, s in subjects).values()) or "no subject left in" in str(e)
        return
    assert sorted(table["subject"]) == sorted(f"S{i}" for i in range(len(subjects)))
    assert set(table["split"]) == {"train", "val", "test"}
    for row in table.itertuples():
        wanted = subjects[int(row.subject[1:])][2]
        assert wanted is None or row.split == wanted


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 8), seed=st.integers(0, 99))
def test_groups_of_equal_size_are_spread_within_one_subject(n, seed):
    subjects = [(g, MODALITIES[2], None) for g in ("low", "normal", "high") for _ in range(n)]
    table, _ = split_subjects(study(subjects), seed)
    for split in ("train", "val", "test"):
        counts = [int(((table["group"] == g) & (table["split"] == split)).sum()) for g in ("low", "normal", "high")]
        assert max(counts) - min(counts) <= 1


@settings(deadline=None, max_examples=30)
@given(few=st.integers(3, 6), many=st.integers(3, 40), seed=st.integers(0, 99))
def test_a_modality_of_three_subjects_is_in_every_split(few, many, seed):
    table, notes = split_subjects(study([("all", ("fluorescence",), None)] * few + [("all", ("brightfield",), None)] * many), seed)
    assert set(table.loc[table["modality"] == "fluorescence", "split"]) == {"train", "val", "test"}
    assert not any("nothing to" in n for n in notes)


def test_twelve_subjects_give_seven_two_and_three():
    table, _ = split_subjects(study([(g, MODALITIES[2], None) for g in ("low", "normal", "high") for _ in range(4)]))
    assert table["split"].value_counts().to_dict() == {"train": 7, "test": 3, "val": 2}


@pytest.mark.parametrize("n", [1, 2])
def test_a_study_too_small_to_split_is_refused_with_the_counts(n):
    with pytest.raises(UserError, match=rf"data_manifest.yaml: split: no subject left in train.*\(train 0, .*{n} subjects"):
        split_subjects(study([("low", ("brightfield",), None)] * n))


def test_a_split_emptied_by_the_manifest_is_named():
    with pytest.raises(UserError, match="no subject left in val"):
        split_subjects(study([("low", ("brightfield",), "train")] * 3 + [("low", ("brightfield",), "test")]))


@pytest.mark.parametrize("fractions", [{"val_fraction": -0.1}, {"test_fraction": 1.5}, {"val_fraction": 0.5, "test_fraction": 0.5}])
def test_fractions_that_leave_nothing_are_refused(fractions):
    with pytest.raises(UserError, match="fraction"):
        split_subjects(study([("low", ("brightfield",), None)] * 9), **fractions)


def test_one_modality_is_accepted_and_said():
    _, notes = split_subjects(study([("low", ("fluorescence",), None)] * 6))
    assert "only fluorescence ROIs: the router has nothing to learn, every tile is fluorescence" in notes
