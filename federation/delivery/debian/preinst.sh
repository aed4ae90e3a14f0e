#!/bin/sh
set -e
# install.sh of the offline bundle makes /opt/fedthorax a link. dpkg would write through it.
case $1 in
    install | upgrade)
        if [ -L /opt/fedthorax ]; then
            echo "fedthorax is installed by install.sh: run its --uninstall first. Sites, clinics and servers stay." >&2
            exit 1
        fi ;;
esac
exit 0
