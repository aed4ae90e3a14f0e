#!/bin/sh
set -e
@OWN_UNITS@
case $1 in
    configure)
        for user in fedthorax:/var/lib/fedthorax @APP_USER@; do
            id "${user%%:*}" >/dev/null 2>&1 ||
                useradd --system --home-dir "${user#*:}" --shell /usr/sbin/nologin "${user%%:*}"
        done
        # A folder that is there, and its sites, are not touched.
        [ -d /var/lib/fedthorax ] || install -d -o fedthorax -g fedthorax -m 700 /var/lib/fedthorax
        if [ -d /run/systemd/system ]; then
            systemctl daemon-reload
            [ -z "$2" ] || own @SERVICES@ | xargs -r -d '\n' systemctl try-restart || :
        fi ;;
esac
exit 0
