#!/bin/sh
set -e
case $1 in
    remove)
        if [ -d /run/systemd/system ]; then systemctl stop @UNITS@ || :; fi ;;
esac
exit 0
