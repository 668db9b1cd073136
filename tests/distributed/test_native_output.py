"""What libraries write past Python is written here in the same way: to the descriptors, in a process of its own."""

import subprocess
import sys

PROGRAM = """
import os, sys
from finetune.distributed.native_output import native_output_filtered

with native_output_filtered(lambda: None):
    os.write(int(sys.argv[1]), sys.argv[2].encode())
"""
GLOO = "[Gloo] Rank 2 is connected to 3 peer ranks. Expected number of connected peer ranks is : 3\n"
LOGGED = "E1129 07:16:11.123456    4242 coordination_service_agent.cc:391] Failed to disconnect: UNAVAILABLE\n"


def passed_on(text, descriptor=1):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(descriptor), text], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return (done.stdout, done.stderr)[descriptor - 1]


def test_what_gloo_says_of_its_ranks_is_left_out():
    assert passed_on(f"before\n{GLOO}after\n") == "before\nafter\n"


def test_so_it_is_where_two_of_its_threads_mix_their_lines():
    mixed = "[Gloo] Rank [Gloo] Rank 3 is connected to 3 peer ranks. Expected number of connected peer ranks is : 3\n"
    mixed += "2 is connected to 3 peer ranks. Expected number of connected peer ranks is : 3\n"
    assert passed_on(f"before\n{mixed}after\n") == "before\nafter\n"
    at_the_end = GLOO.removesuffix("3\n") + GLOO.removesuffix("\n") + "3\n\n"
    assert passed_on(f"before\n{at_the_end}after\n") == "before\nafter\n"


def test_other_numbers_and_other_words_of_gloo_pass():
    assert passed_on("3\n\n[Gloo] cannot connect\n") == "3\n\n[Gloo] cannot connect\n"


def test_what_xla_logs_about_other_processes_is_left_out_with_its_further_lines():
    assert passed_on(f"before\n{LOGGED}RPC: /tensorflow.Shutdown\nafter\n", descriptor=2) == "before\nafter\n"


def test_what_xla_logs_about_anything_else_passes():
    other = LOGGED.replace("coordination_service_agent", "cuda_executor")
    assert passed_on(other, descriptor=2) == other
