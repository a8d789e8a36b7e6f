# Sourced by bench/gpu.sh and bench/gpu_more.sh, which set `budget` (seconds for all parts) and then call part and finish.
#
# FOLDER gets, line by line: parts.jsonl (exit status and seconds of each part), figures.jsonl (every line of JSON that
# a part prints) and log.txt (all other output). If the machine is lost, the files are complete up to that moment.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
dry="" out="$PWD/runs/gpu" patience=1 words=()
for argument in "$@"; do
    case "$argument" in
        --dry) dry=1 patience=20 ;;
        /* | ./* | */*) out="$(realpath -m "$argument")" ;;
        *) words+=("$argument") ;;
    esac
done
python="${PYTHON:-python3}" built="$PWD/kernels/capo_kernels/lib" device=cuda suite=cuda impls="cuda triton" failed=""
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/site" "$work/bin"
export PYTHONPATH="$PWD:$PWD/kernels:$PWD/tests:$work/site" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export TMPDIR="$work" TRITON_CACHE_DIR="$work/triton" PATH="$PATH:/usr/local/cuda/bin"

part() { # part NAME SECONDS COMMAND...: runs it within its time and the time left; a failure does not stop the rest
    local name="$1" limit=$(($2 * patience)) left=$((budget * patience - SECONDS)) start="$SECONDS" from ended
    shift 2
    if [ "$left" -lt 3 ]; then
        note "$name" null 0 "left out: no time left"
        return
    fi
    echo "== $name: $*" >>"$out/log.txt"
    from="$(wc -c <"$out/log.txt")"
    timeout --signal INT --kill-after 5 "$((left < limit ? left : limit))" "$@" 2>&1 |
        tee -a "$out/log.txt" | grep --line-buffered '^{' >>"$out/figures.jsonl"
    ended="${PIPESTATUS[0]}"
    note "$name" "$ended" $((SECONDS - start)) "$([ "$ended" = 0 ] && echo ok || echo FAILED)"
    [ "$ended" = 0 ] && return
    tail -c "+$from" "$out/log.txt" | grep -aE '^(FAILED|ERROR|E  )|Error|"good": false' | head -n 6 | cut -c 1-240
}

note() { # note NAME STATUS SECONDS WORDS
    [ "$2" = 0 ] || failed="$failed $1"
    echo "{\"part\": \"$1\", \"exit_status\": $2, \"seconds\": $3}" >>"$out/parts.jsonl"
    echo "$4: $1 ($3 s)"
}

has() { # has TOOL: true if it is installed; else prints a line
    command -v "$1" >/dev/null && return
    echo "left out: $1 is not on this machine"
    return 1
}

bench() { # bench NAME SECONDS [PYTEST'S ARGUMENTS]: starts no case in the last third of its time
    local name="$1" limit="$2"
    shift 2
    # With "=": before conftest.py is read, pytest takes the value of an unknown option for a path of tests.
    part "bench-$name" "$limit" $python -m pytest -q "bench/kernels/bench_$name.py" --suite "$suite" "$@" \
        --time-limit=$((limit * patience * 2 / 3)) --figures="$out/figures.jsonl" \
        --benchmark-json "$work/bench-$name.json"
}

finish() {
    echo "all: $SECONDS s, failed:${failed:- none}; results in $out"
    [ -z "$failed" ]
}

if [ -n "$dry" ]; then # a CPU with toy shapes, stubs of the GPU's tools, and only the listed packages
    $python -m bench.gpu.packages link "$work/site" || exit 1
    python="$python -S" built="$work/bin" device=cpu suite=dry impls=cpu
    export PATH="$PWD/tests/bench/gpu_stubs:$PATH" NVCC="$PWD/tests/bench/gpu_stubs/nvcc"
elif wheels=("${PEERS:-bench/peers}"/*.whl) && [ -e "${wheels[0]}" ]; then
    $python -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "${wheels[@]}" || exit 1
fi
