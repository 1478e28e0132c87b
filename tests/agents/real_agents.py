"""The real command-line agents: where they are, and how they are told to ask the fake provider."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from fake_provider import FakeProvider
from scripts import TOKEN

from fanout_sync import AgentStepSpec, Command, CommandExecutor, Run, Runner

NAMES = ("claude", "codex", "gemini", "opencode", "copilot")

MODELS = {"claude": "sonnet", "codex": "tiny", "gemini": "gemini-x", "opencode": "fake/tiny", "copilot": "tiny"}

ALLOWS_THE_SHELL = {"claude": ["--allowedTools", "Bash"], "gemini": ["--approval-mode", "yolo"]}

FOLDER_VARIABLE = "FANOUT_SYNC_AGENTS"
"""Names the folder where npm has installed them."""

KEPT = ("PATH", "LANG", "TMPDIR", TOKEN)
"""All variables of the environment that the programs get; what else they need is set here."""


@frozen
class Agent:
    """One of the programs.

    Attributes:
        name: Its name.
        provider: The server that it asks.
        home: Its home.
    """

    name: str
    provider: FakeProvider
    home: Path

    def command(self, **options: Any) -> Command:
        """Return the command that runs it."""
        make: Callable[..., Command] = getattr(Command, self.name)
        work = self.home / "work"
        work.mkdir(exist_ok=True)
        return make(model=MODELS[self.name], cwd=work, **options)

    def run(self, *prompts: str, backend: Any = "thread", extra_args: Any = (), **options: Any) -> Run:
        """Run one step for each prompt."""
        specs = [AgentStepSpec(f"t{number}", "a", "a step", prompt) for number, prompt in enumerate(prompts)]
        return self.run_specs(specs, backend=backend, extra_args=extra_args, **options)

    def run_specs(self, specs: list[AgentStepSpec], *, backend: Any, extra_args: Any = (), **options: Any) -> Run:
        """Run steps of the agent `a`."""
        executor = CommandExecutor({"a": self.command(extra_args=extra_args)}, concurrency=16)
        return Runner(executor, backend=backend, **{"timeout": 100, **options}).run(specs)


def folders_of_programs() -> list[Path]:
    """Return the folders in which the programs are."""
    modules = Path(os.environ[FOLDER_VARIABLE], "node_modules")
    folders = [modules / ".bin", modules / "opencode-linux-x64" / "bin"]
    if (sdk := importlib.util.find_spec("claude_agent_sdk")) is not None and sdk.submodule_search_locations:
        folders.append(Path(sdk.submodule_search_locations[0], "_bundled"))
    return folders


def prepare(name: str, provider: FakeProvider, home: Path, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """Give a program a home, and an environment, in which it asks the fake provider and nobody else."""
    path = os.pathsep.join([*map(str, folders_of_programs()), os.environ["PATH"]])
    if shutil.which(name, path=path) is None:
        pytest.skip(f"{name} is not installed")
    for variable in set(os.environ) - set(KEPT):
        monkeypatch.delenv(variable)
    variables = {
        "PATH": path,
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": provider.url,
        "ANTHROPIC_API_KEY": "dummy",
        "GOOGLE_GEMINI_BASE_URL": provider.url,
        "GEMINI_API_KEY": "dummy",
        "FAKE_KEY": "dummy",
        "COPILOT_PROVIDER_BASE_URL": f"{provider.url}/v1",
        "COPILOT_PROVIDER_TYPE": "openai",
        "COPILOT_PROVIDER_API_KEY": "dummy",
    }
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    _write_settings(provider, home)
    return Agent(name, provider, home)


def _write_settings(provider: FakeProvider, home: Path) -> None:
    codex = (
        'model_provider = "fake"\n[model_providers.fake]\nname = "fake"\nenv_key = "FAKE_KEY"\nwire_api = "responses"\n'
        f'base_url = "{provider.url}/v1"\nrequest_max_retries = 0\nstream_max_retries = 0\n'
    )
    opencode = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{provider.url}/v1", "apiKey": "dummy"},
        "models": {"tiny": {"name": "tiny"}},
    }
    settings = {
        ".codex/config.toml": codex,
        ".gemini/settings.json": json.dumps({"security": {"auth": {"selectedType": "gemini-api-key"}}}),
        ".config/opencode/opencode.json": json.dumps({"provider": {"fake": opencode}}),
    }
    for name, text in settings.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text, encoding="utf-8")
