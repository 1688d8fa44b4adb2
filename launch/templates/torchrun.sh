# --- Environment ---------------------------------------------------------------------------------
set -euo pipefail
# Relative paths of the run start here.
mkdir -p @{workdir}
cd @{workdir}
@{setup}
export NCCL_SOCKET_IFNAME=@{interface} GLOO_SOCKET_IFNAME=@{interface}
# Says why a connection fails; INFO says all.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# SIGTERM: seconds for the ranks to save (torch from 2.12 on; before, it gives them 30).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=@{grace}
# A node that comes back would otherwise wait for an address that it never learns (torch 2.15).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# --- Run files, as they were when this was written -----------------------------------------------
files=$(mktemp -d)
@{files}

# --- The run: it goes on from the newest whole checkpoint of its folder --------------------------
@{chosen}
@{meeting}
exec torchrun @{world} --nproc_per_node=@{tasks} --max_restarts=@{restarts} \
    -m counterpoint.launch.cli fit --resume auto "$@@"
