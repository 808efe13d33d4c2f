"The phantom: its truth is that of its geometry, its class maps agree with it, and the same seed is the same tissue."
import hashlib, subprocess, sys
from functools import lru_cache

import contourpy
import numpy as np
import pandas as pd
import pytest
import shapely
from scipy import ndimage as ndi
from scipy.spatial import cKDTree

from bonehisto.files import UserError
from bonehisto.manifest import load_manifest
from bonehisto.phantom import GROUPS, draw_roi, draw_study, pool_truth
from bonehisto.phantom_artefacts import ARTEFACTS, LABEL_ARTEFACTS
from bonehisto.phantom_bone import CLEAR_UM, LEAST_SEAM_UM, UNRESOLVED_UM, TissueParameters
from bonehisto.phantom_geometry import draw_tissue
from bonehisto.phantom_truth import derive_truth, draw_classes, label_stretches, map_pixels, seam_width, truth_sums


@lru_cache(maxsize=None)
def drawn(seed, group="normal", pixel_size_um=0.5, side_um=512, **changes):
    "Tissue, class map, line ids, without the picture."
    tissue = draw_tissue(seed, side_um, side_um, GROUPS[group] if not changes else TissueParameters(**changes))
    n = int(side_um / pixel_size_um)
    return tissue, *draw_classes(tissue, map_pixels(tissue, (n, n), pixel_size_um), "fluorescence")


@lru_cache(maxsize=None)
def clean_roi(domain): return draw_roi(domain, 1, size_px=192, pixel_size_um=2.5)


def midline(tissue, line):
    keep = line.counted()
    return tissue.surface.xy[line.at[keep]] + line.depth[keep, None] * tissue.surface.normal[line.at[keep]]


@pytest.mark.parametrize("pixel_size_um, within", [(0.5, 0.015), (1.0, 0.025)])  # a boundary cell is in or out: coarse pixels scatter more
@pytest.mark.parametrize("group", list(GROUPS))
def test_class_map_areas_agree_with_geometry(group, pixel_size_um, within):
    bone, osteoid, label = [], [], []
    for seed in range(2):
        tissue, classes, _ = drawn(seed, group, pixel_size_um)
        n, sums, rows = np.bincount(classes.ravel(), minlength=4) * pixel_size_um**2, truth_sums(tissue, "fluorescence"), label_stretches(tissue)
        bone.append(n[1:].sum() / sums["B.Ar (mm2)"] / 1e6 - 1)
        osteoid.append((n[2], sums["O.Ar (mm2)"] * 1e6)); label.append((n[3], rows["label_um2"].sum()))
    assert np.abs(bone).max() < 0.003
    for found, true in (np.sum(osteoid, 0), np.sum(label, 0)): assert abs(found / true - 1) < within


@pytest.mark.parametrize("seed", range(4))
def test_perimeter_agrees_with_the_same_roi_drawn_four_times_finer(seed):
    tissue, classes, _ = drawn(seed, pixel_size_um=0.125, side_um=256)
    soft = ndi.gaussian_filter((classes > 0).astype(np.float32), 3.0, mode="nearest")
    length = sum(np.hypot(*np.diff(l, axis=0).T).sum() for l in contourpy.contour_generator(z=soft).lines(0.5)) * 0.125
    assert length / 1e3 == pytest.approx(truth_sums(tissue, "fluorescence")["B.Pm (mm)"], rel=0.006)


def test_pixel_size_resamples_the_same_tissue():
    (a, fine, _), (b, coarse, _) = drawn(3, pixel_size_um=0.25), drawn(3, pixel_size_um=0.5)
    assert truth_sums(a, "fluorescence") == truth_sums(b, "fluorescence")
    assert (fine[::2, ::2] == coarse).mean() > 0.99 and ((fine[::2, ::2] > 0) == (coarse > 0)).mean() > 0.998


def test_both_domains_show_one_tissue():
    a, b = (draw_roi(d, 5, size_px=256, pixel_size_um=2.0) for d in ("brightfield", "fluorescence"))
    assert (np.where(b.class_map == 3, 1, b.class_map) == a.class_map).all()
    assert a.truth["O.Th (um)"] == b.truth["O.Th (um)"] and np.isnan(a.truth["MS/BS (%)"]) and a.labels.empty and not a.label_instances.any()


def test_same_seed_same_bytes_in_a_new_process():
    code = ("import hashlib; from bonehisto.phantom import draw_roi; "
            "print(*(hashlib.sha256(p.image.tobytes() + p.class_map.tobytes()).hexdigest() for p in (draw_roi(d, 7, size_px=200, artefacts={'tear': 0.5}) for d in ('brightfield', 'fluorescence'))))")
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    here = [draw_roi(d, 7, size_px=200, artefacts={"tear": 0.5}) for d in ("brightfield", "fluorescence")]
    assert other == [hashlib.sha256(p.image.tobytes() + p.class_map.tobytes()).hexdigest() for p in here]
    assert (draw_roi("brightfield", 8, size_px=200).image != draw_roi("brightfield", 7, size_px=200).image).mean() > 0.5


def test_tissue_is_on_average_what_was_asked_for():
    p = TissueParameters()
    sums = pd.DataFrame([truth_sums(draw_tissue(s, 600, 600, p), "fluorescence") for s in range(10)]).sum().to_dict()
    t = derive_truth(sums, p.interval_days)
    for key, wanted, within in (("BV/TV (%)", 22, 0.05), ("OS/BS (%)", 18, 0.15), ("O.Th (um)", 9, 0.10), ("MAR (um/d)", 0.6, 0.08), ("Tb.Th (um)", 125, 0.25), ("MS/BS (%)", 12, 0.30)):
        assert t[key] == pytest.approx(wanted, rel=within), key


def test_truth_keeps_the_identities_of_histomorphometry():
    t = draw_roi("fluorescence", 1, size_px=256, pixel_size_um=2.0).truth
    assert t["B.Ar (mm2)"] == pytest.approx(t["Md.Ar (mm2)"] + t["O.Ar (mm2)"]) and t["T.Ar (mm2)"] == pytest.approx(t["B.Ar (mm2)"] + t["Ma.Ar (mm2)"])
    assert t["MS/BS (%)"] == pytest.approx(t["dLS/BS (%)"] + t["sLS/BS (%)"] / 2)
    assert t["BFR/BS (um3/um2/yr)"] == pytest.approx(t["MAR (um/d)"] * t["MS/BS (%)"] / 100 * 365)
    assert t["Tb.Th (um)"] == pytest.approx(2e3 / t["BS/BV (mm2/mm3)"]) and t["Tb.Sp (um)"] == pytest.approx(t["Tb.Th (um)"] * (100 / t["BV/TV (%)"] - 1))
    assert t["Mlt (d)"] == pytest.approx(t["Omt (d)"] * 100 / t["MS/OS (%)"])
    worked = derive_truth({"T.Ar (mm2)": 50.0, "B.Ar (mm2)": 10.0, "Md.Ar (mm2)": 9.8, "O.Ar (mm2)": 0.0135, "Ma.Ar (mm2)": 40.0, "B.Pm (mm)": 10.0, "O.Pm (mm)": 1.5, "Md.Pm (mm)": 10.0,
                           "Q.Pm (mm)": 8.5, "sL.Pm (mm)": 0.4, "dL.Pm (mm)": 0.6, "uL.Pm (mm)": 0.0, "Ir.L.Ar (mm2)": 0.6 * 0.0099 / 1.2, "facing (mm)": 0.6}, 15)
    assert [round(worked[k], 3) for k in ("MAR (um/d)", "Aj.AR (um/d)")] == [0.55, 0.293] and round(worked["BFR/BS (um3/um2/yr)"], 1) == 16.1
    assert [round(worked[k], 1) for k in ("Omt (d)", "Mlt (d)")] == [16.4, 30.7]


def test_distance_of_a_double_is_the_area_between_its_midlines():
    seen = 0
    for seed in range(6):
        tissue = drawn(seed)[0]
        for row in label_stretches(tissue).query("kind == 'double'").itertuples():
            late, early = (midline(tissue, l) for l in tissue.sites[row.site].lines)
            if not (tissue.within(late).all() and tissue.within(early).all()): continue
            between = shapely.Polygon(np.r_[late, early[::-1]])
            mean = (shapely.LineString(late).length + shapely.LineString(early).length) / 2
            assert between.is_valid and row.length_um == pytest.approx(mean, rel=0.002)
            assert row.distance_um == pytest.approx(between.area / mean, rel=0.05) and row.distance_um == pytest.approx(9.0, rel=0.35); seen += 1
    assert seen >= 3


def test_labels_of_different_sites_cannot_be_paired():
    for seed in range(3):
        tissue = drawn(seed, "high")[0]
        sites = [np.concatenate([midline(tissue, l) for l in s.lines]) for s in tissue.sites if s.lines]
        for k, one in enumerate(sites):
            for other in sites[k + 1:]: assert cKDTree(other).query(one)[0].min() >= CLEAR_UM - 0.01


def test_label_lines_lie_in_mineral_below_the_seam():
    for seed in range(2):
        tissue, classes, lines = drawn(seed, "high")
        width = seam_width(tissue, counted=False)
        for site in tissue.sites:
            for line in site.lines: assert (line.depth - line.width / 2 >= width[line.at] - 1e-3).all()
        assert ((lines > 0) == (classes == 3)).all()


def test_seams_count_from_the_least_width():
    tissue, classes, _ = drawn(1, "high", 0.25)
    counted = sum((s.seam.width >= LEAST_SEAM_UM).sum() for s in tissue.sites if s.seam)
    assert (seam_width(tissue)[seam_width(tissue) > 0] >= LEAST_SEAM_UM).all() and counted > (seam_width(tissue) > 0).sum() > 0.98 * counted
    thin = [s.seam.width.min() for s in tissue.sites if s.seam]
    assert max(thin) < LEAST_SEAM_UM  # the tips taper on below what counts


def test_doubles_nearer_than_the_limit_are_unresolved_and_never_enter_mar():
    kinds = []
    for seed in range(4):
        tissue, classes, lines = drawn(seed, mar_um_d=0.2, dls_bs=0.2)
        rows = label_stretches(tissue); kinds += list(rows["kind"])
        t = derive_truth(truth_sums(tissue, "fluorescence"), 15)
        assert (rows.loc[rows["kind"] == "unresolved", "distance_um"] < UNRESOLVED_UM).all()
        assert np.isnan(t["MAR (um/d)"]) and "MAR (um/d)" in t["reasons"]
        assert t["MS/BS (%)"] == pytest.approx((t["uL.Pm (mm)"] + t["sL.Pm (mm)"] / 2) / t["B.Pm (mm)"] * 100)
    assert "unresolved" in kinds and "double" not in kinds


def test_no_label_means_no_formation_and_no_rate():
    t = derive_truth(truth_sums(draw_tissue(2, 512, 512, TissueParameters(dls_bs=0.0, sls_bs=0.0)), "fluorescence"), 15)
    assert t["MS/BS (%)"] == 0 == t["BFR/BS (um3/um2/yr)"] and np.isnan(t["MAR (um/d)"]) and np.isnan(t["Omt (d)"]) and t["reasons"]["MAR (um/d)"]


def test_label_lines_are_bright_bone_dim_marrow_dark():
    p = draw_roi("fluorescence", 1, size_px=512, pixel_size_um=1.0); level = p.image.max(-1).astype(float)
    deep = ndi.binary_erosion(p.class_map == 1, iterations=12); marrow = ndi.binary_erosion(p.class_map == 0, iterations=12); core = ndi.binary_erosion(p.class_map == 3)
    assert np.median(level[core]) > 2.5 * np.median(level[deep]) > 5 * np.median(level[marrow])


@pytest.mark.parametrize("stain", ["aniline_blue", "goldner"])
def test_osteoid_and_marrow_share_their_hue_but_not_their_saturation(stain):
    saturations, hues = [], []
    for seed in (1, 3):
        p = draw_roi("brightfield", seed, size_px=700, stain=stain)
        fat = p.image.min(-1) > 215
        for mask in (ndi.binary_erosion(p.class_map == 2, iterations=4), ndi.binary_erosion(p.class_map == 0, iterations=30) & ~fat):
            r, g, b = np.median(p.image[mask].astype(float), 0)
            saturations.append(1 - min(r, g, b) / max(r, g, b)); hues.append(60 * (g - b) / (r - min(g, b)))
    assert min(saturations[::2]) > 0.6 and max(saturations[1::2]) < 0.55 and max(hues) - min(hues) < 30


@pytest.mark.parametrize("domain", ["brightfield", "fluorescence"])
@pytest.mark.parametrize("name", ARTEFACTS)
def test_every_artefact_marks_what_it_touches(name, domain):
    clean, spoilt = clean_roi(domain), draw_roi(domain, 1, size_px=192, pixel_size_um=2.5, artefacts={name: 0.7})
    if name in LABEL_ARTEFACTS and domain == "brightfield":
        assert not spoilt.artefacts and (spoilt.image == clean.image).all(); return
    mask = spoilt.artefacts[name]
    assert mask.shape == (192, 192) and mask.any() and (spoilt.image != clean.image).any()
    if name in ("fold", "tear", "bone_dust", "air_bubble"):
        far = ~ndi.binary_dilation(mask, iterations=6)
        assert np.abs(spoilt.image[far].astype(int) - clean.image[far]).max() <= 13  # a twentieth of full scale
    if name == "blank_field": assert not spoilt.class_map.any() and spoilt.truth["B.Ar (mm2)"] == 0 and spoilt.truth["reasons"]["O.Th (um)"]
    elif name == "merged_double": assert (spoilt.labels["kind"] == "unresolved").any() and spoilt.truth["uL.Pm (mm)"] > 0
    else: assert (spoilt.class_map == clean.class_map).all() and spoilt.sums == clean.sums


def test_wrong_names_are_refused():
    for wrong in (dict(domain="xray"), dict(domain="brightfield", stain="gold"), dict(domain="fluorescence", dyes=("red", "calcein")), dict(domain="fluorescence", artefacts={"folds": 1})):
        with pytest.raises(ValueError, match="unknown"): draw_roi(seed=1, size_px=64, **wrong)


def test_oblong_and_tiny_frames_are_drawn():
    p = draw_roi("fluorescence", 1, size_px=(300, 170))
    assert p.image.shape == (300, 170, 3) and p.class_map.shape == (300, 170) and p.truth["T.Ar (mm2)"] == pytest.approx(0.150 * 0.085)
    assert draw_roi("brightfield", 1, size_px=32).image.shape == (32, 32, 3)


def test_study_is_whole_loads_and_repeats_to_the_byte(tmp_path):
    settings = dict(subjects=3, rois=1, seed=4, size_px=160, pixel_size_um=1.0)
    first, second = draw_study(tmp_path / "a", workers=1, **settings), draw_study(tmp_path / "b", workers=2, **settings)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file()) and len(files) == 2 * 6 + 4
    for f in files: assert (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes(), f
    study = load_manifest(first)
    assert len(study.rois) == 6 and {s.group for s in study.subjects} == set(GROUPS) and study.interval_days("S01") == 15 and study.truth.name == "truth_subjects.csv" and second.name == "data_manifest.yaml"
    rois, subjects = pd.read_csv(tmp_path / "a/truth.csv"), pd.read_csv(tmp_path / "a/truth_subjects.csv")
    bright = rois[rois["modality"] == "brightfield"].set_index("subject")
    assert np.allclose(subjects["BV/TV (%)"], 100 * bright["B.Ar (mm2)"] / bright["T.Ar (mm2)"])


def test_subject_truth_is_a_ratio_of_sums():
    def roi(modality, scale, labelled):
        sums = {"T.Ar (mm2)": scale, "B.Ar (mm2)": 0.2 * scale, "Md.Ar (mm2)": 0.19 * scale, "O.Ar (mm2)": 0.01 * scale, "Ma.Ar (mm2)": 0.8 * scale, "B.Pm (mm)": scale, "O.Pm (mm)": 0.5, "Md.Pm (mm)": scale,
                "Q.Pm (mm)": scale - 0.5, "sL.Pm (mm)": 0.0, "dL.Pm (mm)": labelled, "uL.Pm (mm)": 0.0, "Ir.L.Ar (mm2)": 0.009 * labelled, "facing (mm)": labelled}
        return {"subject": "S1", "group": "g", "modality": modality, "interval (d)": 15.0 if modality == "fluorescence" else np.nan} | sums
    pooled = pool_truth(pd.DataFrame([roi("brightfield", 1.0, 0), roi("brightfield", 9.0, 0), roi("fluorescence", 1.0, 0.4), roi("fluorescence", 3.0, 0.0)])).iloc[0]
    assert pooled["OS/BS (%)"] == pytest.approx(10) and pooled["MS/BS (%)"] == pytest.approx(10) and pooled["MAR (um/d)"] == pytest.approx(0.6)
    assert pooled["MS/OS (%)"] == pytest.approx(100)


def test_study_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="subjects is 0"): draw_study(tmp_path / "x", subjects=0)
    assert not (tmp_path / "x").exists()
