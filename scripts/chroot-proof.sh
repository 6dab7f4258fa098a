#!/bin/bash
# chroot-proof.sh CACHE_DIR [SUITE] [GOAL...]: proves the fresh machine. As root: makes a minimal system
# of SUITE (bookworm) with debootstrap, puts a fresh clone of the last commit in, runs the make GOALs
# (demo check) there and prints how long each took. The base system is kept in CACHE_DIR for the next time.
# The mirror is this machine's, or $MIRROR where SUITE belongs to another distribution.
set -euo pipefail
cache=${1:?usage: chroot-proof.sh CACHE_DIR [SUITE] [GOAL...]}
suite=${2:-bookworm}
shift $(($# < 2 ? $# : 2))
goals=("$@")
if ((${#goals[@]} == 0)); then goals=(demo check); fi
source=$(realpath "$(dirname "$0")/..")
mkdir -p "$cache"
base=$cache/$suite.tar

mirror=${MIRROR:-$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
    awk -v suite="$suite" '$1 == suite && !uri { uri = $2 } END { print uri }')}
if [ -z "$mirror" ]; then
    echo "chroot-proof: this machine's apt has no mirror of $suite; give one in \$MIRROR" >&2
    exit 2
fi
components=main
script=()
if [ ! -e "/usr/share/debootstrap/scripts/$suite" ]; then # newer than this debootstrap: the recipe has not changed
    script=(/usr/share/debootstrap/scripts/jammy)
fi
case $mirror in *ubuntu*) components=main,universe ;; esac

if [ ! -e "$base" ]; then
    echo "making $base from $mirror"
    debootstrap ${DEBOOTSTRAP_OPTIONS:-} --variant=minbase --components=$components "$suite" "$cache/$suite.new" \
        "$mirror" ${script[@]+"${script[@]}"} >"$cache/$suite.log"
    tar -C "$cache/$suite.new" -cf "$base.new" .
    mv "$base.new" "$base"
    rm -rf "$cache/$suite.new"
fi

root=$(mktemp -d "$cache/$suite.XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT
tar -C "$root" -xf "$base"
cp /etc/resolv.conf /etc/hosts "$root/etc/"
git clone -q --no-hardlinks "$source" "$root/root/moekit"

# Mounts live in a namespace of their own and end with the last process in it.
inside() {
    unshare --mount --pid --fork --mount-proc="$root/proc" bash -c '
        mount -t tmpfs tmpfs "$0/dev/shm" && mount -t devpts devpts "$0/dev/pts" 2>/dev/null
        exec chroot "$0" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb bash -c "$1"' "$root" "$1"
}

echo "$suite, $(git -C "$source" rev-parse --short HEAD), $(nproc) cores"
inside 'apt-get -q update && apt-get -q -y install --no-install-recommends make ca-certificates' >"$cache/make.log" 2>&1
failed=0
for goal in "${goals[@]}"; do
    start=$SECONDS
    rc=0
    inside "cd /root/moekit && make $goal" 2>&1 | tee "$cache/$suite-$goal.log" || rc=$?
    echo "== $suite: make $goal: exit $rc after $((SECONDS - start)) s"
    if ((rc != 0)); then failed=1; fi
done
exit $failed
