"""A run folder with plausible tables and masks, without running anything: what figures and report are tested on."""
import numpy as np
import pandas as pd
import yaml
from PIL import Image

from bonehisto.agreement import COLUMNS as AGREED
from bonehisto.association import associate, wide_places
from bonehisto.files import write_json, write_table
from bonehisto.group_models import mixed_models
from bonehisto.group_tests import compare_groups
from bonehisto.heads import HEADS
from bonehisto.histomorphometry import derive_indices
from bonehisto.images import write_mask
from bonehisto.neighbourhood import LABELLED
from bonehisto.reader_agreement import KEEP
from bonehisto.reader_tables import READERS
from bonehisto.scores import SCORES
from bonehisto.statistics import summarise_groups
from bonehisto.tmv import classify_subjects, read_cuts
from bonehisto.token_pictures import TokenPictures, save_pictures

GROUPS = {"low": (.45, 8, 6), "normal": (.6, 16, 25), "high": (.9, 28, 80)}  # MAR, BV/TV, BFR/BS


def draw(domain, seed, size):
    "A ring of bone with a seam, as image and class map."
    rng = np.random.default_rng(seed); y, x = np.mgrid[:size, :size] / size
    r = np.hypot(x - rng.uniform(.4, .6), y - rng.uniform(.4, .6)) + .03 * np.sin(9 * np.arctan2(y - .5, x - .5))
    mask = np.select([r < .28, r < .31], [1, 2], 0).astype(np.uint8)
    if domain == "fluorescence": mask[(r > .24) & (r < .25) | (r > .27) & (r < .28)] = 3
    ink = np.array([[212, 160, 142], [22, 92, 165], [182, 59, 53]] if domain == "brightfield" else [[8, 9, 8], [20, 60, 50], [6, 12, 10], [200, 210, 40]])
    return np.clip(ink[mask] + rng.normal(0, 6, (size, size, 3)), 0, 255).astype(np.uint8), mask


def measured_rows(rois, rng):
    "What `measure_rois` would give for the ROIs, within a few per cent of their group's values."
    rows = []
    for r in rois:
        mar, bvtv, _ = GROUPS[r["group"]]; bone, seam, lit = .0026 * bvtv * rng.normal(1, .02), rng.normal(.3, .01), r["modality"] == "fluorescence"
        sums = {"T.Ar (mm2)": .26, "B.Ar (mm2)": bone, "Md.Ar (mm2)": .97 * bone, "O.Ar (mm2)": .03 * bone, "Ma.Ar (mm2)": .26 - bone, "B.Pm (mm)": 2., "O.Pm (mm)": seam, "Md.Pm (mm)": 2., "Q.Pm (mm)": 2 - seam}
        sums |= {k: v if lit else np.nan for k, v in {"sL.Pm (mm)": .1, "dL.Pm (mm)": rng.normal(.2, .01), "uL.Pm (mm)": 0., "Ir.L.Ar (mm2)": .003 * mar * rng.normal(1, .05), "B.Pm of label sections (mm)": 2., "T.Ar of label sections (mm2)": .26}.items()}
        rows.append({k: r[k] for k in ("roi", "subject", "group", "modality", "split")} | {"not measured": "", "domain": r["modality"], "interval (d)": 15.} | sums | derive_indices(sums, 15., why_no_labels=None if lit else "no label")[0])
    return pd.DataFrame(rows)


def make_run(folder, size=320, per_group=4, steps=200, seed=0):
    "The folder filled as a finished run would leave it."
    rng = np.random.default_rng(seed); t = folder / "tables"; rois, subjects, truth, stretches, segmented = [], [], [], [], []
    for group, (mar, bvtv, bfr) in GROUPS.items():
        for k in range(per_group):
            subject = f"{group}-{k + 1:02d}"; split = ("test", "train", "train", "val")[k % 4]
            for domain in ("brightfield", "fluorescence"):
                roi = f"{subject}_{domain[:2]}1"; image, mask = draw(domain, len(rois), size)
                (folder / "images").mkdir(parents=True, exist_ok=True); Image.fromarray(image).save(folder / "images" / f"{roi}.png")
                for name, value in (("", np.roll(mask, 1, 0)), ("_confidence", np.where(np.roll(mask, 3) == mask, 245, 140).astype(np.uint8))): write_mask(folder / "masks" / f"{roi}{name}.png", value, .5)
                Image.fromarray(mask).save(folder / "images" / f"{roi}_mask.png")
                rois.append({"roi": roi, "subject": subject, "group": group, "modality": domain, "split": split, "image": str(folder / "images" / f"{roi}.png"), "mask": str(folder / "images" / f"{roi}_mask.png"),
                             "polygon": "", "pixel_size_um": .5, "height": size, "width": size, "interval_days": 15.0})
                segmented.append({"roi": roi, "domain": domain, "state": "segmented", "tiles": 20, "blank": 0, "abstained": 0, "elsewhere": 0, "confidence": rng.uniform(.9, .99), "note": ""})
                if domain == "fluorescence": stretches += [{"roi": roi, "subject": subject, "group": group, "split": split, "kind": rng.choice(["double", "single"]), "length_um": rng.uniform(40, 300), "distance_um": mar * 15 * rng.normal(1, .1), "area_um2": 900.0} for _ in range(12)]
            row = {"subject": subject, "group": group, "split": split, "not measured": "", "structure from": "brightfield", "brightfield ROIs": 1, "fluorescence ROIs": 1, "interval (d)": 15.0, "section": "none", "section factor": 1.0,
                   "T.Ar (mm2)": .26, "B.Ar (mm2)": .26 * bvtv / 100, "B.Pm (mm)": rng.uniform(1, 3), "O.Pm (mm)": rng.uniform(.1, .9), "BV/TV (%)": bvtv * rng.normal(1, .1), "O.Th (um)": rng.uniform(6, 14), "OS/BS (%)": rng.uniform(5, 35),
                   "OV/BV (%)": rng.uniform(.5, 6), "Tb.Th (um)": rng.uniform(100, 170), "MAR (um/d)": np.nan if subject == "low-02" else mar * rng.normal(1, .08), "MS/BS (%)": rng.uniform(3, 20), "BFR/BS (um3/um2/yr)": bfr * rng.normal(1, .15), "Mlt (d)": rng.uniform(15, 60),
                   "warnings": '["only 0.26 mm2 of tissue: below 30 mm2 values of one subject are rough"]', "reasons": '{"MAR (um/d)": "only single labels were seen"}' if subject == "low-02" else "{}"}
            subjects.append(row)
            truth += [{"subject": subject, "split": split, "parameter": p, "measured": v * rng.normal(1, e), "true": v, "source": source} for source, e in (("predicted map", .03), ("given mask", .005)) for p, v in row.items() if p in ("BV/TV (%)", "O.Th (um)", "MAR (um/d)", "MS/BS (%)", "OS/BS (%)")]
    sides = {name: measured_rows(rois, rng) for name in ("roi_parameters.csv", "roi_parameters_masks.csv")}
    rois, subjects = pd.DataFrame(rois), pd.DataFrame(subjects)
    tiles = pd.DataFrame([{"tile": f"{r.roi}:{y}:{x}:{kind}", "roi": r.roi, "subject": r.subject, "group": r.group, "modality": r.modality, "split": r.split, "x": x, "y": y, "kind": kind, "blank": False, "tissue_fraction": .5}
                          for r in rois.itertuples() for x, y, kind in ((0, 0, "nw"), (224, 0, "ne"), (0, 224, "sw"), (224, 224, "se"), (112, 112, "centre"))])
    place = {"brightfield": -4, "fluorescence": 4}; n = len(tiles); at = tiles["modality"].map(place).to_numpy()
    embeddings = tiles[["tile"]].assign(umap_x=at + rng.normal(0, 1, n), umap_y=rng.normal(0, 1, n), umap_random_x=at / 3 + rng.normal(0, 1, n), umap_random_y=rng.normal(0, 1, n))
    fall = np.exp(-np.arange(steps) / 40)
    measured = lambda value: np.where(np.arange(steps) % 5, np.nan, value)
    log = pd.DataFrame({"step": np.arange(1, steps + 1), "epoch": np.arange(steps) // 10, "loss": .5 + fall + rng.normal(0, .04, steps), "invariance": .2 + .5 * fall, "sigreg_ratio": 1.1 + 4 * fall, "rank_projection": measured(40 - 20 * fall),
                        "rank_backbone": measured(30 - 15 * fall), "spread_projection": measured(.95 - .2 * fall), "spread_least": measured(.8 - .5 * fall), "grad_norm": 1 + fall, "learning_rate": 5e-4 * fall, "images_per_s": 60 + rng.normal(0, 4, steps)})
    shown = [0, 5]; seen = (fall[::10][:, None, None, None] - fall[-1]) * np.ones((len(fall[::10]), 2, 7, 7))
    save_pictures(folder / "features/pretrain_tokens.npz", TokenPictures(np.array(shown), np.stack([draw(tiles["modality"][r], r, 112)[0] for r in shown]), np.arange(len(seen)), 10 * np.arange(len(seen)), (seen + (1 - seen) * 2 * rng.random((7, 7))).astype(np.float16), np.clip(255 * rng.random((len(seen), 2, 7, 7, 3)), 0, 255).astype(np.uint8)))
    heads = pd.concat([pd.DataFrame({"domain": d, "phase": "decoder", "step": np.arange(20, 301, 20), "loss": 1 / (1 + np.arange(15)), "val_dice": np.minimum(.92, .5 + np.arange(15) / 25)}) for d in place])
    names = {"brightfield": ("background", "mineralised bone", "osteoid", "tissue mean"), "fluorescence": ("background", "bone", "osteoid", "label", "tissue mean")}
    scores = pd.DataFrame([{"domain": d, "class": c, "score": s, "mean": m, "low": m - .04, "high": min(1, m + .03), "subjects": 3} for d, cs in names.items() for c in cs for s in SCORES for m in [rng.uniform(.78, .96)]])
    summary = [{"group": g, "parameter": p, "n": int(part[p].count()), "undefined": int(part[p].isna().sum()), "mean": part[p].mean(), "low": part[p].mean() - part[p].std(), "high": part[p].mean() + part[p].std(), "rough": True} for g, part in subjects.groupby("group") for p in subjects if p.endswith(")")]
    places = pd.DataFrame([{"subject": r.subject, "group": r.group, "split": r.split, "quantity": q, "value": rng.uniform(5, 30), "sd": 1.0, "low": np.nan, "high": np.nan, "basis": 1.0, "of": "mm of label", "ROIs": 1, "reason": ""} for r in subjects.itertuples() for q in LABELLED])
    errors = pd.DataFrame([{"source": s, "parameter": p, "n": len(part), "median error (%)": 1.2, "worst error (%)": 4.1, "bias (%)": -.1} for (s, p), part in pd.DataFrame(truth).groupby(["source", "parameter"])])
    intervals = pd.DataFrame([{"subject": r["subject"], "parameter": p, "value": r[p], "low": r[p] * .8, "high": r[p] * 1.2, "brightfield ROIs": 7, "fluorescence ROIs": 7 * (p[0] == "M"), "rough": r["subject"] == "low-01", "note": "only single labels were seen" if np.isnan(r[p]) else ""} for r in subjects.to_dict("records") for p in r if p.endswith(("(%)", "(um)", "/d)", "yr)", "(d)")) and p != "interval (d)"])
    per_roi = pd.concat([subjects.assign(domain="fluorescence", **{"BV/TV (%)": subjects["BV/TV (%)"] * rng.normal(1, .1, len(subjects))}) for _ in range(2)], ignore_index=True)
    cuts = read_cuts(); compared = {"neighbourhood_subjects.csv": places, "neighbourhood_groups.csv": summarise_groups(wide_places(places), parameters=list(LABELLED)), "neighbourhood_turnover.csv": associate(places, subjects),
                                         "subject_intervals.csv": intervals, "group_tests.csv": compare_groups(subjects), "mixed_models.csv": mixed_models(per_roi, ["BV/TV (%)", "O.Th (um)"]), "tmv.csv": classify_subjects(subjects, cuts, intervals), "tmv_cuts.csv": cuts}
    for name, table in compared.items(): write_table(t / name, table)
    doubt = pd.DataFrame([(r["subject"], p, r[p], .95 * r[p], 1.05 * r[p], 0., 6) for r in subjects.to_dict("records") for p in ("BV/TV (%)", "O.Th (um)", "MAR (um/d)") if np.isfinite(r[p])], columns=["subject", "parameter", "value", "low", "high", "shift", "draws"])
    grid = pd.DataFrame([(d, p, l, m, m - .02, m + .02, 3, .1, .05, .15, 200) for d in place for p, m in (("ours", .9), ("unet", .8)) for l in ("1", "2", "all")], columns=["domain", "peer", "labels", "mean", "low", "high", "seeds", "difference", "difference_low", "difference_high", "steps"])
    curves = pd.DataFrame([(d, o, n, m, m - .02, m + .02, 5, c, c / 15) for d in place for o, n, m, c in (("queue", 3, .7, 60), ("queue", 6, .85, 130), ("random", 3, .7, 60), ("random", 6, .75, 90), ("all", 48, .86, np.nan))], columns=["domain", "order", "rois", "mean", "low", "high", "seeds", "clicks", "minutes"])
    judged = pd.DataFrame([(d, 5, 5, .05, .01, .09, 3, .01, -.02, .04, .86, 6, np.nan, 48) for d in place], columns=["domain", "seeds", "wins", "difference", "low", "high", "wins_clicks", "difference_clicks", "low_clicks", "high_clicks", "all", "reached", "against_reached", "pool"])
    readers = pd.DataFrame([(n, 12, 1, 0, 90., 6.5, 9., 80., 4.5, 3, 2, c) for n, c in (("Reader A", 2), ("Reader B", 1), ("all", 3))], columns=READERS)
    reader_maps = pd.DataFrame([("Reader A", b, d, c, s, m, m - .03, m + .02, 4, 6) for b in ("Reader B", "model") for d in place for c, s, m in (("background", "dice", .98), ("osteoid", "dice", .84), ("all", "kappa", .9))], columns=["first", "second", *KEEP["agreement_maps"]])
    reader_parameters = pd.DataFrame([{"first": "Reader A", "second": b, "domain": d, **dict.fromkeys(AGREED), "parameter": p, "n": 6, "ICC": .93} for b in ("Reader B", "model") for d in place for p in ("BV/TV (%)", "OS/BS (%)")])
    sheet = pd.DataFrame([(d, c, "own", s, "tissue mean", v, v - .03, v + .02, .95 - v, 0., .1, 4, f, .1) for d in place for c, s, v, f in (("plain", np.nan, .95, 0.), ("fold", .33, .93, 0.), ("fold", 1., .8, 1.), ("pixel size x 2", np.nan, .9, .25))], columns=["domain", "case", "head", "severity", "class", "dice", "low", "high", "loss", "loss_low", "loss_high", "rois", "flagged", "abstained"])
    for name, table in {**sides, "segmentation_intervals.csv": doubt, "segmentation_range.csv": pd.DataFrame({"domain": ["brightfield", "fluorescence"], "range_um": [4., 8.], "ratio": [.9, 1.1], "ROIs": 3, "chosen": True}),
                        "segmentation_coverage.csv": pd.DataFrame({"parameter": ["BV/TV (%)"], "n": [3], "inside": [1.], "half width (%)": [5.]}), "label_efficiency_summary.csv": grid, "readers.csv": readers, "reader_maps.csv": reader_maps, "reader_parameters.csv": reader_parameters, "queue_benchmark_summary.csv": curves, "queue_benchmark_judged.csv": judged, "robustness_summary.csv": sheet, "rois.csv": rois, "tiles.parquet": tiles, "embeddings.parquet": embeddings, "pretrain_log.csv": log, "heads_log.csv": heads, "heads.csv": pd.DataFrame([[d, "background, bone", "micro 9e74370c", 400, 380, "blocks", .9, .92, .92, 1.1, 6, 300, 2, 32, 80.0] for d in names], columns=HEADS), "head_scores.csv": scores, "subject_parameters.csv": subjects, "subject_parameters_masks.csv": subjects, "truth_summary.csv": errors, "notes.csv": pd.DataFrame({"roi": [rois["roi"][0]], "field": ["image"], "note": ["greyscale, repeated to three channels"]}), "group_summary.csv": pd.DataFrame(summary),
                        "truth_comparison.csv": pd.DataFrame(truth), "label_stretches.csv": pd.DataFrame(stretches), "roi_segmentation.csv": pd.DataFrame(segmented),
                        "separation.csv": pd.DataFrame({"weights": ["pretrained", "random"], "feature": "cls", "domain_silhouette": [.62, .31], "knn_purity": [1.0, .97], "chance": .5, "tiles": 120}),
                        "router_scores.csv": pd.DataFrame([{"domain": d, "score": s, "mean": m, "low": np.nan, "high": np.nan, "subjects": 6, "tiles": 300} for d in ("all", *place) for s, m in (("right", .997), ("abstained", .003), ("wrong", 0.0))]),
                        "router_confusion.csv": pd.DataFrame({"truth": list(place), "brightfield": [298, 0], "fluorescence": [0, 120], "abstain": [2, 0]}),
                        "hard_cases.csv": pd.DataFrame({"group": ["hard"] * 4 + ["third domain"], "case": ["grey brightfield", "padded brightfield", "saturated fluorescence", "all: hard", "all: third domain"], "tiles": 60, "right": [.5, .97, .9, .8, 0.0], "abstained": [.48, .03, .07, .18, .9], "wrong": [.02, 0, .03, .02, .1]})}.items(): write_table(t / name, table)
    (folder / "manifest.yaml").write_text(yaml.safe_dump({"name": "synthetic", "section": "none", "labels": {"dosing_days": [[1, 2, 3], [16, 17, 18]]}}))
    write_json(folder / "run.json", {"name": folder.name, "profile": "demo", "created": "2026-01-01T00:00:00+00:00", "manifest": "data_manifest.yaml", "manifest_digest": "0" * 64, "commit": "abc1234", "machine": {"processor": "a processor", "cores": 2, "device": "cpu", "packages": {"torch": "2.0", "numpy": "2.0"}},
                                     "parameters": {"pretrain": {"run": str(folder), "steps": steps, "seed": 0}, "heads": {"steps": 300}}, "steps": {n: {"state": "done", "seconds": s, "started": "2026-01-01T00:00:00+00:00"} for n, s in (("inventory", 2.1), ("tile", 8.4), ("pretrain", 140.0), ("heads", 95.2))} | {"report": {"state": "running"}}})
    return folder
