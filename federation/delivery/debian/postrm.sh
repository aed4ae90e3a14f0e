#!/bin/sh
set -e
case $1 in
    purge)
        # Sites, clinics and servers stay, with their keys, unless the administrator answers yes.
        answer=false
        if [ -e /usr/share/debconf/confmodule ]; then
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
        if [ "$answer" = true ]; then
            rm -rf /var/lib/fedthorax
        elif [ -d /var/lib/fedthorax ]; then
            rmdir /var/lib/fedthorax 2>/dev/null || echo "kept: /var/lib/fedthorax, with keys and data" >&2
        fi
        # What stays keeps its owner.
        if [ ! -d /var/lib/fedthorax ]; then
            for user in fedthorax fedthorax-app; do
                ! id "$user" >/dev/null 2>&1 || userdel "$user" || :
            done
        fi ;;
esac
# dpkg removes an empty /opt with the package, and other programs may expect it.
[ -d /opt ] || install -d -m 755 /opt
if [ -d /run/systemd/system ]; then systemctl daemon-reload || :; fi
exit 0
