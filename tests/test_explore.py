"The explorer in a kernel, as a notebook runs it."
import nbformat
import numpy as np
import pandas as pd
from nbclient import NotebookClient


def test_a_finished_run_opens_in_a_notebook_and_its_stored_text_says_how_to_use_it(tmp_path):
    angle = np.linspace(0, 6, 8)
    table = pd.DataFrame({"tile": [f"t{i}" for i in range(8)], "roi": [f"r{i // 4}" for i in range(8)], "subject": list("aabbccdd"),
                          "group": "low", "umap_x": np.cos(angle), "umap_y": np.sin(angle)})
    table.loc[3, ["umap_x", "umap_y"]] = np.nan  # a blank tile has no place on the map
    for part in ("tables", "tiles", "features"): (tmp_path / part).mkdir()
    table.to_parquet(tmp_path / "tables/embeddings.parquet")
    np.save(tmp_path / "tiles/tiles.npy", np.zeros((8, 16, 16, 3), np.uint8))
    np.save(tmp_path / "features/cls.npy", np.c_[np.cos(angle), np.sin(angle)])

    cells = ["from bonehisto.explore import explore_run\nshown = explore_run('.', k=2)\nshown",
             "shown.roi.value = 'r1'\nshown.walk[0].click()\nprint(sorted(shown.near), shown.tile.value)"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(book, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()

    data = book.cells[0].outputs[-1]["data"]
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "7 tiles" in data["text/plain"] and "explore_run" in data["text/plain"]
    near, shown = book.cells[1].outputs[0]["text"].rsplit(maxsplit=1)
    assert shown == "5" and near == "[4, 6]"  # from the second ROI's first tile to the nearest on the circle; never the blank one
