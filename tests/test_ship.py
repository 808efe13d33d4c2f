"""An encoder goes out with a card whose numbers come from files; a useless one stays; the one that ships is what its card says."""
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from bonehisto.encoder import SHIPPED, create_encoder, weights_path
from bonehisto.files import UserError, file_digest, write_json, write_table
from bonehisto.pretrain_run import pretrain_study
from bonehisto.ship import ship_weights

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = dict(preset="micro", steps=3, batch=4, n_local=1, global_px=32, local_px=16, projector_width=16, n_directions=16, rank_every=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("shipped") / "run"
    write_table(run / "tables/tiles.parquet", pd.DataFrame({"blank": False, "split": "train", "modality": ["brightfield"] * 6 + [""] * 4, "subject": ["s1"] * 6 + ["hearts"] * 4, "tissue_fraction": 1.}))
    (run / "tiles").mkdir()
    np.save(run / "tiles/tiles.npy", np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8))
    pretrain_study(run, limit={"brightfield": 5}, device="cpu", **SMALL)
    write_json(run / "run.json", {"machine": {"processor": "a processor", "gpu": ""}, "steps": {"pretrain": {"seconds": 60}}, "parameters": {"pretrain": {"splits": ["train", "val"], "limit": {"brightfield": 5}, "seed": 0}}})
    (run / "about.md").write_text("Drawn.\n\n## Licence\n\nOurs.")
    return run


def scored(folder, verdict):
    row = {"arm": "shipped", "probe": "tissue Dice", "domain": "brightfield", "class": "tissue mean", "preset": "micro", "baseline": "random", "mean": .9, "low": .8, "high": 1., "seeds": 3,
           "chance": .3, "p": np.nan, "difference": .123, "difference_low": .1, "difference_high": .2, "verdict": verdict, "note": ""}
    write_table(folder / "tables/experiment_summary.csv", pd.DataFrame([row | {"arm": "random", "baseline": "", "verdict": ""}, row]))
    return folder


def test_weights_and_card_are_whole(run, tmp_path):
    path = ship_weights(run, scored(tmp_path, "better than random weights"), run / "about.md", tmp_path / "out")
    card = path.with_suffix(".md").read_text()
    assert {p.name for p in path.parent.iterdir()} == {"micro.safetensors", "micro.json", "micro.md", "micro.png"}
    assert "9 tiles" in card and "5 brightfield" in card and "4 hearts" in card and "3 of 3 steps" in card and "a processor" in card and "## Licence" in card
    assert "+0.123 (+0.100 to +0.200)" in card and file_digest(path) in card
    assert all(v.dtype == torch.float16 for v in load_file(path).values())
    x, trained = torch.rand(2, 3, 64, 64), create_encoder("micro", run / "checkpoints/encoder.safetensors").eval()
    with torch.no_grad(): torch.testing.assert_close(create_encoder("micro", path).eval()(x), trained(x), rtol=0, atol=2e-2)


def test_an_encoder_no_better_than_random_is_refused_and_nothing_written(run, tmp_path):
    with pytest.raises(UserError, match="not worth shipping"):
        ship_weights(run, scored(tmp_path, "no difference that 3 seeds can show"), run / "about.md", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.safetensors")), ids=lambda p: p.stem)
def test_what_ships_is_what_its_card_says(path):
    """Small enough, half precision, loaded by name, not the random weights it began with; the card carries its checksum and what a card must have."""
    card, told = path.with_suffix(".md").read_text(), json.loads(path.with_suffix(".json").read_text())
    assert path.stat().st_size <= 12_000_000 and file_digest(path) in card
    for part in ("## Data", "## Recipe", "## Curves", "## Scores", "## Limits", "## Licence", "## How to remake it"): assert part in card
    assert (path.parent / re.search(r"!\[curves\]\((.*?)\)", card)[1]).exists()
    encoder = create_encoder(path.stem, weights="bonehisto")
    twin = create_encoder(path.stem, seed=told["extra"]["seed"])
    moved = [k for k, v in encoder.vit.state_dict().items() if not torch.allclose(v, twin.vit.state_dict()[k], atol=1e-3)]
    assert encoder.dim == told["shape"]["dim"] and len(moved) > .5 * len(encoder.vit.state_dict())


def test_weights_that_do_not_ship_are_named():
    with pytest.raises(UserError, match="no weights ship for encoder `small`"): weights_path("small", "bonehisto")
