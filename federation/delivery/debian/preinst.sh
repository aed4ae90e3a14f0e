#!/bin/sh
set -e
refuse_units() {  # a unit in /etc hides the package's: services of the package would start the other program
    for pattern in @UNITS@; do
        for unit in /etc/systemd/system/$pattern.service; do
            line=$(grep '^ExecStart=.' "$unit" 2>/dev/null) || continue
            ! echo "$line" | grep -q '[ =@:+!-]/opt/fedthorax/' || continue  # a copy that `systemctl edit --full` made
            program=${line#ExecStart=}; program=${program%% *}
            echo "E_INSTALL_UNITS: the unit $unit starts another program, below ${program%/fedthorax/bin/*}" >&2
            echo "  Remove that program as it came (install.sh --prefix DIR --uninstall, or apt)," \
                "or upgrade it there." >&2
            exit 1
        done
    done
}
case $1 in
    install | upgrade)
        # install.sh of the offline bundle makes /opt/fedthorax a link. dpkg would write through it.
        if [ -L /opt/fedthorax ]; then
            echo "fedthorax is installed by install.sh: run its --uninstall first. Sites, clinics and servers stay." >&2
            exit 1
        fi
        # Where both are installed already, an upgrade goes on: it leaves the units of the other program alone.
        [ "$1" = upgrade ] || refuse_units ;;
esac
exit 0
