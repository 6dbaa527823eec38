# Sourced by the other scripts: `attended COMMAND [ARGUMENT...]` runs a command, passes signals on to it, and returns its
# status. Without it a signal would end the script alone, and the next run would train beside the command that lives on.

child=     # the process that `attended` runs: "starting" while its number is not yet known, empty between two
pending=   # a signal that it has still to be sent
stop=      # what the script exits with before the next command, because a signal came
signals=0  # how many came

receive() {
    signals=$((signals + 1)) stop=$((128 + $(kill -l "$1"))) pending=$1
    # The shell of a lost terminal and the kernel both send SIGHUP; only the first one is meant.
    if [ "$1" = HUP ]; then trap '' HUP; fi
    if [ -z "$child" ]; then exit "$stop"; fi
    forward
}

forward() {
    local signal=$pending
    if [ "$child" = starting ]; then return; fi
    pending=
    if [ -n "$signal" ]; then kill -s "$signal" "$child" 2> /dev/null || true; fi
}

# Ctrl-Z reaches only the script; `fg` and `bg` then wake both.
pause() {
    signals=$((signals + 1))
    case $child in '' | starting) kill -s STOP $$; return ;; esac
    kill -s TSTP -- "-$child" 2> /dev/null || true
    kill -s STOP $$
    kill -s CONT -- "-$child" 2> /dev/null || true
}

# A signal that is ignored from the start, as SIGHUP is under nohup, stays ignored: bash cannot trap it.
trap 'receive HUP' HUP
trap 'receive INT' INT
trap 'receive QUIT' QUIT
trap 'receive TERM' TERM
trap pause TSTP
trap '' TTOU  # under `stty tostop` a command that is not in the foreground would be paused as it prints

attended() {
    local before status
    if [ -n "$stop" ]; then exit "$stop"; fi
    child=starting
    # A process group of its own, so that Ctrl-C reaches the command once, through `receive`: a trainer saves at the
    # first signal and ends at once at the second. From there it must not read the terminal.
    set -m
    "$@" < /dev/null &
    child=$!
    set +m
    forward
    while :; do
        before=$signals status=0
        wait "$child" || status=$?
        if [ "$signals" = "$before" ]; then break; fi  # else it may be the signal that ended the wait
    done
    case $status in -1 | 127) status=${stop:-$status} ;; esac  # bash lost it: the command ended as the signal came
    child=
    return "$status"
}
