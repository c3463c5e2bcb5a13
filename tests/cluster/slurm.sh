#!/bin/bash
# Preemption, time limit, cancelling and resuming in a real SLURM on this one machine. Not part of make test.
#
#   tests/cluster/slurm.sh            as root on Debian or Ubuntu, two cores, about ten minutes
#
# Installs Debian's SLURM, starts munge, slurmctld and slurmd with a configuration of their own, sends
# configs/hardware/slurm.sbatch through it with two CPU tasks, and stops what it started.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH=$PWD/.venv/bin:$PATH

command -v slurmctld slurmd munged > /dev/null \
  || (apt-get update && apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge)

work=$(mktemp -d)
host=$(hostname -s)
export SLURM_CONF=$work/slurm.conf FLEXGS_RUNS=$work/runs FLEXGS_HARDWARE=configs/hardware/cpu.yaml
mkdir -p "$work"/{state,spool,runs}

stop() {
  scancel --user root 2> /dev/null || true
  for daemon in slurmd slurmctld munged; do
    [ -f "$work/$daemon.pid" ] && kill "$(cat "$work/$daemon.pid")" 2> /dev/null || true
  done
  [ -z "${passed:-}" ] || rm -rf "$work"
}
trap stop EXIT
fail() {
  echo "FAILED: $*; the files are in $work"
  exit 1
}

# -- a cluster of one node ---------------------------------------------------------------------------------

cat > "$SLURM_CONF" << CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=5,bf_interval=5
KillWait=30
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=$host PriorityTier=10
CONF

dd if=/dev/urandom of="$work/munge.key" bs=128 count=1 status=none
chmod 400 "$work/munge.key"
munged --force --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munged.pid" \
  --log-file="$work/munged.log" --seed-file="$work/munge.seed"
slurmctld
slurmd
for _ in $(seq 30); do
  [ "$(sinfo --noheader --partition=low --format=%T 2> /dev/null)" = idle ] && break
  sleep 1
done
[ "$(sinfo --noheader --partition=low --format=%T)" = idle ] || fail "SLURM did not start"

# -- what every test needs -----------------------------------------------------------------------------------

python - << CAPTURE
from pathlib import Path
from flexgs_lightning.data.procedural import write_demo_capture
write_demo_capture(Path("$work/capture"), views=16, width=96, height=64)
CAPTURE

training=(
  --data.root "$work/capture" --model.reconstruction_steps "${STEPS:-2500}" --model.elastic_training.steps 200
  --model.lpips none --model.densification.max_gaussians 3000 --trainer.enable_progress_bar false
  --elastic_validation.ratios '[0.1]' --importance_refresh.every_n_steps 100
)
submit() { # name, sbatch options ...: the job's number
  local name=$1
  shift
  sbatch --parsable --partition=low --job-name="$name" --output="$work/%x.log" --cpus-per-task=1 --gpus-per-node=0 \
    --ntasks-per-node=2 --export=ALL,OMP_NUM_THREADS=1 "$@" configs/hardware/slurm.sbatch "${training[@]}"
}
state() { scontrol show job --oneliner "$1" | grep -o 'JobState=[A-Z]*' | cut -d= -f2; }
wait_for() { # state, job, seconds
  for _ in $(seq "$3"); do
    [ "$(state "$2")" = "$1" ] && return
    sleep 1
  done
  fail "job $2 is $(state "$2"), expected $1 within $3 s"
}
wait_for_training() { # name: Lightning says this when ours are already in place
  for _ in $(seq 180); do
    grep -q "Setting signal handlers" "$work/$1.log" 2> /dev/null && sleep 3 && return
    sleep 1
  done
  fail "$1 did not begin"
}
expect() { grep -q -- "$2" "$work/$1.log" || fail "$1.log does not say '$2'"; }

# -- the tests -----------------------------------------------------------------------------------------------

echo "1. uninterrupted"
whole=$(submit whole)
wait_for COMPLETED "$whole" 900
seconds=$(stat --format=%Y "$work"/runs/whole-*/version_0/metrics.json)
seconds=$((seconds - $(stat --format=%Y "$work"/runs/whole-*/version_0/config.yaml)))

echo "2. preempted by a job of higher priority, requeued, resumed"
preempted=$(submit preempted)
wait_for_training preempted
urgent=$(sbatch --parsable --partition=high --ntasks=2 --output=/dev/null --wrap "sleep 3")
wait_for COMPLETED "$urgent" 120
wait_for COMPLETED "$preempted" 900
expect preempted "Interrupted after step"
expect preempted "Requeueing job $preempted"
scontrol show job "$preempted" | grep -q "Restarts=1" || fail "job $preempted was not restarted once"

# SLURM looks at the time every 30 s, so the warning comes 30 to 90 s after the start: too late for a quick machine.
if [ "$seconds" -gt 100 ]; then
  echo "3. told of its time limit, requeued, resumed"
  limited=$(submit limited --time=2 --signal=USR1@30)
  wait_for_training limited
else
  echo "3. told of its time limit by hand (training takes only $seconds s; STEPS makes it longer), requeued, resumed"
  limited=$(submit limited)
  wait_for_training limited
  scancel --signal=USR1 "$limited"
fi
wait_for PENDING "$limited" 180
scontrol update JobId="$limited" TimeLimit=60
wait_for COMPLETED "$limited" 900
expect limited "Requeueing job $limited"

echo "4. cancelled for good"
cancelled=$(submit cancelled)
wait_for_training cancelled
scancel "$cancelled"
wait_for CANCELLED "$cancelled" 60
sleep 5
[ "$(state "$cancelled")" = CANCELLED ] || fail "the cancelled job came back"
expect cancelled "Interrupted after step"

echo "5. interrupted runs ended as the uninterrupted one"
python - "$work/runs" << COMPARE
import json, sys
from pathlib import Path
import torch

def run(name):
    (folder,) = Path(sys.argv[1]).glob(f"{name}-*/version_*")
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    report = json.loads((folder / "metrics.json").read_text())
    return report["mean"], report["ratios"], state

mean, ratios, state = run("whole")
for name in ("preempted", "limited"):
    other_mean, other_ratios, other = run(name)
    assert (other_mean, other_ratios) == (mean, ratios), (name, other_mean, mean)
    assert all(torch.equal(other[key], value) for key, value in state.items()), name
print(f"metrics and parameters are equal: {mean}, {len(state)} tensors")
COMPARE
echo "all passed"
passed=yes
