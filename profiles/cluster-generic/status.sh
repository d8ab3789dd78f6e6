#!/bin/sh
# Tell Snakemake how the job $1 is: running, success or failed.
state=$(squeue --noheader --states=all --format=%T --jobs="$1" 2> /dev/null)
[ -n "$state" ] || state=$(sacct --noheader --allocations --format=State --jobs="$1" 2> /dev/null)
case $state in
    *COMPLETED*) echo success ;;
    PENDING | RUNNING | COMPLETING | CONFIGURING | SUSPENDED | REQUEUED | STAGE_OUT) echo running ;;
    *) echo failed ;;
esac
