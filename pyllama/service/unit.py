"""A model, its options and a board into the text of a systemd unit: the one that is shipped, filled in.

The hardening stands in pyllama@.service, with its reasons; this file only replaces what differs.
"""

import ipaddress
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from pyllama.service.quoting import Specifiers, bind_path, command, rest_of_line, word

TEMPLATE = "pyllama@.service"

# Memory the kernel books to the service beyond the resident set that --memory bounds: page tables, sockets, files.
FENCE_NBYTES = 128 << 20

# The same for mpiexec, what it starts here, and its ssh to the other boards.
CLUSTER_NBYTES = 256 << 20

# What takes a privileged manager, or a user namespace, which many kernels refuse to users.
SYSTEM_ONLY = frozenset(
    """DynamicUser StateDirectoryMode ProtectSystem ProtectHome PrivateTmp PrivateDevices PrivateUsers ProtectClock
    ProtectControlGroups ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables ProtectProc
    CapabilityBoundingSet AmbientCapabilities KeyringMode Wants After""".split()
)


@dataclass(frozen=True, slots=True)
class Service:
    """What a unit is made for.

    name             of the unit, without ".service"
    model            absolute path; of several boards perhaps a name, which each of them looks up
    nbytes           the memory budget; None, with boards alone: what each of them has
    options          further arguments of `pyllama serve`
    user             a unit of the user's manager, not of the system's
    host, port       where it listens
    stop_timeout_s   for running answers when it stops
    max_connections  open at once
    api_key_file     absolute path, or None
    session_dir      absolute path, or None for the manager's own place
    readable         paths to show to a system service
    python_path      folders to import from
    program          the interpreter, and its arguments before "serve"
    boards           it runs on several boards, which the front end reaches by ssh
    runs_as          of such a system service: whose ssh key that is
    """

    name: str
    model: str
    nbytes: int | None
    options: Sequence[str] = ()
    user: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    stop_timeout_s: float = 20.0
    max_connections: int = 256
    api_key_file: str | None = None
    session_dir: str | None = None
    readable: Sequence[Path] = ()
    python_path: Sequence[Path] = ()
    program: Sequence[str] = field(default_factory=lambda: (sys.executable, "-P", "-m", "pyllama"))
    boards: bool = False
    runs_as: str | None = None


def shipped() -> str:
    """The unit that comes with the package."""
    return (files("pyllama.service") / TEMPLATE).read_text(encoding="utf-8")


def render(service: Service) -> str:
    """The unit's text."""
    return _fill(shipped(), _settings(service))


def _settings(service: Service) -> dict[str, list[str]]:
    """Values of each setting that differs from the shipped unit's; none: the setting is left out."""
    key = _key_arguments(service)
    sessions = service.session_dir or Specifiers(f"%S/{service.name}/sessions")
    memory = [] if service.nbytes is None else ["--memory", str(service.nbytes)]
    arguments = ["serve", service.model, *memory, "--session-dir", sessions, *key]
    program, *before = service.program
    settings: dict[str, list[str]] = {name: [] for name in SYSTEM_ONLY} if service.user else {}
    if service.boards:
        settings |= _of_boards(service)
    fence = FENCE_NBYTES + (CLUSTER_NBYTES if service.boards else 0)
    settings |= {
        "Description": [rest_of_line(f"pyllama, serving {Path(service.model).name}")],
        "RequiresMountsFor": [] if service.user or not service.model.startswith("/") else [word(service.model)],
        "EnvironmentFile": [],
        "ExecStart": [command(program, [*before, *arguments, *service.options])],
        "TimeoutStopSec": [f"{service.stop_timeout_s + 70:.0f}s"],
        "MemoryMax": ["infinity" if service.nbytes is None else str(service.nbytes + fence)],
        "LimitNOFILE": [str(max(8192, service.max_connections + 1024))],
        "StateDirectory": [service.name],
        "WantedBy": ["default.target" if service.user else "multi-user.target"],
    }
    environment = ["PYTHONFAULTHANDLER=1", "PYTHONUNBUFFERED=1"]
    if service.python_path:
        environment.append("PYTHONPATH=" + ":".join(map(str, service.python_path)))
    settings["Environment"] = [" ".join(map(word, environment))]
    if service.user:
        return settings
    if service.readable and not service.boards:
        settings["BindReadOnlyPaths"] = [bind_path(str(path)) for path in service.readable]
    if service.api_key_file:
        settings["LoadCredential"] = ["api-key:" + rest_of_line(service.api_key_file)]
    if service.boards:
        return settings
    if _is_loopback(service.host):
        settings |= {"Wants": [], "After": ["network.target"]}
        settings |= {"IPAddressAllow": ["localhost"], "IPAddressDeny": ["any"]}
    if 0 < service.port < 1024:
        # The capability counts for this machine's network only without a user namespace.
        bind = ["CAP_NET_BIND_SERVICE"]
        settings |= {"CapabilityBoundingSet": bind, "AmbientCapabilities": bind, "PrivateUsers": []}
    return settings


def _of_boards(service: Service) -> dict[str, list[str]]:
    """ssh and mpiexec are other people's programs: no walls but those that a user's service has, whose key reaches the
    boards. KillMode=mixed as it stands gives the front end time to end its answers, and then ends what it has left."""
    return {name: [] for name in SYSTEM_ONLY - {"Wants", "After"}} | {
        "User": [] if service.user or service.runs_as is None else [service.runs_as],
        # Boards that are away are no wrong option: it starts again until they are there.
        "Restart": ["always"],
        "RestartSec": ["15s"],
        "RestartPreventExitStatus": [],
        "StartLimitIntervalSec": ["0"],
        "StartLimitBurst": [],
        "RestrictAddressFamilies": ["AF_INET AF_INET6 AF_UNIX AF_NETLINK"],
        # Open MPI hooks into memory by changing code
        "MemoryDenyWriteExecute": [],
    }


def _key_arguments(service: Service) -> list[str]:
    if not service.api_key_file:
        return []
    # Read by the manager, as root, and handed over: the service's own user could not.
    handed = Specifiers("${CREDENTIALS_DIRECTORY}/api-key")
    return ["--api-key-file", service.api_key_file if service.user else handed]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_SECTION_OF = {"RequiresMountsFor": "[Unit]"}


def _fill(template: str, settings: dict[str, list[str]]) -> str:
    """The template with these settings: in the place of those of the same name, others at their section's end."""
    body = template[template.index("[Unit]") :]  # what stands above is about using the template by hand
    there = {line.partition("=")[0] for line in body.splitlines()}
    added = {name: values for name, values in settings.items() if name not in there}
    out: list[str] = []
    for line in body.splitlines():
        name = line.partition("=")[0]
        if line.startswith("["):
            _end_section(out, added)
        if name in settings:
            out += [f"{name}={value}" for value in settings[name]]
        else:
            out.append(line)
    _end_section(out, added)
    return _without_idle_comments(out)


def _end_section(out: list[str], added: dict[str, list[str]]) -> None:
    section = next((line for line in reversed(out) if line.startswith("[")), "")
    while out and not out[-1]:
        out.pop()
    for name, values in added.items():
        if _SECTION_OF.get(name, "[Service]") == section:
            out += [f"{name}={value}" for value in values]
    out.append("")


def _without_idle_comments(lines: list[str]) -> str:
    """Comments are dropped with the last of the settings they stand above."""
    kept: list[str] = []
    for index, line in enumerate(lines):
        following = next((later for later in lines[index:] if not later.startswith("#")), "")
        if line.startswith("#") and not following.strip():
            continue
        if not line and kept and not kept[-1]:
            continue
        kept.append(line)
    return "\n".join(kept).strip() + "\n"
