#!/usr/bin/env bash
# Downloads axe-core, which checks the console's pages for accessibility in tests (tests/it/pages.rs), into .tools/axe-core/.
#
# It is the pinned package of npm, checked against its sha256. It needs curl and tar, and no Node. The tests give it to the browser; nothing of it is
# in the program. Without it the exit code is 1, and the tests of pages leave that check out.
# To change the version: change VERSION and SHA256 (curl as below, then sha256sum).
set -euo pipefail

VERSION=4.14.1
SHA256=e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dest=$root/.tools/axe-core
fail() { printf 'fetch-axe: %s\n' "$*" >&2; exit 1; }

[[ -s $dest/axe.min.js && -f $dest/stamp && $(<"$dest/stamp") == "$SHA256" ]] && exit 0
mkdir -p "$dest" || fail "cannot create the folder $dest."
work=$(mktemp -d "$dest/fetch.XXXXXX") || fail "cannot write to $dest."
trap 'rm -rf "$work"' EXIT
curl --fail --silent --show-error --location --retry 2 --max-time 60 --output "$work/axe.tgz" \
    "https://registry.npmjs.org/axe-core/-/axe-core-$VERSION.tgz" || fail "axe-core $VERSION could not be downloaded; is this machine offline?"
sha256sum --check --status <<<"$SHA256  $work/axe.tgz" || fail "the package does not have the pinned sha256 $SHA256; it is not used."
tar --extract --gzip --file "$work/axe.tgz" --directory "$work" --strip-components=1 package/axe.min.js package/LICENSE
# The stamp comes last, so that an interrupted run leaves a valid state.
mv -f "$work/LICENSE" "$work/axe.min.js" "$dest/"
printf '%s\n' "$SHA256" >"$dest/stamp"
