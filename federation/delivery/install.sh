#!/bin/sh
# Installs fedthorax from the folder that holds this file. It opens no network connection.
#
#   sh install.sh              system-wide as root, else for the user who runs it
#   sh install.sh --check      checks this machine and this folder, and changes nothing
#   sh install.sh --uninstall  removes this version of the program; sites, clinics and servers stay
#
# Run it again to repeat an installation that was cut off, or to return to this version after an upgrade.
# Exit codes: 0 done, 1 refused with a code, 2 wrong usage.
set -eu
umask 022
export LC_ALL=C
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

usage() {
    echo "usage: sh install.sh [--check | --uninstall] [--system | --user]"
    echo "                     [--prefix DIR] [--python FILE] [--key FILE]"
    echo "  --system       for this machine: /opt/fedthorax, system services; needs root, and is root's default"
    echo "  --user         for this user: ~/.local/share/fedthorax, user services; needs no root"
    echo "  --prefix DIR   install below DIR instead of /opt or ~/.local/share"
    echo "  --python FILE  the Python to use instead of the first one that fits"
    echo "  --key FILE     the publisher's public key: SHA256SUMS must be signed with it (needs openssl)"
}
refuse() { echo "$1: $2" >&2; echo "  $3" >&2; exit 1; }
wrong() { echo "$1" >&2; usage >&2; exit 2; }
value() { sed -n "s/^$1=//p" "$here/BUNDLE"; }
say() { echo "$*"; }

action=install scope='' prefix='' python='' key=''
while [ $# -gt 0 ]; do
    case $1 in
        --check) action=check ;;
        --uninstall) action=uninstall ;;
        --system) scope=system ;;
        --user) scope=user ;;
        --prefix | --python | --key)
            [ -n "${2:-}" ] || wrong "$1 needs a value"  # an empty --key, too: nothing would be verified
            case $1 in --prefix) prefix=$2 ;; --python) python=$2 ;; --key) key=$2 ;; esac
            shift ;;
        --help) usage; exit 0 ;;
        *) wrong "unknown option: $1" ;;
    esac
    shift
done

if [ -z "$scope" ]; then
    if [ "$(id -u)" -eq 0 ]; then scope=system; else scope=user; fi
fi
if [ $scope = system ]; then
    [ "$(id -u)" -eq 0 ] || refuse E_INSTALL_ROOT "a system-wide installation needs root" \
        "Run it as root, or with --user as the user who will run the services."
    units=/etc/systemd/system manager=systemctl default=/opt
else
    units=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user manager="systemctl --user" default=$HOME/.local/share
fi
# One spelling of the path, because units name it. A link stays: it may lead to another disk later.
[ -z "$prefix" ] || prefix=$(realpath -m -s -- "$prefix")
prefix=${prefix:-$default}
case $prefix in *[!A-Za-z0-9/._-]*) wrong "a prefix has only letters, digits and / . _ -: $prefix" ;; esac
[ -f "$here/BUNDLE" ] || refuse E_INSTALL_FILES "a file of this folder is missing, changed or not in SHA256SUMS" \
    "Unpack the bundle again, and verify it."
role=$(value role) version=$(value version) pythons=$(value pythons)
target=$prefix/fedthorax-$version link=$prefix/fedthorax stamp=$target/.installed-$role

# --- what is checked before anything is written ---

check_files() {
    if [ -n "$key" ]; then
        { command -v openssl >/dev/null 2>&1 && [ -r "$key" ]; } ||
            refuse E_INSTALL_UNVERIFIED "the signature cannot be checked: there is no openssl, or no key at this path" \
                "Install openssl from your distribution, and check the path of --key."
        openssl dgst -sha256 -verify "$key" -signature "$here/SHA256SUMS.sig" "$here/SHA256SUMS" >/dev/null 2>&1 ||
            refuse E_INSTALL_SIGNATURE "SHA256SUMS is not signed with this key" \
                "Do not install it. Fetch it again, and compare the key's SHA-256 with its sender over another channel."
    fi
    say "checking $(value mb_packed) MB of files"
    present=$(cd "$here" && find . ! -type d ! -path ./SHA256SUMS ! -path ./SHA256SUMS.sig | sed 's|^\./||' | sort)
    listed=$(cut -c67- "$here/SHA256SUMS" | sort)
    links=$(find "$here" ! -type d ! -type f)
    if [ "$present" != "$listed" ] || [ -n "$links" ] ||
        ! (cd "$here" && sha256sum --check --strict --status SHA256SUMS); then
        refuse E_INSTALL_FILES "a file of this folder is missing, changed or not in SHA256SUMS" \
            "Unpack the bundle again, and verify it."
    fi
}

fits() {  # PYTHON: is it of a version in this bundle, and can the service see it?
    command -v "$1" >/dev/null 2>&1 || return 1
    "$1" -I - "$scope" $pythons 2>/dev/null <<'PYTHON'
import sys, venv
scope, pythons = sys.argv[1], sys.argv[2:]
seen = scope == "user" or not sys.base_prefix.startswith(("/home/", "/root/"))
sys.exit(not (seen and "%d.%d" % sys.version_info[:2] in pythons and sys.implementation.name == "cpython"))
PYTHON
}

find_python() {
    set -- "$python"
    if [ -z "$python" ]; then
        set -- /usr/bin/python3 /usr/local/bin/python3 python3
        for each in $pythons; do set -- "$@" "/usr/bin/python$each" "/usr/local/bin/python$each" "python$each"; done
    fi
    for each; do
        if fits "$each"; then python=$(command -v "$each"); return; fi
    done
    refuse E_INSTALL_PYTHON "no Python fits: this bundle is for $pythons, outside of home directories if system-wide" \
        "Install one of these versions from your distribution, name another with --python, or fetch another bundle."
}

refuse_other() {  # PLACE
    refuse E_INSTALL_OTHER "something else is where version $version would be: $1" \
        "Remove it as it came: with its install.sh (--uninstall) or with apt. If it was made by hand, move it away."
}

check_prefix() {
    place=$prefix
    while [ ! -e "$place" ] && [ ! -L "$place" ]; do place=$(dirname -- "$place"); done
    { [ -d "$place" ] && [ -w "$place" ]; } ||
        refuse E_INSTALL_PREFIX "$place is not a folder, or this user cannot write to it" \
            "Name another place with --prefix, or correct this one."
    [ -L "$link" ] || [ ! -e "$link" ] || refuse_other "$link"  # such as the program of the Debian package
    [ $scope = user ] || case $(realpath -m -- "$prefix")/ in
        /home/* | /root/* | /run/user/* | /tmp/* | /var/tmp/*)
            refuse E_INSTALL_HIDDEN "services of the system do not see programs below $prefix" \
                "Name a place with --prefix that is outside of /home, /root, /run/user, /tmp and /var/tmp." ;;
    esac
}

places_of() {  # UNIT FILE: the prefix of each fedthorax that it starts, also behind nice, env or sh -c
    awk '
        function place(word) { sub(/^[ \t"\047]/, "", word); sub(/\/fedthorax\/bin\/.$/, "", word); return word }
        /^[ \t]*[#;]/ { next }
        { line = line $0 }
        sub(/\\$/, " ", line) { next }
        sub(/^[ \t]*ExecStart[ \t]*=[ \t]*/, " ", line) {
            if (line ~ /^[ \t]*$/) found = ""  # an empty setting takes back what was set before
            sub(/^ [-@:+!|]*/, " ", line)
            if (match(line, /[ \t"\047]\/[^ \t"\047]*\/fedthorax\/bin\/./) ||
                match(line, /["\047]\/[^"\047]*\/fedthorax\/bin\/./))  # a quoted path may have spaces
                found = found place(substr(line, RSTART, RLENGTH)) "\n"
        }
        { line = "" }
        END { printf "%s", found }' "$1" 2>/dev/null || :
}
other_place_of() {  # UNIT FILE: the first of these that is not this prefix
    places_of "$1" | while IFS= read -r place; do is_prefix "$place" || { echo "$place"; break; }; done
}
is_prefix() { [ "$1" = "$prefix" ] || [ "$1" -ef "$prefix" ]; }

check_units() {  # units have the same names with any prefix: one file can start only one program
    set -- "$units"
    [ $scope = user ] || set -- "$units" /usr/lib/systemd/system  # of the Debian package, which ours would hide
    for unit in "$here/systemd/$scope"/*.service; do
        name=${unit##*/}
        name=${name%.service}
        for folder; do  # systemd applies the drop-ins of fedthorax-.service.d to all of them
            for file in "$folder/$name"*.service "$folder/$name"*.service.d/*.conf \
                "$folder"/fedthorax-.service.d/*.conf; do
                place=$(other_place_of "$file")
                [ -z "$place" ] || refuse E_INSTALL_UNITS \
                    "the unit $file starts another program, below $place" \
                    "Remove that program as it came (install.sh --prefix DIR --uninstall, or apt), \
or upgrade it there. Correct a drop-in with systemctl edit."
            done
        done
    done
}

free_mb() {  # DIR, which may not exist yet
    place=$1
    while [ ! -d "$place" ]; do place=$(dirname -- "$place"); done
    df -Pk "$place" | awk 'NR == 2 { print int($4 / 1024) }'
}

check_machine() {
    [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || refuse E_INSTALL_MACHINE \
        "this bundle is for Linux on x86_64, and this machine is $(uname -s) on $(uname -m)" \
        "Install on a machine of that kind."
    check_prefix
    check_units
    find_python
    needed=$(value glibc) found=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/^glibc //')
    lowest=$(printf '%s\n' "$needed" "${found:-0}" | sort -V | head -n 1)
    [ "$lowest" = "$needed" ] || refuse E_INSTALL_GLIBC \
        "this bundle needs glibc $needed or newer, found: ${found:-none}" \
        "Use a newer release of the distribution."
    [ -f "$stamp" ] || {
        needed=$(value mb_installed) found=$(free_mb "$prefix")
        [ "$found" -ge "$needed" ] || refuse E_INSTALL_DISK \
            "$needed MB are needed below $prefix, and $found MB are free" \
            "Free disk space, or name a place on another disk with --prefix."
    }
    for port in $(value ports); do
        is_free "$port" || {
            echo "W_INSTALL_PORT: a program of this machine uses port $port" >&2
            echo "  If it is not this service itself, set another port in the settings file before you start it." >&2
        }
    done
}

is_free() {  # PORT
    "$python" -I - "$1" 2>/dev/null <<'PYTHON'
import socket, sys
probe = socket.socket()
probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
probe.bind(("127.0.0.1", int(sys.argv[1])))
PYTHON
}

check_runnable() {  # a folder whose file system forbids programs
    mkdir -p "$prefix"
    probe=$(mktemp "$prefix/.fedthorax-XXXXXX")
    printf '#!/bin/sh\nexit 0\n' >"$probe"; chmod 700 "$probe"
    if "$probe" 2>/dev/null; then rm "$probe"; else
        rm "$probe"
        refuse E_INSTALL_NOEXEC "programs cannot run below $prefix" \
            "Name a place with --prefix whose file system is not mounted with noexec."
    fi
}

# --- services that run ---

running() {  # PATTERN: units that run, start or end; an ingest is `activating` until it ends
    command -v systemctl >/dev/null 2>&1 || return 0
    $manager list-units --plain --no-legend --state=active,activating,deactivating,reloading "$1" 2>/dev/null |
        awk '{ print $1 }'
}

home_of() {  # SERVICE: the folder of the version that it runs: the first line of each program names its Python
    pid=$($manager show --property=MainPID --value "$1" 2>/dev/null) || return 0
    { tr '\0' '\n' <"/proc/${pid:-0}/cmdline"; } 2>/dev/null | sed -n '1s|/bin/[^/]*$||p'
}

tell_restarts() {  # which services of this prefix run another version? The sandbox is restarted with its node
    for service in $(running 'fedthorax-*.service'); do
        home=$(home_of "$service")
        if ! [ "${home%/*}" -ef "$prefix" ] || [ "$home" -ef "$target" ]; then continue; fi
        case $service in
            fedthorax-ingest@*) say "$service runs version ${home##*/fedthorax-} until it ends" ;;
            *) say "$service still runs version ${home##*/fedthorax-}: $manager restart $service" ;;
        esac
    done
}

# --- what is written ---

clean() {  # COMMAND, without the settings of pip and the proxies that this user has
    env -i PATH="$PATH" HOME="$target" LC_ALL=C.UTF-8 PIP_CONFIG_FILE=/dev/null "$@"
}

install_program() {
    wheel=$(grep '  wheelhouse/fedthorax-' "$here/SHA256SUMS" | cut -d' ' -f1)
    for other in "$target"/.installed-*; do
        [ ! -f "$other" ] || grep -qx "wheel=$wheel" "$other" || refuse_other "$target"
    done
    if [ -f "$stamp" ] && grep -qx "sums=$(sha256sum <"$here/SHA256SUMS" | cut -d' ' -f1)" "$stamp"; then
        say "already installed: $target"
        return
    fi
    if [ -d "$target" ] && ! ls "$target"/.installed-* >/dev/null 2>&1; then
        [ -f "$target/.installing" ] || [ -z "$(ls -A "$target")" ] || refuse_other "$target"  # made by hand
        say "removing what an interrupted installation left in $target"
        rm -rf "$target"
    fi
    say "installing fedthorax $version for the role $role into $target: takes some minutes"
    set -- "$here"/wheelhouse/pip-*.whl  # a program that runs from its wheel
    [ -d "$target" ] || { mkdir -p "$target" && : >"$target/.installing"; }
    [ ! -f "$target/.installing" ] || clean "$python" -I -m venv --without-pip "$target"
    clean "$target/bin/python" -I "$1/pip" --isolated install --quiet --no-input --no-index \
        --find-links "$here/wheelhouse" --require-hashes --only-binary :all: --no-cache-dir \
        --disable-pip-version-check --root-user-action ignore --requirement "$here/requirements.txt" &&
        [ "$(clean "$target/bin/fedthorax" --version)" = "fedthorax $version" ] && can_load_libraries ||
        refuse E_INSTALL_FAILED "the program could not be installed, and what ran before stays as it was" \
            "Read the output above. Run install.sh again when the cause is removed."
    printf 'sums=%s\nwheel=%s\n' "$(sha256sum <"$here/SHA256SUMS" | cut -d' ' -f1)" "$wheel" >"$stamp"
    rm -f "$target/.installing"
}

can_load_libraries() {  # PyTorch may be built for a newer glibc than this machine has
    clean "$target/bin/python" -I -c 'import importlib.util as u; u.find_spec("torch") and __import__("torch")'
}

make_user() {  # the units of the system run as this user, whatever the prefix is
    [ $scope = system ] || return 0
    id fedthorax >/dev/null 2>&1 ||
        useradd --system --home-dir /var/lib/fedthorax --shell /usr/sbin/nologin fedthorax
    install -d -o fedthorax -g fedthorax -m 700 /var/lib/fedthorax
}

install_units() {
    mkdir -p "$units"
    for unit in "$here/systemd/$scope"/*; do
        new=$(mktemp "$units/.fedthorax-XXXXXX")
        sed "s|/opt/fedthorax/|$link/|" "$unit" >"$new"
        chmod 644 "$new"
        mv -f "$new" "$units/${unit##*/}"
    done
    reload
}

reload() { ! command -v systemctl >/dev/null 2>&1 || $manager daemon-reload >/dev/null 2>&1 || :; }

switch() {  # to this version, unless a role of the version in use is missing here
    before=$(readlink "$link" 2>/dev/null || :)
    for old in "$link"/.installed-*; do
        if [ -f "$old" ] && [ ! -f "$target/${old##*/}" ]; then
            say "the version in use also has the role ${old##*-}: install that bundle of version $version too"
            say "until then $link stays $before"
            return
        fi
    done
    install_units
    ln -sfn "fedthorax-$version" "$link.new" && mv -Tf "$link.new" "$link"
    if [ -n "$before" ] && [ "$before" != "fedthorax-$version" ]; then
        say "in use now: $version (before: ${before#fedthorax-}, which stays installed). Restart the services."
    fi
    tell_restarts
    say "done: $link/bin/fedthorax"
    [ $scope = system ] || say "once, so that services run while nobody is logged in: loginctl enable-linger"
}

starts_this() {  # UNIT: does it start this installation's program? Earlier versions replaced units of another prefix
    unit_file=$units/${1%.*}.service
    [ -n "$(places_of "$unit_file")" ] && [ -z "$(other_place_of "$unit_file")" ]
}

uninstall() {
    [ -f "$stamp" ] || { say "not installed: fedthorax $version for the role $role in $target"; return; }
    own=''
    if [ "$(readlink "$link")" = "fedthorax-$version" ]; then
        for unit in "$here/systemd/$scope"/*; do
            name=${unit##*/}
            if starts_this "$name"; then own="$own $name"
            elif [ -e "$units/$name" ]; then say "this unit starts another program, and stays: $units/$name"; fi
        done
    fi
    for unit in "$here/systemd/$scope"/*; do
        name=${unit##*/}
        for service in $(running "${name%@*}@*"); do
            case " $own " in *" $name "*) ;; *)  # after an upgrade, it may run this version until its restart
                [ "$(home_of "$service")" -ef "$target" ] || continue ;; esac
            refuse E_INSTALL_RUNNING "a service of this installation is running: $service" \
                "Stop and disable it with systemctl, or restart it if you have upgraded. Then run this again."
        done
    done
    rm -f "$stamp"
    for name in $own; do rm -f "$units/$name"; done
    [ -z "$own" ] || reload
    if ! ls "$target"/.installed-* >/dev/null 2>&1; then
        [ "$(readlink "$link")" != "fedthorax-$version" ] || rm -f "$link"
        rm -rf "$target"
    fi
    say "removed: fedthorax $version for the role $role. Sites, clinics and servers were not touched."
    for other in "$prefix"/fedthorax-*; do
        [ ! -d "$other" ] || [ -e "$link" ] || say "to use $other, run the install.sh that it came with"
    done
}

if [ $action = uninstall ]; then uninstall; exit 0; fi
check_files
check_machine
if [ $action = check ]; then
    say "this machine can run fedthorax $version for the role $role, with $python"
    exit 0
fi
check_runnable
install_program
make_user
switch
