"""What machine this is, without its name: processor, cores, memory, accelerators."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from finetune.data.workers import usable_cpus


def describe_machine() -> dict[str, Any]:
    return {
        "processor": processor_name(),
        "cores": usable_cpus(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpus": gpu_names(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def slug_of(machine: dict[str, Any]) -> str:
    """A name for files, such as ``amd-epyc-2-cores`` or ``nvidia-h200-intel-xeon-platinum-8480-16-cores``."""
    gpus = machine["gpus"]
    several = f"{len(gpus)}x " if len(gpus) > 1 else ""
    words = f"{several}{gpus[0] if gpus else ''} {machine['processor']} {machine['cores']} cores"
    words = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*?ghz|\d+-core", " ", words.lower())
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def processor_name() -> str:
    """The model, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and (model := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8"))):
        return model[1].strip()
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    """Of NVIDIA's GPUs; JAX is not asked, which would take their memory."""
    return _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
