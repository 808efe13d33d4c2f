"Maps of whole ROIs: size, memory, routing, parts that do not fit."
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bonehisto.decoder import create_decoder
from bonehisto.encoder import create_encoder, save_encoder
from bonehisto.fan_out import set_aside
from bonehisto.files import UserError
from bonehisto.images import image_size, read_mask
from bonehisto.pixel_size import file_pixel_size
from bonehisto.rescale import resample_image
from bonehisto.router import Router
from bonehisto.model import Model, encode_tiles, load_model
from bonehisto.segment import segment_roi
from bonehisto.segment_study import segment_files, segment_many, segment_together
from bonehisto.tiling import tile_roi
from bonehisto.trained_head import Head, encoder_digest

CLASSES = [{"id": i, "name": n, "colour": c} for i, (n, c) in enumerate((("ground", "#000000"), ("bone", "#00ff00"), ("label", "#ffff00")))]


def texture(height, width, seed, low, high):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(low, high, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return (np.kron(coarse, np.ones((16, 16, 1), np.uint8))[:height, :width] + rng.integers(0, 9, (height, width, 3), dtype=np.uint8)).astype(np.uint8)


PALE, DARK = (150, 240), (5, 90)


@pytest.fixture(scope="module")
def model():
    encoder = create_encoder("micro").eval()
    heads = {d: Head(create_decoder(encoder, 3, seed=s).eval(), d, CLASSES, "micro", encoder_digest(encoder)) for s, d in enumerate(("brightfield", "fluorescence"))}
    bare, features, domains, subjects = Model(encoder, None, heads), [], [], []
    for seed in range(8):
        for domain, (low, high) in (("brightfield", PALE), ("fluorescence", DARK)):
            f = encode_tiles(bare, tile_roi(texture(448, 448, seed, low, high))[0], torch.device("cpu"))[2]
            features.append(f); domains += [domain] * len(f); subjects += [f"S{seed}"] * len(f)
    return Model(encoder, Router.fit(np.concatenate(features), np.array(domains), np.array(subjects)), heads)


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    save_encoder(model.encoder, run / "checkpoints/encoder.safetensors"); model.router.save(run / "checkpoints/router.safetensors")
    for d, h in model.heads.items(): h.save(run / f"checkpoints/head_{d}")
    return run


@pytest.mark.parametrize("height,width", [(1, 1), (5, 300), (223, 225), (224, 224), (449, 100), (500, 700)])
def test_maps_have_the_size_of_the_roi(model, height, width):
    found = segment_roi(texture(height, width, 3, *PALE), model, "brightfield")
    if found.state == "segmented":
        assert found.class_map.shape == found.confidence.shape == (height, width) and found.class_map.dtype == found.confidence.dtype == np.uint8
        assert found.class_map.max() < 3
    else: assert found.state == "abstained" and found.class_map is None and min(height, width) < 224


def test_each_tile_is_encoded_once(model, monkeypatch):
    seen, share = [], type(model.encoder).share
    monkeypatch.setattr(type(model.encoder), "share", lambda self, x, depths=None: (seen.append(len(x)), share(self, x, depths))[1])
    for domain in ("brightfield", ""):
        seen.clear(); found = segment_roi(texture(500, 480, 0, *PALE), model, domain)
        assert found.state == "segmented" and sum(seen) == len(found.tiles) == len(found.tiles.drop_duplicates(["x", "y"]))


SMALL = [(300, 300, 0, *PALE), (120, 90, 1, *DARK), (224, 224, 2, *PALE), (230, 500, 3, *DARK), (224, 224, 4, 0, 250)]


@pytest.mark.parametrize("stated", [[""] * 5, ["brightfield", "fluorescence", "", "", "brightfield"]])
def test_small_rois_together_give_what_each_gives_alone(model, stated, monkeypatch):
    images, sizes, share = [texture(*s) for s in SMALL], [], type(model.encoder).share
    alone = [segment_roi(i, model, d) for i, d in zip(images, stated)]
    monkeypatch.setattr(type(model.encoder), "share", lambda self, x, depths=None: (sizes.append(len(x)), share(self, x, depths))[1])
    together = segment_together(images, model, stated, batch=6)
    assert sum(sizes) == sum(len(a.tiles) for a in alone) and set(sizes[:-1]) == {6}  # batches are full, across ROIs
    for a, b in zip(alone, together):
        assert (a.state, a.domain, a.note, a.quality) == (b.state, b.domain, b.note, b.quality)
        pd.testing.assert_frame_equal(a.tiles, b.tiles, rtol=1e-3)
        if a.class_map is None: assert b.class_map is None
        else: assert (a.class_map != b.class_map).mean() < 1e-3 and np.abs(a.confidence.astype(int) - b.confidence).max() <= 2


def test_large_and_small_rois_stand_in_the_order_of_the_study(model, tmp_path):
    names = list("ABCDEF")
    for name, shape in zip(names, [SMALL[0], (900, 900, 7, *PALE), *SMALL[1:]]): Image.fromarray(texture(*shape)).save(tmp_path / f"{name}.png")
    rois = pd.DataFrame([{"roi": r, "image": tmp_path / f"{r}.png", "modality": "", "pixel_size_um": .5} for r in names])
    table, tiles = segment_many(rois, model, tmp_path / "maps", batch=6)
    assert table["roi"].tolist() == names and tiles["roi"].unique().tolist() == names and (table["tiles"] == tiles.groupby("roi").size().to_numpy()).all()
    for r in table[table["state"] == "segmented"]["roi"]: assert Image.open(tmp_path / f"maps/{r}.png").size == Image.open(tmp_path / f"{r}.png").size
    assert len(segment_many(rois[:0], model, tmp_path / "maps")[0]) == 0


def test_stated_and_found_domain_give_the_same_map(model):
    image = texture(460, 500, 1, *DARK)
    stated, found = segment_roi(image, model, "fluorescence"), segment_roi(image, model)
    assert found.domain == "fluorescence" and np.array_equal(stated.class_map, found.class_map) and np.array_equal(stated.confidence, found.confidence)


def test_a_map_changes_only_near_what_changed(model):
    "Bands and regions are independent: a change in one region leaves every pixel of the others alone."
    image = texture(896, 448, 2, *PALE); other = image.copy(); other[600:700, 100:200] = 30
    a, b = (segment_roi(i, model, "brightfield").class_map for i in (image, other))
    assert np.array_equal(a[:448], b[:448]) and not np.array_equal(a[448:], b[448:])


def test_only_bands_are_read_and_memory_does_not_grow_with_the_roi(model):
    class Rows:
        "An endless ROI: rows are made when asked for."
        def __init__(self, height): self.shape, self.most, self.base = (height, 224, 3), 0, texture(448, 224, 5, *PALE)
        def read(self, y0, y1): self.most = max(self.most, y1 - y0); return self.base[np.arange(y0, y1) % 448]
    def peak(height):
        reader = Rows(height); tracemalloc.start()
        found = segment_roi(reader, model, "brightfield"); top = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
        assert found.class_map.shape == (height, 224) and reader.most <= 448
        return top - 2 * height * 224
    small, large = peak(448), peak(448 * 4)
    assert large < small * 1.2


def test_what_is_abstained_from_gets_no_map_but_a_report(model, tmp_path):
    noise = np.random.default_rng(0).integers(0, 2, (300, 300, 3), dtype=np.uint8) * 255
    for domain in ("", "brightfield"):
        found = segment_roi(noise, model, domain)
        assert found.state == "abstained" and found.class_map is None and (found.tiles["reason"] != "").all() and "abstained" in found.note
    Image.fromarray(noise).save(tmp_path / "n.png"); (tmp_path / "maps").mkdir(); (tmp_path / "maps/N.png").write_bytes(b"of a former run")
    table, tiles = segment_many(pd.DataFrame([{"roi": "N", "image": tmp_path / "n.png", "modality": "", "pixel_size_um": np.nan}]), model, tmp_path / "maps")
    assert list((tmp_path / "maps").iterdir()) == [] and table["state"].tolist() == ["abstained"] and len(tiles) == len(found.tiles)


def test_where_no_accepted_tile_speaks_confidence_is_zero(model):
    image = texture(896, 448, 2, *PALE); image[448:] = np.random.default_rng(0).integers(0, 2, (448, 448, 3), dtype=np.uint8) * 255
    found = segment_roi(image, model, "brightfield")
    assert found.state == "segmented" and (found.confidence[448:] == 0).all() and (found.confidence[:448] > 0).mean() > .9
    assert found.summary()["abstained"] >= 5


def test_a_stated_domain_that_the_tiles_deny_is_obeyed_and_said(model):
    found = segment_roi(texture(448, 448, 1, *DARK), model, "brightfield")
    assert found.domain == "brightfield" and "look like fluorescence" in found.note and (found.confidence == 0).any()


def test_no_head_no_map_and_the_router_still_speaks(model):
    found = segment_roi(texture(448, 448, 1, *DARK), Model(model.encoder, model.router, {}))
    assert found.state == "no head" and found.domain == "fluorescence" and found.class_map is None and len(found.tiles) == 5
    one = Model(model.encoder, model.router, {"brightfield": model.heads["brightfield"]})
    refused = segment_roi(texture(448, 448, 1, *DARK), one)
    assert refused.state == "no head" and "no head for fluorescence: heads exist for brightfield" in refused.note


def test_files_are_segmented_from_a_run_folder_as_in_memory(model, run, tmp_path):
    image = texture(300, 460, 4, *PALE); Image.fromarray(image).save(tmp_path / "a.png")
    table = segment_files([tmp_path / "a.png"], run, "0.5", tmp_path / "maps")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "maps/a.png")), segment_roi(image, model).class_map)
    assert table["state"].tolist() == ["segmented"] and (tmp_path / "maps/roi_segmentation.csv").exists()


@pytest.mark.parametrize("size", ["0", "-1", "half", "1e9", ""])
def test_absurd_pixel_sizes_are_refused(run, tmp_path, size):
    with pytest.raises(UserError, match="--pixel-size-um"): segment_files([], run, size, tmp_path)


def test_the_pixel_size_is_taken_from_the_files_or_held_against_them(run, tmp_path):
    for name, um in (("a", .5), ("b", .25)): Image.fromarray(texture(300, 300, 4, *PALE)).save(tmp_path / f"{name}.png", dpi=(25400 / um,) * 2)
    Image.fromarray(texture(300, 300, 4, *PALE)).save(tmp_path / "c.png")
    table = segment_files([tmp_path / "a.png", tmp_path / "b.png"], run, "from_file", tmp_path / "maps")
    assert table["state"].tolist() == ["segmented"] * 2 and image_size(tmp_path / "maps/b.png") == (300, 300)
    assert [file_pixel_size(tmp_path / f"maps/{n}.png").x_um for n in "ab"] == pytest.approx([.5, .25], rel=1e-3)
    for images, size, says in (("ac", "from_file", "c.png states no pixel size"), ("ab", "0.5", r"b.png: --pixel-size-um is 0.5 um here, but the file says 0.25")):
        with pytest.raises(UserError, match=says): segment_files([tmp_path / f"{n}.png" for n in images], run, size, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_one_spoilt_roi_of_a_group_is_tried_again_alone_and_once_it_is_whole_nothing_is_left_over(run, tmp_path, monkeypatch):
    monkeypatch.setenv("BONEHISTO_KEPT", str(tmp_path / "kept"))
    for name, seed in (("a", 0), ("b", 1), ("c", 2)): Image.fromarray(texture(300, 300, seed, *PALE)).save(tmp_path / f"{name}.png")
    whole = (tmp_path / "b.png").read_bytes()
    table = pd.DataFrame({"roi": list("abc"), "image": [str(tmp_path / f"{n}.png") for n in "abc"], "modality": "", "pixel_size_um": .5})
    def segment():
        found, _ = segment_many(table, run, tmp_path / "maps", workers=1)
        return found["state"].tolist(), list(set_aside(tmp_path / "kept")), [(tmp_path / f"maps/{n}.png").stat().st_mtime_ns if (tmp_path / f"maps/{n}.png").exists() else None for n in "abc"]
    (tmp_path / "b.png").write_bytes(whole[:40] + bytes(400) + whole[440:])  # a header that can be read, and no more
    states, failed, times = segment()
    assert states == ["segmented", "set aside", "segmented"] and failed == ["b"] and times[1] is None
    assert segment() == (states, failed, times)
    (tmp_path / "b.png").write_bytes(whole)
    states, failed, after = segment()
    assert states == ["segmented"] * 3 and not failed and after[1] and after[::2] == times[::2]


def test_bad_images_are_found_before_anything_is_written(run, tmp_path):
    Image.fromarray(texture(300, 300, 4, *PALE)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes(); (tmp_path / "cut.png").write_bytes(whole[:len(whole) // 2]); (tmp_path / "b").mkdir(); (tmp_path / "b/a.png").write_bytes(whole)
    for images, words in (([tmp_path / "a.png", tmp_path / "gone.png"], "gone.png: no such file"), ([tmp_path / "a.png", tmp_path / "cut.png"], "cut.png"),
                          ([tmp_path / "a.png", tmp_path / "b/a.png"], "overwrite each other")):
        with pytest.raises(UserError, match=words): segment_files(images, run, .5, tmp_path / "maps")
        assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize("size", [.25, 1.])
def test_an_roi_of_another_pixel_size_is_segmented_at_the_heads(model, size, monkeypatch):
    "The map is what the head makes of the ROI at its own pixel size, brought back; maps and corners of tiles lie in the ROI's own pixels."
    monkeypatch.setitem(model.heads["brightfield"].facts, "pixel_size_um", .5)
    at_half = texture(300, 340, 4, *PALE)
    image = resample_image(at_half, .5 / size)
    plain, found = segment_roi(at_half, model, "brightfield", pixel_size_um=.5), segment_roi(image, model, "brightfield", pixel_size_um=size)
    assert found.class_map.shape == found.confidence.shape == image.shape[:2] and f"the image has {size:g}" in found.note and plain.note == ""
    assert len(found.tiles) == len(plain.tiles) and found.tiles["x"].tolist() == (plain.tiles["x"] * .5 / size).astype(int).tolist()
    unscaled = segment_roi(image, model, "brightfield")
    assert "the image has" not in unscaled.note and np.array_equal(unscaled.class_map, segment_roi(image, model, "brightfield", pixel_size_um=.5).class_map)


def test_heads_of_different_pixel_sizes_leave_an_open_roi_as_it_is(model, monkeypatch):
    for domain, size in (("brightfield", .5), ("fluorescence", .25)): monkeypatch.setitem(model.heads[domain].facts, "pixel_size_um", size)
    assert np.isnan(model.pixel_size_um()) and model.pixel_size_um("fluorescence") == .25
    assert segment_roi(texture(300, 340, 4, *PALE), model, pixel_size_um=1.).note == ""


def test_parts_that_do_not_belong_together_are_refused(model, tmp_path):
    with pytest.raises(UserError, match="not a finished run"): load_model(tmp_path)
    save_encoder(model.encoder, tmp_path / "checkpoints/encoder.safetensors")
    with pytest.raises(UserError, match="run the route step"): load_model(tmp_path)
    model.router.save(tmp_path / "checkpoints/router.safetensors")
    assert load_model(tmp_path).heads == {}
    model.heads["brightfield"].save(tmp_path / "checkpoints/head_brightfield")
    with pytest.raises(UserError, match="0 ground, 1 bone, 2 label, the manifest has 0 ground, 1 nucleus"):
        load_model(tmp_path, {"brightfield": [CLASSES[0], {"id": 1, "name": "nucleus", "colour": "#fff"}]})
    save_encoder(create_encoder("micro", seed=8), tmp_path / "checkpoints/encoder.safetensors")
    with pytest.raises(UserError, match="trained on encoder"): load_model(tmp_path)


def test_a_stopped_run_leaves_no_half_written_map(model, tmp_path, monkeypatch):
    from bonehisto import segment_study
    Image.fromarray(texture(300, 300, 4, *PALE)).save(tmp_path / "a.png")
    rois = pd.DataFrame([{"roi": r, "image": tmp_path / "a.png", "modality": "", "pixel_size_um": .5} for r in "AB"])
    write, calls = segment_study.write_mask, []
    def stopped(path, *rest):
        calls.append(path)
        if len(calls) == 3: raise KeyboardInterrupt
        return write(path, *rest)
    monkeypatch.setattr(segment_study, "write_mask", stopped)
    with pytest.raises(KeyboardInterrupt): segment_many(rois, model, tmp_path / "maps")
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == ["A.png", "A_confidence.png"]
    assert read_mask(tmp_path / "maps/A.png", [type("C", (), c) for c in CLASSES]).shape == (300, 300)


def test_mirror_images_are_averaged_on_request(model):
    image = texture(224, 224, 6, *PALE)
    plain, flipped = segment_roi(image, model, "brightfield"), segment_roi(image, model, "brightfield", flips=True)
    assert flipped.class_map.shape == plain.class_map.shape and not np.array_equal(flipped.confidence, plain.confidence)
    other = np.ascontiguousarray(image[:, ::-1])
    apart = [np.abs(a.confidence.astype(int) - segment_roi(other, model, "brightfield", flips=f).confidence[:, ::-1]).mean() for a, f in ((plain, False), (flipped, True))]
    assert apart[1] < .5 * apart[0]  # an image and its mirror image get the same answer


def test_every_roi_gets_a_word_on_its_quality(model, monkeypatch):
    image = texture(460, 460, 2, *PALE)
    plain = segment_roi(image, model, "brightfield").summary()
    monkeypatch.setitem(model.router.extra, "focus", {"brightfield": plain["focus"] + .1})
    assert plain["quality"] in ("good", "unlike training") and "out of focus" in segment_roi(image, model, "brightfield").quality
    assert segment_roi(np.full((300, 300, 3), 240, np.uint8), model, "brightfield").quality == "blank"


def test_specks_are_taken_out_of_the_maps_one_by_one_and_together(model, monkeypatch):
    from bonehisto import segment, segment_study
    from bonehisto.scores import pieces
    def by_brightness(model, head, x, shared, flips=False):  # a map as ragged as its image
        return torch.nn.functional.one_hot((x.mean(1) * 255).long() % 7 % 3, 3).float().numpy()
    for module in (segment, segment_study): monkeypatch.setattr(module, "decode_tiles", by_brightness)
    image = texture(300, 300, 2, *PALE)
    before = segment_roi(image, model, "brightfield").class_map
    monkeypatch.setitem(model.heads["brightfield"].facts, "least_px", [40, 40, 40])
    after, together = segment_roi(image, model, "brightfield"), segment_together([image], model, ["brightfield"])[0]
    small = lambda m: sum((np.bincount(pieces(m == c, 1).ravel())[1:] < 40).sum() for c in range(3))
    assert small(after.class_map) < .2 * small(before) and np.array_equal(after.class_map, together.class_map) and np.array_equal(after.confidence, together.confidence)
