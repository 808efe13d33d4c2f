"""Work that is shared out: failures are set aside, processes may die, schedulers elsewhere serve, and nothing that was finished is done twice."""
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import psutil
import pytest
from distributed import Security

from bonehisto import fan_out as chapter
from bonehisto.fan_out import SetAside, fan_out, from_text, set_aside, to_text
from bonehisto.files import UserError, read_json


def job(item, folder):
    "Says that it was called, and does what the item asks for."
    name, what = item
    with open(Path(folder) / name, "a") as f: f.write("x")
    if what == "die": os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise": raise ValueError("no good")
    if what == "once" and (Path(folder) / name).stat().st_size == 1: raise OSError("the first time")
    return {"name": name, "pid": os.getpid(), "table": pd.DataFrame({"x": np.float32([.1, np.nan])})}


def local_rank(item): return item, os.environ["LOCAL_RANK"]


def go(folder, items, workers=1, **more):
    folder.mkdir(exist_ok=True)
    return fan_out(partial(job, folder=folder), items, [n for n, _ in items], "working", workers, **more)


def calls(folder, name): return (folder / name).stat().st_size


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_item_is_tried_twice_and_set_aside_and_the_rest_goes_on(tmp_path, workers):
    found = go(tmp_path / "calls", [("a", ""), ("b", "raise"), ("c", "once"), ("d", "")], workers)
    assert [f.reason if isinstance(f, SetAside) else f["name"] for f in found] == ["a", "ValueError: no good", "c", "d"]
    assert [calls(tmp_path / "calls", n) for n in "abcd"] == [1, 2, 2, 1]
    assert found[0]["table"]["x"].dtype == np.float32
    assert (found[0]["pid"] == os.getpid()) == (workers == 1)


def test_an_item_that_kills_its_process_costs_no_other_item(tmp_path, monkeypatch):
    monkeypatch.setenv("BONEHISTO_KEPT", str(tmp_path / "kept"))
    found = go(tmp_path / "calls", [("a", ""), ("bad", "die"), *((f"c{k}", "") for k in range(6))], 2)
    assert "ended" in found[1].reason and calls(tmp_path / "calls", "bad") == 2
    assert [f["name"] for f in found[:1] + found[2:]] == ["a", *(f"c{k}" for k in range(6))]
    assert all(calls(tmp_path / "calls", n) == 1 for n in ("a", *(f"c{k}" for k in range(6))))


def test_what_was_finished_is_not_done_again_and_failures_are(tmp_path, monkeypatch):
    monkeypatch.setenv("BONEHISTO_KEPT", str(tmp_path / "kept"))
    first = go(tmp_path / "calls", [("a", ""), ("b", "raise")])
    assert set_aside(tmp_path / "kept") == {"b": "ValueError: no good"}
    again = go(tmp_path / "calls", [("a", ""), ("b", ""), ("c", "")])
    assert calls(tmp_path / "calls", "a") == 1 and calls(tmp_path / "calls", "b") == 3 and not set_aside(tmp_path / "kept")
    assert again[0]["pid"] == first[0]["pid"] and again[0]["table"].equals(first[0]["table"])
    (tmp_path / "kept/working/a.json").write_text("{torn")
    assert go(tmp_path / "calls", [("a", "")])[0]["name"] == "a" and calls(tmp_path / "calls", "a") == 2


def test_with_gpus_every_item_keeps_its_own_result_and_processes_take_gpus_in_turn(tmp_path, monkeypatch):
    monkeypatch.setenv("BONEHISTO_KEPT", str(tmp_path / "kept"))
    found = fan_out(local_rank, ["a", "b", "c", "d"], list("abcd"), "working", gpus=2)
    assert [f[0] for f in found] == list("abcd") and {f[1] for f in found} <= {"0", "1"}
    assert sorted(p.stem for p in (tmp_path / "kept/working").iterdir()) == list("abcd")


def test_where_every_item_fails_the_reason_is_raised(tmp_path):
    with pytest.raises(RuntimeError, match="all 2 failed, a: ValueError: no good"): go(tmp_path / "calls", [("a", "raise"), ("b", "raise")])
    assert go(tmp_path / "calls", []) == []


def test_a_full_disk_is_no_matter_of_one_item(tmp_path, monkeypatch):
    monkeypatch.setattr(chapter, "_here", lambda *_: SetAside("OSError: [Errno 28] No space left on device"))
    with pytest.raises(UserError, match="(?i)no space left"): go(tmp_path / "calls", [("a", ""), ("b", "")])


def test_only_plain_values_travel():
    with pytest.raises(TypeError, match="not object"): to_text({"x": object()})
    nothing = from_text(to_text({"t": pd.DataFrame({"a": pd.Series([], dtype="int64"), "b": pd.Series([], dtype="str")})}))["t"]
    assert nothing.dtypes["a"] == "int64" and len(nothing) == 0
    odd = pd.DataFrame([[1, 2.5]], columns=["a", "a"])
    pd.testing.assert_frame_equal(from_text(to_text(odd)), odd)


def test_the_cluster_listens_on_this_machine_alone_and_ends_with_its_owner(tmp_path):
    code = ("import time, sys\nfrom bonehisto.fan_out import own_cluster\nif __name__ == '__main__':\n"
            "    with own_cluster(2) as client:\n        print(client.scheduler.address, flush=True); time.sleep(600)")
    (tmp_path / "own.py").write_text(code)
    owner = subprocess.Popen([sys.executable, tmp_path / "own.py"], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline().startswith("tls://127.0.0.1:")
        family = [psutil.Process(owner.pid), *psutil.Process(owner.pid).children(recursive=True)]
        listening = {c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
        assert len(family) > 2 and listening == {"127.0.0.1"}
    finally: owner.kill(); owner.wait()
    gone, alive = psutil.wait_procs(family[1:], timeout=30)
    assert not alive


@pytest.fixture
def scheduler(tmp_path):
    "A scheduler and two workers in processes of their own, reached by TLS; its address."
    made = Security.temporary()
    for name in ("ca_file", "client_cert", "client_key"): (tmp_path / name).write_text(getattr(made, f"tls_{name}"))
    tls = {"distributed.comm.tls.ca-file": str(tmp_path / "ca_file")} | {f"distributed.comm.tls.{role}.{part}": str(tmp_path / f"client_{part}") for role in ("scheduler", "worker", "client") for part in ("cert", "key")}
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    env |= {"DASK_" + key.upper().replace("-", "_").replace(".", "__"): value for key, value in tls.items()}
    def start(*args): return subprocess.Popen([sys.executable, "-m", "dask", *args], cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    file = tmp_path / "scheduler.json"
    running = [start("scheduler", "--protocol", "tls", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))]
    running += [start("worker", "--protocol", "tls", "--scheduler-file", str(file), "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)) for _ in range(2)]
    try:
        while not file.exists() or not file.read_text().endswith("}"): assert running[0].poll() is None; time.sleep(.1)
        with dask.config.set(tls): yield read_json(file)["address"]
    finally:
        for p in running: os.killpg(p.pid, signal.SIGKILL)
        for p in running: p.wait()


def test_a_scheduler_that_somebody_else_started_shares_the_work(tmp_path, scheduler, monkeypatch):
    assert scheduler.startswith("tls://")
    monkeypatch.setenv("BONEHISTO_SCHEDULER", scheduler)
    found = go(tmp_path / "calls", [(n, "raise" if n == "b" else "") for n in "abcd"], None)
    assert [isinstance(f, SetAside) for f in found] == [False, True, False, False]
    assert os.getpid() not in {f["pid"] for f in found if not isinstance(f, SetAside)}
    monkeypatch.setattr(chapter, "package_digest", lambda: "another")
    with pytest.raises(UserError, match="another version of bonehisto"): go(tmp_path / "calls", [("a", "")], None)


def test_no_scheduler_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("BONEHISTO_SCHEDULER", "tcp://127.0.0.1:9")
    monkeypatch.setattr(chapter.others_cluster.__wrapped__, "__defaults__", (1,))
    with pytest.raises(UserError, match="no scheduler answers there"): go(tmp_path / "calls", [("a", "")], None)
