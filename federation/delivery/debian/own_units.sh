own() {  # PATTERN...: loaded units of the package's own program. Those of an install.sh program may have the same names
    systemctl list-units --plain --no-legend "$@" | while read -r unit rest; do  # a timer is judged by its service
        ! systemctl show --property=ExecStart "${unit%.*}.service" | grep -q '[ =@:+!-]/opt/fedthorax/' || echo "$unit"
    done
}
