"""The project holds together: notebooks are the source, the package is their export, settings have one source."""
import ast, configparser, json, re, shutil, subprocess, sys
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).parents[1]
CHAPTERS = sorted((REPO / "nbs").glob("[0-9]*.ipynb"))
STEPS = sorted((REPO / "nbs" / "steps").glob("*.ipynb"))
HANDWRITTEN = {"__init__", "__main__", "_modidx"}


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(path, exported=False):
    code = ["".join(c["source"]) for c in cells(path) if c["cell_type"] == "code"]
    return "\n".join(c for c in code if not exported or re.search(r"^#\|\s*exporti?\b", c, re.M))


def module_of(path):
    found = re.search(r"^#\|\s*default_exp\s+(\w+)", source(path), re.M)
    return found.group(1) if found else None


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The tracked project, copied, so that a check never writes into the checkout."""
    to = tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(REPO, to, ignore=shutil.ignore_patterns(".venv", ".git", "runs", "data", "*.egg-info", "build", "__pycache__"))
    return to


def test_exporting_the_notebooks_changes_no_module(copy):
    subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=copy, check=True, capture_output=True)
    for path in sorted((REPO / "bonehisto").glob("*.py")):
        assert (copy / "bonehisto" / path.name).read_text() == path.read_text(), f"{path.name} differs from its notebook: run nbdev_export"
    assert {p.name for p in (copy / "bonehisto").glob("*.py")} == {p.name for p in (REPO / "bonehisto").glob("*.py")}


def test_every_module_has_its_notebook():
    modules = {p.stem for p in (REPO / "bonehisto").glob("*.py")} - HANDWRITTEN
    assert modules == {m for m in map(module_of, CHAPTERS) if m}


def test_notebooks_are_clean(copy):
    before = {p: p.read_text() for p in sorted((copy / "nbs").rglob("*.ipynb"))}
    subprocess.run([sys.executable, "-c", "from nbdev.clean import nbdev_clean; nbdev_clean()"], cwd=copy, check=True, capture_output=True)
    dirty = [p.name for p, text in before.items() if p.read_text() != text]
    assert not dirty, f"run nbdev_clean: {dirty}"


@pytest.mark.parametrize("path", CHAPTERS + STEPS, ids=lambda p: p.name)
def test_notebooks_stay_light_and_hold_no_widget_state(path):
    assert path.stat().st_size < 150_000, f"{path.name} is {path.stat().st_size // 1024} KB: too much stored output"
    assert "application/vnd.jupyter.widget" not in path.read_text()


@pytest.mark.parametrize("path", STEPS, ids=lambda p: p.name)
def test_a_step_has_one_parameters_cell_and_defines_nothing(path):
    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1 and "".join(tagged[0]["source"]).lstrip().startswith("run =")
    assert not re.search(r"^#\|\s*(export|default_exp)", source(path), re.M)
    tree = ast.parse("\n".join(l for l in source(path).splitlines() if not l.startswith("%")))
    assert not [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]


@pytest.mark.parametrize("path", [p for p in CHAPTERS if module_of(p)], ids=lambda p: p.name)
def test_imports_point_to_lower_numbers(path):
    number = {module_of(p): int(p.name[:2]) for p in CHAPTERS if module_of(p)}
    tree = ast.parse(source(path, exported=True))
    used = {n.module.split(".")[1] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("bonehisto.")}
    assert module_of(path) not in used, "a chapter imports the module it defines"
    assert all(number[m] < int(path.name[:2]) for m in used if m in number), used


@pytest.mark.parametrize("module", sorted({m for m in map(module_of, CHAPTERS) if m}))
def test_compute_modules_do_not_draw(module):
    if module.endswith(("_figures", "_sections")) or module in {"look", "page", "overlays", "audit", "figures", "live", "report", "annotate", "ship"}:
        pytest.skip("draws by design")
    text = (REPO / "bonehisto" / f"{module}.py").read_text()
    assert not re.search(r"^\s*(import|from)\s+(matplotlib|seaborn|ipywidgets)", text, re.M)


def test_every_exported_module_imports_in_a_fresh_interpreter():
    modules = sorted(m for m in map(module_of, CHAPTERS) if m)
    code = "import importlib\nfor m in %r: importlib.import_module('bonehisto.' + m)" % modules
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]


def test_environment_follows_settings():
    config = configparser.ConfigParser(delimiters=["="])
    config.read(REPO / "settings.ini")
    env = yaml.safe_load((REPO / "environment.yml").read_text())
    assert f"python={config['DEFAULT']['min_python']}" in env["dependencies"]
    assert {"pip": ["-e .[dev]"]} in env["dependencies"]
    named = {re.split(r"[<>=!~]", r)[0] for r in config["DEFAULT"]["requirements"].split()}
    assert {"jupyterlab", "papermill", "torch", "timm", "matplotlib", "seaborn", "umap-learn", "ipywidgets", "pandas"} <= named
    assert "nbdev==2.4.14" in config["DEFAULT"]["dev_requirements"].split()
    init = (REPO / "bonehisto" / "__init__.py").read_text()
    assert config["DEFAULT"]["version"] in init


def test_no_device_name_outside_the_device_chapter():
    for path in sorted((REPO / "bonehisto").glob("*.py")):
        if path.stem != "device":
            assert not re.search(r"[\"']cuda", path.read_text()), path.name
