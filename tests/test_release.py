"""A study is given away without names: planted in every place that is known to hold them, none is found afterwards; pixels, sizes, intervals, splits and maps stay."""
import base64
import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tifffile
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from bonehisto.bare_images import write_png
from bonehisto.cli import release
from bonehisto.contact_sheets import small_picture
from bonehisto.decoder import create_decoder
from bonehisto.encoder import create_encoder, save_encoder
from bonehisto.files import UserError, file_digest, read_json, read_table, write_json, write_table
from bonehisto.image_formats import image_facts
from bonehisto.images import UNLABELLED, read_ids, read_image, read_mask, write_mask
from bonehisto.inventory import inventory, require_readable
from bonehisto.label_patches import patch_from
from bonehisto.manifest import load_manifest, save_manifest
from bonehisto.model import load_model
from bonehisto.provenance import data_digest
from bonehisto.pseudonyms import pseudonym, read_key
from bonehisto.recipe import STEPS, notebook_path, resolve_parameters
from bonehisto.record import Record
from bonehisto.release import release_study
from bonehisto.router import Router
from bonehisto.splits import split_subjects
from bonehisto.tiling import tile_study
from bonehisto.trained_head import Head, encoder_digest
from written_study import STUDY, write_study

pytest.importorskip("mlcroissant", reason="a release needs mlcroissant: pip install 'bonehisto[release]'")
pytestmark = pytest.mark.usefixtures("one_thread")
SECRETS = []


def secret(where):
    "A word that stands nowhere else, and must not after the release."
    word = f"Zq{where.capitalize()}yx"
    if word not in SECRETS: SECRETS.append(word)
    return word


SUBJECT = {f"S{i}": f"{secret('subject')}{i}" for i in range(6)}
rng = np.random.default_rng(1)


def draw(*shape, top=256, dtype=np.uint8): return rng.integers(0, top, shape).astype(dtype)


def plant_images(folder, rois):
    "The study's images in every format, each with words where its format has room for them."
    info = PngInfo(); info.add_text("Patient", secret("pngtext")); info.add_text("Slide", secret("zipped") * 30, zip=True); info.add_itxt("Ort", secret("itxt"))
    exif = Image.Exif(); exif[315] = secret("exif"); exif[36867] = "2021:03:04 05:06:07"
    label = np.frombuffer(secret("labelimage").encode() * 64, np.uint8)[:768].reshape(16, 48)
    for k, roi in enumerate(rois):
        old = folder / roi["image"]; pixels = np.array(Image.open(old)); new = old
        if k == 0: new = old.with_suffix(".jpg"); Image.fromarray(pixels).save(new, exif=exif, comment=secret("comment").encode())
        elif k == 1: write_png(new, draw(48, 64, 3, top=65536, dtype=np.uint16))
        elif k == 2:
            new = old.with_suffix(".tif")
            with tifffile.TiffWriter(new) as tif:
                tif.write(draw(48, 64, top=4096, dtype=np.uint16), description=secret("description"), software=secret("software"), datetime="2021:03:04 05:06:07", extratags=[(315, "s", 0, secret("artist"), True), (281, "H", 1, 4095, True)], metadata=None)
                tif.write(label, subfiletype=1, metadata=None)
        elif k == 3: new = old.with_suffix(".ome.tif"); tifffile.imwrite(new, pixels, metadata={"axes": "YXS", "Name": secret("ome"), "Description": secret("omewords")}, photometric="rgb")
        elif k == 4: Image.fromarray(pixels).quantize(64).save(new, pnginfo=info)
        elif k == 5: new.write_bytes(old.read_bytes() + secret("trailing").encode())
        elif k == 6: new = old.with_suffix(".tif"); tifffile.imwrite(new, draw(48, 64), photometric="miniswhite", description=secret("white"))
        else: Image.fromarray(pixels).save(new, pnginfo=info, exif=exif)
        if new != old: old.unlink()
        roi["image"] = new.relative_to(folder).as_posix()
    mask = folder / rois[0]["mask"]
    palette = Image.fromarray(np.array(Image.open(mask))).convert("P"); palette.putdata(np.array(Image.open(mask)).ravel().tolist()); palette.save(mask, pnginfo=info)


def plant_shapes(folder, roi):
    "Annotations and a polygon with names in every property."
    def feature(kind, at, name, **more): return {"type": "Feature", "id": secret("featureid"), "geometry": {"type": kind, "coordinates": at}, "properties": {"name": secret("property"), "classification": {"name": name}, "metadata": {"by": secret("metadata")}}} | more
    write_json(folder / "marks.geojson", {"type": "FeatureCollection", "author": secret("author"), "features": [feature("Point", [5, 6], "osteoblast"), feature("Point", [7, 8], secret("classname"))]})
    write_json(folder / "frame.geojson", feature("Polygon", [[[1, 1], [60, 1], [60, 40], [1, 40], [1, 1]]], "frame"))
    roi |= {"annotations": "marks.geojson", "polygon": "frame.geojson"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of a study full of names, as its steps leave it; nothing of it is trained."
    home = tmp_path_factory.mktemp("release") / secret("folder"); folder = home / secret("study")
    def rename(study):
        study |= {"name": secret("name"), "truth": "truth.csv", "labels": {"dosing_days": [[45012, 45013], [45027, 45028]]}}
        for s in study["subjects"]:
            s |= {"covariates": {"remark": f"fell in {secret('remark')}, see Dr {secret('doctor')}", "born": "1950-01-02", "biopsied": "2021-03-04", "embedded": "2021-03-09", "sex": "f", "batch": 1}, "id": SUBJECT[s["id"]]}
        study["subjects"][3]["dosing_days"] = [[45100], [45110]]; study["subjects"][4]["dosing_days"] = "none"
        for k, r in enumerate(study["rois"]): r |= {"id": f"{SUBJECT[r['subject']]}_{secret('roi')}_{k}", "subject": SUBJECT[r["subject"]]}
        plant_images(folder, study["rois"]); plant_shapes(folder, study["rois"][0])
        study["rois"][5]["pixel_size_um"] = "unknown"; del study["rois"][7]["modality"], study["rois"][7]["mask"]
    path = write_study(folder, rename)
    write_table(folder / "truth.csv", pd.DataFrame({"subject": list(SUBJECT.values()), "BV/TV (%)": 12.5, "remark": secret("truthremark")}))
    plant_labels(load_manifest(path))
    return finish(home / secret("run"), path)


def plant_labels(study):
    "Two readers of one ROI, a third whose map is the mask of another."
    roi, other = study.rois[2], study.rois[8]
    for who in (secret("annotator") + " Müller", secret("second")):
        record = Record(study.label_folder, roi.id, who, roi.image, study.class_table(roi.modality), roi.pixel_size_um, domain=roi.modality)
        ink = np.zeros((48, 64), bool); ink[5:20, 8:30] = True
        record.add("paint", [patch_from(ink, 1)], cls=1, tool="brush", seconds=1.5, note=secret("note"))
        record.add("point", marks=[{"type": "point", "key": f"{secret('markkey')}-1", "cls": "osteoblast", "x": 3, "y": 4}], tool="point")
        record.add("import", [patch_from(~ink, 2)], tool="import", file=f"{secret('importfile')}.geojson", model=f"/home/{secret('modelpath')}")
        record.undo(); record.add("done"); record.close()
    record = Record(study.label_folder, other.id, secret("annotator") + " Müller", other.image, study.class_table(other.modality), other.pixel_size_um)
    record.add("paint", [patch_from(np.tri(48, 64) > 0, UNLABELLED)], cls=UNLABELLED); record.add("done"); record.close()
    write_mask(study.label_folder / f"{other.id}.png", record.map)
    (study.label_folder / other.id / "x.torn-1").write_text(secret("torn"))


def finish(run, path):
    "What inventory, tile and the training steps would leave in a run folder."
    study = load_manifest(path); save_manifest(study, run / "manifest.yaml"); study = load_manifest(run / "manifest.yaml")
    splits, _ = split_subjects(study, 0); rois, _, problems = inventory(study, splits); assert not problems
    write_table(run / "tables/splits.csv", splits); write_table(run / "tables/rois.csv", rois); write_table(run / "tables/tiles.parquet", tile_study(rois, run / "tiles.npy", 64, 32))
    write_table(run / "tables/subject_parameters.csv", pd.DataFrame({"subject": list(SUBJECT.values()), "BV/TV (%)": 12.}))
    write_table(run / "tables/reader_maps.csv", pd.DataFrame([{"first": secret("annotator") + " Müller", "second": secret("second"), "domain": "brightfield", "class": "osteoid", "score": "dice", "mean": .9, "low": .8, "high": 1., "subjects": 1, "rois": 1}]))
    write_table(run / "tables/head_scores.csv", pd.DataFrame([{"domain": "brightfield", "class": "osteoid", "score": "dice", "mean": .91, "low": .85, "high": .97, "subjects": 2}]))
    data_digest([p for r in study.rois for p in (r.image, r.mask, r.polygon, r.annotations) if p], run / "log/digests.json"); (run / "log/tile.log").write_text(secret("log"))
    parameters = resolve_parameters("demo", [])
    parameters["compare"]["cuts"] = f"/home/{secret('cuts')}.csv"; parameters["tile"]["run"] = f"/home/{secret('runpath')}"
    write_json(run / "run.json", {"name": secret("runname"), "profile": "demo", "created": "2024-05-31T08:15:00+00:00", "manifest": str(path), "commit": "0123abcd4567", "machine": {"processor": "a processor", "cores": 2, "packages": {"bonehisto": "0.1.0"}, "host": secret("host")}, "parameters": parameters,
                                  "labels": {r.id: "0" for r in study.rois}, "steps": {"tile": {"state": "done", "seconds": 2.5, "started": "2024-05-31T08:15:00+00:00", "reason": secret("reason"), "outputs": {f"masks/{study.rois[0].id}.png": 3}}}})
    page = json.loads(notebook_path(STEPS[1]).read_text())
    page["cells"] += [{"cell_type": "code", "metadata": {"tags": ["injected-parameters"], "papermill": {"start_time": "2024-05-31T08:15:00"}}, "source": [f"run = '/home/{secret('injected')}'"], "outputs": [{"output_type": "stream", "name": "stdout", "text": [secret("output")]}], "execution_count": 1},
                      {"cell_type": "markdown", "metadata": {}, "source": [f"As {secret('cell')} said"]}]
    page["metadata"]["papermill"] = {"input_path": f"/home/{secret('papermill')}"}; write_json(run / "notebooks" / STEPS[1].notebook, page)
    encoder = create_encoder("micro").eval(); save_encoder(encoder, run / "checkpoints/encoder.safetensors", {"weights": f"/home/{secret('weights')}", "steps": 3})
    save_file(load_file(run / "checkpoints/encoder.safetensors"), run / "checkpoints/encoder.safetensors", {"by": secret("header")})
    x = rng.normal(size=(24, 8)) + np.repeat([[0.], [5.]], 12, 0)
    router = Router.fit(x, np.repeat(["brightfield", "fluorescence"], 12), np.tile(list(SUBJECT.values()), 4), extra={"encoder": file_digest(run / "checkpoints/encoder.safetensors")})
    router.notes = [secret("routernote")]; router.save(run / "checkpoints/router.safetensors")
    classes = [c.model_dump() for c in study.class_table("brightfield")]
    Head(create_decoder(encoder, 3, seed=0).eval(), "brightfield", classes, "micro", encoder_digest(encoder), 1.1, {"train_subjects": [SUBJECT["S0"]], "val_subjects": [SUBJECT["S1"]], "val_dice": .9, "steps": 3, "train_tiles": 5, "val_tiles": 5, "pixel_size_um": .5, "by": secret("headfact")}).save(run / "checkpoints/head_brightfield")
    return run


def made(run, out, key, keep=("biopsied", "embedded", "sex"), **more):
    "Both calls of the command."
    with pytest.raises(UserError, match="look at"): release_study(run, out, "CC-BY-4.0", key, keep, **more)
    return release_study(run, out, "CC-BY-4.0", key, keep, looked_at=True, say=lambda line: None, **more)


@pytest.fixture(scope="module")
def out(run): return made(run, run.parent / "bones", run.parent / "bones.key")


@pytest.fixture(scope="module")
def pairs(run, out):
    "Each ROI of the study with the same ROI of the release."
    key = read_key(run.parent / "bones.key", out); new = {r.id: r for r in load_manifest(out).rois}
    return [(r, new[pseudonym(key, "roi", r.id)]) for r in load_manifest(run / "manifest.yaml").rois]


def everything_in(path):
    "All that a file says, packed parts unpacked."
    data = path.read_bytes(); parts = [data, str(path.name).encode()]
    if path.suffix == ".parquet": t = pq.read_table(path); parts.append((str(t.to_pydict()) + str(t.schema.metadata)).encode())
    if path.suffix == ".png":
        for m in re.finditer(rb"(IDAT|zTXt|iTXt|iCCP)", data):
            try: parts.append(zlib.decompressobj().decompress(data[m.end():].split(b"\0\0", 1)[-1] if m[1] != b"IDAT" else data[m.end():]))
            except zlib.error: pass
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as tif: assert len(tif.pages) == 1; parts += [str([t.value for t in tif.pages[0].tags]).encode(), tif.pages[0].asarray().tobytes()]
    if path.suffix in (".json", ".jsonl", ".geojson", ".ipynb"):
        lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
        parts += [json.dumps(json.loads(line), ensure_ascii=False).encode() for line in lines]
        parts += [zlib.decompress(base64.b64decode(b)) for b in re.findall(r'"bits": ?"([^"]+)"', data.decode())]
    return b"\n".join(parts)


def test_no_planted_name_is_left(run, out):
    assert len(SECRETS) > 45
    everything = {p: everything_in(p) for p in out.rglob("*") if p.is_file()} | {p: p.name.encode() for p in out.rglob("*") if p.is_dir()}
    sought = [w.lower() for w in (*(s.encode() for s in SECRETS), "Müller".encode(), b"M\\u00fcller", b"2021-03", b"2021:03", b"1950-01", b"2024-05", b"45012", b"45100", str(run.parent).encode())]
    found = [(p.relative_to(out).as_posix(), w) for p, data in everything.items() for low in [data.lower()] for w in sought if w in low]
    assert not found
    assert (run.parent / "bones.key").read_text().strip().encode() not in b"".join(everything.values())


def test_the_programs_own_notebooks_name_no_subject():
    """A name of a drawn study in an example would look like a leak when that study is released."""
    from bonehisto.recipe import EXTRAS, STEPS, notebook_path
    import re
    for step in (*STEPS, *EXTRAS): assert not re.search(r"S\d\d_|\bS\d\d\b", notebook_path(step).read_text()), step.name


def test_the_report_names_places_and_no_values(run, out):
    report = (run.parent / "bones_report/removed.csv").read_text()
    assert not [s for s in SECRETS if s in report]
    for what in ("EXIF Artist", "JPEG COM", "PNG tEXt", "PNG zTXt", "OME-XML", "TIFF DateTime", "further pages", "bytes behind the end", "covariate `remark`", "event logs: annotator", "GeoJSON: names", "notebooks: outputs", "run.json"): assert what in report, what
    inside = (out / "removed.json").read_text()
    assert "remark" not in inside and read_json(out / "removed.json")["covariates"] == 3 * 6


def test_pixels_sizes_and_intervals_stay(run, out, pairs):
    old, new = load_manifest(run / "manifest.yaml"), load_manifest(out)
    for a, b in pairs:
        assert (read_image(a.image).pixels == read_image(b.image).pixels).all() and image_facts(a.image).bits == image_facts(b.image).bits
        assert (a.pixel_size_um, a.modality) == (b.pixel_size_um, b.modality) and old.interval_days(a.subject) == new.interval_days(b.subject)
        assert (a.mask is None) == (b.mask is None) and (a.mask is None or (read_ids(a.mask, []) == read_ids(b.mask, [])).all())
    deep = next(b.image for a, b in pairs if a.id.endswith("_1")); assert image_facts(deep).bits == 16
    with Image.open(pairs[-1][1].image) as im: assert round(25400 / im.info["dpi"][0], 3) == 0.5
    with tifffile.TiffFile(pairs[2][1].image) as tif: assert tif.pages[0].get_resolution()[0] == 20000
    assert not list(out.rglob("*.jpg"))


def test_the_release_loads_back(run, out):
    new = load_manifest(out / "data_manifest.yaml"); require_readable(new)
    rois, _, problems = inventory(new, split_subjects(new)[0])
    assert not problems and new.released and new.name == "bones" and len(rois) == 12
    old = read_table(run / "tables/rois.csv"); key = read_key(run.parent / "bones.key", out)
    assert dict(zip(rois["roi"], rois["split"])) == {pseudonym(key, "roi", r): s for r, s in zip(old["roi"], old["split"])}
    tiles = read_table(out / "tables/tiles.parquet"); before = read_table(run / "tables/tiles.parquet")
    assert set(tiles["roi"]) == set(rois["roi"]) and len(tiles) == len(before) and tiles["tile"].str.startswith("R").all() and sorted(tiles["tissue_fraction"]) == sorted(before["tissue_fraction"])
    assert list(read_table(new.truth)) == ["subject", "BV/TV (%)"]
    dates = [s.covariates for s in new.subjects]
    assert all(set(c) == {"biopsied", "embedded", "sex"} and (pd.Timestamp(c["embedded"]) - pd.Timestamp(c["biopsied"])).days == 5 for c in dates) and len({c["biopsied"] for c in dates}) > 1
    assert {s.group for s in new.subjects} == {"low", "high"}


def test_labels_are_the_same_by_hashed_hands(run, out, pairs, tmp_path):
    shutil.copytree(out / "labels", tmp_path / "labels")  # going on with a record writes beside it
    old, new = load_manifest(run / "manifest.yaml"), load_manifest(out)
    names = {Path(p).stem for p in (out / "labels").glob("*/*.jsonl")}
    assert len(names) == 2 and all(re.fullmatch("A[0-9a-f]{12}", n) for n in names) and len(new.labelled) == 1
    a, b = pairs[2]; logs = sorted((out / "labels" / b.id).glob("*.jsonl")); assert len(logs) == 2
    for log in logs:
        again = Record(tmp_path / "labels", b.id, log.stem, b.image, new.class_table(b.modality), b.pixel_size_um, write=True)
        twin = Record(old.label_folder, a.id, secret("second"), write=False)
        assert not again.why and (again.map == twin.map).all() and [m["cls"] for m in again.marks] == ["osteoblast"] and again.finished; again.close()
    c, d = pairs[8]
    assert (read_mask(d.mask, new.class_table(d.modality), unlabelled=True) == UNLABELLED).any() and d.mask.parent == new.label_folder
    gaps = lambda events: np.diff([pd.Timestamp(e["time"]).value for e in events])
    mine = Record(old.label_folder, a.id, secret("second"), write=False).events()
    assert any((gaps(mine) == gaps([json.loads(x) for x in log.read_text().splitlines()])).all() for log in logs if len(log.read_text().splitlines()) == len(mine))


def test_models_work_and_every_checkpoint_has_a_card(run, out):
    model, before = load_model(out / "models"), load_model(run)
    assert all((a == b).all() for a, b in zip(model.encoder.vit.state_dict().values(), before.encoder.vit.state_dict().values())) and list(model.heads) == ["brightfield"]
    for weights in (out / "models/checkpoints").glob("*.safetensors"):
        card = weights.with_suffix(".md").read_text()
        assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0" and file_digest(weights) in card
        assert all(f"## {h}" in card for h in ("Data", "Training", "Scores", "Limits")) and "no diagnosis" in card
    assert "0.910 (0.850-0.970)" in (out / "models/checkpoints/head_brightfield.md").read_text()


def test_datasheet_and_checksums(out):
    sheet = (out / "README.md").read_text()
    assert "CC-BY-4.0" in sheet and "0.900 (0.800-1.000)" in sheet and "say nothing of how bone was taken" in sheet
    assert "11 of 12 ROIs have a mask; 1 of them were made in the program's annotator" in sheet
    for line in (out / "SHA256SUMS").read_text().splitlines(): assert file_digest(out / line[66:]) == line[:64]
    assert len((out / "SHA256SUMS").read_text().splitlines()) == sum(p.is_file() for p in out.rglob("*")) - 1


def test_croissant_is_valid_and_gives_records(out):
    import mlcroissant
    data = mlcroissant.Dataset(str(out / "croissant.json"))
    assert not data.metadata.ctx.issues.errors and data.metadata.license == ["CC-BY-4.0"]
    records, masks = list(data.records("images_of_rois")), [r for r in data.records("masks_of_rois") if r["masks_of_rois/mask"] is not None]
    assert len(records) == 12 and all(r["images_of_rois/image"].size == (64, 48) for r in records) and {r["images_of_rois/split"] for r in records} == {b"train", b"val", b"test"}
    assert len(masks) == 11 and {r["masks_of_rois/roi"] for r in masks} < {r["images_of_rois/roi"] for r in records}


def test_hugging_face_reads_it_as_an_image_folder(out, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = {s: [json.loads(line) for line in (out / f"data/{s}/metadata.jsonl").read_text().splitlines()] for s in ("train", "val", "test")}
    assert all((out / "data" / s / r["file_name"]).is_file() and r["mask_file_name"] in (None, *[p.relative_to(out / "data" / s).as_posix() for p in (out / "data" / s / "masks").iterdir()]) for s, part in rows.items() for r in part)
    datasets = pytest.importorskip("datasets", reason="the layout was checked, loading it needs the package datasets")
    for found in (datasets.load_dataset("imagefolder", data_dir=str(out / "data"), cache_dir=str(tmp_path / "a")), datasets.load_dataset(str(out), cache_dir=str(tmp_path / "b"))):
        assert {k: len(v) for k, v in found.items()} == {"train": len(rows["train"]), "validation": len(rows["val"]), "test": len(rows["test"])}
        one = found["test"][0]
        assert one["image"].size == (64, 48) and {"mask", "roi", "subject", "group"} <= one.keys() and (one["mask"] is None or one["mask"].size == (64, 48))


def test_the_same_key_gives_the_same_hashes_and_another_others(run, out, tmp_path):
    again, other = made(run, tmp_path / "bones", run.parent / "bones.key"), made(run, tmp_path / "others", tmp_path / "other.key")
    assert (tmp_path / "other.key").stat().st_mode & 0o777 == 0o600
    names = lambda folder: {p.name for p in folder.glob("data/*/images/*")}
    assert names(again) == names(out) and not names(other) & names(out)
    same = {p.relative_to(out) for p in out.rglob("*") if p.is_file() and p.read_bytes() == (again / p.relative_to(out)).read_bytes()}
    assert len(same) == sum(p.is_file() for p in out.rglob("*"))


def left_behind(folder): return sorted(p.name for p in folder.iterdir() if not p.name.endswith(("_report", ".key")))


def test_what_is_refused_leaves_nothing(run, out, tmp_path, monkeypatch):
    go = lambda name="bones", licence="CC-BY-4.0", key="k.key", keep=(), **more: release_study(run, tmp_path / name, licence, tmp_path / key, keep, say=lambda line: None, **more)
    for told, match in (({"licence": ""}, "--licence"), ({"key": "bones/k.key"}, "given away"), ({"name": "my bones"}, "name of the data set"), ({"looked_at": True}, "no contact sheets"), ({"about": tmp_path / "none.md"}, "no such file")):
        with pytest.raises(UserError, match=match): go(**told)
    with pytest.raises(UserError, match="is there already"): release_study(run, out, "CC-BY-4.0", tmp_path / "k.key")
    with pytest.raises(UserError, match="look at the sheet"): go()
    with pytest.raises(UserError, match="--keep brn: no subject has it: known: batch, biopsied, born"): go(keep=["brn"], looked_at=True)
    (tmp_path / "about.md").write_text(f"Sections of {SUBJECT['S3']}.")
    with pytest.raises(UserError, match="README.md: 1 time: a name that the study knows"): go(looked_at=True, about=tmp_path / "about.md")
    (tmp_path / "k.key").chmod(0o644)
    with pytest.raises(UserError, match="others may read it"): go(looked_at=True)
    (tmp_path / "k.key").chmod(0o600); (tmp_path / "about.md").unlink()
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr("bonehisto.release.leaks", stop)
    with pytest.raises(KeyboardInterrupt): go(looked_at=True)
    assert left_behind(tmp_path) == []


def test_changed_images_and_dates_in_another_form_are_refused(run, tmp_path):
    copy = tmp_path / "run"; shutil.copytree(run, copy)
    known = read_json(copy / "log/digests.json"); first = next(iter(known)); known[first][2] = "0" * 64; write_json(copy / "log/digests.json", known)
    with pytest.raises(UserError, match="changed since the run"): release_study(copy, tmp_path / "bones", "CC-BY-4.0", tmp_path / "k.key")
    shutil.copy(run / "log/digests.json", copy / "log/digests.json")
    (copy / "manifest.yaml").write_text((copy / "manifest.yaml").read_text().replace("2021-03-04", "4.3.2021"))
    with pytest.raises(UserError, match="look at"): release_study(copy, tmp_path / "bones", "CC-BY-4.0", tmp_path / "k.key")
    with pytest.raises(UserError, match="covariate `biopsied` holds a date"): release_study(copy, tmp_path / "bones", "CC-BY-4.0", tmp_path / "k.key", ["biopsied"], looked_at=True)
    shutil.rmtree(copy / "tables")
    with pytest.raises(UserError, match="holds no tables/rois.csv"): release_study(copy, tmp_path / "bones", "CC-BY-4.0", tmp_path / "k.key")


def test_contact_sheets_show_every_image_and_name_none(run, out):
    sheets = run.parent / "bones_report/contact_sheets"
    assert len(list(sheets.glob("*.jpg"))) == 1 and not [s for s in SECRETS if s in str(sorted(sheets.iterdir())).replace(str(sheets), "")]
    assert small_picture(load_manifest(out).rois[0].image, 600).shape == (48, 64, 3)


@pytest.mark.parametrize("change, match", [
    (lambda s, d: s.update(data_root=".."), "data_root is ..: a path with"), (lambda s, d: s.update(data_root=str(d)), "an absolute path"),
    (lambda s, d: s["rois"][0].update(image="../../secret.png"), r"rois\[0\].image is ../../secret.png: a path with"),
    (lambda s, d: s["rois"][1].update(mask=r"..\masks\a.png"), r"rois\[1\].mask"), (lambda s, d: s["rois"][0].update(image="C:\\a.png"), "an absolute path"),
    (lambda s, d: s.update(rois="../rois.csv"), "rois is ../rois.csv"), (lambda s, d: s.update(label_folder="~/labels"), "label_folder"),
    (lambda s, d: (d / "masks/S1_f.png").unlink() or (d / "masks/S1_f.png").symlink_to("/etc/hostname"), "masks/S1_f.png: is a link that leads out"),
    (lambda s, d: (d / "labels").symlink_to(d.parent), "labels: is a link")])
def test_a_released_or_received_manifest_stays_in_its_folder(tmp_path, change, match):
    path = write_study(tmp_path / "got", lambda s: change(s, tmp_path / "got"))
    with pytest.raises(UserError, match=match): load_manifest(path, received=True)
    path.write_text("released: true\n" + path.read_text())
    with pytest.raises(UserError, match=match): load_manifest(path)


def test_a_released_manifest_may_name_what_lies_beside_it(tmp_path):
    path = write_study(tmp_path / "got", lambda s: s.update(released=True, data_root="."))
    (tmp_path / "got/again.png").symlink_to(tmp_path / "got/images/S0_b.png")
    assert len(load_manifest(path).rois) == 12 and "released:" not in save_manifest(load_manifest(path), tmp_path / "run/manifest.yaml").read_text()


def test_the_command_says_what_it_wrote(run, tmp_path, capsys):
    call = lambda looked: release(run, tmp_path / "bones", "https://example.org/licence", tmp_path / "k.key", None, None, looked)
    with pytest.raises(UserError, match="look at the sheet"): call(False)
    (tmp_path / ".bones.part").mkdir(); (tmp_path / ".bones.part/half").write_text("of a call that was killed")
    call(True)
    assert not (tmp_path / "bones/half").exists() and left_behind(tmp_path) == ["bones"]
    said = capsys.readouterr().out
    assert "12 ROIs of 6 subjects" in said and "keep" in said and yaml.safe_load((tmp_path / "bones/README.md").read_text().split("---")[1])["license_link"] == "https://example.org/licence"


@pytest.mark.slow
def test_the_first_steps_of_a_run_take_the_release(out, tmp_path):
    from bonehisto.pipeline import run_study
    assert run_study(out / "data_manifest.yaml", tmp_path / "run", "demo", steps=["inventory", "tile"])
    assert set(read_table(tmp_path / "run/tables/rois.csv")["roi"]) == set(read_table(out / "tables/rois.csv")["roi"])
