# shellcheck shell=bash
# Packages of another Debian release, looked into without installing them. Sourced.
#
#   cache_directory                     where such things are kept between runs; readable for every user
#   extract_debs SUITE DIRECTORY NAME...   fetches the packages and extracts them there; a name that the suite does not have
#                                       is left out with a word; fails if there is none at all
#   fetch_source SUITE DIRECTORY NAME VERSION   the source package of that version, else the newest to be had, extracted
#
# apt gets sources, lists and caches of its own, so the machine's do not change.

cache_directory() {
    local directory=${PG_WEIR_CACHE:-/tmp/pg_weir-cache-$(id -u)}
    mkdir -p "$directory"
    # What is found there is run: it must not be another user's.
    [ -O "$directory" ] || { echo "$directory belongs to somebody else; set PG_WEIR_CACHE" >&2 && return 1; }
    chmod 755 "$directory"
    echo "$directory"
}

# foreign_apt SUITE ARGS...: apt-get (or apt-cache: set $apt) that sees this suite alone.
foreign_apt() {
    local suite=$1 state
    shift
    state=$(cache_directory)/apt-$suite
    mkdir -p "$state/lists/partial" "$state/archives/partial" "$state/sources"
    printf '%s\n' "Types: deb deb-src" "URIs: http://deb.debian.org/debian" "Suites: $suite" "Components: main" \
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" >"$state/sources/$suite.sources"
    # What a Debian 12 machine runs comes from there, as a rule.
    [ "$suite" != bookworm ] || sed -e 's,debian$,debian-security,' -e 's,bookworm$,bookworm-security,' \
        "$state/sources/$suite.sources" >"$state/sources/security.sources"
    : >"$state/status"
    # A mirror may be older than a testing suite's signature is meant to last. What it signs is still what is checked.
    "${apt:-apt-get}" -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$state/sources" \
        -o Dir::State="$state" -o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status" \
        -o Dir::Cache="$state" -o Dir::Cache::archives="$state/archives" -o APT::Sandbox::User=root \
        -o Acquire::Languages=none -o Acquire::Retries=2 -o Acquire::Check-Valid-Until=false "$@"
}

update_foreign() {
    foreign_apt "$1" -qq update
}

extract_debs() {
    local suite=$1 directory=$2 name
    shift 2
    update_foreign "$suite"
    rm -rf "$directory" "$directory.debs"
    mkdir -p "$directory" "$directory.debs"
    for name in "$@"; do
        (cd "$directory.debs" && foreign_apt "$suite" -qq download "$name") || echo "$suite has no package $name" >&2
    done
    for name in "$directory.debs"/*.deb; do
        dpkg-deb -x "$name" "$directory" || { rm -rf "$directory" "$directory.debs" && return 1; }
    done
    rm -rf "$directory.debs"
    chmod -R a+rX "$directory"
}

fetch_source() {
    local suite=$1 directory=$2 name=$3 version
    update_foreign "$suite"
    rm -rf "$directory"
    mkdir -p "$directory"
    for version in "$4" $(apt=apt-cache foreign_apt "$suite" showsrc "$name" | awk '/^Version:/ { print $2 }' | sort -rV); do
        ! (cd "$directory" && foreign_apt "$suite" -qq source --only-source "$name=$version") || break
    done
    chmod -R a+rX "$directory"
}
