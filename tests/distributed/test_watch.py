"""What processes hear of each other's end, all in this process."""

import socket

import pytest

from finetune.distributed import watch as watching
from finetune.distributed.connection import Connection
from finetune.distributed.watch import Watch
from finetune.errors import ProcessLost


@pytest.fixture
def processes(monkeypatch):
    """Three of them, and the connections of process 0 to the others."""
    monkeypatch.setattr(watching, "_GRACE", 3600.0)  # its thread would end this process
    monkeypatch.setattr(watching, "_LEAVING", 0.0)
    monkeypatch.setattr(watching, "_TOGETHER", 0.01)
    pairs = {index: socket.socketpair() for index in (1, 2)}
    watches = [Watch(0, 3, {index: Connection(pair[0]) for index, pair in pairs.items()})]
    watches += [Watch(index, 3, {0: Connection(pair[1])}) for index, pair in pairs.items()]
    yield watches, pairs
    for watch in watches:
        watch.fail("the end of the test")
    for pair in pairs.values():
        for end in pair:
            end.close()


def test_all_finish_together(processes):
    watches, _ = processes
    for watch in watches[1:]:
        watch.finish(timeout=0.0)
        assert watch.lost(within=0.0) is None
    watches[0].finish()


def test_the_words_of_one_that_ends_reach_the_others(processes):
    watches, _ = processes
    watches[2].fail("no such folder")
    for watch in watches[:2]:
        assert str(watch.lost(within=20.0)) == "Process 2 of 3 ended: no such folder"


def test_one_that_the_kernel_ends_is_named(processes):
    watches, pairs = processes
    watches[1].finish(timeout=0.0)
    pairs[2][1].shutdown(socket.SHUT_RDWR)
    with pytest.raises(ProcessLost, match=r"Process 2 of 3 ended: killed, .*\. What was saved is whole: .* --resume"):
        watches[0].finish(timeout=20.0)


def test_the_end_of_process_0_is_seen_by_each(processes):
    watches, pairs = processes
    for index in (1, 2):
        pairs[index][0].shutdown(socket.SHUT_RDWR)
        assert "Process 0 of 3 ended: killed" in str(watches[index].lost(within=20.0))


@pytest.mark.slow
def test_two_that_end_at_once_are_named_in_one_message(processes, monkeypatch):
    monkeypatch.setattr(watching, "_TOGETHER", 1.0)
    watches, _ = processes
    watches[1].fail("the same")
    watches[2].fail("the same")
    assert str(watches[0].lost(within=20.0)) == "Processes 1, 2 of 3 ended: the same"
