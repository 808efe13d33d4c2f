"""Writes the manifest of the dsb2018 nuclei (two real domains) from the data set's own index.

    python tests/manifests/dsb2018.py runs/dsb2018.yaml

Each image is a subject of its own. The data set's fixed val split is our test split; our val is carved from its train
by seed, per domain (its index tells colour from grey brightfield; both are brightfield here). The pixel size was never published.
"""
import argparse
import csv
from pathlib import Path

import numpy as np
import yaml

DATA = Path(__file__).parents[3] / "shared" / "data" / "dsb2018"
CLASSES = [{"id": 0, "name": "background", "colour": "#000000"}, {"id": 1, "name": "nucleus", "colour": "#e07b39"}]


def carve_val(rows, fraction, seed):
    """Ids of the training images that become val: this fraction of each domain's, at least one."""
    rng, chosen = np.random.default_rng([seed, 2018]), set()
    for domain in sorted({r["domain"] for r in rows}):
        ids = sorted(r["id"] for r in rows if r["domain"] == domain and r["split"] == "train")
        chosen |= set(rng.choice(ids, max(1, round(len(ids) * fraction)), replace=False).tolist())
    return chosen


def write_dsb2018(out, data=DATA, val_fraction=0.15, seed=0):
    """Writes the manifest and returns its path."""
    data, out = Path(data).resolve(), Path(out)
    with open(data / "index.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    val = carve_val(rows, val_fraction, seed)
    rois = [{"image": f"images/{r['id']}.png", "subject": r["id"], "modality": r["domain"].split("_")[0], "mask": f"labels/{r['id']}.png", "pixel_size_um": "unknown",
             "split": "test" if r["split"] == "val" else "val" if r["id"] in val else "train"} for r in rows]
    study = {"name": "dsb2018", "data_root": str(data), "masks": "instances", "classes": {"brightfield": CLASSES, "fluorescence": CLASSES},
             "subjects": [{"id": r["id"]} for r in rows], "rois": rois}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(yaml.dump(study, Dumper=_Plain, sort_keys=False))
    return out


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", help="manifest to write")
    parser.add_argument("--data", default=DATA, help="folder of the data set")
    parser.add_argument("--val-fraction", type=float, default=0.15, help="of its training images")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    print(f"wrote {write_dsb2018(a.out, a.data, a.val_fraction, a.seed)}")
