"""The temporary files of programs: schema files and private folders go away however a run ends."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from programs import own_backends
from scripts import Launcher, await_condition

from fanout_sync.processes.scratch import make_folder, remove_folder

SCRIPT = """
    os.environ["TMPDIR"] = str(Path("temp").absolute())
    from fanout_sync import AgentStepSpec, Command, CommandExecutor
    command = Command(["sh", "-c", "cat $2; touch begun-$1; {then}", "sh", "{{task_id}}", "{{schema_file}}"])
    schema = {{"type": "object"}}
    specs = [AgentStepSpec(str(i), "a", "", "", output_schema=schema) for i in range(3)]
    runner = Runner(CommandExecutor({{"a": command}}), backend={backend!r}, max_concurrency=3, on_interrupt="return")
    run = runner.run(specs)
    say(" ".join(record.status for record in run.records), os.listdir("temp"))
"""


@own_backends
def test_nothing_is_left_after_a_run(backend: str, launch: Launcher) -> None:
    """The folder goes away with the last file."""
    (launch.folder / "temp").mkdir()
    script = launch.script(SCRIPT.format(then="exit", backend=backend))
    script.expect("succeeded succeeded succeeded []")
    script.end()


@own_backends
def test_nothing_is_left_after_ctrl_c(backend: str, launch: Launcher) -> None:
    """Also if the worker that has made the file is killed."""
    (launch.folder / "temp").mkdir()
    script = launch.script(SCRIPT.format(then="sleep 600", backend=backend))
    await_condition(lambda: all((launch.folder / f"begun-{i}").exists() for i in range(3)))
    assert len([*(launch.folder / "temp").glob("fanout-sync-*/schema-*.json")]) == 3
    script.press_ctrl_c()
    script.expect("cancelled cancelled cancelled []")
    script.end()


@own_backends
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_caller_that_is_killed(ending: signal.Signals, backend: str, launch: Launcher) -> None:
    """The guard process removes the files."""
    (launch.folder / "temp").mkdir()
    script = launch.script(SCRIPT.format(then="sleep 600", backend=backend))
    await_condition(lambda: all((launch.folder / f"begun-{i}").exists() for i in range(3)))
    script.process.send_signal(ending)
    script.end()
    await_condition(lambda: not [*(launch.folder / "temp").iterdir()])


def test_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private folder has links to the user's own settings."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "settings.json").touch()
    folder = Path(make_folder("mark"))
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "settings").symlink_to(tmp_path / "own")
    remove_folder("mark")
    remove_folder("mark")
    remove_folder(None)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
    assert (tmp_path / "own" / "settings.json").exists()
