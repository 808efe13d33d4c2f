"""The explorer's Python half: what it answers to the browser's questions, and what it says of wrong ones."""
import io

import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from nbclient import NotebookClient
from PIL import Image

from bonehisto import map_widget
from bonehisto.entries import DEFAULT_CLASSES
from bonehisto.explore import GALLERY, Explorer, explore_run
from bonehisto.files import UserError, read_table, write_table
from bonehisto.images import write_mask
from bonehisto.map_widget import TileMap
from bonehisto.tile_map import MOST, colour_column, sprite


def study(n=200):
    "A table of n tiles on a spiral, four subjects, two stains; tile 3 is blank. Its tiles are flat colours."
    a = np.linspace(0, 20, n)
    table = pd.DataFrame({"tile": [f"r{i // 5}:{i % 5}" for i in range(n)], "roi": [f"r{i // 5}" for i in range(n)], "subject": [f"s{i * 4 // n}" for i in range(n)],
                          "modality": np.where(np.arange(n) < n // 2, "brightfield", "fluorescence"), "x": np.arange(n) % 5 * 16, "y": 0, "pad_right": np.where(np.arange(n) % 5 == 4, 6, 0), "pad_bottom": 0,
                          "umap_x": a * np.cos(a), "umap_y": a * np.sin(a)})
    table.loc[3, ["umap_x", "umap_y"]] = np.nan
    tiles = np.stack([np.full((16, 16, 3), (i % 250, 200, 250 - i % 250), np.uint8) for i in range(n)])
    return table, tiles, np.c_[np.cos(a / 5), np.sin(a / 5)]


@pytest.fixture
def explorer(tmp_path):
    made = Explorer(*study(), k=3, classes=DEFAULT_CLASSES, folder=tmp_path, on_open=lambda *a: made.called.append(a), on_queue=lambda ids: made.called.append(ids), on_label=lambda *a: made.called.append(a))
    made.called, made.told = [], []
    made.send = lambda content, buffers=None: made.told.append((content, buffers or []))
    return made


def ask(explorer, kind, buffers=(), **rest):
    "What the browser is told in answer."
    del explorer.told[:]
    explorer.hear({"type": kind, "client": "a", "n": 5, **rest}, buffers)
    assert explorer.told[-1][0] == {"type": "heard", "to": "a", "n": 5}
    return explorer.told[:-1]


def choose(explorer, points):
    marks = np.zeros(len(explorer.rows), bool)
    marks[points] = True
    return ask(explorer, "select", [memoryview(np.packbits(marks))])


def test_a_finished_run_opens_in_a_notebook_and_its_stored_text_says_how_to_use_it(tmp_path):
    table, tiles, _ = study(8)
    angle = np.linspace(0, 6, 8)
    for part in ("tiles", "features"): (tmp_path / part).mkdir()
    write_table(tmp_path / "tables/embeddings.parquet", table)
    np.save(tmp_path / "tiles/tiles.npy", tiles)
    np.save(tmp_path / "features/cls.npy", np.c_[np.cos(angle), np.sin(angle)])
    cells = ["from bonehisto.explore import explore_run\nshown = explore_run('.', k=2)\nshown",
             "shown.go('r0:4')\nshown.select(['r1:0', 'r1:1'])\nprint(sorted(shown.near), shown.selected['tile'].tolist())"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(book, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    data = book.cells[0].outputs[-1]["data"]
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "7 tiles" in data["text/plain"] and "explore_run" in data["text/plain"] and len(data["text/plain"]) < 200
    assert book.cells[1].outputs[0]["text"] == "['r0:2', 'r1:0'] ['r1:0', 'r1:1']\n"  # the neighbours on the circle, without the blank one between


def test_coordinates_and_colours_go_in_pieces_that_make_up_the_whole(explorer, monkeypatch):
    monkeypatch.setattr(map_widget, "PIECE", 100)
    told = ask(explorer, "hello")
    xy = [(c, b) for c, b in told if c["type"] == "xy"]
    assert len(xy) > 10 and max(len(b[0]) for _, b in xy) <= 100
    whole = np.frombuffer(b"".join(b[0] for _, b in xy), "<f4").reshape(-1, 2)
    assert np.allclose(whole, explorer.table[["umap_x", "umap_y"]].dropna()) and [c["start"] for c, _ in xy] == list(range(0, 199, 12))
    codes = np.frombuffer(b"".join(b[0] for c, b in told if c["type"] == "column"), "<u2")
    assert codes.tolist() == [0] * 99 + [1] * 100  # brightfield without its blank tile, then fluorescence


def test_what_is_told_of_the_map_holds_no_list_as_long_as_the_tiles(explorer):
    longest = lambda v: max([len(v), *map(longest, v)]) if isinstance(v, list) else max(map(longest, v.values()), default=0) if isinstance(v, dict) else 0
    assert max(longest(c) for c, _ in ask(explorer, "hello") + choose(explorer, range(150))) <= GALLERY
    assert not {"table", "tiles", "rows"} & set(explorer.get_state())


def test_the_selection_is_the_table_rows_of_the_points_whatever_is_blank(explorer):
    choose(explorer, [2, 3, 198])
    assert explorer.selected["tile"].tolist() == ["r0:2", "r0:4", "r39:4"]  # the fourth tile has no point


def test_another_page_is_told_who_chose_and_what(explorer):
    told = choose(explorer, [7])
    content, (bits,) = next((c, b) for c, b in told if c["type"] == "chosen")
    assert content["client"] == "a" and content["to"] == "" and np.unpackbits(np.frombuffer(bits, np.uint8)).nonzero()[0].tolist() == [7]


def test_a_page_loaded_again_gets_selection_and_tile_back_and_others_are_left_alone(explorer):
    choose(explorer, [7, 9]); explorer.go("r5:0")
    told = ask(explorer, "hello")
    assert [c["type"] for c, _ in told] == ["map", "xy", "column", "chosen", "gallery", "focus"] and {c["to"] for c, _ in told} == {"a"}


@pytest.mark.parametrize("bits", [b"", b"\xff", bytes(1000)])
def test_a_selection_of_another_size_is_refused_and_the_old_one_kept(explorer, bits):
    choose(explorer, [1])
    (said, _), = ask(explorer, "select", [bits])
    assert said["level"] == "error" and "load the page again" in said["text"] and explorer.selected["tile"].tolist() == ["r0:1"]


@pytest.mark.parametrize("point", [-1, 199, 1.5, "0", None])
def test_a_point_that_is_not_on_the_map_is_refused(explorer, point):
    for kind in ("look", "focus"):
        (said, _), = ask(explorer, kind, point=point)
        assert said["level"] == "error" and "on a map of 199" in said["text"]
    assert explorer.tile is None and not explorer.called


def test_the_gallery_goes_by_pages_of_64_and_stays_inside(explorer):
    choose(explorer, range(150))
    assert len(explorer.shown) == GALLERY and explorer.shown[:4] == ["r0:0", "r0:1", "r0:2", "r0:4"]
    for asked, start, count in ((64, 64, 64), (128, 128, 22), (999, 128, 22), (-64, 0, 64)):
        (told, _), = ask(explorer, "page", start=asked)
        assert (told["start"], len(told["points"]), told["total"]) == (start, count, 150)


def test_a_random_sample_is_of_the_chosen_tiles_and_without_repeats(explorer):
    choose(explorer, range(20, 190))
    (told, _), = ask(explorer, "sample")
    assert told["random"] and len(set(told["points"])) == GALLERY and set(told["points"]) <= set(range(20, 190))


def test_leaving_a_tile_out_keeps_the_gallery_at_its_page(explorer):
    choose(explorer, range(150)); ask(explorer, "page", start=64)
    marks = np.ones(199, bool); marks[150:] = marks[70] = False
    told = ask(explorer, "select", [np.packbits(marks).tobytes()], stay=True)
    assert told[-1][0]["start"] == 64 and 70 not in told[-1][0]["points"] and told[-1][0]["total"] == 149


def test_the_gallery_shows_the_tiles_it_names(explorer):
    told = choose(explorer, [0, 30, 60])
    content, (picture,) = next((c, b) for c, b in told if c["type"] == "gallery")
    sheet = np.asarray(Image.open(io.BytesIO(picture))).astype(int)
    for k, name in enumerate(content["names"]):
        row = explorer.table.index[explorer.table["tile"] == name][0]
        assert abs(sheet[56, 112 * k + 56] - explorer.tiles[row, 0, 0]).max() < 8


def test_the_box_of_a_tile_at_the_rim_ends_at_the_roi(explorer):
    ask(explorer, "focus", point=3, open=True)
    assert explorer.called == [("r0", [64, 0, 10, 16])] and explorer.tile == "r0:4"


def test_neighbours_can_be_kept_to_other_subjects(explorer):
    explorer.go("r0:0"); own = explorer.near
    ask(explorer, "others", value=True)
    subject = explorer.table.set_index("tile")["subject"]
    assert set(subject[own]) == {"s0"} and len(explorer.near) == 3 and "s0" not in set(subject[explorer.near])


def test_labels_are_of_the_stain_and_a_mixed_selection_is_told_why_not(explorer):
    told = choose(explorer, range(5))
    assert told[-1][0]["classes"] == [[0, "background"], [1, "mineralised bone"], [2, "osteoid"]]
    (said, _), = ask(explorer, "label", cls=2)
    assert explorer.called == [(explorer.shown, 2)] and "osteoid" in said["text"]
    (said, _), = ask(explorer, "label", cls=3)
    assert said["level"] == "error" and len(explorer.called) == 1  # label is a class of the other stain
    told = choose(explorer, range(90, 120))
    assert told[-1][0]["classes"] == [] and "brightfield and fluorescence" in told[-1][0]["why"]
    (said, _), = ask(explorer, "label", cls=1)
    assert said["level"] == "error" and len(explorer.called) == 1


def test_what_a_callback_says_is_shown_and_what_it_cannot_do_too(explorer):
    choose(explorer, [0])
    explorer.on_queue = lambda ids: f"{ids[0]} is third in the queue"
    assert ask(explorer, "queue")[0][0]["text"] == "r0:0 is third in the queue"
    def full(ids): raise UserError("queue.csv: no space left on the disk")
    explorer.on_queue = full
    assert ask(explorer, "queue")[0][0] == {"type": "say", "text": "queue.csv: no space left on the disk", "level": "error"}
    def broken(ids): raise RuntimeError("odd")
    explorer.on_queue = broken
    with pytest.raises(RuntimeError): explorer.hear({"type": "queue", "client": "a", "n": 1})
    assert explorer.told[-2][0]["text"] == "RuntimeError: odd" and explorer.told[-1][0]["type"] == "heard"


@pytest.mark.parametrize("kind", ["queue", "export"])
def test_with_nothing_chosen_nothing_is_sent_on(explorer, kind):
    (said, _), = ask(explorer, kind)
    assert said["level"] == "error" and "lasso" in said["text"] and not explorer.called and not list(explorer.folder.iterdir())


def test_exports_do_not_overwrite_each_other_and_say_where_they_are(explorer):
    for points in ([4], [5, 6]):
        choose(explorer, points)
        path = ask(explorer, "export")[0][0]["text"].rpartition(" ")[2]
        assert read_table(path)["tile"].tolist() == explorer.selected["tile"].tolist()
    assert sorted(p.name for p in explorer.folder.iterdir()) == ["selection_001.csv", "selection_002.csv"]


def test_a_column_that_takes_long_is_worked_out_beside_and_its_failure_told():
    table, _, _ = study(20)
    def gone(): raise UserError("masks: gone")
    made, told = TileMap(table, later={"doubt": lambda: np.arange(20.), "other": gone}), []
    made.send = lambda content, buffers=None: told.append(content)
    made.work_out("other")
    assert told == [{"type": "say", "text": "other: masks: gone", "level": "error"}] and "other" not in made.table
    made.work_out("doubt", "a")
    assert told[1]["column"] == "doubt" and told[1]["to"] == "a" and made.table["doubt"].tolist() == list(range(20))
    made.hear({"type": "colour", "client": "a", "n": 1, "column": "dout"})
    assert "did you mean `doubt`?" in told[-2]["text"]


def test_uncertainty_comes_from_the_maps_of_the_run_and_routing_beside_it(tmp_path):
    table, tiles, features = study(10)
    for part in ("tiles", "features"): (tmp_path / part).mkdir()
    write_table(tmp_path / "tables/embeddings.parquet", table)
    write_table(tmp_path / "tables/router_tiles.parquet", table[["tile"]].assign(probability=.9, abstained=False))
    np.save(tmp_path / "tiles/tiles.npy", tiles); np.save(tmp_path / "features/cls.npy", features)
    windows = table[["roi", "x", "y"]].assign(kind="nw", blank=False, focus=1.)
    table["kind"] = "nw"; write_table(tmp_path / "tables/embeddings.parquet", table)
    write_table(tmp_path / "tables/segment_tiles.parquet", windows)
    write_table(tmp_path / "tables/roi_segmentation.csv", windows[["roi"]].drop_duplicates().assign(state=["not segmented", "segmented"], domain="brightfield"))
    write_mask(tmp_path / "masks/r1.png", np.ones((16, 80), np.uint8), .5)
    write_mask(tmp_path / "masks/r1_confidence.png", np.full((16, 80), 204, np.uint8), .5)
    (tmp_path / "r.png").touch()
    (tmp_path / "manifest.yaml").write_text("subjects: [{id: s}]\nrois: [{image: r.png, subject: s, modality: brightfield, pixel_size_um: 0.5}]\n")
    made = explore_run(tmp_path)
    made.send = lambda *_: None
    made.work_out("uncertainty")
    assert np.allclose(made.table["uncertainty"], [np.nan] * 5 + [.2] * 5, equal_nan=True) and (made.table["router_probability"] == .9).all()


def test_a_run_that_lacks_a_step_says_which(tmp_path):
    write_table(tmp_path / "tables/embeddings.parquet", study(5)[0])
    with pytest.raises(UserError, match="run the steps tile and embed"): explore_run(tmp_path)


@pytest.mark.parametrize("wrong, text", [
    (lambda t, i, f: Explorer(t, i[:5], f), "5 tiles and 200 rows"),
    (lambda t, i, f: Explorer(t, i, f[:-1]), "199 features and 200 rows"),
    (lambda t, i, f: Explorer(t.assign(umap_x=np.nan), i, f), "no tile has coordinates"),
    (lambda t, i, f: Explorer(t, i, f, colour="subjct"), "did you mean `subject`?"),
    (lambda t, i, f: Explorer(t, i, f).select(["r0:3"]), "not on the map: r0:3"),
    (lambda t, i, f: Explorer(t, i, f).export(), "folder"),
])
def test_mistakes_are_named(wrong, text):
    with pytest.raises(UserError) as e: wrong(*study())
    assert text in str(e.value)


def test_a_table_of_coordinates_alone_is_a_map():
    made, told = Explorer(pd.DataFrame({"umap_x": [0., 1.], "umap_y": [0., 0.]})), []
    made.send = lambda content, buffers=None: told.append(content)
    made.hear({"type": "hello", "client": "a", "n": 1}); made.hear({"type": "focus", "client": "a", "n": 2, "point": 1, "open": True})
    assert [c["type"] for c in told] == ["map", "xy", "column", "heard", "focus", "heard"] and made.tile == "1"


values = st.lists(st.one_of(st.none(), st.text(max_size=3), st.integers(-5, 5), st.floats(width=32), st.booleans()), min_size=1, max_size=60)


@settings(max_examples=80, deadline=None)
@given(st.one_of(values, st.lists(st.floats(width=32), min_size=1, max_size=60), st.lists(st.integers(-10**9, 10**9), min_size=1, max_size=60), st.lists(st.booleans(), min_size=1, max_size=9)))
def test_any_column_colours_every_point(column):
    found = colour_column(pd.Series(column))
    assert len(found.codes) == len(column) and found.codes.max() < len(found.colours) and all(len(c) == 7 for c in found.colours)
    if found.kind == "names": assert found.counts == np.bincount(found.codes, minlength=len(found.names)).tolist() and len(found.names) == len(found.colours)
    else: assert len(found.colours) == 257 and found.counts == [int((found.codes == 256).sum())]


def test_categories_and_texts_of_pandas_colour_like_plain_ones():
    plain = pd.Series(["high", "low", None, "low"])
    for other in (plain.astype("category"), plain.astype("string"), plain.astype("string[pyarrow]")):
        found = colour_column(other)
        assert found.names == ["low", "high", "unknown"] and found.codes.tolist() == [1, 0, 2, 0]
    assert colour_column(pd.Series([1, None, 3], dtype="Int64")).names == ["1", "3", "unknown"]


def test_more_names_than_colours_share_one():
    found = colour_column(pd.Series([f"r{i}" for i in range(70_000)]))
    assert len(found.names) == MOST + 1 and found.codes.max() == MOST


def test_a_sprite_of_a_memory_map_reads_only_its_tiles(tmp_path):
    tiles = np.lib.format.open_memmap(tmp_path / "t.npy", "w+", np.uint8, (50, 16, 16, 3)); tiles[:] = np.arange(50)[:, None, None, None]; tiles.flush()
    read = []
    class Watched:
        def __init__(self, array): self.array = array
        def __getitem__(self, i): read.append(int(i)); return self.array[i]
    sprite(Watched(np.load(tmp_path / "t.npy", mmap_mode="r")), [3, 49], px=8, across=2)
    assert read == [3, 49]
