# Sourced by the other scripts: where things are built, and with which compilers.
# CC and CXX are part of what cargo watches. Another value anywhere would build RocksDB again, so every script and
# every shell that builds should have exactly these: `. script/env.sh`.

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/cyxcloud/target}"
if command -v ccache >/dev/null 2>&1; then
    export CCACHE_DIR="${CCACHE_DIR:-$HOME/.cache/cyxcloud/ccache}"
    export CC="ccache gcc" CXX="ccache g++"
fi
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}"

# Clients and test tools of pinned versions live here, made by script/bootstrap.
export CYXCLOUD_VENV="${CYXCLOUD_VENV:-$HOME/.cache/cyxcloud/venv}"
# Programs that script/bootstrap builds.
export CYXCLOUD_TOOLS="${CYXCLOUD_TOOLS:-$HOME/.cache/cyxcloud/tools}"
export PATH="$PATH:$CYXCLOUD_TOOLS/bin"

# What every development build is built with. Tests ask servers for faults, which releases do not contain: script/server
# and script/bench build without. Cargo keeps one set of features apart from another, so a second set builds all twice.
export CYXCLOUD_FEATURES="--features faults"
