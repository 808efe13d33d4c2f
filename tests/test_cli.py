"""The command line: every mistake ends with code 2, one message naming file and field, and nothing half-written."""
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bonehisto.cli import app

MANIFEST = """name: small
labels: {dosing_days: [[1, 2, 3], [16, 17, 18]]}
subjects:
- {id: S01, group: low}
- {id: S02, group: low}
- {id: S03, group: low}
rois:
- {id: a, image: a.png, subject: S01, modality: brightfield, pixel_size_um: 0.5, mask: a_mask.png}
- {id: b, image: b.png, subject: S02, modality: brightfield, pixel_size_um: 0.5}
- {id: c, image: c.png, subject: S03, modality: fluorescence, pixel_size_um: 0.5}
"""


def bonehisto(*args):
    return subprocess.run([sys.executable, "-m", "bonehisto", *map(str, args)], capture_output=True, text=True)


@pytest.fixture
def study(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abc": Image.fromarray(rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    mask = np.zeros((64, 80), np.uint8); mask[20:50] = 1; mask[20:28] = 2
    Image.fromarray(mask).save(tmp_path / "a_mask.png")
    (tmp_path / "m.yaml").write_text(MANIFEST)
    return tmp_path


def refused(study, *says, command="run"):
    args = ("run", study / "m.yaml", "--out", study / "out") if command == "run" else ("check", study / "m.yaml")
    done = bonehisto(*args)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for text in says: assert text in said, said
    assert not (study / "out").exists()


def test_help_shows_examples():
    commands = [c.name or c.callback.__name__ for c in app.registered_commands if not c.hidden]
    assert {"check", "phantom", "run", "segment", "measure", "label-efficiency", "tables", "release"} <= set(commands)
    for command in commands:
        done = CliRunner().invoke(app, [command, "--help"])
        assert done.exit_code == 0 and f"bonehisto {command}" in " ".join(done.output.split()), command


@pytest.mark.parametrize("args, says", [((), "Usage"), (("frob",), "No such command"), (("run",), "Missing argument"), (("check", "--frob"), "No such option")])
def test_a_wrong_call_shows_usage_and_no_stack_trace(args, says):
    done = bonehisto(*args)
    assert done.returncode == 2 and says in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_check_shows_the_inventory(study):
    done = bonehisto("check", study / "m.yaml")
    assert done.returncode == 0 and "3 subjects, 3 ROIs" in done.stdout, done.stderr


@pytest.mark.parametrize("command", ["run", "check"])
def test_all_problems_of_a_manifest_come_together(study, command):
    text = MANIFEST.replace("pixel_size_um: 0.5, mask", "pixel_size_um: 0, mask").replace("b.png", "missing.png").replace("subject: S03", "subject: S9")
    (study / "m.yaml").write_text(text)
    refused(study, "rois[0].pixel_size_um", "missing.png", "rois[2].subject", command=command)


def test_unknown_key_names_the_nearest(study):
    (study / "m.yaml").write_text(MANIFEST.replace("modality: fluorescence", "modalty: fluorescence"))
    refused(study, "m.yaml", "modalty", "did you mean `modality`?")


def test_truncated_image_is_named(study):
    whole = (study / "b.png").read_bytes()
    (study / "b.png").write_bytes(whole[:len(whole) // 2])
    refused(study, "b.png")


def test_mask_with_foreign_ids_is_named(study):
    Image.fromarray(np.full((64, 80), 7, np.uint8)).save(study / "a_mask.png")
    refused(study, "a_mask.png", "7")


def test_mask_of_another_size_is_named_with_both_sizes(study):
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(study / "a_mask.png")
    refused(study, "a_mask.png", "12 x 10", "80 x 64")


def test_manifest_that_is_not_there():
    done = bonehisto("run", "nowhere.yaml", "--out", "nowhere")
    assert done.returncode == 2 and "nowhere.yaml" in done.stderr and "Traceback" not in done.stderr


def test_measure_writes_tables_for_given_masks(study):
    (study / "maps").mkdir(); (study / "a_mask.png").rename(study / "maps/a.png")
    done = bonehisto("measure", study / "maps/a.png", "--manifest", study / "m.yaml", "--out", study / "tables")
    assert done.returncode == 2 and "a_mask.png" in done.stderr  # the manifest still names the mask that moved
    (study / "m.yaml").write_text(MANIFEST.replace(", mask: a_mask.png", ""))
    done = bonehisto("measure", study / "maps/a.png", "--manifest", study / "m.yaml", "--out", study / "tables")
    assert done.returncode == 0, done.stderr
    row = (study / "tables/roi_parameters.csv").read_text().splitlines()
    assert len(row) == 2 and "BV/TV (%)" in row[0]
    done = bonehisto("measure", study / "maps/a.png", "--manifest", study / "m.yaml", "--out", study / "tables", "--names-2d")
    assert done.returncode == 0 and all("B.Ar/T.Ar (%)" in h and "BV/TV" not in h and "MS/BS" not in h for h in ((study / f"tables/{n}.csv").read_text().splitlines()[0] for n in ("roi_parameters", "subject_parameters")))
    (study / "m.yaml").write_text("section: iliac\n" + (study / "m.yaml").read_text())
    done = bonehisto("measure", study / "maps/a.png", "--manifest", study / "m.yaml", "--out", study / "tables", "--names-2d")
    assert done.returncode == 2 and "section is iliac" in done.stderr


def test_measure_names_a_mask_without_roi(study):
    (study / "zzz.png").write_bytes((study / "a_mask.png").read_bytes())
    done = bonehisto("measure", study / "zzz.png", "--manifest", study / "m.yaml", "--out", study / "tables")
    assert done.returncode == 2 and "zzz.png" in done.stderr and not (study / "tables").exists()


def test_segment_without_a_model_is_refused(study):
    done = bonehisto("segment", study / "a.png", "--model", study / "norun", "--pixel-size-um", "0.5", "--out", study / "maps")
    assert done.returncode == 2 and "norun" in done.stderr and "Traceback" not in done.stderr and not (study / "maps").exists()


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    """A write that hits ENOSPC ends with a message; what stood there before still stands."""
    from bonehisto.files import UserError, atomic_path
    target = tmp_path / "t.csv"; target.write_text("old")
    with pytest.raises(UserError, match="no space left"):
        with atomic_path(target) as tmp:
            tmp.write_text("half")
            raise OSError(28, "No space left on device", str(tmp))
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("args, says", [
    (("benchmark", "-p", "benchmarks.presett=micro"), "has no parameter `presett`: did you mean `preset`?"),
    (("benchmark", "-p", "pretrain.steps=3"), "step pretrain is not part of this command, which runs benchmarks"),
    (("pretrain", "m.yaml", "-p", "pretrain.batch=many", "--profile", "nightly"), "there is no profile `nightly`"),
    (("experiment", "nowhere.yaml"), "nowhere.yaml: no such file"),
    (("ship", "nowhere", "--scores", "nowhere", "--about", "nowhere.md"), "experiment_summary.csv: no such table"),
])
def test_a_mistake_around_pretraining_ends_with_code_2_and_writes_nothing(study, args, says):
    done = subprocess.run([sys.executable, "-m", "bonehisto", *args, "--out", "out"], capture_output=True, text=True, cwd=study)
    assert done.returncode == 2 and says in " ".join(done.stderr.split()) and "Traceback" not in done.stderr, done.stderr
    assert not (study / "out").exists()


@pytest.mark.parametrize("args, says", [
    (("--difference", "a lot", "--cv", "20%"), "the difference is a lot: give a number in the parameter's unit, or a percentage"),
    (("--difference", "20%"), "give either a run folder, whose spread is taken, or --cv"),
    (("nowhere", "--difference", "20%"), "roi_parameters.csv: no such table"),
])
def test_a_mistake_in_a_plan_of_subjects_ends_with_code_2(args, says):
    done = bonehisto("power", *args, "--parameter", "MAR")
    assert done.returncode == 2 and says in " ".join(done.stderr.split()) and "Traceback" not in done.stderr, done.stderr


def test_power_answers_with_a_sentence_and_a_table():
    done = bonehisto("power", "--parameter", "MAR", "--difference", "20%", "--cv", "20%")
    assert done.returncode == 0 and done.stdout.startswith("To see MAR differ by 20% between two groups with 80 % power") and "subjects a group 1 ROI 2 ROIs" in done.stdout
