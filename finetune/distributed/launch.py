"""Which process of how many this one is, as flags or the job's environment say it."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from finetune.errors import FinetuneError, MachineError, first_line, shown

_BY_HAND = "give --coordinator HOST:PORT, --num-processes and --process-id; --num-processes 1 runs this process alone"


@dataclass(frozen=True)
class Launch:
    """One process of a run of several.

    Attributes:
        coordinator: ``host:port`` of process 0, as all of them reach it.
        local_device_ids: of this machine's accelerators, those that are this process's; None for all.
    """

    coordinator: str
    count: int
    index: int
    local_device_ids: Sequence[int] | None = None

    @property
    def host(self) -> str:
        return self.coordinator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.coordinator.rpartition(":")[2])


def find_launch(
    coordinator: str | None = None, count: int | None = None, index: int | None = None, *, timeout: float = 300.0
) -> Launch | None:
    """What is given; then ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``; then what JAX
    knows of a job of SLURM, Open MPI, Kubernetes or Cloud TPU.

    Args:
        timeout: seconds that the name of the coordinator's host may take to be known.

    Returns:
        None for a process that runs alone.

    Raises:
        FinetuneError: they do not fit together, or some are missing.
        MachineError: the job does not say enough.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS") or None
    count = _number("JAX_NUM_PROCESSES") if count is None else count
    index = _number("JAX_PROCESS_ID") if index is None else index
    local_device_ids = None
    if count == 1 and index in (None, 0):
        return None
    if None in (coordinator, count, index) and (job := _find_job(coordinator, count, timeout)) is not None:
        coordinator = coordinator or job.coordinator
        count = job.count if count is None else count
        index = job.index if index is None else index
        local_device_ids = job.local_device_ids
    if coordinator is None and count is None and index is None:
        return None
    _check_numbers(count, index)
    given = {"--coordinator": coordinator, "--num-processes": count, "--process-id": index}
    if coordinator is None or count is None or index is None:
        known = " ".join(f"{flag} {value}" for flag, value in given.items() if value is not None)
        missing = " and ".join(flag for flag, value in given.items() if value is None)
        raise FinetuneError(f"{known} without {missing}: one of several processes needs all three: {_BY_HAND}")
    if count == 1:
        return None
    address = re.fullmatch(r"(?:\[[^\[\]\s]+\]|[^:\[\]\s]+):(\d{1,5})", coordinator)
    if address is None or not 0 < int(address[1]) < 65536:
        raise FinetuneError(
            f"--coordinator {shown(coordinator)}: has to be HOST:PORT, such as node1:8476 or 127.0.0.1:8476"
        )
    return Launch(coordinator, count, index, local_device_ids)


def is_loopback(host: str) -> bool:
    """Whether a name or address is reached from this machine alone."""
    try:
        return all(info[4][0] in ("127.0.0.1", "::1") for info in socket.getaddrinfo(host, None))
    except OSError:
        return False


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if not text:
        return None
    if not text.isdecimal():
        raise FinetuneError(f"{variable}={shown(text)}: has to be a whole number from 0")
    return int(text)


def _check_numbers(count: int | None, index: int | None) -> None:
    if count is not None and count < 1:
        raise FinetuneError(f"--num-processes {count}: has to be at least 1")
    if index is not None and (index < 0 or (count is not None and index >= count)):
        most = "" if count is None else f" to {count - 1}, since --num-processes is {count}"
        raise FinetuneError(f"--process-id {index}: has to be from 0{most}")


def _find_job(coordinator: str | None, count: int | None, timeout: float) -> Launch | None:
    """What JAX finds out about the job; asked only where there is one, since importing JAX takes a second."""
    if not _is_in_job(os.environ):
        return _find_open_mpi_5(coordinator, os.environ)
    try:
        from jax._src.clusters import ClusterEnv
    except ImportError:  # it is no public part of JAX
        raise MachineError(f"this JAX does not say which process of the job this one is: {_BY_HAND}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a package that is missing: see below
            kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
            job = next((kind for kind in kinds if kind.is_env_present()), None)
        if job is None:
            if "KUBERNETES_SERVICE_HOST" in os.environ and count is None:
                raise MachineError(f"a pod of an indexed Job: its other pods are known with 'jax[k8s]'; or {_BY_HAND}")
            return None
        count = count or job.get_process_count()
        if count == 1:
            return Launch("", 1, 0)
        coordinator, _, index, local_device_ids = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, count, None, _local_device_ids(), None, round(timeout)
        )
        return Launch(str(coordinator), count, int(index or 0), local_device_ids)
    except FinetuneError:
        raise
    except Exception as error:  # of HTTP, of names, of Kubernetes' client: there are many kinds
        raise MachineError(f"the other processes of this job are not known: {first_line(error)}; {_BY_HAND}") from error


def _is_in_job(environment: Mapping[str, str]) -> bool:
    """Whether this process may be one of several of a job that JAX knows."""

    def number(name: str) -> int:
        return int(text) if (text := environment.get(name, "")).isdecimal() else 0

    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")  # only srun sets all
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    return (
        (number("SLURM_NTASKS") > 1 and all(name in environment for name in slurm))
        or (number("OMPI_COMM_WORLD_SIZE") > 1 and "OMPI_MCA_orte_hnp_uri" in environment)
        or ("KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment)
        or "," in workers
        or number("MEGASCALE_NUM_SLICES") > 1
        or (not workers and "TPU_SKIP_MDS_QUERY" not in environment and _has_tpus())
    )


def _has_tpus() -> bool:
    """Whether this is a machine with TPUs, which has to be asked for the others of its slice."""
    return importlib.util.find_spec("libtpu") is not None and any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))


def _find_open_mpi_5(coordinator: str | None, environment: Mapping[str, str]) -> Launch | None:
    """Open MPI says all but where process 0 is; JAX finds that out up to version 4."""
    size, rank, local = (environment.get(f"OMPI_COMM_WORLD_{name}", "") for name in ("SIZE", "RANK", "LOCAL_RANK"))
    if not (size.isdecimal() and rank.isdecimal() and int(size) > 1):
        return None
    if coordinator is None:
        raise MachineError(
            f"process {rank} of {size} of Open MPI, which does not say where process 0 is: give --coordinator "
            "HOST:PORT; --num-processes 1 runs this process alone"
        )
    launch = Launch(coordinator, int(size), int(rank), _local_device_ids())
    return (
        replace(launch, local_device_ids=[int(local)]) if local.isdecimal() and not launch.local_device_ids else launch
    )


def _local_device_ids() -> list[int] | None:
    text = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    return [int(part) for part in text.split(",")] if text else None
