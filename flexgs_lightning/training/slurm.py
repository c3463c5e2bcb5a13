"""SLURM: is this process part of a job, and may the job run again?"""

import logging
import os
import subprocess

log = logging.getLogger(__name__)


def in_job() -> bool:
    """Whether ``srun`` started this process."""
    return "SLURM_JOB_ID" in os.environ and "SLURM_PROCID" in os.environ


def requeue() -> None:
    """Put the running job back into the queue, which ends it here; a cancelled job stays cancelled.

    SLURM sends the same signal before it preempts a job and when somebody cancels it. Only the job's state
    tells which.
    """
    job = _job_name()
    state = _output("squeue", "--noheader", "--jobs", job, "--format", "%T")
    if state != "RUNNING":
        log.info("Job %s is %s: not requeued.", job, state or "gone")
        return
    log.warning("Requeueing job %s.", job)
    _output("scontrol", "requeue", job)


def _job_name() -> str:
    """A task of an array has a number of its own; the array's number alone would mean all its tasks."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def _output(*command: str) -> str:
    """Standard output of a command; a failure is logged, for nothing here may cost the checkpoint."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        log.warning("%s failed: %s", " ".join(command), str(reason).strip())
        return ""
