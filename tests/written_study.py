"""A small study on disk that tests spoil in one place at a time."""
import copy

import numpy as np
import yaml
from PIL import Image

STUDY = {
    "name": "small",
    "labels": {"dosing_days": [[1, 2, 3], [16, 17, 18]]},
    "subjects": [{"id": f"S{i}", "group": "low" if i < 3 else "high"} for i in range(6)],
    "rois": [{"image": f"images/S{i}_{m[0]}.png", "subject": f"S{i}", "modality": m, "pixel_size_um": 0.5, "mask": f"masks/S{i}_{m[0]}.png"}
             for i in range(6) for m in ("brightfield", "fluorescence")],
}


def write_study(folder, change=None):
    """Writes images, masks and a manifest of six subjects; `change(study)` may alter the manifest's content first."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for roi in STUDY["rois"]:
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / roi["image"])
        Image.fromarray(rng.integers(0, 3, (48, 64), dtype=np.uint8)).save(folder / roi["mask"])
    study = copy.deepcopy(STUDY)
    if change:
        change(study)
    (folder / "data_manifest.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return folder / "data_manifest.yaml"
