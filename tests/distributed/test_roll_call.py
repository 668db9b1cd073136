"""Processes that meet, as threads."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from several import free_port

from finetune.distributed.launch import Launch
from finetune.distributed.roll_call import call_roll
from finetune.errors import FinetuneError, MachineError


def meet(*members, timeout=20.0, before=lambda port: None):
    """What each process (count, index) gets: connections or an error; ``before`` they come, something else may."""
    port = free_port()

    def come(count, index):
        try:
            return call_roll(Launch(f"127.0.0.1:{port}", count, index), timeout, lambda text: None)
        except FinetuneError as error:
            return error

    with ThreadPoolExecutor(len(members)) as threads:
        first = threads.submit(come, *members[0])
        before(port)
        others = [threads.submit(come, *member) for member in members[1:]]
        return [result.result() for result in (first, *others)]


def close(results):
    for result in results:
        if isinstance(result, dict):
            for connection in result.values():
                connection.close()


def test_all_meet_and_stay_connected_with_process_0():
    results = meet((3, 0), (3, 1), (3, 2))
    assert [sorted(result) for result in results] == [[1, 2], [0], [0]]
    results[0][2].send("for process 2")
    assert results[2][0].receive_one(10) == "for process 2"
    results[1][0].close()
    assert not results[0][1].is_alive()
    assert results[0][2].is_alive()
    close(results)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([(3, 0), (3, 1), (3, 1)], "--process-id 1: two processes have it; give each its own, from 0 to 2"),
        ([(2, 0), (3, 2)], "--num-processes: 2 for process 0, 3 for process 2"),
    ],
)
def test_processes_that_do_not_fit_are_all_refused(members, message):
    for result in meet(*members):
        assert message in str(result)


@pytest.mark.slow
def test_those_who_are_missing_are_named_to_all():
    for result in meet((4, 0), (4, 2), timeout=0.4):
        assert "processes 1, 3 of 4 did not come" in str(result)


def test_what_is_no_process_of_the_run_is_not_minded():
    def come_by(port):
        for sent in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"index": 1}\n'):
            with connect(port) as stranger:
                stranger.sendall(sent)

    results = meet((2, 0), (2, 1), before=come_by)
    assert sorted(results[0]) == [1]
    close(results)


def connect(port):
    """As soon as process 0 listens."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            continue


def test_a_port_in_use_is_said():
    with socket.create_server(("127.0.0.1", 0)) as server:
        launch = Launch(f"127.0.0.1:{server.getsockname()[1]}", 2, 0)
        with pytest.raises(MachineError, match="cannot listen there: Address already in use; choose a port"):
            call_roll(launch, 1.0, lambda text: None)


def test_a_coordinator_that_is_something_else_is_said():
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
        launch = Launch(f"127.0.0.1:{server.getsockname()[1]}", 2, 1)
        coming = threads.submit(call_roll, launch, 1.0, lambda text: None)
        connection = server.accept()[0]
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(MachineError, match="something answers that is no run of this program"):
            coming.result()
        connection.close()
