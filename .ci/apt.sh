# For the scripts beside it: Debian's packages, where apt-get may be used.

may_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# Waits while another program holds the lock: a new machine upgrades itself in its first minutes.
apt() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >&2; }

install_packages() { apt update && apt install -y --no-install-recommends "$@"; }
