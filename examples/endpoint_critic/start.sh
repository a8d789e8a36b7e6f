#!/usr/bin/env bash
# Server and training in one terminal; the server runs until training ends. bash start.sh [settings of capo train]
set -euo pipefail

export PORT="${PORT:-8000}"
mkdir -p runs
bash serve.sh > runs/server.log 2>&1 &
server=$!
trap 'kill "$server" 2> /dev/null || true; wait "$server" || true' EXIT

echo "waiting for the server (its output: runs/server.log)"
until curl --silent --fail --output /dev/null "http://127.0.0.1:$PORT/health"; do
    kill -0 "$server" 2> /dev/null || { tail -3 runs/server.log >&2; exit 1; } # it has exited
    sleep 1
done

capo train --config pkg://capo_fast.configs/tiny.yaml settings.yaml --endpoint.url "http://127.0.0.1:$PORT/v1" "$@"
