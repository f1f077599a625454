#!/usr/bin/env bash
# Finds or downloads ONNX Runtime's shared library, and prints its path.
#
#   scripts/fetch-onnxruntime.sh [FOLDER]        FOLDER: where to put it, default .ort/ in this repository
#
# It uses the first of these that exists:
#   1. the file in ORT_DYLIB_PATH
#   2. a library that the system's loader knows, version 1.$MIN_MINOR or later (a message says when an older one is skipped)
#   3. the pinned version in FOLDER from an earlier run (checked by a stamp file, without network)
#   4. the pinned wheel from PyPI, checked against its sha256
#
# Standard output is only the path, so that `ORT_DYLIB_PATH=$(scripts/fetch-onnxruntime.sh)` works. Messages go to standard error.
# Without a library the exit code is 1; Sluicegate then serves the models that tract can run. Needs python3 with pip, not root.
# PYTHON names another interpreter.
#
# The source is PyPI rather than the archives of the ONNX Runtime project, because package mirrors usually carry PyPI.
# To change the version: change VERSION and both sums (`pip download` as below for each platform, then sha256sum).
set -euo pipefail

VERSION=1.31.1
SHA256_x86_64=5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f
SHA256_aarch64=da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3
# The gateway needs this version of the C API (`api-18` in Cargo.toml).
MIN_MINOR=18
# The glibc that the wheels are built against (manylinux_2_28).
GLIBC=2.28

python=${PYTHON:-python3}
say() { printf 'fetch-onnxruntime: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dest=${1:-$root/.ort}

# --- 1. ORT_DYLIB_PATH
if [[ -n ${ORT_DYLIB_PATH:-} ]]; then
    if [[ -f $ORT_DYLIB_PATH ]]; then
        printf '%s\n' "$ORT_DYLIB_PATH"
        exit 0
    fi
    say "ORT_DYLIB_PATH does not name a file ($ORT_DYLIB_PATH); trying other places"
fi

# --- 2. a library of the system
# ldconfig is in /sbin, which may not be on PATH. sed instead of head, because a closed pipe would be an error.
system=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | sed -n '/^[[:space:]]*libonnxruntime\.so/s/.*=> //p' | sort -V | sed -n '$p' || true)
if [[ -n $system && -f $system ]]; then
    real=$(readlink -f "$system")
    minor=$(sed -nE 's/.*\.so\.1\.([0-9]+).*/\1/p' <<<"$real")
    # A file name without a version is accepted; the gateway checks again when it loads the library.
    if [[ -z $minor || $minor -ge $MIN_MINOR ]]; then
        printf '%s\n' "$system"
        exit 0
    fi
    say "skipping $system: it is version 1.$minor, at least 1.$MIN_MINOR is needed"
fi

# --- 3. the download of an earlier run
machine=$(uname -m)
case $machine in
    x86_64 | amd64) arch=x86_64 sum=$SHA256_x86_64 ;;
    aarch64 | arm64) arch=aarch64 sum=$SHA256_aarch64 ;;
    *) arch='' sum='' ;;
esac
library=$dest/libonnxruntime.so
stamp=$dest/stamp
# The stamp has the size, so that a truncated library is downloaded again.
stamp_for() { printf 'onnxruntime %s %s wheel sha256 %s, library %s bytes\n' "$VERSION" "$arch" "$sum" "$(stat -Lc %s "$1")"; }
if [[ -n $arch && -s $library && -f $stamp && $(<"$stamp") == "$(stamp_for "$library")" ]]; then
    printf '%s\n' "$library"
    exit 0
fi

# --- 4. the pinned wheel
[[ $(uname -s) == Linux && -n $arch ]] ||
    fail "the pinned ONNX Runtime is for Linux on x86-64 and aarch64, not for $(uname -s) on $machine; set ORT_DYLIB_PATH to another library."
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/^glibc //' || true)
[[ -n $glibc && $(printf '%s\n' "$GLIBC" "$glibc" | sort -V | sed -n 1p) == "$GLIBC" ]] ||
    fail "ONNX Runtime's wheel needs glibc $GLIBC or newer and this system has ${glibc:-another C library}; set ORT_DYLIB_PATH to another library."
"$python" -m pip --version >/dev/null 2>&1 ||
    fail "downloading ONNX Runtime needs $python with pip; install it, or set ORT_DYLIB_PATH."

mkdir -p "$dest" 2>/dev/null || fail "cannot create the folder $dest."
work=$(mktemp -d "$dest/fetch.XXXXXX" 2>/dev/null) || fail "cannot write to $dest."
trap 'rm -rf "$work"' EXIT

say "downloading ONNX Runtime $VERSION for $arch (about 20 MB)"
# Few retries and a short timeout, so that it fails within seconds when offline.
if ! "$python" -m pip --disable-pip-version-check --retries 2 --timeout 20 download --quiet --no-deps --only-binary=:all: \
    --platform "manylinux_${GLIBC//./_}_$arch" --implementation cp --python-version 3.11 --abi cp311 \
    --dest "$work" "onnxruntime==$VERSION" >"$work/pip.log" 2>&1; then
    why=$(sed -n 's/^ERROR: //p' "$work/pip.log" | sed -n 1p)
    fail "ONNX Runtime $VERSION could not be downloaded by pip (${why:-no reason given}); is this machine offline?"
fi
wheels=("$work"/*.whl)
[[ -f ${wheels[0]} && ${#wheels[@]} -eq 1 ]] || fail "pip did not download exactly one wheel of onnxruntime $VERSION."
sha256sum --check --status <<<"$sum  ${wheels[0]}" ||
    fail "the downloaded wheel (${wheels[0]##*/}) does not have the pinned sha256 $sum; it is not used."

# The licence texts are kept for redistribution, for example in the container image.
"$python" - "${wheels[0]}" "$work" "$VERSION" <<'PY' || fail "the wheel of onnxruntime $VERSION could not be unpacked into $dest (is the disk full?)."
import pathlib, sys, zipfile
wheel, work, version = sys.argv[1:]
wanted = {
    f"onnxruntime/capi/libonnxruntime.so.{version}": "libonnxruntime.so",
    "onnxruntime/LICENSE": "LICENSE",
    "onnxruntime/ThirdPartyNotices.txt": "ThirdPartyNotices.txt",
}
with zipfile.ZipFile(wheel) as archive:
    for name, file in wanted.items():
        pathlib.Path(work, file).write_bytes(archive.read(name))
PY

# Renames are atomic and the stamp comes last, so that concurrent or interrupted runs leave a valid state.
stamp_for "$work/libonnxruntime.so" >"$work/stamp"
chmod 755 "$work/libonnxruntime.so"
for file in LICENSE ThirdPartyNotices.txt libonnxruntime.so stamp; do
    mv -f "$work/$file" "$dest/$file"
done
printf '%s\n' "$library"
