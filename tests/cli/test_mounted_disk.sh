#!/bin/bash
# A file system that is really full, and one that can only be read. Skipped where none may be mounted.
. "$(dirname "$0")/support/common.sh"
make_config
mkdir disk
if ! mount -t tmpfs -o size=200k tmpfs disk 2>/dev/null; then
    echo 'skipped: mounting a file system is not allowed here'
    exit 77
fi
trap 'umount "$work/disk"; rm -rf "$work"' EXIT
expect 1 "$MOEKIT" train small.yaml --run disk/run --train.steps 100
says err 'disk/run'
says err '[Nn]o space|free'
mount -o remount,ro disk
expect 1 "$MOEKIT" train small.yaml --run disk/other
says err 'disk/other'
finish
