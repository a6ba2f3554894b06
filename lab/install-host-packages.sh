#!/bin/sh
# Install the Debian packages that building, testing and the lab need; quick when all are there.
set -eu
cd "$(dirname "$0")"
packages=$(sed 's/#.*//' host-packages.txt)
missing=
for package in $packages; do
	status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
	echo "missing Debian packages:$missing" >&2
	echo "install them as root: apt-get install$missing" >&2
	exit 1
fi
echo "lab: installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >&2
# shellcheck disable=SC2086  # a list of packages
apt-get install -q -y --no-install-recommends $missing >&2
