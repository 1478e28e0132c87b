"""How the presets call their programs."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve
from preset_samples import NAMES, SPEC, preset_named

from fanout_sync import Command
from fanout_sync.executors.command.invocation import unsupported

SCHEMA = {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "required": ["name"]}

CALLS = {
    "claude": "-p --output-format stream-json --verbose --include-partial-messages --model M",
    "codex": "exec --json --ephemeral --skip-git-repo-check -c analytics.enabled=false -m M",
    "gemini": "-o stream-json --skip-trust -m M",
    "opencode": "run --format json --pure -m M",
    "copilot": "--output-format json --allow-all-tools --no-auto-update --model M",
}


def folder_for(path: Path) -> Callable[[], str]:
    """Return what the core gives a preset: a function that returns a folder."""

    def folder() -> str:
        path.mkdir(exist_ok=True)
        return str(path)

    return folder


def no_folder() -> str:
    """Fail: no folder is wanted."""
    raise AssertionError("a folder was asked for")


@pytest.mark.parametrize("name", NAMES)
def test_the_call(name: str) -> None:
    """The model is named only if one is given; the prompt comes on standard input, whatever it begins with."""
    preset = preset_named(name, "M")
    assert preset.arguments(SPEC, None) == CALLS[name].split()
    assert preset_named(name).arguments(SPEC, None) == CALLS[name].split()[:-2]
    assert (preset.prompt, preset.program, preset.unsupported(SPEC, os.environ)) == ("stdin", name, None)
    dashed = evolve(SPEC, prompt="--help")
    assert "--help" not in preset.arguments(dashed, None)
    assert preset.prompt_of(dashed) == "--help"


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_pickles_and_equals_another_of_its_kind(name: str) -> None:
    """It goes to worker processes with its executor."""
    assert pickle.loads(pickle.dumps(preset_named(name, "M"))) == preset_named(name, "M")
    assert preset_named(name, "M") != preset_named(name)


def test_a_schema_is_an_argument_a_file_or_below_the_prompt() -> None:
    """Programs that have no option for it read it with the prompt."""
    spec = SPEC.with_output_schema(SCHEMA)
    arguments = preset_named("claude").arguments(spec, None)
    # Claude Code refuses a schema that names this dialect.
    assert json.loads(arguments[arguments.index("--json-schema") + 1]) == {"type": "object", "required": ["name"]}
    assert preset_named("codex").arguments(spec, "FILE")[-2:] == ["--output-schema", "FILE"]
    for name in NAMES:
        prompt = preset_named(name).prompt_of(spec)
        assert preset_named(name).unsupported(spec, os.environ) is None
        if name in ("claude", "codex"):
            assert prompt == spec.prompt
        else:
            assert prompt.startswith(spec.prompt)
            assert json.loads(prompt.splitlines()[-1]) == SCHEMA


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_may_be_any_json(name: str) -> None:
    """The schema `true` takes any answer."""
    spec = evolve(SPEC, output_schema=True)
    preset = preset_named(name)
    assert preset.unsupported(spec, os.environ) is None
    assert "true" in [*preset.arguments(spec, None), preset.prompt_of(spec).splitlines()[-1]] or name == "codex"


def test_a_schema_that_is_too_long_for_an_argument_is_refused() -> None:
    """The message says what takes it."""
    spec = SPEC.with_output_schema({"description": "ä" * 100_000})
    assert "argument" in (preset_named("claude").unsupported(spec, os.environ) or "")


def test_max_steps_is_the_cap_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The others refuse it and say so; none takes a cap of zero."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GEMINI_CLI_HOME", raising=False)
    spec, none = SPEC.with_max_steps(5), SPEC.with_max_steps(0)
    assert preset_named("claude").arguments(spec, None)[-2:] == ["--max-turns", "5"]
    for name in NAMES:
        refusal = preset_named(name).unsupported(spec, os.environ)
        assert (refusal is None) == (name in ("claude", "gemini"))
        if refusal is not None:
            assert re.match(rf"{name} has no cap on turns \(max_steps=5\)", refusal)
        assert "max_steps=0" in (preset_named(name).unsupported(none, os.environ) or "")


def test_claude_has_a_folder_of_its_own_if_its_login_is_in_the_environment(tmp_path: Path) -> None:
    """It has links to the user's settings there; a login by /login, or a folder of the user's choice, is kept."""
    preset, own = preset_named("claude"), tmp_path / "own"
    user = tmp_path / ".claude"
    (user / "agents").mkdir(parents=True)
    (user / "settings.json").write_text("{}")
    (user / ".credentials.json").write_text("secret")
    home = {"HOME": str(tmp_path)}
    for _ in range(2):  # the next program uses the folder again
        variables = preset.private_variables(SPEC, {**home, "ANTHROPIC_API_KEY": "k"}, folder_for(own))
        assert variables == {"CLAUDE_CONFIG_DIR": str(own)}
        assert {path.name for path in own.iterdir()} == {"settings.json", "agents"}
        assert (own / "settings.json").resolve() == user / "settings.json"
    for kept in (home, {**home, "ANTHROPIC_API_KEY": ""}, {"ANTHROPIC_API_KEY": "k", "CLAUDE_CONFIG_DIR": "mine"}):
        assert preset.private_variables(SPEC, kept, no_folder) == {}


def test_gemini_has_its_limits_in_settings_of_its_own(tmp_path: Path) -> None:
    """The user's settings and login stay; own retries are off, and the cap is that of the step in hand."""
    preset, own, user = preset_named("gemini"), tmp_path / "own", tmp_path / "home" / ".gemini"
    user.mkdir(parents=True)
    (user / "settings.json").write_text('{"general": {"vimMode": true}, /* a */ "url": "https://x" // b\n}')
    (user / "oauth_creds.json").write_text("secret")
    (user / "tmp").mkdir()
    (tmp_path / "home" / ".env").write_text("GEMINI_API_KEY=k")
    environment = {"HOME": str(tmp_path / "home")}
    for spec, turns in ((SPEC.with_max_steps(4), 4), (SPEC, None)):
        assert preset.private_variables(spec, environment, folder_for(own)) == {"GEMINI_CLI_HOME": str(own)}
        settings = json.loads((own / ".gemini" / "settings.json").read_text())
        assert settings["general"] == {
            "vimMode": True,
            "enableAutoUpdate": False,
            "maxAttempts": 1,
            "retryFetchErrors": False,
        }
        assert settings["url"] == "https://x"
        assert settings.get("model", {}).get("maxSessionTurns") == turns
    assert {path.name for path in own.iterdir()} == {".gemini", ".env"}
    assert {path.name for path in (own / ".gemini").iterdir()} == {"settings.json", "oauth_creds.json"}
    assert json.loads((user / "settings.json").read_text().split("/*")[0].rstrip(", ") + "}")  # as it was


@pytest.mark.parametrize("settings", ["{", "[]", "null", b"\xff"])
def test_gemini_keeps_to_settings_that_cannot_be_read(
    settings: str | bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The program itself says what is wrong with them; a cap is refused then."""
    (tmp_path / ".gemini").mkdir()
    (tmp_path / ".gemini" / "settings.json").write_bytes(settings.encode() if isinstance(settings, str) else settings)
    preset = preset_named("gemini")
    assert preset.private_variables(SPEC, {"HOME": str(tmp_path)}, no_folder) == {}
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GEMINI_CLI_HOME", raising=False)
    assert "max_steps=5" in (preset.unsupported(SPEC.with_max_steps(5), os.environ) or "")
    assert preset.unsupported(SPEC, os.environ) is None


@pytest.mark.parametrize(("home", "is_refused"), [("/elsewhere", True), (None, False)])
def test_a_home_of_gemini_in_the_command_counts(
    home: str | None, is_refused: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The variables of the command go before those of the caller, also where a cap is checked."""
    (tmp_path / "gemini").touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GEMINI_CLI_HOME", "/yet/elsewhere")
    command = Command.gemini(env={"GEMINI_CLI_HOME": home})
    assert (unsupported(command, SPEC.with_max_steps(3)) is not None) == is_refused


def test_gemini_works_without_settings(tmp_path: Path) -> None:
    """There need not be any."""
    own = tmp_path / "own"
    assert preset_named("gemini").private_variables(SPEC, {"HOME": str(tmp_path)}, folder_for(own))
    assert json.loads((own / ".gemini" / "settings.json").read_text())["general"]["maxAttempts"] == 1
    assert preset_named("gemini").private_variables(SPEC, {"GEMINI_CLI_HOME": "mine", "HOME": "x"}, no_folder) == {}
    assert preset_named("gemini").private_variables(SPEC, {}, no_folder) == {}


def test_opencode_has_a_database_of_its_own(tmp_path: Path) -> None:
    """Two that make one at the same time fail; its login is elsewhere."""
    preset, own = preset_named("opencode"), tmp_path / "own"
    assert preset.private_variables(SPEC, {}, folder_for(own)) == {"OPENCODE_DB": str(own / "opencode.db")}
    assert preset.private_variables(SPEC, {"OPENCODE_DB": "mine"}, no_folder) == {}


def test_codex_and_copilot_share_their_folders() -> None:
    """They can be run at once with one."""
    for name in ("codex", "copilot"):
        assert preset_named(name).private_variables(SPEC, {"HOME": "x", "OPENAI_API_KEY": "k"}, no_folder) == {}


def test_own_retries_and_updates_are_off() -> None:
    """As far as a variable can do that."""
    assert preset_named("claude").environment()["CLAUDE_CODE_MAX_RETRIES"] == "0"
    assert preset_named("opencode").environment() == {"OPENCODE_DISABLE_AUTOUPDATE": "1"}
    assert preset_named("copilot").environment() == {"COPILOT_AUTO_UPDATE": "false"}


@pytest.mark.parametrize("name", NAMES)
def test_a_command_has_its_preset(name: str) -> None:
    """The class methods of `Command` make one, which needs no program to be there."""
    command: Command = getattr(Command, name)(model="M", extra_args=["--more"])
    assert (command.argv, command.extra_args) == ((name,), ("--more",))
    assert pickle.loads(pickle.dumps(command)) == command
