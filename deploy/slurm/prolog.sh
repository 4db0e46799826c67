#!/bin/sh
# Slurm Prolog: watches the runs below the job's working directory, as the job's user, while the job runs.
# The watcher has a unit of its own, which the epilog ends.
runs="${SLURM_JOB_WORK_DIR:-}/runs"
[ -n "${SLURM_JOB_USER:-}" ] && [ -d "$runs" ] || exit 0
systemd-run --quiet --collect --unit="stepwatch-$SLURM_JOB_ID" --uid="$SLURM_JOB_USER" \
    /opt/stepwatch/bin/stepwatch watch "$runs" --stop || true # a job is not kept from starting
