#!/bin/sh
# sync-venv.sh runtime|dev: fills $UV_PROJECT_ENVIRONMENT from uv.lock, part by part.
#   runtime  everything that a configuration can name, extras included; TORCH=wheels takes torch and
#            torchvision from the files in $WHEELS instead
#   dev      the test tools on top; never touches torch, wherever it came from
set -eu
: "${UV_PROJECT_ENVIRONMENT:?}" "${TORCH:=locked}" "${WHEELS:=/opt/local-wheels}"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

export_pins() { # FILE OPTIONS...: pins of the lock, without the project itself
  file=$1
  shift
  uv export --quiet --frozen --no-emit-project --no-hashes --output-file "$file" "$@"
}

install() {
  uv pip install --python "$UV_PROJECT_ENVIRONMENT/bin/python" --compile-bytecode "$@"
}

case ${1:-}:$TORCH in
  runtime:locked)
    uv sync --frozen --no-dev --all-extras --no-install-project --compile-bytecode ;;
  runtime:wheels)
    for p in torch torchvision; do
      ls "$WHEELS/$p"-*.whl >/dev/null 2>&1 || { echo "TORCH=wheels, but docker/wheels has no $p-*.whl" >&2; exit 2; }
    done
    export_pins "$tmp/pins.txt" --no-dev --all-extras
    # Another torch wants other CUDA libraries; all the rest stays at the lock's versions.
    sed -i -E '/^(torch|torchvision|triton|nvidia-[^=]*|cuda-[^=]*)==/d' "$tmp/pins.txt"
    export_pins "$tmp/rest.txt" --no-dev --all-extras --prune torch --prune torchvision
    uv venv --quiet "$UV_PROJECT_ENVIRONMENT"
    install --constraint "$tmp/pins.txt" --requirement "$tmp/rest.txt" "$WHEELS"/*.whl ;;
  dev:*)
    export_pins "$tmp/dev.txt" --only-group dev --prune torch --prune torchvision
    install --no-deps --requirement "$tmp/dev.txt" ;;
  *)
    echo "sync-venv.sh: wants runtime or dev, and TORCH locked or wheels, not '${1:-}' and '$TORCH'" >&2
    exit 2 ;;
esac
