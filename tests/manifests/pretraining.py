"""Writes the manifest of the images that the shipped weights were pretrained on: a drawn study, and real images beside it.

    bonehisto phantom data/pretraining --subjects 52 --rois 8 --fluorescence-rois 3 --seed 1
    python tests/manifests/pretraining.py data/pretraining/data_manifest.yaml runs/pretraining.yaml

Real images have no modality here, so that `pretrain.limit`, which counts by modality, chooses among the drawn tiles alone.
The val split of dsb2018, on which results are reported, stays out.
"""
import argparse
import csv
from pathlib import Path

import yaml

REAL = Path(__file__).parents[3] / "shared" / "data"


def real_images(data):
    """Paths of the real images, by data set."""
    with open(data / "dsb2018" / "index.csv", newline="") as f:
        nuclei = [data / "dsb2018" / "images" / f"{r['id']}.png" for r in csv.DictReader(f) if r["split"] == "train"]
    rest = {name: sorted(p for p in (data / name).rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".tif") and "label" not in str(p.parent).lower() and "mask" not in str(p).lower())
            for name in ("trichrome_heart", "osteosarcoma_he")}
    return {"dsb2018": nuclei, **rest}


def write_pretraining(phantom, out, data=REAL):
    """Writes the manifest and returns its path; without `data` it holds the drawn study alone."""
    phantom, out = Path(phantom).resolve(), Path(out)
    study = yaml.safe_load(phantom.read_text())
    study = {"name": "pretraining", "section": "none", "labels": study["labels"], "subjects": study["subjects"],
             "rois": [{k: v for k, v in r.items() if k != "mask"} | {"image": str(phantom.parent / r["image"])} for r in study["rois"]]}
    for name, paths in (real_images(Path(data).resolve()) if Path(data).is_dir() else {}).items():
        study["subjects"].append({"id": name})
        study["rois"] += [{"id": f"{name}_{p.stem}", "image": str(p), "subject": name, "pixel_size_um": "unknown"} for p in paths]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(yaml.safe_dump(study, sort_keys=False))
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("phantom", help="manifest of the drawn study")
    parser.add_argument("out", help="manifest to write")
    parser.add_argument("--data", default=REAL, help="folder of the real images")
    a = parser.parse_args()
    print(f"wrote {write_pretraining(a.phantom, a.out, a.data)}")
