"""Figures for print and the draft abstract: sizes and fonts of the files, nothing cut or overlapping, no number that no table holds, and what a run lacks is said."""
import json, re, shutil
from importlib.resources import files
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from synthetic_run import make_run
from typer.testing import CliRunner

from bonehisto.abstract import is_drawn, write_abstract
from bonehisto.cli import app
from bonehisto.entries import DEFAULT_CLASSES
from bonehisto.files import UserError, read_json, read_table, write_json, write_table
from bonehisto.look import CYCLE, FIXED
from bonehisto.outcome_figures import abstract_plates
from bonehisto.page import RunFolder
from bonehisto.print_figures import COLUMNS_MM, DPI, DRAWN, MM, TYPE, to_print, write_plate

NAMES = ["pipeline", "segmentation", "separation", "router", "scores", "label_efficiency", "labels", "static", "dynamic", "agreement", "tmv"]


def feature(kind, lines): return {"type": "Feature", "geometry": {"type": "MultiLineString", "coordinates": lines}, "properties": {"classification": {"name": kind}, "stretch": 1, "measurements": {}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A synthetic run with what `make_run` leaves out: lines of a measurement, and the settings of every step."
    run = make_run(tmp_path_factory.mktemp("runs") / "synthetic", size=160, per_group=4, steps=20); t = run / "tables"
    marks = [feature("double label, later", [[[40, 40 + y], [120, 40 + y]] for y in (0, 60)]), feature("double label, earlier", [[[40, 52], [120, 52]]]), feature("label distance", [[[x, 40], [x, 52]] for x in range(45, 120, 10)])]
    for roi in read_table(t / "rois.csv")["roi"]: write_json(run / "audit" / f"{roi}.geojson", {"features": marks, "pixel_size_um": .5, "shape": (160, 160)})
    record = read_json(run / "run.json")
    write_json(run / "run.json", record | {"parameters": {"tile": {"tile": 224}, "pretrain": {"preset": "micro", "steps": 20, "weights": "", "splits": ["train", "val"]}, "summarise": {"confidence": .95}, "embed": {"feature": "cls"}}})
    errors = read_table(t / "truth_summary.csv"); write_table(t / "truth_summary.csv", pd.concat([errors.assign(subjects=s) for s in ("all", "held out")]))
    return run


@pytest.fixture(scope="module")
def written(run):
    "The run after `bonehisto figures`."
    done = CliRunner().invoke(app, ["figures", str(run), "-p", "figures.drawn=true"])
    assert done.exit_code == 0, done.output
    return run / "abstract"


@pytest.fixture(scope="module")
def plates(run):
    plates, left = abstract_plates(RunFolder(run))
    assert list(plates) == NAMES and not left
    return plates


def test_every_figure_is_a_vector_pdf_with_its_fonts_in_a_column_width_and_without_a_date(written, plates):
    for name, plate in plates.items():
        pdf = (written / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"/CIDFontType2" in pdf and b"/Type3" not in pdf and b"/FontFile3" not in pdf, name
        assert pdf.count(b"/FontFile2") >= len(set(re.findall(rb"/BaseFont /(\S+)", pdf))) > 0, name
        width = float(re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", pdf)[1])
        assert abs(width / 72 * MM - COLUMNS_MM[plate.columns]) < .1, name
        assert b"CreationDate" not in pdf and b"ModDate" not in pdf, name


def test_every_figure_has_a_png_of_300_dots_and_its_numbers_beside_it(written, plates):
    for name, plate in plates.items():
        with Image.open(written / f"{name}.png") as picture:
            assert abs(picture.width - COLUMNS_MM[plate.columns] / MM * DPI) <= 1 and np.allclose(picture.info["dpi"], DPI, atol=.1), name
        assert len(read_table(written / f"{name}.csv")) and plate.caption.endswith("."), name
    assert sorted(p.stem for p in written.glob("*.pdf")) == sorted(NAMES)


def test_the_same_run_gives_the_same_bytes(run, written, tmp_path):
    again, _ = abstract_plates(RunFolder(run), only=("router", "static", "labels"))
    for name in again:
        for path in write_plate(tmp_path, name, again[name], drawn=True): assert path.read_bytes() == (written / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", NAMES)
def test_type_is_7_to_8_points_and_no_text_is_cut_or_lies_on_another(plates, name):
    fig = to_print(plates[name].fig); FigureCanvasAgg(fig).draw(); page = fig.bbox
    inside = lambda axis, tick: min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    ticks = {t for ax in [*fig.axes, *(c for a in fig.axes for c in a.child_axes)] for axis in (ax.xaxis, ax.yaxis) for tick in axis.get_major_ticks() if not (ax.axison and inside(axis, tick)) for t in (tick.label1, tick.label2)}  # not drawn
    texts = [t for t in fig.findobj(Text) if t.get_text().strip() and t.get_visible() and t not in ticks and (t.axes is None or t.axes.get_visible())]
    for t in texts: assert TYPE[0] <= t.get_fontsize() <= TYPE[1], t
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts]; assert len(boxes) > 5
    for text, box in boxes: assert box.x0 > -1 and box.y0 > -1 and box.x1 < page.x1 + 1 and box.y1 < page.y1 + 1, f"{text!r} is cut"
    for (a, p), (b, q) in combinations(boxes, 2): assert min(p.x1, q.x1) - max(p.x0, q.x0) < 1 or min(p.y1, q.y1) - max(p.y0, q.y0) < 1, f"{a!r} lies on {b!r}"


def test_colours_stay_apart_for_every_colour_vision():
    "Machado 2009, full deficiency, in linear light."
    vision = {"deuteranopia": [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]], "protanopia": [[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]], "tritanopia": [[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]]}
    light = lambda c: np.array([(v / 255 / 12.92 if v <= 10 else ((v / 255 + .055) / 1.055) ** 2.4) for v in (int(c[i:i + 2], 16) for i in (1, 3, 5))])
    sets = [CYCLE[:5], [FIXED[k] for k in ("low", "normal", "high")], [FIXED[k] for k in ("brightfield", "fluorescence")], *([c.colour for c in t] for t in DEFAULT_CLASSES.values())]
    for matrix in vision.values():
        for some in sets:
            for a, b in combinations(some, 2): assert np.abs(np.clip(np.array(matrix) @ light(a), 0, 1) ** (1 / 2.4) - np.clip(np.array(matrix) @ light(b), 0, 1) ** (1 / 2.4)).max() > .1, (a, b)


def results(draft): return draft.split("## Methods")[1].split("## Conclusion")[0]


def test_the_template_types_no_number():
    template = files("bonehisto").joinpath("templates/abstract.md").read_text(encoding="utf-8")
    plain = re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", template).replace("F1", "")
    assert not re.search(r"\d", plain)


def test_every_number_of_the_draft_stands_in_a_table_of_the_run(written):
    draft, told = results((written / "abstract.md").read_text()).replace("F1", ""), read_table(written / "abstract.csv", dtype=str)
    values = []
    for v in told["value"]:
        try: values.append(float(v))
        except ValueError: pass
    for token in re.findall(r"(?<![\w.])[−-]?\d+(?:\.\d+)?(?:e[+-]\d+)?", draft):
        value, places = float(token.replace("−", "-")), len(token.partition(".")[2])
        if "e" in token: assert any(np.isclose(value, v, rtol=.06) for v in values), token; continue
        assert any(abs(s * v - value) <= .51 * 10 ** -places for v in values for s in (1, 100)), f"{token} stands in no table"
    assert {"head_scores.csv", "router_scores.csv", "group_summary.csv", "abstract/agreement.csv", "rois.csv", "run.json"} <= set(told["table"])


def test_a_changed_table_changes_the_sentence(run, tmp_path):
    shutil.copytree(run / "tables", tmp_path / "tables"); shutil.copy(run / "run.json", tmp_path); shutil.copy(run / "manifest.yaml", tmp_path)
    scores = read_table(tmp_path / "tables/head_scores.csv"); mine = (scores["domain"] == "fluorescence") & (scores["class"] == "tissue mean") & (scores["score"] == "dice")
    scores.loc[mine, ["mean", "low", "high", "subjects"]] = [.123, .111, .135, 7]; write_table(tmp_path / "tables/head_scores.csv", scores)
    assert "0.123 (0.111 to 0.135; n = 7) in fluorescence" in write_abstract(RunFolder(tmp_path), tmp_path, {}, {}, False).read_text()


def test_every_sentence_is_there_and_says_what_it_should(written):
    draft = (written / "abstract.md").read_text(); assert "## Left out" not in draft
    said = results(draft)
    for words in ("12 simulated subjects (4 low, 4 normal, 4 high)", "24 ROIs (12 brightfield, 12 fluorescence), all of them with a mask", "6 for training, 3 for validation and 3 held out", "no training saw a ROI of a held-out subject", "95 % intervals",
                  "right in 99.7 %, abstained in 0.3 %", "Dice, mean over tissue classes, was", "Intersection over union", "F1 of", "With 1 labelled ROI", "percentage points", "for BV/TV (limits of agreement", "MAR was", "µm/d", "p after Holm's correction", "Turnover was low in 4"): assert words in said, words
    assert "no diagnosis" in draft and [f"{i}. `{n}.pdf`" in draft for i, n in enumerate(NAMES, 1)] == [True] * len(NAMES)


def test_a_drawn_study_is_called_so_everywhere_and_another_nowhere(run, plates, written, tmp_path):
    draft = (written / "abstract.md").read_text(); captions = re.findall(r"^\d+\. `.*", draft, re.M)
    assert "(synthetic study)" in draft.splitlines()[0] and "every image of it was drawn" in draft and all("Synthetic study." in c for c in captions) and len(captions) == len(NAMES)
    page, _ = abstract_plates(RunFolder(run), only=["router"]); write_plate(tmp_path, "router", page["router"], drawn=True)
    assert DRAWN in [t.get_text() for t in page["router"].fig.texts]
    plain = write_abstract(RunFolder(run), tmp_path, plates, {}, False).read_text()
    assert not re.search("synthetic study|drawn by|simulated", plain, re.I)
    for study, drawn in (({"name": "phantom"}, True), ({"name": "bone", "truth": "truth.csv"}, True), ({"name": "bone"}, False)):
        (tmp_path / "manifest.yaml").write_text(yaml.safe_dump(study)); assert is_drawn(RunFolder(tmp_path)) == drawn


def lacking(run, to, *names, **tables):
    "A copy of the run without some tables, and with others changed."
    shutil.copytree(run, to, ignore=lambda d, files: [f for f in files if f in names or f == "abstract"])
    for name, change in tables.items():
        path = to / "tables" / f"{name}.csv"; write_table(path, change(read_table(path)))
    return RunFolder(to)


def test_what_a_run_lacks_is_left_out_with_its_reason(run, tmp_path):
    bare = lacking(run, tmp_path / "bare", "label_efficiency_summary.csv", "label_stretches.csv", "roi_parameters_masks.csv", "truth_comparison.csv", "tmv.csv", "head_scores.csv", subject_parameters=lambda t: t.assign(group="all"), router_confusion=lambda t: t[:1])
    plates, left = abstract_plates(bare)
    assert set(plates) == {"pipeline", "segmentation", "separation"}
    for name, why in (("label_efficiency", "`label_efficiency` writes it"), ("labels", "label_stretches.csv"), ("agreement", "3"), ("static", "one group or none"), ("dynamic", "one group or none"), ("router", "one domain only"), ("scores", "head_scores.csv"), ("tmv", "tmv.csv")): assert why in left[name], left[name]
    draft = write_abstract(bare, tmp_path, plates, left, False).read_text(); out = draft.split("## Left out")[1]
    for name in left: assert f"- figure `{name}`: " in out
    assert "- sentence on dice: There is no head_scores.csv" in out and "Dice" not in results(draft) and "Bias of" not in results(draft) and "BV/TV was" in results(draft)


def test_one_domain_alone(run, tmp_path):
    "Brightfield only, the router having nothing to tell apart."
    own = lambda t: t[t["modality"] == "brightfield"]
    folder = lacking(run, tmp_path / "one", "label_stretches.csv", rois=own, roi_parameters=own, roi_parameters_masks=own)
    tiles = read_table(folder.path / "tables/tiles.parquet"); write_table(folder.path / "tables/tiles.parquet", own(tiles))
    write_table(folder.path / "tables/embeddings.parquet", read_table(folder.path / "tables/embeddings.parquet").iloc[own(tiles).index])
    plates, left = abstract_plates(folder, only=["pipeline", "segmentation", "separation", "agreement"])
    assert "one domain only" in left["separation"] and list(plates) == ["pipeline", "segmentation", "agreement"]
    assert set(plates["segmentation"].table["domain"]) == {"brightfield"}


def test_maps_are_held_against_the_truth_where_there_are_no_masks(run, tmp_path):
    folder = lacking(run, tmp_path / "truth", "roi_parameters_masks.csv")
    plates, _ = abstract_plates(folder, only=["agreement"]); table = plates["agreement"].table
    assert {"map", "truth"} <= set(table) and "truth" in plates["agreement"].caption and (table["kind"] == "bias and limits").sum() >= 3
    assert "against the truth in held-out subjects" in write_abstract(folder, tmp_path, plates, {}, True).read_text()
    with pytest.raises(UserError, match="figures.against is 'maps'"): abstract_plates(folder, against="maps", only=["agreement"])


@pytest.mark.parametrize("wrong, says", [({"rois": {"fluorescence": "low-01_fl2"}}, "figures.rois names low-01_fl2.*low-01_fl1"), ({"static": ["BV/TV"]}, "figures.static names BV/TV: did you mean"), ({"agree_on": ["MAR"]}, "figures.agreement names MAR"), ({"label_run": "nowhere"}, "no such run folder"), ({"only": ["label"]}, "figures.only names label: did you mean `labels`")])
def test_a_wrong_setting_is_named(run, wrong, says):
    with pytest.raises(UserError, match=says): abstract_plates(RunFolder(run), **{"only": ("labels", "label_efficiency", "static", "agreement")} | wrong)


def test_another_roi_and_other_parameters_can_be_shown(run):
    plates, _ = abstract_plates(RunFolder(run), rois={"brightfield": "high-02_br1"}, dynamic=["MAR (um/d)"], agree_on=["BV/TV (%)"], only=["segmentation", "dynamic", "agreement"])
    assert "high-02_br1 (brightfield, chosen by hand)" in plates["segmentation"].caption
    assert set(plates["dynamic"].table["parameter"]) == {"MAR (um/d)"} and set(plates["agreement"].table["parameter"]) == {"BV/TV (%)"}


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"): CliRunner().invoke(app, ["figures", str(tmp_path)], catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def test_the_executed_notebook_shows_the_figures(written):
    page = json.loads((written.parent / "notebooks/85_figures.ipynb").read_text())
    shown = [o for c in page["cells"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(shown) == len(NAMES) and read_json(written.parent / "run.json")["steps"]["figures"]["state"] == "done"
