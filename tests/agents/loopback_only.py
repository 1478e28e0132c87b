"""`python loopback_only.py COMMAND …` runs a command where nothing but this machine can be reached.

It has a network namespace of its own, with the loopback device alone. Where the system does not allow that, the command
runs as it is, and what it has to be run there for is skipped.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

WAYS = (["unshare", "--net"], ["unshare", "--net", "--map-root-user"])
"""As root, and as any user where the system allows that."""


def why_not() -> str | None:
    """Return why more than this machine may be reached; `None` if there is nothing else."""
    try:
        devices = [line.split(":")[0].strip() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]]
        routes = Path("/proc/self/net/route").read_text().splitlines()[1:]
    except OSError as error:
        return f"the network devices cannot be read: {error}"
    if devices != ["lo"]:
        return f"there is no network namespace with the loopback device alone: {', '.join(devices)}"
    return f"there are routes: {routes}" if routes else None


def bring_up() -> None:
    """Bring the loopback device up, as `ip link set lo up` does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack("16xh14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def main(arguments: list[str]) -> None:
    """Become the command, in a namespace if there can be one."""
    if arguments[:1] == ["--inside"]:
        bring_up()
        os.execvp(arguments[1], arguments[1:])
    for way in WAYS:
        if shutil.which(way[0]) and subprocess.run([*way, "true"], capture_output=True, check=False).returncode == 0:
            os.execvp(way[0], [*way, sys.executable, __file__, "--inside", *arguments])
    sys.stderr.write("no network namespace can be had here: tests that need one are skipped\n")
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
