#!/bin/sh
# docker/run.sh COMMAND...: one command inside the image; repository read-only, data and runs mounted.
#   DEVICE=auto|cpu|gpu  DATA_DIR=DIR  RUNS_DIR=DIR  DATA_READ_ONLY=true|false  NETWORK=none|bridge
#   IMAGE=heatproof:dev  SHM_SIZE=2gb  HOST_UID= HOST_GID=  DRY_RUN=1 (print, do not run)
# Paths in COMMAND are relative to the repository; what lies outside it does not exist in the image.
# docker/compose.yaml says the same for people who use Compose; tests/test_container.py compares the two.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
data=${DATA_DIR:-$root/data} runs=${RUNS_DIR:-$root/runs}
# The first two are mount points inside the read-only repository, so they must exist even when unused.
mkdir -p "$root/data" "$root/runs" "$data" "$runs"
data=$(CDPATH='' cd -- "$data" && pwd) runs=$(CDPATH='' cd -- "$runs" && pwd)

case ${DEVICE:-auto} in
  auto) gpus=; if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then gpus=--gpus=all; fi ;;
  cpu) gpus= ;;
  gpu) gpus=--gpus=all ;;
  *) echo "docker/run.sh: DEVICE must be auto, cpu or gpu, not '$DEVICE'" >&2; exit 2 ;;
esac
case ${DATA_READ_ONLY:-true} in
  true) ro=,readonly ;;
  false) ro= ;;
  *) echo "docker/run.sh: DATA_READ_ONLY must be true or false, not '$DATA_READ_ONLY'" >&2; exit 2 ;;
esac
tty=
if [ -t 0 ] && [ -t 1 ]; then tty=-it; fi
# The variables that choose kernels and threads go in, because the last digits of results depend on both.
kernels=
for name in $(env | sed -nE 's/^((OPENBLAS|OMP|MKL|GOMP)_[A-Za-z0-9_]*|ATEN_CPU_CAPABILITY|ONEDNN_MAX_CPU_ISA)=.*/\1/p' | sort -u); do
  kernels="$kernels --env $name"
done
revision=${REVISION:-$(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)}

# docker run, not docker compose run: without a terminal the latter leaves the container running on a signal.
# exec: torch compiles into /tmp and loads what it compiled; the tests start scripts there.
# --pull never: a name that is not here is an error, not a download of somebody's image of that name.
# shellcheck disable=SC2086  # an empty $tty, $gpus or $kernels is no argument, not an empty one
set -- docker run --rm --init --pull never $tty $gpus \
  --user "${HOST_UID:-$(id -u)}:${HOST_GID:-$(id -g)}" \
  --network "${NETWORK:-none}" --shm-size "${SHM_SIZE:-2gb}" \
  --read-only --tmpfs /tmp:mode=1777,exec --cap-drop ALL --security-opt no-new-privileges:true \
  --env "HEATPROOF_REVISION=$revision" $kernels \
  --mount "type=bind,source=$root,target=/workspace,readonly" \
  --mount "type=bind,source=$data,target=/workspace/data$ro" \
  --mount "type=bind,source=$runs,target=/workspace/runs" \
  "${IMAGE:-heatproof:dev}" "$@"

if [ -n "${DRY_RUN:-}" ]; then
  for word; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s' " "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")" ;;
      *) printf '%s ' "$word" ;;
    esac
  done
  echo
  exit 0
fi
command -v docker >/dev/null 2>&1 || { echo "docker/run.sh: no docker on PATH; install Docker, or use WHERE=local" >&2; exit 2; }
exec "$@"
