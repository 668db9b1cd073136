"""The processes of a run meet before JAX starts: who is missing, or does not fit, is said by name and in time.

JAX's own meeting ends a process with ``abort()`` where another is missing, and all of them where one comes twice. The
connections that are made here stay: when one breaks, its process has ended (:mod:`finetune.distributed.watch`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import finetune
from finetune.distributed.connection import Connection
from finetune.distributed.launch import Launch, is_loopback
from finetune.errors import FinetuneError, MachineError, listed, shown

_RETRY = 0.2  # seconds between attempts to reach the coordinator
_PATIENCE = 5.0  # seconds in which one that has connected says who it is


def call_roll(launch: Launch, timeout: float, say: Callable[[str], None]) -> dict[int, Connection]:
    """Waits until all processes are there.

    Args:
        timeout: seconds.
        say: is told what this process waits for.

    Returns:
        Connections by process: of process 0 to every other, and of each other to process 0. The coordinator's port is
        free again, for JAX.

    Raises:
        MachineError: the coordinator is not there in time, or not all others are; its port is in use.
        FinetuneError: they do not agree on who they are.
    """
    if launch.index:
        return {0: _report(launch, timeout, say)}
    with _listen(launch) as listener:
        return receive_others(listener, introduce(launch.index, launch.count), launch.coordinator, timeout, say)


def receive_others(
    listener: socket.socket, ours: dict[str, Any], address: str, timeout: float, say: Callable[[str], None]
) -> dict[int, Connection]:
    """Process 0's part."""
    deadline = time.monotonic() + timeout
    here: dict[int, Connection] = {}
    say(f"process 0 of {ours['count']}: waits for the others at {address}")
    try:
        while missing := set(range(1, ours["count"])) - set(here):
            if (left := deadline - time.monotonic()) <= 0:
                raise MachineError(_describe_missing(sorted(missing), ours["count"], address, timeout))
            listener.settimeout(min(left, 1.0))
            try:
                connection = Connection(listener.accept()[0])
            except TimeoutError:
                connection = None
            here = {index: other for index, other in here.items() if other.is_alive()}  # some may have given up
            if connection is not None:
                theirs = connection.receive_one(min(left, _PATIENCE))
                if not (isinstance(theirs, dict) and theirs.keys() == ours.keys() and theirs["token"] == ours["token"]):
                    connection.close()
                    continue
                try:
                    _check(theirs, ours, here)
                except FinetuneError as error:
                    connection.send({"refused": str(error)})
                    raise
                here[theirs["index"]] = connection
    except FinetuneError as error:
        for other in here.values():
            other.send({"refused": str(error)})
        raise
    for other in here.values():
        other.send("all here")
    return here


def report_to(address: tuple[str, int], ours: dict[str, Any], timeout: float) -> Connection:
    """The part of every process but 0: it returns when all are there."""
    deadline, name, came = time.monotonic() + timeout, f"{address[0]}:{address[1]}", "no answer"
    who = f"process {ours['index']} of {ours['count']}"
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = Connection(socket.create_connection(address, timeout=min(left, 10.0)))
        except OSError as error:
            came = _reason(error)
            time.sleep(_RETRY)
            continue
        connection.send(ours)
        answer = connection.receive_one(deadline + _PATIENCE - time.monotonic())  # process 0 says who is missing
        if answer == "all here":
            return connection
        alive = connection.open
        connection.close()
        if isinstance(answer, dict) and "refused" in answer:
            raise FinetuneError(str(answer["refused"]))
        if answer is not None or alive:
            came = "something answers that is no run of this program"
            break
        came = "it ended the connection: something else may use that port, or another run that has all its processes"
        time.sleep(_RETRY * 5)
    raise MachineError(
        f"{who}: no coordinator at {name} within {timeout:g} s ({came}); look whether process 0 runs, whether "
        f"{shown(address[0])} is its host's name for this machine too, and whether a firewall lets port {address[1]} "
        "through; --join-timeout SECONDS waits longer"
    )


def introduce(index: int, count: int) -> dict[str, Any]:
    """What a process says of itself."""
    return {"index": index, "count": count, "token": "", "finetune": finetune.__version__, "jax": version("jax")}


def _report(launch: Launch, timeout: float, say: Callable[[str], None]) -> Connection:
    say(f"process {launch.index} of {launch.count}: waits for process 0 at {launch.coordinator}, and for the others")
    return report_to((launch.host, launch.port), introduce(launch.index, launch.count), timeout)


def _listen(launch: Launch) -> socket.socket:
    """At the coordinator's port, as JAX does: for this machine alone at a loopback address, else for all."""
    try:
        if is_loopback(launch.host):
            family, *_, address = socket.getaddrinfo(launch.host, launch.port, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=family)
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        return socket.create_server(("", launch.port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise MachineError(
            f"--coordinator {launch.coordinator}: process 0 cannot listen there: {_reason(error)}; choose a "
            "port of its machine that is free"
        ) from error


def _check(theirs: dict[str, Any], ours: dict[str, Any], here: dict[int, Connection]) -> None:
    index, count = theirs["index"], ours["count"]
    if theirs["count"] != count:
        raise FinetuneError(
            f"--num-processes: {count} for process 0, {theirs['count']} for process {index}: give all the same"
        )
    if index == 0 or index in here:
        raise FinetuneError(f"--process-id {index}: two processes have it; give each its own, from 0 to {count - 1}")
    for software in ("finetune", "jax"):
        if theirs[software] != ours[software]:
            raise FinetuneError(
                f"{software} is {ours[software]} for process 0 and {theirs[software]} for process {index}: install the "
                "same everywhere"
            )


def _describe_missing(missing: list[int], count: int, address: str, timeout: float) -> str:
    names = listed([str(index) for index in missing])
    return (
        f"process{'es' if len(missing) > 1 else ''} {names} of {count} did not come to {address} within "
        f"{timeout:g} s: look whether they were started, and whether they can reach that address; --join-timeout "
        "SECONDS waits longer"
    )


def _reason(error: OSError) -> str:
    """Without what Python adds; names that are not known have numbers of their own, below 0."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
