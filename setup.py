"""Install bonehisto: everything is read from settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    packages=[*find_packages(include=["bonehisto", "bonehisto.*"]), "bonehisto.steps"],
    package_dir={"bonehisto.steps": "nbs/steps"},  # the step notebooks travel in the wheel
    package_data={"bonehisto": ["profiles/*.yaml", "templates/*", "weights/*", "cuts/*.csv", "dictionary/*.csv", "static/*", "static/jupyter/voila/templates/*/*"], "bonehisto.steps": ["*.ipynb"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={name: cfg[f"{name}_requirements"].split() for name in ("dev", "lora", "peers", "slides", "czi", "release")},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
)
