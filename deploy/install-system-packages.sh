#!/bin/sh
# Install the named Debian packages that are missing; with sudo when not root.
set -eu
if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "This system has no apt. Install these by hand, then run make again:" >&2
    echo "  RabbitMQ with its MQTT plugin, Mosquitto and its clients, PostgreSQL's" >&2
    echo "  server (only for tests), and the Fashion-MNIST data set (only for" >&2
    echo "  training; Debian: dataset-fashion-mnist)" >&2
    command -v rabbitmq-server >/dev/null 2>&1 || [ -x /usr/sbin/rabbitmq-server ] || exit 1
    exit 0
fi
missing=""
for package in "$@"; do
    state=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$state" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
as_root=""
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null 2>&1 || {
        echo "Not root and no sudo. As root: apt-get install$missing" >&2
        exit 1
    }
    as_root="sudo"
fi
echo "    installing$missing"
# The packages start their own services, which nothing here uses.
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
case "$missing " in *" postgresql "*)
    # Tests run a server of their own: the package must not make and start a cluster.
    no_cluster=/etc/postgresql-common/createcluster.d/overspill-setup.conf
    $as_root mkdir -p "${no_cluster%/*}"
    echo "create_main_cluster = false" | $as_root tee "$no_cluster" >/dev/null
    # Who installs another version later shall have their cluster.
    trap '$as_root rm -f "$no_cluster"' EXIT ;;
esac
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
