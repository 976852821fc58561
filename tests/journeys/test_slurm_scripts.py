"""The scripts of examples/slurm start every rank as dagman wants it, hand signals on, and go back into the queue on 75 alone.

A cluster stands in: `sbatch` reads the directives and starts the script again where it was requeued, `srun` starts the tasks, and
`python` notes what it was started with and ends as it is told.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.journey
_SCRIPTS = Path(__file__).parents[2] / "examples" / "slurm"

_SBATCH = """#!/bin/bash
# sbatch [--option=value ...] SCRIPT ARGUMENTS: options of the command line win over the directives, as Slurm's do.
options=()
while [[ $1 == --* ]]; do options+=("$1"); shift; done
script=$1; shift
read_option() {
    { grep "^#SBATCH" "$script" | sed "s/^#SBATCH *//"; printf "%s\\n" "${options[@]}"; } | sed -n "s/^--$1=//p" | tail -n 1
}
nodes=$(read_option nodes); tasks=$(read_option ntasks-per-node); gpus=$(read_option gpus-per-node); array=$(read_option array)
export SLURM_JOB_ID=4711 SLURM_NNODES=${nodes:-1} SLURM_NTASKS=$(( ${nodes:-1} * ${tasks:-1} )) SLURM_GPUS_ON_NODE=${gpus:-1}
export SLURM_JOB_NODELIST="gpu[1-${nodes:-1}]" TASKS_PER_NODE=${tasks:-1} SLURM_ARRAY_JOB_ID=4711
for index in $(if [ -n "$array" ]; then seq ${array/-/ }; else echo none; fi); do
    [ "$index" = none ] || export SLURM_ARRAY_TASK_ID=$index
    for count in 0 1 2 3 4 5; do
        [ "$count" = 0 ] || export SLURM_RESTART_COUNT=$count
        rm -f "$CLUSTER/requeued"
        bash "$script" "$@"; code=$?
        [ -e "$CLUSTER/requeued" ] || break
    done
    unset SLURM_RESTART_COUNT
done
exit $code
"""
_SRUN = """#!/bin/bash
code=0
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % TASKS_PER_NODE)) "$@" || code=$?
done
exit $code
"""
_SCONTROL = """#!/bin/bash
case "$1" in
    show) for node in $(seq "$SLURM_NNODES"); do echo "gpu$node"; done ;;
    requeue) echo "$2" >> "$CLUSTER/requeues"; touch "$CLUSTER/requeued" ;;
esac
"""
# `python` and `torchrun`: a row for each start; the n-th start ends with the n-th code, the others with the last.
_STARTED = """#!/bin/bash
[ "$3" = runs ] && { echo '[{"state": "'"$(cat "$CLUSTER/state")"'"}]'; exit 0; }
if [ -n "${SLOW:-}" ]; then
    trap 'echo USR1 >> "$CLUSTER/signals"; exit 75' USR1
    kill -USR1 $PPID
    while :; do sleep 0.02; done
fi
row=$(printf "%s|" "$(basename "$0")" "${RANK:-}" "${LOCAL_RANK:-}" "${WORLD_SIZE:-}" "${MASTER_ADDR:-}" "${MASTER_PORT:-}" "$*")
echo "$row" >> "$CLUSTER/started"
mapfile -t codes < "$CLUSTER/codes"
number=$(wc -l < "$CLUSTER/started")
exit "${codes[$((number <= ${#codes[@]} ? number - 1 : ${#codes[@]} - 1))]}"
"""


@pytest.fixture
def submit(tmp_path):
    """A function that submits a script; the exit code, what was started, and what was requeued."""
    programs = {"sbatch": _SBATCH, "srun": _SRUN, "scontrol": _SCONTROL, "python": _STARTED, "torchrun": _STARTED}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(script: str, *arguments: str, options=(), codes=(0,), state="waiting", **environment: str):
        (tmp_path / "codes").write_text("\n".join(map(str, codes)) + "\n")
        (tmp_path / "state").write_text(state)
        variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CLUSTER": str(tmp_path), **environment}
        command = ["sbatch", *options, str(_SCRIPTS / script), *arguments]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600, check=False)
        assert done.stderr == ""
        rows = [row.split("|")[:-1] for row in _read(tmp_path / "started")]
        return done.returncode, rows, _read(tmp_path / "requeues")

    return run


def _read(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_every_task_is_a_rank_of_one_run(submit):
    code, rows, requeues = submit(
        "pretrain.sbatch", "a store", "run", "--size", "paper", options=["--nodes=2", "--ntasks-per-node=3"]
    )
    assert (code, requeues) == (0, [])
    assert [row[1:4] for row in rows] == [[str(rank), str(rank % 3), "6"] for rank in range(6)]
    assert {row[4] for row in rows} == {"gpu1"}
    assert {row[5] for row in rows} == {str(20000 + 4711)}
    assert {row[6] for row in rows} == {"-m dagman pretrain a store --out run --size paper"}


@pytest.mark.parametrize(
    ("codes", "code", "times"),
    [((75, 75, 0), 0, 2), ((2,), 2, 0), ((130,), 130, 0), ((1,), 1, 0), ((75,), 75, 3)],
)
def test_a_run_goes_back_into_the_queue_on_75_alone_and_not_without_end(submit, codes, code, times):
    done, rows, requeues = submit(
        "pretrain.sbatch", "store", "run", options=["--ntasks-per-node=1"], codes=codes, MOST_RESTARTS="3"
    )
    assert (done, requeues, len(rows)) == (code, ["4711"] * times, times + 1)


def test_torchrun_starts_a_process_a_gpu_on_every_host(submit):
    code, rows, _ = submit("torchrun.sbatch", "store", "run", options=["--nodes=2", "--gpus-per-node=4"])
    assert (code, len(rows)) == (0, 2)
    words = rows[0][6].split()
    assert words[-5:] == ["dagman", "pretrain", "store", "--out", "run"]
    assert {"--nnodes=2", "--nproc-per-node=4", "--rdzv-id=4711", "--rdzv-endpoint=gpu1:24711"} <= set(words)


@pytest.mark.parametrize(("state", "times"), [("waiting", 1), ("finished", 0), ("killed", 0)])
def test_under_torchrun_the_state_of_the_run_decides(submit, state, times):
    _, _, requeues = submit("torchrun.sbatch", "store", "run", codes=(1, 0), state=state)
    assert len(requeues) == times


def test_an_array_has_a_run_a_seed(submit):
    code, rows, requeues = submit("seeds.sbatch", "store", "runs", "--size", "small", options=["--array=0-1"], codes=(75, 0))
    assert (code, requeues) == (0, ["4711_0"])
    assert [row[6].split("--out ")[1] for row in rows] == [f"runs/seed-{seed} --set seed={seed} --size small" for seed in (0, 0, 1)]


def test_a_warning_of_slurm_is_handed_on_and_waited_for(submit, tmp_path):
    code, _, requeues = submit("seeds.sbatch", "store", "runs", options=["--array=3-3"], SLOW="1", MOST_RESTARTS="1")
    assert code == 75
    assert requeues == ["4711_3"]
    assert _read(tmp_path / "signals") == ["USR1", "USR1"]


@pytest.mark.parametrize("script", sorted(_SCRIPTS.glob("*.sbatch")), ids=lambda path: path.stem)
def test_scripts_ask_to_be_warned_requeued_and_to_keep_their_log(script):
    text = script.read_text()
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)$", text, re.MULTILINE))
    # torchrun hands SIGTERM on to its ranks, and dies of SIGUSR1 without a word to them.
    assert directives["signal"].endswith("TERM@300" if script.stem == "torchrun" else "USR1@300")
    assert {"requeue", "time", "cpus-per-task"} <= set(directives)
    assert directives["open-mode"] == "append"
    assert subprocess.run(["bash", "-n", str(script)], env=dict(os.environ), check=False).returncode == 0
