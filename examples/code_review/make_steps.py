"""Print the steps of a code review: every agent for every module named, or for thirty of the standard library.

python make_steps.py > steps.jsonl
python make_steps.py json.decoder my_package.my_module > mine.jsonl
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from fanout_sync import AgentStepSpec

MODULES = [
    "argparse",
    "ast",
    "asyncio.base_events",
    "calendar",
    "collections",
    "configparser",
    "difflib",
    "doctest",
    "email.message",
    "enum",
    "fractions",
    "functools",
    "http.client",
    "imaplib",
    "inspect",
    "logging",
    "mailbox",
    "multiprocessing.pool",
    "pdb",
    "pickle",
    "pprint",
    "shutil",
    "smtplib",
    "statistics",
    "subprocess",
    "tarfile",
    "threading",
    "traceback",
    "typing",
    "unittest.mock",
]
"""All of them are written in Python, and in every CPython from 3.10 to 3.13."""

TASKS = {
    "outline": "List what {module} defines",
    "complexity": "Rank the functions of {module} by complexity",
    "smells": "Look for trouble in {module}",
    "plan": "Plan what to refactor first in {module}",
}


def make_steps(modules: Iterable[str]) -> Iterator[AgentStepSpec]:
    """Yield one step for each agent and module."""
    for module in modules:
        for agent, description in TASKS.items():
            yield AgentStepSpec(
                task_id=f"{agent}:{module}", agent=agent, description=description.format(module=module), prompt=module
            )


if __name__ == "__main__":
    for spec in make_steps(sys.argv[1:] or MODULES):
        print(spec.to_json())
