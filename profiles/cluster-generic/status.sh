#!/bin/sh
# Print the state of the job $1 for Snakemake: running, success or failed. If neither squeue nor sacct
# can be reached, the job counts as running.
state=$(squeue --noheader --states=all --format=%T --jobs="$1" 2>&1) || complaint=$state state=
[ -n "$state" ] ||
    state=$(sacct --noheader --parsable2 --allocations --format=State --jobs="$1" 2> /dev/null)
case $state in
    COMPLETED) echo success ;;
    BOOT_FAIL | CANCELLED* | DEADLINE | FAILED | NODE_FAIL | OUT_OF_MEMORY | PREEMPTED | TIMEOUT)
        echo failed ;;
    '') case $complaint in *'Invalid job id'*) echo failed ;; *) echo running ;; esac ;;
    *) echo running ;;
esac
