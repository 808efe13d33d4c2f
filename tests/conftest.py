"""What several test files need: where data outside the repository lies, and the `slow` flag."""
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / "shared"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))


@pytest.fixture
def shared():
    """The folder of real images and reference numbers beside the repository; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here: real images and reference numbers are not part of the repository")
    return SHARED


@pytest.fixture(scope="module")
def one_thread():
    """Torch on one thread while a module's tests run: sums then come in one order."""
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
