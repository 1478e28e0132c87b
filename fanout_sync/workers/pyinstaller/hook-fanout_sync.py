"""Has PyInstaller include what is imported where it does not see it."""

from PyInstaller.utils.hooks import collect_submodules

hiddenimports = [
    *collect_submodules("fanout_sync"),
    "cloudpickle.cloudpickle",
    "loky.backend.resource_tracker",
    "multiprocessing.resource_tracker",
]
