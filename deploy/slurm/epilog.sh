#!/bin/sh
# Slurm Epilog: ends the watcher that the prolog began.
systemctl stop "stepwatch-$SLURM_JOB_ID.service" 2>/dev/null || true
