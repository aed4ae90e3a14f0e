"""Limits the threads of the numerical libraries in worker processes."""

from threadpoolctl import threadpool_limits


def one_thread() -> None:
    """Let the loaded BLAS and OpenMP libraries compute with one thread, for the rest of this process.

    For worker processes, of which there is one for each core. numpy's and scipy's BLAS else start one thread for each
    core in each of them; on small arrays these threads mostly wait for each other. A library that is loaded later keeps
    its own number of threads. `torch.set_num_threads` sets torch's.
    """
    threadpool_limits(1)
