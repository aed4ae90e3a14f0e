#!/bin/sh
set -e
refuse_units() {  # a unit or drop-in in /etc precedes the package's units: they would start the other program
    for pattern in @UNITS@ fedthorax-; do  # systemd applies the drop-ins of fedthorax-.service.d to all of them
        for unit in /etc/systemd/system/$pattern.service /etc/systemd/system/$pattern.service.d/*.conf; do
            line=$(sed -n 's/^ *ExecStart *= *\(.\)/ExecStart=\1/p' "$unit" 2>/dev/null | grep .) || continue
            ! echo "$line" | grep -q '[ =@:+!-]/opt/fedthorax/' || continue  # a copy that `systemctl edit --full` made
            program=$(echo "$line" | grep -o '/[^ "'\'']*/fedthorax/bin/' | head -n 1)  # also behind a wrapper
            [ -n "$program" ] || { program=${line#ExecStart=}; program=${program%% *}; }
            echo "E_INSTALL_UNITS: the unit $unit starts another program, below ${program%/fedthorax/bin/*}" >&2
            echo "  Remove that program as it came (install.sh --prefix DIR --uninstall, or apt)," \
                "or upgrade it there. Correct a drop-in with systemctl edit." >&2
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
