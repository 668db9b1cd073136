import subprocess
import sys

import pytest

from finetune.distributed.launch import Launch, find_launch
from finetune.errors import FinetuneError, MachineError

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[3-4]", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Sets variables; those of a real job are away."""
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", *SLURM, *OPEN_MPI, "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    return lambda variables: [monkeypatch.setenv(*item) for item in variables.items()]


def test_flags_say_which_process_this_is():
    launch = find_launch("node1:8476", 4, 3)
    assert launch == Launch("node1:8476", 4, 3)
    assert (launch.host, launch.port) == ("node1", 8476)
    assert find_launch("[::1]:8476", 2, 0).host == "::1"


def test_variables_say_what_flags_leave_out(environment):
    environment({"JAX_COORDINATOR_ADDRESS": "node1:8476", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"})
    assert find_launch() == Launch("node1:8476", 2, 0)
    assert find_launch(index=1) == Launch("node1:8476", 2, 1)
    assert find_launch(count=1) is None


def test_slurm_says_all(environment):
    environment({**SLURM, "SLURM_PROCID": "1"})
    assert find_launch() == Launch("node3:61447", 2, 1, [0])
    assert find_launch("10.0.0.3:99") == Launch("10.0.0.3:99", 2, 1, [0])


def test_open_mpi_says_all_but_the_coordinator(environment):
    environment(OPEN_MPI)
    assert find_launch("node1:8476") == Launch("node1:8476", 2, 1, [1])
    with pytest.raises(MachineError, match="process 1 of 2 of Open MPI, .* give --coordinator HOST:PORT"):
        find_launch()
    environment({"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"})  # version 4 says it too
    assert find_launch() == Launch("10.96.0.1:62624", 2, 1, [1])


@pytest.mark.parametrize("job", [{}, {**SLURM, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, SLURM], ids=str)
def test_a_process_alone_stays_alone(environment, job):
    environment(job)  # the last is what sbatch sets without srun
    assert find_launch() is None


def test_one_process_of_several_can_be_run_alone(environment):
    environment({**SLURM, "SLURM_PROCID": "1"})
    assert find_launch(count=1) is None


def test_a_pod_of_an_indexed_job_is_not_silently_alone(environment):
    environment({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"})
    with pytest.raises(MachineError, match=r"--num-processes 1 runs this process alone"):
        find_launch()
    assert find_launch("jobs-0.jobs:8476", 2, 1) == Launch("jobs-0.jobs:8476", 2, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (None, 2, 1),
            "--num-processes 2 --process-id 1 without --coordinator: one of several processes needs all three",
        ),
        (("a:1", None, None), "--coordinator a:1 without --num-processes and --process-id"),
        ((None, None, 0), "--process-id 0 without --coordinator and --num-processes"),
        (("a:1", 2, 2), "--process-id 2: has to be from 0 to 1, since --num-processes is 2"),
        (("a:1", 2, -1), "--process-id -1: has to be from 0 to 1"),
        (("a:1", 0, 0), "--num-processes 0: has to be at least 1"),
        ((None, 1, 1), "--process-id 1: has to be from 0 to 0"),
        (("a", 2, 1), "--coordinator a: has to be HOST:PORT"),
        (("a:0", 2, 1), "--coordinator a:0: has to be HOST:PORT"),
        (("a:70000", 2, 1), "--coordinator a:70000: has to be HOST:PORT"),
        (("http://a:80", 2, 1), "--coordinator http://a:80: has to be HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_are_refused(given, message):
    with pytest.raises(FinetuneError) as raised:
        find_launch(*given)
    assert str(raised.value).startswith(message)


def test_a_variable_that_is_no_number_is_refused(environment):
    environment({"JAX_NUM_PROCESSES": "two"})
    with pytest.raises(FinetuneError, match="JAX_NUM_PROCESSES=two: has to be a whole number"):
        find_launch()


@pytest.mark.slow
def test_a_process_alone_does_not_import_jax_for_it():
    program = (
        "import sys; from finetune.distributed.membership import join_processes, member\n"
        "from finetune.distributed.processes import any_process, broadcast, is_primary\n"
        "with join_processes(), member(): assert is_primary() and any_process(True) and broadcast((1,)) == [1]\n"
        "print([name for name in ('jax', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
