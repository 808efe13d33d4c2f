"""What is installed elsewhere works elsewhere: the wheel carries notebooks, profiles and templates, and runs outside the repository."""
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]


def call(*args, **kwargs):
    done = subprocess.run([*map(str, args)], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, f"{args}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"  # built from a copy, so that no build folder appears in the checkout
    shutil.copytree(REPO, source, ignore=shutil.ignore_patterns(".venv", ".git", "runs", "data", "*.egg-info", "build", "__pycache__"))
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source)
    return next(out.glob("*.whl"))


def test_the_wheel_carries_what_a_run_needs(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    for step in (REPO / "nbs/steps").glob("*.ipynb"): assert f"bonehisto/steps/{step.name}" in inside
    for kind in ("profiles/*.yaml", "templates/*", "cuts/*.csv", "dictionary/*.csv", "*.py"):
        for path in (REPO / "bonehisto").glob(kind): assert str(path.relative_to(REPO)) in inside


def test_phantom_and_run_work_outside_the_repository(wheel, tmp_path):
    env_dir = tmp_path / "env"
    call(sys.executable, "-m", "venv", env_dir)
    site = next(env_dir.glob("lib/python*/site-packages"))
    (site / "already_installed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # sees the packages, not this checkout
    call(env_dir / "bin/python", "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", "--no-index", wheel)
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "JUPYTER_PATH")}
    where = call(env_dir / "bin/python", "-c", "import bonehisto; print(bonehisto.__file__)", cwd=tmp_path, env=env)
    assert str(site) in where
    command = env_dir / "bin/bonehisto"
    call(command, "phantom", "study", "--subjects", 6, "--rois", 1, "--size-px", 448, cwd=tmp_path, env=env)
    call(command, "run", "study/data_manifest.yaml", "--out", "run", "-p", "pretrain.steps=3", "-p", "pretrain.batch=16", "-p", "heads.steps=4", "-p", "uncertainty.draws=0", cwd=tmp_path, env=env)
    assert (tmp_path / "run/report.html").exists() and list((tmp_path / "run/masks").glob("*.png"))
