#!/bin/sh
# Without a command: the pipeline, then its table. With one: that command.
set -eu

fail() {
    echo "error: $1" >&2
    exit 2
}

# With --read-only, or a home that belongs to somebody else. Its cache may be a volume: pretrained weights are looked for
# there, by torch and huggingface_hub below XDG_CACHE_HOME, unless they were given a place of their own.
if ! [ -w "$HOME" ]; then
    if [ -w "$HOME/.cache" ]; then
        export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$HOME/.cache}"
    fi
    HOME=$(mktemp -d)
    export HOME
fi

if [ -z "$(ls -A)" ] && [ -w . ]; then
    case "$*" in
    "mlnt init"*) ;;
    *) mlnt init >&2 ;;
    esac
fi

# DVC knows who holds its locks by process number. Those of another container mean nothing here, and those of a killed
# one are soon taken again. So every container holds a lock of its own, through exec, as long as it lives, and one that
# finds itself alone removes DVC's; and two that would change the workspace are kept apart.
writable() { mkdir -p .dvc/tmp 2>/dev/null && (: >>"$1") 2>/dev/null; }
if [ -d .dvc ] && writable .dvc/tmp/container.lock; then
    exec 9>>.dvc/tmp/container.lock
    if flock --nonblock 9; then
        rm -f .dvc/tmp/rwlock
    fi
    flock --shared 9
fi
case "${*:-dvc repro}" in
"dvc repro"* | "dvc exp run"*)
    if [ -d .dvc ] && writable .dvc/tmp/changes.lock; then
        exec 8>>.dvc/tmp/changes.lock
        flock --nonblock 8 ||
            fail "$(pwd): another container is at work here; wait for it, or give this one a workspace of its own"
    fi
    ;;
esac

if [ $# -gt 0 ]; then
    exec "$@"
fi

[ -e dvc.yaml ] || fail "$(pwd): neither empty nor a clone of mlnt (no dvc.yaml); mount one of the two, or nothing"
[ -w . ] || fail "$(pwd): user $(id -u) cannot write here; add --user \$(id -u):\$(id -g), or mount a folder of that user's"
dvc repro
exec mlnt show
