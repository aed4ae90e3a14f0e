#!/bin/sh
set -e
@OWN_UNITS@
case $1 in
    remove)
        if [ -d /run/systemd/system ]; then own @UNITS@ | xargs -r -d '\n' systemctl stop || :; fi ;;
esac
exit 0
