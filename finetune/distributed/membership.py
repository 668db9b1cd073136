"""Being one process of a run of several, from the start of JAX's runtime to the end of all of them."""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from finetune.distributed.connection import Connection
from finetune.distributed.launch import Launch, find_launch, is_loopback
from finetune.distributed.native_output import native_output_filtered
from finetune.distributed.processes import any_process, broadcast, is_primary, process_count, process_index
from finetune.distributed.roll_call import call_roll, introduce, receive_others, report_to
from finetune.distributed.watch import Watch
from finetune.errors import Diverged, FinetuneError, Interrupted, MachineError, first_line
from finetune.foreign_errors import is_of_lost_process, translate
from finetune.signals import owns_process

_VERDICT = 5.0  # seconds until it is known which process has ended, where a collective failed
_STOPPING = 60.0  # seconds for the others to come to the same stop
_MEETING = 20.0  # seconds for processes that JAX has made one already
_watch: Watch | None = None


@contextmanager
def join_processes(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    timeout: float = 300.0,
    heartbeat: int = 100,
) -> Iterator[None]:
    """Makes this process one of a run of several, where flags or the job's environment say that it is one.

    It starts ``jax.distributed``, so nothing of JAX may have run before. While entered, the end of any process ends the
    others; it is left when all have come to its end. A process that runs alone enters it without effect.

    Args:
        coordinator: ``host:port`` of process 0; ``count`` processes; ``index`` of this one. What is None is taken from
            the environment (:func:`finetune.distributed.launch.find_launch`).
        timeout: seconds to wait for the others.
        heartbeat: seconds without a sign of life after which a process that has not ended counts as lost.

    Raises:
        FinetuneError: these do not fit together, or the processes do not.
        MachineError: the coordinator or another process is not there in time.
        ProcessLost: another process has ended.
    """
    if not 0 < timeout < float("inf"):
        raise FinetuneError(f"--join-timeout {timeout}: has to be a number of seconds above 0")
    launch = find_launch(coordinator, count, index, timeout=timeout)
    if launch is None:
        yield
        return
    watch = Watch(launch.index, launch.count, call_roll(launch, timeout, _say))
    with ExitStack() as at_end:
        if owns_process():
            at_end.enter_context(native_output_filtered(watch.unresponsive))
        try:
            with _watched(watch):
                _start_jax(launch, heartbeat)
                yield
        except BaseException:
            at_end.pop_all()  # what JAX logs until this process ends is about the same
            raise


@contextmanager
def member(at_end: Callable[[], object] = lambda: None) -> Iterator[None]:
    """The same where ``jax.distributed`` was started before, as by Ray; without effect for a process that is alone.

    Args:
        at_end: is called where the process is ended because of another, such as to unlock a folder.
    """
    if _watch is not None:
        _watch.at_end = at_end
    if _watch is not None or process_count() == 1:
        yield
        return
    connections = _meet()
    if connections is None:  # JAX's own heartbeats are left
        yield
        return
    watch = Watch(process_index(), process_count(), connections)
    watch.at_end = at_end
    with _watched(watch):
        yield


@contextmanager
def _watched(watch: Watch) -> Iterator[None]:
    """Ends together with the others, or tells them why not; an error that comes from another's end names that one."""
    global _watch
    _watch = watch
    try:
        yield
        watch.finish()
    except (Interrupted, Diverged) as error:  # all processes stop at the same place, and some have more to save
        with suppress(FinetuneError):
            watch.finish(_STOPPING)
        watch.fail(str(error))
        atexit.register(_leave, error.exit_code)
        raise
    except BaseException as error:
        lost = watch.lost(_VERDICT if is_of_lost_process(error) else 0.0) if _may_follow(error) else None
        said = lost or (translate(error) if isinstance(error, Exception) else None) or error
        watch.fail(_last_words(said))
        atexit.register(_leave, getattr(said, "exit_code", 1))
        if lost is not None:
            raise lost from None
        raise
    finally:
        _watch = None


def _may_follow(error: BaseException) -> bool:
    """Whether an error may come from the end of another process."""
    return is_of_lost_process(error) or (isinstance(error, Exception) and not isinstance(error, FinetuneError))


def _last_words(error: BaseException) -> str:
    if isinstance(error, FinetuneError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__


def _start_jax(launch: Launch, heartbeat: int) -> None:
    """``jax.distributed``, where all processes are known to be there."""
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from us
    jax.config.update("jax_check_proxy_envs", False)
    os.environ.setdefault("no_grpc_proxy", launch.host)  # a proxy does not know the other processes
    try:
        jax.distributed.initialize(
            coordinator_address=launch.coordinator,
            num_processes=launch.count,
            process_id=launch.index,
            local_device_ids=launch.local_device_ids,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=heartbeat,
            coordinator_bind_address=launch.coordinator if is_loopback(launch.host) else None,
        )
    except RuntimeError as error:
        raise MachineError(
            f"JAX cannot start as process {launch.index} of {launch.count}: {first_line(error)}"
        ) from error
    devices = Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1 or len(devices) < launch.count:
        each = ", ".join(f"process {index}: {devices[index]}" for index in range(launch.count))
        raise MachineError(f"all processes need the same number of devices; here, {each}")


def _meet() -> dict[int, Connection] | None:
    """Connections between processes that JAX has made one; None where they do not reach each other."""
    import jax

    ours = introduce(process_index(), process_count())
    connections = None
    with suppress(FinetuneError, OSError):
        if is_primary():
            with socket.create_server(("", 0)) as listener:
                place = broadcast(
                    {"host": _own_host(jax), "port": listener.getsockname()[1], "token": secrets.token_hex()}
                )
                ours["token"] = place["token"]
                connections = receive_others(listener, ours, "its host", _MEETING, say=lambda text: None)
        else:
            place = broadcast(None)
            ours["token"] = place["token"]
            connections = {0: report_to((place["host"], place["port"]), ours, _MEETING)}
    if not any_process(connections is None):
        return connections
    for connection in (connections or {}).values():
        connection.close()
    return None


def _own_host(jax: Any) -> str:
    """A name of this machine that the other processes know: that of the coordinator, which process 0 is."""
    state = getattr(getattr(jax, "_src", None), "distributed", None)
    address = getattr(getattr(state, "global_state", None), "coordinator_address", None)
    return address.rpartition(":")[0].strip("[]") if address else socket.gethostname()


def _leave(code: int) -> None:
    """Ends the process at the interpreter's end, which would wait in JAX's shutdown for processes that never come."""
    import jax

    if not jax.distributed.is_initialized():
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
