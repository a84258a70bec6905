#!/bin/sh
# Without a command: the pipeline, then its table. With one: that command.
set -eu

fail() {
    echo "error: $1" >&2
    exit 2
}

# With --read-only, or a home that belongs to somebody else.
if ! [ -w "$HOME" ]; then
    HOME=$(mktemp -d)
    export HOME
fi

if [ -z "$(ls -A)" ] && [ -w . ]; then
    echo "empty workspace: the project is copied into it" >&2
    cp -R /opt/mlnt/. .
fi

# DVC knows who holds its locks by process number. Those of another container mean nothing here, and those of a killed
# one are soon taken again. So what changes the workspace holds this lock, through exec, as long as the container lives,
# and whoever gets it removes DVC's.
case "${*:-dvc repro}" in
"dvc repro"* | "dvc exp run"* | "dvc queue start"*) changes=yes ;;
*) changes= ;;
esac
if [ -d .dvc ] && mkdir -p .dvc/tmp 2>/dev/null && (: >>.dvc/tmp/container.lock) 2>/dev/null; then
    exec 9>>.dvc/tmp/container.lock
    if flock --nonblock 9; then
        rm -f .dvc/tmp/rwlock
        [ -n "$changes" ] || exec 9>&-
    elif [ -n "$changes" ]; then
        fail "$(pwd): another container is at work here; wait for it, or give this one a workspace of its own"
    fi
fi

if [ $# -gt 0 ]; then
    exec "$@"
fi

[ -e dvc.yaml ] || fail "$(pwd): neither empty nor a clone of mlnt (no dvc.yaml); mount one of the two, or nothing"
[ -w . ] || fail "$(pwd): user $(id -u) cannot write here; add --user \$(id -u):\$(id -g), or mount a folder of that user's"
dvc repro
exec mlnt show
