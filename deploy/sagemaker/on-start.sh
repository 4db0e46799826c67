#!/bin/sh
# SageMaker notebook instance, lifecycle configuration "start notebook": watches the runs in a bucket while it is up.
# It has five minutes and runs as root: the watcher is left running, as the user of the notebooks, whose role needs
# sagemaker:StopTrainingJob and access to the bucket. Only what is below SageMaker/ outlasts the instance's next start.
runs="${STEPWATCH_RUNS:-s3://my-bucket/runs}"
home="${NOTEBOOK_HOME:-/home/ec2-user/SageMaker}"
sudo -u ec2-user sh -eu -c '
    bin="$2/.stepwatch/bin"
    [ -x "$bin/stepwatch" ] || { python3 -m venv "$2/.stepwatch" && "$bin/pip" install -q "stepwatch[aws,notify]"; }
    nohup "$bin/stepwatch" watch "$1" --stop --scheduler --state "$2/.stepwatch/state" >"$2/.stepwatch/log" 2>&1 &
' on-start "$runs" "$home" || true # the instance is not kept from starting
