"""A small drawn study and a run of it with few steps of everything, for tests that go the whole way."""
import subprocess
import sys

from bonehisto.files import read_json
from bonehisto.pipeline import run_study

SMALL = ("uncertainty.draws=2", "pretrain.steps=4", "pretrain.batch=16", "heads.steps=6", "heads.batch=4", "embed.n_neighbours=5")
OPTIONS = [a for p in SMALL for a in ("-p", p)]


def bonehisto(*args, **kwargs):
    return subprocess.run([sys.executable, "-m", "bonehisto", *map(str, args)], capture_output=True, text=True, **kwargs)


def draw_small(out):
    "The study's manifest."
    done = bonehisto("phantom", out, "--subjects", 6, "--rois", 1, "--size-px", 448)
    assert done.returncode == 0, done.stderr
    return out / "data_manifest.yaml"


def small_run(manifest, out, *more, steps=None):
    lines = []
    ok = run_study(manifest, out, "demo", SMALL + more, steps=steps, say=lines.append)
    return ok, "\n".join(lines)


def command(study, out):
    return [sys.executable, "-m", "bonehisto", "run", str(study), "--out", str(out), *OPTIONS]


def states(run):
    return {name: (s["state"], s.get("started")) for name, s in read_json(run / "run.json")["steps"].items()}
