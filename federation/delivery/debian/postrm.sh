#!/bin/sh
set -e
another() {  # Is another program there: of another package's role, or of install.sh, perhaps with a prefix of its own?
    [ ! -e /opt/fedthorax ] || return 0
    for unit in /etc/systemd/system/fedthorax-*.service; do
        # Before the program may be a prefix of systemd's, a wrapper such as nice, or a quote. Any other program counts.
        for program in $(sed -n 's/^[ \t]*ExecStart[ \t]*=//p' "$unit" 2>/dev/null | grep -o '/[^ "'\'']*' || :); do
            [ ! -f "$program" ] || [ ! -x "$program" ] || return 0
        done
    done
    return 1
}
purge() {
    # Sites, clinics and servers stay, with their keys, unless the administrator answers yes.
    answer=false
    if another; then  # it uses the same folder and users
        echo "kept: /var/lib/fedthorax, because another installation of fedthorax is there" >&2
    elif [ -e /usr/share/debconf/confmodule ]; then
        . /usr/share/debconf/confmodule
        db_version 2.0
        db_capb
        if [ -d /var/lib/fedthorax ] && [ -n "$(ls -A /var/lib/fedthorax)" ]; then
            db_input high @PACKAGE@/delete-data || :
            db_go || :
            db_get @PACKAGE@/delete-data && answer=$RET || :
        fi
        db_purge
    fi
    ! another || return 0
    if [ "$answer" = true ]; then
        rm -rf /var/lib/fedthorax
    elif [ -d /var/lib/fedthorax ]; then
        rmdir /var/lib/fedthorax 2>/dev/null || echo "kept: /var/lib/fedthorax, with keys and data" >&2
    fi
    # Links that `systemctl enable` made. What `systemctl edit` wrote stays.
    [ ! -d /etc/systemd/system ] ||
        find /etc/systemd/system -lname '*/lib/systemd/system/fedthorax-*' -name 'fedthorax-*' -delete
    # What stays keeps its owner.
    if [ ! -d /var/lib/fedthorax ]; then
        for user in fedthorax fedthorax-app; do
            ! id "$user" >/dev/null 2>&1 || userdel "$user" || :
        done
    fi
}
# debconf runs this script again with the arguments that the function has.
if [ "$1" = purge ]; then purge "$@"; fi
# dpkg removes an empty /opt with the package, and other programs may expect it.
[ -d /opt ] || install -d -m 755 /opt
if [ -d /run/systemd/system ]; then systemctl daemon-reload || :; fi
exit 0
