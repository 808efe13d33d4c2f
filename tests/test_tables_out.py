"""Results leave a run in forms that others can read, every column described, no text a formula, no number a text."""
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings, strategies as st
from openpyxl import load_workbook
from PIL import Image
from synthetic_run import make_run

from bonehisto import cells, group_models, group_tests, heads, histomorphometry, labels, measure, neighbourhood, tmv
from bonehisto.annotations import Annotations
from bonehisto.data_dictionary import FIELDS, describe_columns, read_dictionary
from bonehisto.files import UserError, read_table, write_table
from bonehisto.pixel_size import file_pixel_size
from bonehisto.reader_tables import READERS
from bonehisto.tables_out import MOST_ROWS, result_tables, write_results


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "study", size=96, per_group=2, steps=20)


@pytest.fixture(scope="module")
def out(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    return out, write_results(run, out)


def undescribed(tables):
    found = describe_columns(tables)
    return (found["table"] + "." + found["name"])[found["meaning"] == ""].tolist()


def test_every_column_of_a_run_has_an_entry(run):
    assert undescribed(result_tables(run)) == []


def test_every_column_that_the_program_can_write_has_an_entry():
    """What a measurement gives, with labels and annotations, and the column lists of the modules."""
    rng, drawn = np.random.default_rng(0), np.zeros((200, 200), np.uint8)
    drawn[40:160] = 1; drawn[160:170] = 2; drawn[120:124, 30:170] = 3; drawn[145:149, 30:170] = 3
    points = {n: rng.uniform(30, 170, (4, 2)) for n in cells.CELLS}
    marks = Annotations(points, {n: [np.array([[39.5, 20.0], [39.5, 100.0]])] for n in cells.SURFACES}, [])
    measured = histomorphometry.measure_in_full(drawn, "fluorescence", 0.5, interval_days=15, annotations=marks, wall_thickness_um=33, imputed_mar_um_d=0.3)
    singles = histomorphometry.measure_roi(np.where(np.arange(200)[:, None] > 140, np.minimum(drawn, 2), drawn), "fluorescence", 0.5, interval_days=15, imputed_mar_um_d=0.3)
    pooled = histomorphometry.pool_subject([{**measured.result, "domain": "fluorescence"}], wall_thickness_um=33)
    columns = {"roi_parameters": [*measure.TEXTS, *measured.result, *singles], "subject_parameters": [*pooled, histomorphometry.FACING], "label_stretches": [*measure.STRETCHES, *labels.STRETCH_COLUMNS, *measured.stretches, "order"], "cells": measured.cells.columns,
               "neighbourhood_rois": [*measure.WHO, "modality", *neighbourhood.PLACES], "group_tests": group_tests.GROUP_TESTS, "mixed_models": group_models.MIXED_MODELS, "tmv_cuts": tmv.CUT_COLUMNS, "heads": heads.HEADS, "readers": READERS}
    assert len(measured.cells) and any(c.endswith("_um") for c in measured.cells)
    assert undescribed({n: pd.DataFrame(columns=list(c)) for n, c in columns.items()}) == []
    quantities = describe_columns({"neighbourhood_rois": pd.DataFrame({"quantity": list(measured.places)})})
    assert set(quantities["name"]) >= set(measured.places), "a quantity of place without an entry"


def test_entries_name_units_formulas_and_sources():
    entries = read_dictionary()
    assert entries.columns.tolist() == FIELDS
    mar = describe_columns({"subject_parameters": pd.DataFrame(columns=["MAR (um/d)"])}).iloc[0]
    assert mar["unit"] == "um/d" and "interval" in mar["formula"] and "Dempster 2013" in mar["source"]
    assert describe_columns({"x": pd.DataFrame(columns=["never heard of"])})["meaning"].tolist() == [""]


def test_tables_come_out_as_csv_parquet_and_a_workbook_that_say_the_same(run, out):
    folder, said = out
    tables = result_tables(run)
    assert f"wrote {len(tables)} tables" in said and "not in the dictionary" not in said
    for name, table in tables.items():
        kept = read_table(folder / "parquet" / f"{name}.parquet")
        assert list(kept) == list(table) and len(kept) == len(table) == len(read_table(folder / "csv" / f"{name}.csv"))
    book = load_workbook(folder / "bonehisto.xlsx")
    assert book.sheetnames[0] == "dictionary" and len(book.sheetnames) == len(tables) + 1
    sheet, table = book["subject_parameters"], tables["subject_parameters"]
    assert sheet.freeze_panes == "B2" and [c.value for c in sheet[1]] == list(table) and sheet[1][0].font.bold
    column = list(table).index("BV/TV (%)") + 1
    assert [sheet.cell(r + 2, column).value for r in range(len(table))] == pytest.approx(table["BV/TV (%)"].tolist())
    described = read_table(folder / "data_dictionary.csv", dtype=str, keep_default_na=False)
    assert {"name", "unit", "formula", "source", "table"} <= set(described) and (described["meaning"] != "").all()


def test_maps_come_out_with_their_pixel_size_and_as_outlines(run, out):
    folder, _ = out
    rois = read_table(run / "tables/rois.csv")
    for roi in rois["roi"]:
        path = folder / "masks" / f"{roi}.tif"
        np.testing.assert_array_equal(tifffile.imread(path), np.asarray(Image.open(run / "masks" / f"{roi}.png")))
        assert file_pixel_size(path).x_um == pytest.approx(0.5)
        assert np.asarray(Image.open(folder / "overlays" / f"{roi}.png")).shape == (96, 96, 3)
        drawn = json.loads((folder / "geojson" / f"{roi}.geojson").read_text())
        assert {f["properties"]["classification"]["name"] for f in drawn["features"]} <= {"bone", "mineralised bone", "osteoid", "label"} and drawn["features"]


def test_a_text_that_begins_like_a_formula_is_text_and_a_number_is_a_number(tmp_path):
    risky = ['=HYPERLINK("http://example.org")', "+1+1", "-cmd", "@SUM(A1)", "\tx", "-1.5", "S01", "\x01bell"]
    write_table(tmp_path / "run/tables/subject_parameters.csv", pd.DataFrame({"subject": risky, "MAR (um/d)": np.arange(8) - 3.5, "=1+1": "a"}))
    before = (tmp_path / "run/tables/subject_parameters.csv").read_bytes()
    write_results(tmp_path / "run", tmp_path / "out", maps=False)
    found = pd.read_csv(tmp_path / "out/csv/subject_parameters.csv", dtype={"subject": str})
    assert not any(str(v)[0] in "=+@\t\r" for v in [*found["subject"], *found]) and found["subject"][2] == "'-cmd" and found["subject"][5] == "-1.5"
    assert found["MAR (um/d)"].tolist() == (np.arange(8) - 3.5).tolist()
    sheet = load_workbook(tmp_path / "out/bonehisto.xlsx")["subject_parameters"]
    assert {c.data_type for row in sheet.iter_rows() for c in row} <= {"s", "n"} and sheet["A2"].value == risky[0] and sheet["B2"].value == -3.5
    assert (tmp_path / "run/tables/subject_parameters.csv").read_bytes() == before


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("=+-@\t'1.aé,\"", max_size=6), min_size=1, max_size=4))
def test_every_text_is_plain_in_a_csv_and_comes_back(texts):
    with TemporaryDirectory() as d:
        path = write_table(Path(d) / "t.csv", pd.DataFrame({"group": texts, "n": 1}))
        assert read_table(path, dtype=str, keep_default_na=False)["group"].tolist() == texts
        for written in pd.read_csv(path, dtype=str, keep_default_na=False)["group"]: assert not written.startswith(tuple("=+-@\t")) or float(written) is not None


def test_long_tables_stay_out_of_the_workbook_and_that_is_said(tmp_path):
    write_table(tmp_path / "run/tables/tiles.parquet", pd.DataFrame({"x": np.arange(MOST_ROWS + 1)}))
    assert "too long for a sheet, in CSV and parquet alone: tiles" in write_results(tmp_path / "run", tmp_path / "out", maps=False)


def test_names_in_tables_lead_out_of_no_folder(run, tmp_path):
    import shutil
    shutil.copytree(run, tmp_path / "run")
    table = read_table(tmp_path / "run/tables/rois.csv")
    shutil.copy(tmp_path / "run/masks" / f"{table['roi'][0]}.png", tmp_path / "run/masks/up.png")
    write_table(tmp_path / "run/tables/rois.csv", table[:2].assign(roi=["../../up", table["roi"][1]]))
    write_results(tmp_path / "run", tmp_path / "deep/er/out")
    assert not list(tmp_path.glob("up*")) and not list((tmp_path / "deep").glob("up*")) and not list((tmp_path / "deep/er").glob("up*"))


def test_a_folder_without_tables_ends_with_2_and_a_sentence(tmp_path):
    with pytest.raises(UserError, match="is the run folder itself"):
        write_table(tmp_path / "run/tables/tiles.csv", pd.DataFrame({"x": [1]}))
        write_results(tmp_path / "run", tmp_path / "run")
    done = subprocess.run([sys.executable, "-m", "bonehisto", "tables", tmp_path, "--out", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 2 and "holds no tables: give the folder of a run" in done.stderr and "Traceback" not in done.stderr
